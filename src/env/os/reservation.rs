//! Persistent reservations: the device itself keeps the writes of other hosts out (design section
//! 8, ownership; SCSI and NVMe, through the block layer's ioctls).
//!
//! A host registers its key and reserves the device for writing; others may read. Who takes over
//! preempts the old owner's key: from then on that host's writes fail at the device, those that it
//! has under way are aborted, and what a claim calls fenced is true.
//!
//! # Contract
//!
//! **Lifetime**: a reservation outlives its process. It is given back by [`Reservable::release`],
//! or taken by another host's [`Reservable::preempt`]; a device's power may end it. Where reserving
//! or preempting ends in anything but [`Reserved::Held`], this host may be in the device's list:
//! releasing takes it out.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

use crate::format::ids::HostId;

/// What the kernel calls `PR_WRITE_EXCLUSIVE`: one host writes, all may read.
const WRITE_EXCLUSIVE: u32 = 1;
/// What the kernel calls `PR_FL_IGNORE_KEY`: whatever key this host had registered before.
const IGNORE_KEY: u32 = 1;

/// Linux: `struct pr_registration`.
#[repr(C)]
struct Registration {
    old_key: u64,
    new_key: u64,
    flags: u32,
    pad: u32,
}

/// Linux: `struct pr_reservation`.
#[repr(C)]
struct Reservation {
    key: u64,
    kind: u32,
    flags: u32,
}

/// Linux: `struct pr_preempt`.
#[repr(C)]
struct Preempt {
    old_key: u64,
    new_key: u64,
    kind: u32,
    flags: u32,
}

const _: () = assert!(size_of::<Registration>() == 24);
const _: () = assert!(size_of::<Reservation>() == 16);
const _: () = assert!(size_of::<Preempt>() == 24);

mod ioctl {
    use super::{Preempt, Registration, Reservation};
    nix::ioctl_write_ptr!(register, b'p', 200, Registration);
    nix::ioctl_write_ptr!(reserve, b'p', 201, Reservation);
    nix::ioctl_write_ptr!(release, b'p', 202, Reservation);
    nix::ioctl_write_ptr!(preempt_abort, b'p', 204, Preempt);
}

/// What a host registers: never 0, which means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of a host.
    pub fn of(host: HostId) -> Self {
        let [high, low] = [0, 8].map(|at| {
            u64::from_le_bytes(host.0[at..at + 8].try_into().expect("eight of sixteen bytes"))
        });
        Key((high ^ low.rotate_left(32)).max(1))
    }
}

/// How asking a device for its reservation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// No other host can write to it.
    Held,
    /// Another host has it.
    Elsewhere,
    /// The device has no reservations: a file, a loop device, most local disks.
    Unsupported,
}

/// What can be reserved.
pub trait Reservable {
    /// Registers this host and reserves the device for its writes; again, it does nothing.
    fn reserve(&self, key: Key) -> io::Result<Reserved>;
    /// Takes the reservation from the host of another key, whose writes under way are aborted and
    /// whose later ones fail. This host must be registered.
    fn preempt(&self, ours: Key, theirs: Key) -> io::Result<Reserved>;
    /// Gives the reservation back, if it is this host's, and takes this host out of the list.
    fn release(&self, key: Key) -> io::Result<Reserved>;
}

impl Reservable for File {
    fn reserve(&self, key: Key) -> io::Result<Reserved> {
        reserve(self, key)
    }

    fn preempt(&self, ours: Key, theirs: Key) -> io::Result<Reserved> {
        preempt(self, ours, theirs)
    }

    fn release(&self, key: Key) -> io::Result<Reserved> {
        release(self, key)
    }
}

fn reserve(device: &File, key: Key) -> io::Result<Reserved> {
    let registration = Registration { old_key: 0, new_key: key.0, flags: IGNORE_KEY, pad: 0 };
    // SAFETY: the request reads one `pr_registration` from the place given.
    let registered = unsafe { ioctl::register(device.as_raw_fd(), &raw const registration) };
    match outcome(registered)? {
        Reserved::Held => {}
        other => return Ok(other),
    }
    let reservation = Reservation { key: key.0, kind: WRITE_EXCLUSIVE, flags: 0 };
    // SAFETY: the request reads one `pr_reservation` from the place given.
    outcome(unsafe { ioctl::reserve(device.as_raw_fd(), &raw const reservation) })
}

fn preempt(device: &File, ours: Key, theirs: Key) -> io::Result<Reserved> {
    let preempt = Preempt { old_key: theirs.0, new_key: ours.0, kind: WRITE_EXCLUSIVE, flags: 0 };
    // SAFETY: the request reads one `pr_preempt` from the place given.
    outcome(unsafe { ioctl::preempt_abort(device.as_raw_fd(), &raw const preempt) })
}

fn release(device: &File, key: Key) -> io::Result<Reserved> {
    let reservation = Reservation { key: key.0, kind: WRITE_EXCLUSIVE, flags: 0 };
    // SAFETY: the request reads one `pr_reservation` from the place given.
    let released = unsafe { ioctl::release(device.as_raw_fd(), &raw const reservation) };
    if outcome(released)? == Reserved::Unsupported {
        return Ok(Reserved::Unsupported);
    }
    let registration = Registration { old_key: key.0, new_key: 0, flags: 0, pad: 0 };
    // SAFETY: the request reads one `pr_registration` from the place given.
    outcome(unsafe { ioctl::register(device.as_raw_fd(), &raw const registration) })
}

/// The kernel answers with an errno, or with the status that the device gave.
fn outcome(result: nix::Result<libc::c_int>) -> io::Result<Reserved> {
    /// The SCSI status of a reservation conflict; the block layer passes it on.
    const RESERVATION_CONFLICT: libc::c_int = 0x18;
    use nix::errno::Errno;
    match result {
        Ok(0) => Ok(Reserved::Held),
        Ok(RESERVATION_CONFLICT) | Err(Errno::EBADE | Errno::EBUSY) => Ok(Reserved::Elsewhere),
        Ok(status) => Err(io::Error::other(format!("the device answered with status {status:#x}"))),
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => Ok(Reserved::Unsupported),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: hosts have keys that differ, and no key is the one that means none.
    #[test]
    fn keys() {
        let key = |byte| Key::of(HostId([byte; 16]));
        assert_ne!(Key::of(HostId([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])), key(1));
        assert_ne!(key(0).0, 0);
        let mut turned = [0; 16];
        turned[0] = 7;
        turned[12] = 7;
        assert_ne!(Key::of(HostId(turned)).0, 0);
    }

    /// Goal: what has no reservations says so, and is not taken for reserved.
    #[test]
    fn files_have_none() {
        let file = tempfile::tempfile().unwrap();
        let (ours, theirs) = (Key::of(HostId([1; 16])), Key::of(HostId([2; 16])));
        assert_eq!(reserve(&file, ours).unwrap(), Reserved::Unsupported);
        assert_eq!(preempt(&file, ours, theirs).unwrap(), Reserved::Unsupported);
        assert_eq!(release(&file, ours).unwrap(), Reserved::Unsupported);
    }

    /// Goal: the answers of kernel and device are told apart.
    #[test]
    fn answers() {
        use nix::errno::Errno;
        assert_eq!(outcome(Ok(0)).unwrap(), Reserved::Held);
        assert_eq!(outcome(Ok(0x18)).unwrap(), Reserved::Elsewhere);
        assert_eq!(outcome(Err(Errno::EBADE)).unwrap(), Reserved::Elsewhere);
        assert!(outcome(Ok(2)).is_err());
        assert!(outcome(Err(Errno::EPERM)).is_err());
    }
}
