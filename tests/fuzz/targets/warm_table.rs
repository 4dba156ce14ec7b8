//! See [`flipside_fuzz::journal::warm_table`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::journal::warm_table(data);
});
