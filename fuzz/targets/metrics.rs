//! A page of Prometheus text, from whoever answers at a backend's port.

use wechsler::host::http::{understand_llama, vllm_activity};

pub fn run(data: &[u8]) {
    let page = String::from_utf8_lossy(data);
    let _ = vllm_activity(&page);
    let _ = understand_llama(b"[{\"id\":0}]", &page);
}
