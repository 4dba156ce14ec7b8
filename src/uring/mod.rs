//! The ring: executor, operations and buffers on io_uring.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`executor`], `owner` | tasks and wakers, without a ring |
//! | [`ring`], `setup`, `lookout`, [`error`] | the ring, its loop, and why there is none |
//! | `operation` | what is in flight |
//! | `file`, [`socket`], [`datagram`], `message`, `poll`, [`timer`] | the operations |
//! | [`ublk`] | the kernel's side of a block device that this process serves |
//! | [`fd`] | open files, registered where there is room |
//! | [`buffers`], [`buddy`], [`place`] | aligned memory, and places for what others lend |

pub mod buddy;
pub mod buffers;
pub mod datagram;
pub mod error;
pub mod executor;
pub mod fd;
mod file;
mod lookout;
mod message;
mod operation;
mod owner;
pub mod place;
mod poll;
pub mod ring;
mod setup;
pub mod socket;
#[cfg(test)]
mod tests;
pub mod timer;
pub mod ublk;

pub use datagram::{Arrived, DatagramOptions, Datagrams};
pub use error::{RingError, RingErrorKind};
pub use executor::Executor;
pub use fd::Fd;
pub use message::PIECES_MAX;
pub use operation::OPERATIONS_MAX;
pub use ring::{Ring, RingOptions};
pub use socket::{Listener, Socket};
pub use timer::Sleep;
