//! The NBD front end, after the public protocol document.

pub mod handshake;
pub mod reply;
pub mod request;
pub mod wire;
