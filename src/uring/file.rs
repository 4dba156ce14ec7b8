//! Operations on files and block devices.
//!
//! Short reads and writes are continued, interrupted ones repeated; the end of a file before the
//! end of a buffer is an error. Offsets and lengths are as the file needs them: with O_DIRECT,
//! multiples of the sector.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use nix::libc;

use super::buffers::View;
use super::fd::Fd;
use super::operation::{Held, OnDrop, Operation};
use super::ring::{Core, Ring, ended_early};
use super::timer::Sleep;
use crate::env::Durability;

/// How often an operation that the kernel has no room for is tried again, with pauses of
/// [`RETRY_PAUSE`].
const RETRIES_MAX: u32 = 1000;
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// The block layer's command to discard a range (6.12 and later): `_IO(0x12, 0)`.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// The kernel moves at most this much in one operation (`MAX_RW_COUNT`), less than a view holds.
const TRANSFER_MAX: usize = 1 << 30;

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write(Durability),
}

impl Ring {
    /// Fills `view` from `offset`.
    pub fn read_at(
        &self,
        fd: &Fd,
        offset: u64,
        view: View,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        transfer(Rc::clone(self.core()), fd.clone(), Direction::Read, offset, view)
    }

    /// Writes `view` at `offset`.
    pub fn write_at(
        &self,
        fd: &Fd,
        offset: u64,
        view: View,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        transfer(Rc::clone(self.core()), fd.clone(), Direction::Write(durability), offset, view)
    }

    /// Makes durable all writes that had ended when it was submitted: the data, and unless
    /// `data_only` all metadata of the file. Never repeated: a failed one cannot be made good.
    pub fn fsync(
        &self,
        fd: &Fd,
        data_only: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (core, fd) = (Rc::clone(self.core()), fd.clone());
        async move {
            let flags =
                if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
            let entry = opcode::Fsync::new(fd.number()).flags(flags).build();
            let operation = Operation::start(&core, Some(fd), Held::Nothing, OnDrop::Await, entry);
            operation.await.0.map(drop)
        }
    }

    /// Frees a range of a file, which reads as zeros afterwards; on a block device that knows no
    /// better it may write those zeros.
    pub fn punch_hole(
        &self,
        fd: &Fd,
        offset: u64,
        length: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (core, fd) = (Rc::clone(self.core()), fd.clone());
        async move {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            repeat(&core, &fd, |fd| {
                opcode::Fallocate::new(fd.number(), length).offset(offset).mode(mode).build()
            })
            .await
        }
    }

    /// Discards a range of a block device. An older kernel answers `EOPNOTSUPP` or `EINVAL`, as
    /// does a device that cannot discard.
    pub fn discard_blocks(
        &self,
        fd: &Fd,
        offset: u64,
        length: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (core, fd) = (Rc::clone(self.core()), fd.clone());
        async move {
            // The command takes its offset in `addr` and its length in `addr3`, which is where the
            // first half of the command bytes lies.
            let mut command = [0; 16];
            command[..8].copy_from_slice(&length.to_ne_bytes());
            repeat(&core, &fd, |fd| {
                opcode::UringCmd16::new(fd.number(), BLOCK_URING_CMD_DISCARD)
                    .cmd(command)
                    .addr(Some(offset))
                    .build()
            })
            .await
        }
    }
}

/// Moves a whole view.
async fn transfer(
    core: Rc<Core>,
    fd: Fd,
    direction: Direction,
    offset: u64,
    view: View,
) -> io::Result<()> {
    let mut retries = 0;
    let attempt = async |offset: u64, view: View| {
        let entry = transfer_entry(&fd, direction, offset, &view);
        let held = Held::View(view);
        let operation = Operation::start(&core, Some(fd.clone()), held, OnDrop::Await, entry);
        let (moved, held) = operation.await;
        let Held::View(view) = held else { unreachable!("an operation gives back what it held") };
        (moved, view)
    };
    let pause = async |error| pause(&core, error, &mut retries).await;
    transfer_whole(direction, offset, view, attempt, pause).await
}

/// Attempts a transfer until all of `view` has been moved. The kernel may move less than it was
/// asked to: the rest is attempted again from where it stopped. After an error `pause` says whether
/// another attempt makes sense; what the failed one has moved is not known, and is moved again.
async fn transfer_whole(
    direction: Direction,
    mut offset: u64,
    mut view: View,
    mut attempt: impl AsyncFnMut(u64, View) -> (io::Result<u32>, View),
    mut pause: impl AsyncFnMut(io::Error) -> io::Result<()>,
) -> io::Result<()> {
    while !view.is_empty() {
        let (moved, back) = attempt(offset, view).await;
        view = back;
        match moved {
            Ok(0) => {
                let what = match direction {
                    Direction::Read => "the file",
                    Direction::Write(_) => "the room for writing",
                };
                return Err(ended_early(what, view.len()));
            }
            Ok(moved) if moved as usize == view.len() => break,
            Ok(moved) => {
                offset += u64::from(moved);
                view = view.narrow(moved as usize..view.len());
            }
            Err(error) => pause(error).await?,
        }
    }
    Ok(())
}

