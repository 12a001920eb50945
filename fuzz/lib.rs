//! What the programs of `fuzz_targets/` share, so that it is built once: the targets, and how their inputs are changed.

pub mod mutator;
pub mod targets;

/// The program of a target whose inputs are changed in its format.
#[macro_export]
macro_rules! program {
    ($target:literal) => {
        libfuzzer_sys::fuzz_target!(|data: &[u8]| {
            $crate::targets::run($target, data);
        });
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::mutator::mutate($target, data, size, max_size, seed)
        });
    };
}
