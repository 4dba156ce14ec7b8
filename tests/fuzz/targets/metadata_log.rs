//! See [`flipside_fuzz::metadata::log`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::metadata::log(data);
});
