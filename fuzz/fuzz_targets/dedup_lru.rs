//! libFuzzer's door to `nowconnect_fuzz::dedup_lru`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz::dedup_lru(data));
