//! The executable specification: the machine explored whole, and the laws that hold on every edge.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod alphabet;
pub mod broken;
pub mod explore;
pub mod laws;
pub mod matrix;
pub mod rare;
pub mod sample;
pub mod words;
