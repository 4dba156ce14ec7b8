//! The kernel's side of a block device that this process serves (`ublk_drv`): control commands,
//! a queue's requests, and their descriptors.
//!
//! # Contracts
//!
//! - **Control**: [`control`] waits in the kernel, for requests to the device too: never on the
//!   thread of the ring that serves it.
//! - **Threads**: all commands of a queue come from the thread that fetched first.
//! - **Ordering**: a descriptor is whole from the answer to [`Ring::ublk_fetch`] or
//!   [`Ring::ublk_commit`] of its tag until the next commit of that tag.
//! - **Data**: it is copied with reads and writes of the device's character file, or the kernel
//!   registers its pages with the ring for as long as the request is ours ([`Lending`]).
//! - **Cancellation**: a dropped fetch or commit is cancelled in the kernel, which gives its
//!   request up: only for devices that are being removed.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use memmap2::{MmapOptions, MmapRaw};
use nix::libc;
use zerocopy::native_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::buffers::PAGE;
use super::fd::Fd;
use super::operation::{Held, OnDrop, Operation};
use super::place::BufferPlace;
use super::ring::Ring;

/// The most requests of one queue that the kernel lets be on the way.
pub const QUEUE_DEPTH_MAX: u16 = 4096;
/// The commands of a queue: `_IOWR('u', 0x20 or 0x21, IoCommand)`.
const FETCH: u32 = 0xc010_7520;
const COMMIT_AND_FETCH: u32 = 0xc010_7521;
/// The kernel's number of an option that libc does not name.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// Where the kernel cannot register the data of a request, its descriptor says so
/// ([`Lending::place`]), and it does not fail.
const REGISTER_OR_SAY: u64 = 1 << 16;
/// The data of the request is not registered.
const NOT_REGISTERED: u32 = 1 << 17;
/// The bytes of a command in an entry of 128 bytes.
const COMMAND_ROOM: usize = 80;

/// A control command, without the memory that it comes with.
#[derive(Clone, Copy, Debug)]
pub struct ControlCommand {
    /// The kernel's number of the command.
    pub number: u32,
    /// The device; `u32::MAX` for none yet.
    pub device: u32,
    /// A word of the command's own.
    pub word: u64,
}

/// A control command as the kernel reads it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawControl {
    device: U32,
    /// All ones: no queue.
    queue: U16,
    data_len: U16,
    data: U64,
    word: U64,
    path_len: U16,
    reserved: [u8; 6],
}
const _: () = assert!(size_of::<RawControl>() == 32);
const _: () = assert!(std::mem::offset_of!(RawControl, data) == 8);
const _: () = assert!(std::mem::offset_of!(RawControl, path_len) == 24);

/// A command of a queue as the kernel reads it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct IoCommand {
    queue: U16,
    tag: U16,
    result: I32,
    /// Zero: data is copied with reads and writes of the device's character file.
    address: U64,
}
const _: () = assert!(size_of::<IoCommand>() == 16);
const _: () = assert!(std::mem::offset_of!(IoCommand, result) == 4);

/// A request as the kernel describes it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Descriptor {
    /// The operation in the lowest eight bits, flags above.
    pub operation: U32,
    /// Sectors of 512 bytes.
    pub sectors: U32,
    /// The first sector, of 512 bytes.
    pub start: U64,
    /// Not used by us.
    pub address: U64,
}
const _: () = assert!(size_of::<Descriptor>() == 24);
const _: () = assert!(std::mem::offset_of!(Descriptor, start) == 8);

/// What becomes of the data of a tag's requests. Devices are made for the one or the other.
#[derive(Debug)]
pub enum Lending {
    /// It is copied.
    Nothing,
    /// The kernel registers its pages with the ring at that place, if there is one left.
    Place(Option<BufferPlace>),
}

impl Lending {
    /// The place where the data of a request is registered, once it is there.
    pub fn place(&self, of: &Descriptor) -> Option<u16> {
        match self {
            Self::Place(Some(place)) if of.operation.get() & NOT_REGISTERED == 0 => {
                Some(place.number())
            }
            Self::Nothing | Self::Place(_) => None,
        }
    }

    /// What the kernel is told in a command's entry.
    fn word(&self) -> Option<u64> {
        match self {
            Self::Nothing => None,
            // No ring has a place of the last number: it says that it cannot.
            Self::Place(place) => {
                let number = place.as_ref().map_or(u16::MAX, BufferPlace::number);
                Some(REGISTER_OR_SAY | u64::from(number))
            }
        }
    }
}

