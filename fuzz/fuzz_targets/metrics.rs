//! A page of Prometheus text, from whoever answers at the backend's port.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = wechsler::host::http::vllm_activity(&String::from_utf8_lossy(data));
});
