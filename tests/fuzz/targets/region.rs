//! See [`flipside_fuzz::journal::region`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::journal::region(data);
});
