//! The daemon is killed before and after every effect of every workflow, and the next one is right after its first look:
//! what was draining goes on serving, what was being stopped is down, what was loading runs, what was going off is off; no
//! conversation is lost and no law broken.
//!
//! Once as it is, kill -9 of the process on the virtual server, and once on a simulated server and paused time, where every
//! moment can be tried.

#[path = "../journals/mod.rs"]
mod journals;
mod points;
#[path = "../sim/mod.rs"]
mod sim;
mod simulated;
#[path = "../spec/mod.rs"]
mod spec;

#[cfg(feature = "virtual-server")]
#[path = "../soak/checker.rs"]
#[allow(dead_code, reason = "the soak's, of which this uses a part")]
mod checker;
#[cfg(feature = "virtual-server")]
#[path = "../soak/ledger.rs"]
#[allow(dead_code, reason = "the soak's, of which this uses a part")]
mod ledger;
#[cfg(feature = "virtual-server")]
#[path = "../soak/ops.rs"]
#[allow(dead_code, reason = "the soak's, of which this uses a part")]
mod ops;
#[cfg(feature = "virtual-server")]
#[path = "../soak/plan.rs"]
#[allow(dead_code, reason = "the soak's, of which this uses a part")]
mod plan;
#[cfg(feature = "virtual-server")]
mod processes;
#[cfg(feature = "virtual-server")]
#[path = "../soak/stage.rs"]
#[allow(dead_code, reason = "the soak's, of which this uses a part")]
mod stage;
