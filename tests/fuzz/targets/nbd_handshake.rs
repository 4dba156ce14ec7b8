//! See [`flipside_fuzz::nbd::handshake`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flipside_fuzz::nbd::handshake(data);
});
