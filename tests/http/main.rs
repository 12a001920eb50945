//! Backends over real loopback sockets, against servers made by hand that do what the real ones were seen doing, also the
//! surprising things.

mod at_once;
mod choice;
mod digest;
mod doubt;
mod health;
mod llama;
mod restore;
mod room;
mod save;
mod server;
mod tend;
mod unchanged;
mod usage;
