//! What breaks in systems of this kind, each case a test: `row_ID_…` injects the fault, makes sure that it struck, and asserts
//! what Wechsler does about it, with a control without the fault. `rows.rs` lists the cases; the table in `README.md` says
//! which test covers which, and is compared with the tests.
//!
//! Most run against the virtual server, through the daemon's own adapters and real sockets, in times a hundredth of the real
//! ones; some against the simulated one on paused time, where minutes matter; some are lab tests (`tests/lab`).
#![cfg(feature = "virtual-server")]

mod bench;
mod control;
mod gpu;
mod health;
mod paused;
mod power;
mod rows;
mod slots;
mod stop;
mod swap;
mod table;

#[path = "../sim/mod.rs"]
mod sim;
