//! The executable specification: the machine explored whole, and the laws that hold on every edge.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod explore;
pub mod journal;
pub mod laws;
pub mod sample;
