//! Open files that the ring knows: registered with it where there is room.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};

use io_uring::squeue::Flags;
use io_uring::types;

use super::ring::Core;

/// An open file of the ring. Cheap to clone: a handle. It is closed when the last handle is gone
/// and the last operation on it has ended.
#[derive(Clone)]
pub struct Fd(Rc<Inner>);

struct Inner {
    raw: OwnedFd,
    /// Its place in the ring's table of files.
    place: Option<u32>,
    core: Weak<Core>,
}

impl Fd {
    pub(super) fn new(core: &Rc<Core>, raw: OwnedFd) -> Self {
        let place = core.place_file(&raw);
        Self(Rc::new(Inner { raw, place, core: Rc::downgrade(core) }))
    }

    /// A file without a place in the ring's table: it is closed at once with the last handle.
    pub(super) fn without_place(core: &Rc<Core>, raw: OwnedFd) -> Self {
        Self(Rc::new(Inner { raw, place: None, core: Rc::downgrade(core) }))
    }

    /// What an entry names the file by; it must carry [`Fd::flags`] too.
    pub(super) fn number(&self) -> types::Fd {
        types::Fd(self.0.place.map_or_else(|| self.0.raw.as_raw_fd(), u32::cast_signed))
    }

    pub(super) fn flags(&self) -> Flags {
        if self.0.place.is_some() { Flags::FIXED_FILE } else { Flags::empty() }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.raw.as_fd()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without its place taken back the table would keep the file open.
        if let (Some(place), Some(core)) = (self.place, self.core.upgrade()) {
            core.release_file(place);
        }
    }
}
