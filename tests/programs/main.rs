//! The programs of the virtual server, over real loopback sockets: each habit that they have from the real ones, and
//! each fault. `tests/lab/test_conformance.py` holds the virtual llama.cpp against the real one.
#![cfg(feature = "virtual-server")]

mod alone;
mod faults;
mod llama;
mod probe;
mod rig;
mod signals;
mod slots;
mod vllm;
