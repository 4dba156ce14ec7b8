//! See [`flipside_fuzz::outside::foreign`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::outside::foreign(data);
});
