//! See [`flipside_fuzz::outside::command_line`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::outside::command_line(data);
});
