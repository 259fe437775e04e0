//! libFuzzer's door to `nowconnect_fuzz::pair`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::pair(data));
