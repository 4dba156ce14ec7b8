//! See [`flipside_fuzz::outside::capture`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::outside::capture(data);
});
