//! The language model: what comes next is a function of the model and of everything before it.

use serde_json::Value;

/// What a model that has read nothing yet holds in mind.
pub(super) fn seed(model: &str) -> u64 {
    model.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// What it holds in mind after one more token (FNV-1a).
pub(super) const fn step(mind: u64, token: u8) -> u64 {
    (mind ^ token as u64).wrapping_mul(0x0000_0100_0000_01b3)
}

/// The token that comes next: letters, about as frequent as in English.
pub(super) fn next(mind: u64) -> u8 {
    const LETTERS: &[u8; 32] = b"eeettaaooiinnsshhrrdluc m  w fgy";
    // The high bits of FNV are the well mixed ones.
    LETTERS[usize::from((mind >> 57) as u8 & 31)]
}

/// What the model at this path answers to a prompt with this many tokens: what a virtual program generates unless its
/// slot holds something else than it should.
pub fn right_text(model: &str, prompt: &str, tokens: usize) -> String {
    let mut mind = prompt.bytes().fold(seed(model), step);
    (0..tokens)
        .map(|_| {
            let token = next(mind);
            mind = step(mind, token);
            char::from(token)
        })
        .collect()
}

/// The prompt that the messages of a chat become.
pub fn chat_prompt(messages: &Value) -> String {
    let mut prompt = String::new();
    for message in messages.as_array().into_iter().flatten() {
        let word = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default();
        prompt.extend(["<|", word("role"), "|>", word("content"), "\n"]);
    }
    prompt.push_str("<|assistant|>");
    prompt
}
