//! libFuzzer's door to `nowconnect_fuzz::config_yaml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::config_yaml(data));
