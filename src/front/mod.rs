//! What clients talk to: NBD, and the control socket.

pub mod control;
pub mod export;
pub mod listen;
pub mod nbd;
mod volume;

pub use export::{ErrorKind, Export, ExportError, PAYLOAD_MAX, Placement, Run};
