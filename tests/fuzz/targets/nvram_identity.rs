//! See [`flipside_fuzz::outside::nvram_identity`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::outside::nvram_identity(data);
});
