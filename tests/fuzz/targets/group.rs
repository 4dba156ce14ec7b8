//! See [`flipside_fuzz::journal::group`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::journal::group(data);
});
