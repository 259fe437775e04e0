//! libFuzzer's door to `nowconnect_fuzz::hub_machine`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::hub_machine(data));