fn transfer_entry(fd: &Fd, direction: Direction, offset: u64, view: &View) -> Entry {
    let (start, len) = (view.as_ptr(), view.len().min(TRANSFER_MAX) as u32);
    let fd = fd.number();
    match (direction, view.registered()) {
        (Direction::Read, Some(index)) => {
            opcode::ReadFixed::new(fd, start, len, index).offset(offset).build()
        }
        (Direction::Read, None) => opcode::Read::new(fd, start, len).offset(offset).build(),
        (Direction::Write(durability), index) => {
            let flags = match durability {
                Durability::Volatile => 0,
                Durability::Durable => libc::RWF_DSYNC,
            };
            match index {
                Some(index) => opcode::WriteFixed::new(fd, start, len, index)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                None => opcode::Write::new(fd, start, len).offset(offset).rw_flags(flags).build(),
            }
        }
    }
}

/// Runs an operation without a buffer until it is not interrupted.
async fn repeat(core: &Rc<Core>, fd: &Fd, entry: impl Fn(&Fd) -> Entry) -> io::Result<()> {
    let mut retries = 0;
    loop {
        let file = Some(fd.clone());
        let operation = Operation::start(core, file, Held::Nothing, OnDrop::Await, entry(fd));
        match operation.await.0 {
            Ok(_) => return Ok(()),
            Err(error) => pause(core, error, &mut retries).await?,
        }
    }
}

/// Waits before another attempt, where another attempt makes sense; gives the error back otherwise.
async fn pause(core: &Rc<Core>, error: io::Error, retries: &mut u32) -> io::Result<()> {
    *retries += 1;
    match error.raw_os_error() {
        Some(libc::EINTR) if *retries <= RETRIES_MAX => Ok(()),
        Some(libc::EAGAIN) if *retries <= RETRIES_MAX => {
            Sleep::new(core, RETRY_PAUSE).await;
            Ok(())
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use super::*;
    use crate::env::fake::{block_on, buffers};

    /// What a kernel that answers like this is asked for, and how the transfer ends.
    fn asked(answers: &[Result<u32, i32>]) -> (Vec<(u64, usize)>, Result<(), Option<i32>>) {
        let pool = buffers();
        let mut buf = pool.try_acquire(8192).unwrap();
        let answers: RefCell<VecDeque<_>> = RefCell::new(answers.iter().copied().collect());
        let mut asked = Vec::new();
        let attempt = async |offset, view: View| {
            asked.push((offset, view.len()));
            let answer = answers.borrow_mut().pop_front().expect("no more attempts than answers");
            (answer.map_err(io::Error::from_raw_os_error), view)
        };
        let pause = async |error: io::Error| match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        };
        let direction = Direction::Write(Durability::Durable);
        let whole = transfer_whole(direction, 4096, buf.view_all(), attempt, pause);
        let ended = block_on(whole).map_err(|error| error.raw_os_error());
        assert!(answers.borrow().is_empty(), "an answer was not asked for");
        (asked, ended)
    }

    /// Goal: a short transfer goes on where it stopped, an interrupted one begins again there, and
    /// every byte is asked for whatever the pieces.
    #[test]
    fn short_transfers_are_completed() {
        assert_eq!(asked(&[Ok(8192)]), (vec![(4096, 8192)], Ok(())));
        let pieces = [Ok(512), Err(libc::EINTR), Ok(4096), Err(libc::EAGAIN), Ok(3584)];
        let places = vec![(4096, 8192), (4608, 7680), (4608, 7680), (8704, 3584), (8704, 3584)];
        assert_eq!(asked(&pieces), (places, Ok(())));
    }

    /// Goal: a transfer that was cancelled, or that stops before its end, is an error, though the
    /// device may have got some or all of it.
    #[test]
    fn cancelled_and_ended_transfers_are_errors() {
        let cancelled = asked(&[Ok(512), Err(libc::ECANCELED)]);
        assert_eq!(cancelled, (vec![(4096, 8192), (4608, 7680)], Err(Some(libc::ECANCELED))));
        assert_eq!(asked(&[Ok(512), Ok(0)]).1, Err(None));
    }
}
