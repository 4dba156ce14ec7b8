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
//! while nobody serves, or DMA alignment as a parameter. With `FLIPSIDE_VM_SUITE=trixie-backports`
//! it boots that suite's newest one (7.3.4), which has all of these. `flipside ublk list` shows
//! what a kernel has. Of what tests want besides, both have as modules: nbd, dm-log-writes,
//! dm-flakey, dm-delay, pmem (ACPI's and `memmap=`), DAX on ext4 and xfs, netem, brd, null_blk,
//! scsi_debug, btrfs.
//!
//! # What is not copied
//!
//! With zero copy and automatic registration (both, from Linux 6.16 on) the kernel puts the pages
//! of each request into the ring's table of buffers before we hear of it, and takes them out with
//! our answer. Operations on files name them by their place ([`crate::uring::place`]); the bytes
//! themselves cannot be touched, but the driver lets them be copied beside, as without.
//!
//! - **A read** of whole blocks that all have contents, none of them in the journal, goes from the
//!   devices into those pages. Which reads are such the maps say before anything is read, and what
//!   is found is counted: pages that nobody filled would show their last user's bytes. A hole, a
//!   part of a block, a block in memory, memory that a device cannot reach (one that is less
//!   aligned than its sectors), a failed read: then it is done over by copying, which says what is
//!   wrong.
//! - **A write** is copied. The pages stay its client's, who may change them while they are being
//!   written (memory-mapped files, clients of `O_DIRECT`): its sums would not be those of what is
//!   on the device, the journal's copy not what the device has, and what a warm restart writes
//!   again not what was acknowledged.

pub mod control;
pub mod device;
pub mod wire;

pub use control::{Control, UblkError, block_device, feature_names};
pub use device::{Device, Shared, Wanted};
