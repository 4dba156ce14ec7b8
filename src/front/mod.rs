//! What clients talk to: NBD, block devices of the kernel, the control socket, and the port of a
//! metadata server.

pub mod control;
pub mod export;
mod followed;
pub mod hex;
pub mod listen;
pub mod metadata;
pub mod nbd;
pub mod ublk;
mod volume;

pub use export::{ErrorKind, Export, ExportError, PAYLOAD_MAX, Placement, Run};
