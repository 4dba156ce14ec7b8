//! See [`flipside_fuzz::outside::configuration`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::outside::configuration(data);
});
