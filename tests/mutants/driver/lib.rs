//! The driver without the daemon around it. Its tests are a part of it, so that there is one program to link.
pub mod config;
pub mod driver;
pub mod machine;

#[cfg(test)]
extern crate self as wechsler;
#[cfg(test)]
#[path = "../tests/driver.rs"]
mod tests_of_driver;
