#![no_main]

#[macro_use]
#[path = "../mutator.rs"]
mod mutator;
#[path = "../targets/mod.rs"]
mod targets;

program!("host_keys");
