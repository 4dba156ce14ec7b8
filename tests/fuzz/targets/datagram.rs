//! See [`flipside_fuzz::metadata::datagram`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::metadata::datagram(data);
});
