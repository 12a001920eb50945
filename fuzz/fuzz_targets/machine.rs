#![no_main]

// Its bytes are no text.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    wechsler_fuzz::targets::run("machine", data);
});
