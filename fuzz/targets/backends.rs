//! JSON of llama.cpp and vLLM, or of whoever answers at their ports.

use wechsler::host::http::{understand_llama, understand_models};

use super::{Kinds, understood};

pub fn run(data: &[u8]) -> Kinds {
    let (props, activity, done) = understand_llama(data, "llamacpp:requests_processing 1\n");
    let mut kinds = understood([
        ("props", props.is_some_and(|props| props.model.is_some())),
        ("slots", activity.is_some_and(|activity| !activity.slots.is_empty())),
        ("done", done.is_some()),
    ]);
    for (owner, models) in [("llamacpp", "models-of-llama"), ("vllm", "models-of-vllm")] {
        for wanted in [None, Some("model")] {
            if let Ok(identity) = understand_models(data, owner, wanted) {
                assert!(identity.model.is_some());
                kinds.push(models);
            }
        }
    }
    kinds
}
