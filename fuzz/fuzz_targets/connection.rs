#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hypercache_fuzz::connection::law(bytes));
