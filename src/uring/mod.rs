//! The ring: executor, operations and buffers on io_uring.

pub mod buddy;
pub mod buffers;
pub mod executor;
pub mod owner;
