//! A page of Prometheus text, from whoever answers at a backend's port.

use wechsler::host::http::{understand_llama, vllm_activity};

use super::{Kinds, kind};

pub fn run(data: &[u8]) -> Kinds {
    let page = String::from_utf8_lossy(data);
    let vllm = vllm_activity(&page);
    let (_, llama, _) = understand_llama(b"[{\"id\":0}]", &page);
    let vllm = kind("vllm", vllm.in_flight.is_some() && vllm.mark.is_some());
    let llama = kind("llama", llama.is_some_and(|llama| llama.in_flight.is_some() && llama.prompts.is_some()));
    vllm.into_iter().chain(llama).collect()
}
