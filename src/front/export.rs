//! What a front end serves: the boundary between the protocols above and the volumes below.
//!
//! Front ends know only this trait; nothing below knows a front end.
//!
//! # Contracts
//!
//! - **Range**: a front end never passes a range outside of the export or an empty one, and no
//!   payload longer than [`Export::payload_max`]. Offsets and lengths need no alignment.
//! - **Completeness**: [`Export::write`] gets a payload that has arrived in full.
//! - **Ownership**: an operation owns its buffer; a read gives it back filled.
//! - **Flush**: covers every write that was complete when it was called, whoever sent it, so that
//!   clients may spread their requests over several connections.
//! - **Cancellation**: front ends do not drop an operation's future before it ends.

use std::borrow::Cow;
use std::future::{Future, ready};

use crate::uring::buffers::Buf;

/// The longest payload of one request, in bytes.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Something that a client can attach as a block device. Cheap to clone: a handle.
pub trait Export: Clone + 'static {
    /// What a client that comes now is given, as soon as it may be: itself, where it is the same
    /// for all of them.
    fn opened(&self) -> impl Future<Output = Self> + 'static {
        ready(self.clone())
    }
    /// The name that clients ask for.
    fn name(&self) -> String;
    /// Size in bytes.
    fn size(&self) -> u64;
    /// The length and alignment of requests that need no read-modify-write: a power of two.
    fn block_size(&self) -> u32;
    /// The longest payload of a request, in bytes: at least the block size, and no more than
    /// [`PAYLOAD_MAX`].
    fn payload_max(&self) -> u32;
    /// Where the payload of a request lies in its buffer.
    fn placement(&self, offset: u64, length: u32) -> Placement;

    /// Reads into `buffer`, which has the placement of this offset and length.
    fn read(
        &self,
        offset: u64,
        length: u32,
        buffer: Buf,
    ) -> impl Future<Output = Result<Buf, ExportError>> + 'static;

    /// Reads whole blocks into memory that is not ours and that no processor's work can fill
    /// ([`crate::uring::buffers`]). `false`: the bytes are not all to be had so, or a device
    /// failed, and some of the memory may have been filled; [`Export::read`] is to be asked.
    fn read_straight(
        &self,
        _offset: u64,
        _length: u32,
        _lent: Buf,
    ) -> impl Future<Output = bool> + 'static {
        ready(false)
    }

    /// Writes from `buffer`, which has the placement of this offset and length; with `fua` it
    /// returns when the data is durable.
    fn write(
        &self,
        offset: u64,
        length: u32,
        buffer: Buf,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static;

    /// Makes every completed write durable.
    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + 'static;

    /// Says that the bytes are not needed. Afterwards they read as zeros or as before.
    fn trim(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static;

    /// Which of the bytes have contents of their own: runs from `offset` on, of which neighbours
    /// differ, and at most `runs_max` of them; so they may end early, but there is one. Bytes
    /// without contents read as zeros.
    fn status(&self, offset: u64, length: u64, runs_max: usize) -> Result<Vec<Run>, ExportError>;

    /// Makes the bytes zeros; with `no_hole` they stay backed, so that later writes find space.
    /// Without it, whole blocks are zeroed without writing data.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
        no_hole: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static;
}

/// Bytes that follow each other and have contents of their own, or have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many bytes; not zero.
    pub length: u64,
    /// Whether they have contents of their own.
    pub used: bool,
}

/// Where a request's payload lies in its buffer: the export keeps room around it to work in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes before the payload.
    pub lead: usize,
    /// Bytes in all.
    pub total: usize,
}

/// Why an operation failed, as far as a client may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request makes no sense for this export.
    Invalid,
    /// A range that reaches beyond the end.
    OutOfRange,
    /// No space is left for it.
    NoSpace,
    /// The device failed, or the volume has stopped.
    Device,
    /// The export takes no writes.
    ReadOnly,
    /// The target is being shut down.
    ShuttingDown,
}

/// A failed operation.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ExportError {
    /// The kind, to act on.
    pub kind: ErrorKind,
    /// The reason, for people; clients that can show it get it.
    pub message: Cow<'static, str>,
}

impl ExportError {
    /// An error of this kind with a reason.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into() }
    }
}