/// Carries out a control command at `/dev/ublk-control`, which reads or fills `data`.
pub fn control(file: BorrowedFd, command: ControlCommand, data: &mut [u8]) -> io::Result<()> {
    let address = if data.is_empty() { 0 } else { data.as_mut_ptr().expose_provenance() as u64 };
    let raw = RawControl {
        device: command.device.into(),
        queue: u16::MAX.into(),
        data_len: u16::try_from(data.len()).expect("control data is small").into(),
        data: address.into(),
        word: command.word.into(),
        path_len: 0.into(),
        reserved: [0; 6],
    };
    let mut bytes = [0; COMMAND_ROOM];
    bytes[..size_of::<RawControl>()].copy_from_slice(raw.as_bytes());
    let mut ring: IoUring<Entry128, cqueue::Entry> = IoUring::builder().build(1)?;
    let fd = types::Fd(file.as_raw_fd());
    let entry = opcode::UringCmd80::new(fd, command.number).cmd(bytes).build();
    // SAFETY: the kernel uses `data` alone, by its address and length above, which is borrowed for
    // longer than the command takes: below it is waited for.
    unsafe { ring.submission().push(&entry) }.expect("the queue is empty");
    loop {
        match ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("a control command cannot be waited for: {error}"),
            Ok(_) => {}
        }
        if let Some(answer) = ring.completion().next() {
            let result = answer.result();
            return if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) };
        }
    }
}

impl Ring {
    /// Waits for the first request with this tag.
    pub fn ublk_fetch(
        &self,
        fd: &Fd,
        queue: u16,
        tag: u16,
        lending: &Lending,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.ublk_command(fd, FETCH, (queue, tag, 0), lending)
    }

    /// Answers the request with this tag, by a number of bytes or a negative error number, and
    /// waits for the next one. `ENODEV`: there will be none. Its data is registered no more.
    pub fn ublk_commit(
        &self,
        fd: &Fd,
        queue: u16,
        tag: u16,
        result: i32,
        lending: &Lending,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.ublk_command(fd, COMMIT_AND_FETCH, (queue, tag, result), lending)
    }

    fn ublk_command(
        &self,
        fd: &Fd,
        number: u32,
        (queue, tag, result): (u16, u16, i32),
        lending: &Lending,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (core, fd, word) = (Rc::clone(self.core()), fd.clone(), lending.word());
        async move {
            let (queue, tag) = (queue.into(), tag.into());
            let command = IoCommand { queue, tag, result: result.into(), address: 0.into() };
            let bytes = zerocopy::transmute!(command);
            let command = opcode::UringCmd16::new(fd.number(), number).cmd(bytes).addr(word);
            let entry = command.build();
            let operation = Operation::start(&core, Some(fd), Held::Nothing, OnDrop::Cancel, entry);
            operation.await.0.map(drop)
        }
    }
}

/// The requests of a queue, which the kernel describes in memory that both see.
pub struct Descriptors {
    memory: MmapRaw,
    depth: u16,
}

impl Descriptors {
    /// Maps the descriptors of a queue from the device's character file.
    pub fn map(file: &File, queue: u16, depth: u16) -> io::Result<Self> {
        let room = (usize::from(QUEUE_DEPTH_MAX) * size_of::<Descriptor>()).next_multiple_of(PAGE);
        let len = (usize::from(depth) * size_of::<Descriptor>()).next_multiple_of(PAGE);
        let offset = u64::from(queue) * room as u64;
        let memory = MmapOptions::new().offset(offset).len(len).map_raw_read_only(file)?;
        Ok(Self { memory, depth })
    }

    /// The request with this tag, between its arrival and its commit.
    pub fn get(&self, tag: u16) -> Descriptor {
        assert!(tag < self.depth, "tag {tag} of a queue of {}", self.depth);
        let place = self.memory.as_ptr().cast::<Descriptor>().wrapping_add(tag.into());
        // SAFETY: the place is in the mapping by the assertion; the kernel changes it only while it
        // has the tag, and the type is plain bytes in any case.
        unsafe { place.read_volatile() }
    }
}

/// Tells the kernel that this thread writes back dirty memory of others: it is neither throttled
/// for that memory nor made to write any of it to get some.
pub fn become_io_flusher() -> io::Result<()> {
    // SAFETY: this option takes plain numbers.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
