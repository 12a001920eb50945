//! The driver: the one task that owns the machine.

pub mod handle;
pub mod status;
pub mod world;

pub use handle::{Change, Handle, OperationRecord, Request};
pub use world::World;
