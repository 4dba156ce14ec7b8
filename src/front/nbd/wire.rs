//! The NBD protocol's messages as they are on the wire: big-endian, packed.
//!
//! Layouts and numbers are those of the public protocol document (`doc/proto.md` of the NBD
//! project). Every struct here is received or sent as it stands.
//!
//! | struct | bytes | sent by |
//! | --- | --- | --- |
//! | [`Greeting`] | 18 | server, first of all |
//! | [`OptionHeader`] | 16 | client, then data |
//! | [`OptionReplyHeader`] | 20 | server, then data |
//! | [`InfoExport`], [`InfoBlockSize`] | 12, 14 | server, data of option replies |
//! | [`ExportNameReply`] | 10 | server, then 124 zeros unless they were waived |
//! | [`RequestHeader`] | 28 | client, then a write's payload |
//! | [`ExtendedRequestHeader`] | 32 | client, then a payload where a flag says so |
//! | [`StatusFilter`] | 12 | client, payload of a block status |
//! | [`SimpleReply`] | 16 | server, then a read's data |
//! | [`ChunkHeader`] | 20 | server, then the chunk's payload |
//! | [`ExtendedChunkHeader`] | 32 | server, then the chunk's payload |
//! | [`StatusRun`] | 8 | server, each run of a block status |
//! | [`ExtendedStatusHead`], [`ExtendedStatusRun`] | 8, 16 | the same with extended headers |
//!
//! Extended headers are an extension that the protocol document keeps on a branch of its own,
//! `extension-ext-header`.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First number of the greeting.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second number of the greeting, and before every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before every chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Before every request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Before every chunk of a reply with an extended header.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// How the messages of a connection are framed: what its handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Framing {
    /// Requests of 32 bits of length; replies without structure.
    Simple,
    /// Requests of 32 bits of length; replies to reads and errors in chunks.
    Structured,
    /// Requests of 64 bits of length; all replies in chunks.
    Extended,
}

impl Framing {
    /// Bytes of a request's header.
    pub fn request_header(self) -> usize {
        match self {
            Self::Simple | Self::Structured => size_of::<RequestHeader>(),
            Self::Extended => size_of::<ExtendedRequestHeader>(),
        }
    }

    /// Whether replies may come in chunks: what block status needs.
    pub fn has_chunks(self) -> bool {
        self >= Self::Structured
    }
}

