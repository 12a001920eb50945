//! The real world.

pub mod http;
pub mod slot_files;
pub mod slots;
