//! See [`flipside_fuzz::metadata::server`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::metadata::server(data);
});
