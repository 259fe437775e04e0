//! libFuzzer's door to `nowconnect_fuzz::jwt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::jwt(data));
