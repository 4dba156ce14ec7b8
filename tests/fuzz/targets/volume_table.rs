//! See [`flipside_fuzz::metadata::volume_table`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::metadata::volume_table(data);
});
