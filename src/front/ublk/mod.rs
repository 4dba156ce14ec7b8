//! A block device of the kernel's for each volume, through `ublk_drv`.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`wire`] | what is said to the kernel and what it asks for, without any I/O |
//! | [`control`] | making, listing and removing devices |
//! | [`device`] | one device being served: its queues on the unit's own ring |
//!
//! # What kernels have
//!
//! The kernel that `tools/vm` boots (Debian's 6.12) names the features complete-in-task,
//! need-get-data, user-recovery, user-recovery-reissue, unprivileged, ioctl-encode, user-copy and
//! zoned: neither zero copy nor automatic buffer registration, resizing, quiescing, failing I/O
//! while nobody serves, or DMA alignment as a parameter. What that kernel has not is not used,
//! since it could not be tested. `flipside ublk list` shows what a kernel has. Of what tests want
//! besides, it has as modules: nbd, dm-log-writes, dm-flakey, dm-delay, pmem (ACPI's and
//! `memmap=`), DAX on ext4 and xfs, netem, brd, null_blk, scsi_debug, btrfs.

pub mod control;
pub mod device;
pub mod wire;

pub use control::{Control, UblkError, block_device, feature_names};
pub use device::{Device, Shared, Wanted};
