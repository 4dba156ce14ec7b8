//! See [`flipside_fuzz::outside::control`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::outside::control(data);
});
