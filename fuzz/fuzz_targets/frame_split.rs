//! libFuzzer's door to `nowconnect_fuzz::frame_split`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::frame_split(data));
