//! The machine without the daemon around it. Its tests are a part of it, so that there is one program to build.
pub mod machine;

#[cfg(test)]
extern crate self as wechsler;
#[cfg(test)]
#[path = "../tests/timelines/main.rs"]
mod timelines;
#[cfg(test)]
#[path = "../tests/laws.rs"]
mod laws;
#[cfg(test)]
#[path = "../tests/storms.rs"]
mod storms;
