//! JSON of llama.cpp and vLLM, or of whoever answers at their ports.

use wechsler::host::http::{understand_llama, understand_models};

pub fn run(data: &[u8]) {
    let _ = understand_llama(data, "llamacpp:requests_processing 1\n");
    for owner in ["llamacpp", "vllm"] {
        for wanted in [None, Some("model")] {
            if let Ok(identity) = understand_models(data, owner, wanted) {
                assert!(identity.model.is_some());
            }
        }
    }
}
