//! libFuzzer's door to `nowconnect_fuzz::agent_machine`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::agent_machine(data));
