//! A block device of the kernel's for each volume, through `ublk_drv`.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`wire`] | what is said to the kernel and what it asks for, without any I/O |
//! | [`control`] | making, listing and removing devices |
//! | [`device`] | one device being served: its queue on the unit's own ring |
//!
//! The kernel that `tools/vm` boots (Debian's 6.12) has user copy, user recovery with its two
//! variants and unprivileged devices, and neither zero copy (its first form was never usable and is
//! not offered) nor automatic buffer registration, resizing, quiescing or DMA alignment as a
//! parameter: what came later is not used, since it could not be tested. `flipside ublk list` shows
//! what a kernel has.

pub mod control;
pub mod device;
pub mod wire;

pub use control::{Control, UblkError, block_device, feature_names};
pub use device::{Device, Shared};
