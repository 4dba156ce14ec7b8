//! See [`flipside_fuzz::journal::home`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::journal::home(data);
});
