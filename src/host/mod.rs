//! The real world.

pub mod slot_files;
