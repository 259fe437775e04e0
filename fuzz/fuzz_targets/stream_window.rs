//! libFuzzer's door to `nowconnect_fuzz::stream_window`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::stream_window(data));
