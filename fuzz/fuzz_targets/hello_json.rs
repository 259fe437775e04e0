//! libFuzzer's door to `nowconnect_fuzz::hello_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::hello_json(data));
