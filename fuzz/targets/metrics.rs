//! A page of Prometheus text, from whoever answers at a backend's port.

use wechsler::host::http::{understand_llama, vllm_activity};

use super::{Kinds, understood};

pub fn run(data: &[u8]) -> Kinds {
    let page = String::from_utf8_lossy(data);
    let vllm = vllm_activity(&page);
    let (_, llama, _) = understand_llama(b"[{\"id\":0}]", &page);
    understood([
        ("vllm", vllm.in_flight.is_some() && vllm.mark.is_some()),
        ("llama", llama.is_some_and(|llama| llama.in_flight.is_some() && llama.prompts.is_some())),
    ])
}
