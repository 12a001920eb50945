//! The machine without the daemon around it.
pub mod machine;
