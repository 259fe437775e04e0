//! libFuzzer's door to `nowconnect_fuzz::differential_v1_v2`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::differential_v1_v2(data));
