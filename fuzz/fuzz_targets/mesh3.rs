//! libFuzzer's door to `nowconnect_fuzz::mesh3`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::mesh3(data));