/// Handshake flags, the server's 16 bits and the client's 32 bits alike.
pub mod handshake_flags {
    /// Options are answered.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No padding after the reply to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: what an export offers.
pub mod transmission_flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes fail.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is known.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is known.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` and its `NO_HOLE` flag are known.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is known (only with structured replies).
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is known.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The `FAST_ZERO` flag is known.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// `BLOCK_STATUS` takes a payload (only with extended headers).
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Options.
pub mod option {
    /// Take an export; has no error reply.
    pub const EXPORT_NAME: u32 = 1;
    /// Leave.
    pub const ABORT: u32 = 2;
    /// Name all exports.
    pub const LIST: u32 = 3;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and take it.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use extended headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// A piece of information.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    /// The option makes no sense.
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = 1 << 31 | 7;
    /// The option is too large.
    pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;
    /// Extended headers were agreed on, and stay.
    pub const ERR_EXT_HEADER_REQD: u32 = 1 << 31 | 10;
}

/// Types of information about an export.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// Limits of requests.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows.
    pub const WRITE: u16 = 1;
    /// Leave; has no reply.
    pub const DISC: u16 = 2;
    /// Make completed writes durable.
    pub const FLUSH: u16 = 3;
    /// Forget a range.
    pub const TRIM: u16 = 4;
    /// Be ready to be read from.
    pub const CACHE: u16 = 5;
    /// Zero a range.
    pub const WRITE_ZEROES: u16 = 6;
    /// Say what a range holds.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flags {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeroed but still backed.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The data in one chunk.
    pub const DF: u16 = 1 << 2;
    /// The status of one run only.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeroed faster than by writing zeros, or not at all.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload, which follows (only with extended headers).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of chunks.
pub mod chunk {
    /// Nothing; ends a reply.
    pub const NONE: u16 = 0;
    /// An offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// A metadata context and runs.
    pub const BLOCK_STATUS: u16 = 5;
    /// The same with lengths of 64 bits.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// An error and a message.
    pub const ERROR: u16 = 1 << 15 | 1;
    /// Chunk flag: the last of its reply.
    pub const FLAG_DONE: u16 = 1 << 0;
}

/// Flags of a run in `base:allocation`.
pub mod allocation {
    /// Nothing is allocated.
    pub const HOLE: u32 = 1 << 0;
    /// It reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// Error numbers, as the protocol fixes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted.
    Permission = 1,
    /// The device failed.
    Io = 5,
    /// The request makes no sense.
    Invalid = 22,
    /// No space left, or beyond the end.
    NoSpace = 28,
    /// Too long.
    Overflow = 75,
    /// Not in the way that was asked for.
    NotSupported = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

macro_rules! wire {
    (
        $(#[$doc:meta])* $name:ident, $size:literal
        { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire! {
    /// The server's first message.
    Greeting, 18 {
        /// [`GREETING_MAGIC`].
        magic: U64,
        /// [`OPTION_MAGIC`].
        option_magic: U64,
        /// [`handshake_flags`].
        flags: U16,
    }
}
wire! {
    /// Before an option's data.
    OptionHeader, 16 {
        /// [`OPTION_MAGIC`].
        magic: U64,
        /// One of [`option`].
        option: U32,
        /// Bytes of data that follow.
        length: U32,
    }
}
wire! {
    /// Before an option reply's data.
    OptionReplyHeader, 20 {
        /// [`OPTION_REPLY_MAGIC`].
        magic: U64,
        /// The option that is answered.
        option: U32,
        /// One of [`option_reply`].
        reply: U32,
        /// Bytes of data that follow.
        length: U32,
    }
}
wire! {
    /// Size and flags of an export.
    InfoExport, 12 {
        /// [`info::EXPORT`].
        info: U16,
        /// Size in bytes.
        size: U64,
        /// [`transmission_flags`].
        flags: U16,
    }
}
wire! {
    /// Limits of requests.
    InfoBlockSize, 14 {
        /// [`info::BLOCK_SIZE`].
        info: U16,
        /// Alignment that is needed.
        minimum: U32,
        /// Alignment that is fast.
        preferred: U32,
        /// The longest payload.
        maximum: U32,
    }
}
wire! {
    /// The reply to `EXPORT_NAME`.
    ExportNameReply, 10 {
        /// Size in bytes.
        size: U64,
        /// [`transmission_flags`].
        flags: U16,
    }
}
wire! {
    /// A request.
    RequestHeader, 28 {
        /// [`REQUEST_MAGIC`].
        magic: U32,
        /// [`command_flags`].
        flags: U16,
        /// One of [`command`].
        command: U16,
        /// The client's name for the request: returned as it is.
        cookie: [u8; 8],
        /// First byte.
        offset: U64,
        /// Bytes.
        length: U32,
    }
}
wire! {
    /// A request, with extended headers.
    ExtendedRequestHeader, 32 {
        /// [`EXTENDED_REQUEST_MAGIC`].
        magic: U32,
        /// [`command_flags`].
        flags: U16,
        /// One of [`command`].
        command: U16,
        /// The client's name for the request: returned as it is.
        cookie: [u8; 8],
        /// First byte.
        offset: U64,
        /// Bytes: of the payload with [`command_flags::PAYLOAD_LEN`], otherwise of the export.
        length: U64,
    }
}
wire! {
    /// The payload of a block status that is wanted of one metadata context only.
    StatusFilter, 12 {
        /// Bytes of the export.
        length: U64,
        /// The context's number.
        context: U32,
    }
}
wire! {
    /// A simple reply.
    SimpleReply, 16 {
        /// [`SIMPLE_REPLY_MAGIC`].
        magic: U32,
        /// An [`Errno`], or zero.
        error: U32,
        /// The request's.
        cookie: [u8; 8],
    }
}
wire! {
    /// Before a chunk's payload.
    ChunkHeader, 20 {
        /// [`CHUNK_MAGIC`].
        magic: U32,
        /// [`chunk::FLAG_DONE`] or nothing.
        flags: U16,
        /// One of [`chunk`].
        kind: U16,
        /// The request's.
        cookie: [u8; 8],
        /// Bytes of payload that follow.
        length: U32,
    }
}
wire! {
    /// Before a chunk's payload, with extended headers.
    ExtendedChunkHeader, 32 {
        /// [`EXTENDED_CHUNK_MAGIC`].
        magic: U32,
        /// [`chunk::FLAG_DONE`] or nothing.
        flags: U16,
        /// One of [`chunk`].
        kind: U16,
        /// The request's.
        cookie: [u8; 8],
        /// The request's.
        offset: U64,
        /// Bytes of payload that follow.
        length: U64,
    }
}
wire! {
    /// A run of bytes with the same status.
    StatusRun, 8 {
        /// Bytes.
        length: U32,
        /// [`allocation`].
        flags: U32,
    }
}
wire! {
    /// Before the runs of a block status, with extended headers.
    ExtendedStatusHead, 8 {
        /// The context's number.
        context: U32,
        /// How many runs follow.
        count: U32,
    }
}
wire! {
    /// A run of bytes with the same status, with extended headers.
    ExtendedStatusRun, 16 {
        /// Bytes.
        length: U64,
        /// [`allocation`].
        flags: U64,
    }
}

/// Zeros after the reply to `EXPORT_NAME`, unless the client waived them.
pub const EXPORT_NAME_PADDING: usize = 124;
/// Bytes of a request's header, at most.
pub const REQUEST_HEADER_MAX: usize = size_of::<ExtendedRequestHeader>();
