//! The datagram of the metadata protocol: one header for all, a body of packed records.
//!
//! All numbers are little-endian.
//!
//! | offset | bytes | field | |
//! | --- | --- | --- | --- |
//! | 0 | 4 | magic | `FSmd` |
//! | 4 | 1 | version | 1 |
//! | 5 | 1 | kind | 0 request, 1 reply, 2 nudge |
//! | 6 | 2 | operation | [`Operation`] |
//! | 8 | 8 | session | drawn at random by the client, never 0 |
//! | 16 | 8 | sequence | of the request; a reply repeats it |
//! | 24 | 8 | detail | request: the lowest mutation not answered yet; reply: of a refusal |
//! | 32 | 2 | part | of this message, from 0 |
//! | 34 | 2 | parts | 1 to [`PARTS_MAX`] |
//! | 36 | 4 | length | of the body in this datagram |
//! | 40 | 2 | status | reply: 0 or a [`Refusal`]'s code; request: 0 |
//! | 42 | 2 | reserved | 0 |
//! | 44 | 4 | message CRC | CRC32C of the whole message's body, the same in every part |
//! | 48 | 4 | CRC | CRC32C of header (this field as 0) and body |
//! | 52 | 4 | reserved | 0 |
//! | 56 | 16 | authenticator | [`super::auth`]; 0 where there is no key |
//!
//! The authenticator is last so that all before it and the body can be fed to the hash in two
//! pieces. The session comes before the sequence as it chooses the key. No checksum covers it: it
//! is written where a datagram leaves for a network, and looked at where it comes from one.
//!
//! Mutations ([`Operation::is_ordered`]) and queries have a space of sequence numbers each:
//! mutations are executed in order and without gaps, from the one that attached; queries in any
//! order and perhaps twice.
//!
//! The body of each operation is told with its records in [`super::raw`].
//!
//! # Contract
//!
//! **Parse, don't validate**: [`parse`] is the only way to a [`Datagram`], takes any bytes, and
//! never panics. What it lets through has a good checksum and consistent lengths; the records of
//! the body are parsed by those who know the operation.

pub use crate::format::page::crc32c;
use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::Refusal;
use super::records::TRANSACT_PRIMITIVES_MAX;
use crate::mutants::{Mutant, mutated};

/// First bytes of every datagram.
pub const MAGIC: [u8; 4] = *b"FSmd";
/// Version of the protocol.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 72;
/// Bytes of the authenticator, which ends the header.
pub const AUTHENTICATOR_BYTES: usize = 16;
/// Bytes of the header that the authenticator covers, besides the body: all before it.
pub const AUTHENTICATED_BYTES: usize = HEADER_BYTES - AUTHENTICATOR_BYTES;
/// The most parts of one message.
pub const PARTS_MAX: usize = 1024;
/// The largest body of one message, in bytes, over all its parts.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The smallest datagram that a link must carry, in bytes.
pub const PAYLOAD_MIN: usize = 1200;
/// The largest datagram that is taken, in bytes.
pub const PAYLOAD_MAX: usize = 64 << 10;
/// The largest datagram over a network where nothing else is said, in bytes: what fits an Ethernet
/// frame.
pub const PAYLOAD_DEFAULT: usize = 1472;
/// The largest datagram that UDP can carry, in bytes.
pub const PAYLOAD_UDP_MAX: usize = 65507;
/// How many mutations of one session may be unanswered at a time.
pub const WINDOW: u64 = 32;

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(RawHeader, session) == 8);
const _: () = assert!(std::mem::offset_of!(RawHeader, part) == 32);
const _: () = assert!(std::mem::offset_of!(RawHeader, crc) == 48);
const _: () = assert!(std::mem::offset_of!(RawHeader, authenticator) == AUTHENTICATED_BYTES);
/// The largest message fits the parts that the smallest link needs for it.
const _: () = assert!(MESSAGE_BYTES_MAX <= PARTS_MAX * (PAYLOAD_MIN - HEADER_BYTES));
/// The largest transaction is a message.
const _: () =
    assert!(TRANSACT_PRIMITIVES_MAX * size_of::<super::raw::RawPrimitive>() <= MESSAGE_BYTES_MAX);

macro_rules! operations {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+) => {
        /// What a request asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Operation {
            $($(#[doc = $doc])+ $name = $code,)+
        }

        impl Operation {
            /// All of them.
            pub const ALL: &[Operation] = &[$(Operation::$name,)+];

            /// The operation of that code.
            pub fn from_code(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Operation::$name),)+
                    _ => None,
                }
            }

            /// Its name in messages.
            pub fn name(self) -> &'static str {
                match self {
                    $(Operation::$name => stringify!($name),)+
                }
            }
        }
    };
}

operations! {
    /// Begins a session, with which mutation it may be.
    Attach = 1,
    /// Ends the session.
    Detach = 2,
    /// A batch of [`super::records::Primitive`]s, executed as one transaction.
    Transact = 3,
    /// Grants extents of any use: Allocate_Journal_Space.
    AllocateJournalSpace = 4,
    /// Grants extents against the quota for data.
    AllocateDataExtents = 5,
    /// Gives extents back.
    ReturnExtents = 6,
    /// Makes a volume.
    CreateVolume = 7,
    /// Changes a volume's size.
    ResizeVolume = 8,
    /// Begins a volume's deletion: its name is free, its extents are still bound.
    DeleteVolume = 9,
    /// Gives a volume another name.
    RenameVolume = 10,
    /// Forgets a volume that is being deleted and has no extents any more.
    RemoveVolume = 11,
    /// A group's records, applied to the lines that the server keeps, as one transaction:
    /// Harden_Extent_Flags.
    HardenExtentFlags = 12,
    /// The same for a unit's part of a global transaction: applied with the decision, or dropped
    /// with the abort ([`super::groups::prepared`]).
    PrepareExtentFlags = 13,
    /// Says that the session lives. A query.
    Renew = 32,
    /// Volumes, paged. A query.
    ListVolumes = 33,
    /// The unit's grants, paged. A query.
    ListGrants = 34,
    /// A volume's pairs, paged. A query.
    Layout = 35,
    /// The server's counters. A query.
    Status = 36,
    /// The lines that the server keeps, paged. A query.
    Lines = 37,
    /// The lines that changed since a view, and that the reader has done with earlier ones. A
    /// query.
    Changes = 38,
    /// Makes a pool known, of no session; again, of the same pool, it does nothing.
    RegisterPool = 39,
    /// Forgets a pool that nobody is attached to, of no session; again, it does nothing.
    ForgetPool = 40,
    /// What the server tells of itself, paged, of no session.
    Overview = 41,
    /// What the unit reports of its consistency groups, for orders: [`crate::txn`]. A query that is
    /// executed in the turn, as often as it arrives.
    Coordinate = 42,
    /// Makes a consistency group, of no session; again, by the same number, it does nothing.
    CreateGroup = 43,
    /// Deletes a consistency group, of no session; again, it does nothing.
    DeleteGroup = 44,
}

impl Operation {
    /// Whether it is a mutation: executed in order of the session's sequence numbers, once.
    pub fn is_ordered(self) -> bool {
        (self as u16) < 32
    }

    /// Whether it needs no session that the server knows.
    pub fn is_sessionless(self) -> bool {
        use Operation::{Attach, CreateGroup, DeleteGroup, ForgetPool, Overview, RegisterPool};
        let of_pools = matches!(self, Attach | RegisterPool | ForgetPool | Overview);
        of_pools || matches!(self, CreateGroup | DeleteGroup)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    operation: U16,
    session: U64,
    sequence: U64,
    detail: U64,
    part: U16,
    parts: U16,
    length: U32,
    status: U16,
    reserved: U16,
    message_crc: U32,
    crc: U32,
    reserved_too: U32,
    authenticator: [u8; AUTHENTICATOR_BYTES],
}

/// Whether a datagram asks or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From client to server.
    Request,
    /// From server to client: success or the reason why not.
    Reply(Result<(), Refusal>),
    /// From server to client, unasked, in one part: an answer to [`Operation::Coordinate`], or
    /// nothing where that is to be asked.
    Nudge,
}

/// What a header says, verified, the same for all parts of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether it asks or answers.
    pub kind: Kind,
    /// What for.
    pub operation: Operation,
    /// Whose.
    pub session: u64,
    /// Which.
    pub sequence: u64,
    /// Request: the lowest mutation not answered yet. Reply: detail of a refusal.
    pub detail: u64,
}

/// One datagram, verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// What it is about.
    pub header: Header,
    /// Which part of the message this is; below `parts`.
    pub part: u16,
    /// How many there are; at least one.
    pub parts: u16,
    /// CRC32C of the whole message's body.
    pub message_crc: u32,
    /// This part of the body.
    pub body: &'a [u8],
}

/// Why bytes are not a datagram of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Garbage {
    /// Shorter than a header, or longer than any datagram.
    #[error("the datagram's size is impossible")]
    Size,
    /// Of something else.
    #[error("the datagram is of another protocol")]
    Magic,
    /// Of another version.
    #[error("the datagram is of protocol version {0}, not {VERSION}")]
    Version(u8),
    /// The checksum does not match.
    #[error("the datagram's checksum is wrong")]
    Checksum,
    /// The operation, kind, status or parts make no sense.
    #[error("the datagram's header makes no sense")]
    Header,
}

/// The only door from bytes that arrived to a datagram.
pub fn parse(bytes: &[u8]) -> Result<Datagram<'_>, Garbage> {
    if bytes.len() > PAYLOAD_MAX {
        return Err(Garbage::Size);
    }
    let (raw, body) = RawHeader::read_from_prefix(bytes).map_err(|_| Garbage::Size)?;
    if raw.magic != MAGIC {
        return Err(Garbage::Magic);
    }
    if raw.version != VERSION {
        return Err(Garbage::Version(raw.version));
    }
    if raw.length.get() as usize != body.len() {
        return Err(Garbage::Size);
    }
    let sound = datagram_crc(&raw, body) == raw.crc.get();
    if !sound && !mutated(Mutant::DatagramChecksumIgnored) {
        return Err(Garbage::Checksum);
    }
    let status = raw.status.get();
    let kind = match (raw.kind, status) {
        (0, 0) => Kind::Request,
        (2, 0) => Kind::Nudge,
        (1, 0) => Kind::Reply(Ok(())),
        (1, code) => Kind::Reply(Err(Refusal::from_code(code).ok_or(Garbage::Header)?)),
        _ => return Err(Garbage::Header),
    };
    let operation = Operation::from_code(raw.operation.get()).ok_or(Garbage::Header)?;
    let (part, parts) = (raw.part.get(), raw.parts.get());
    let sane = part < parts
        && usize::from(parts) <= PARTS_MAX
        && (parts == 1 || !body.is_empty())
        && (raw.reserved.get(), raw.reserved_too.get()) == (0, 0);
    if !sane {
        return Err(Garbage::Header);
    }
    let header = Header {
        kind,
        operation,
        session: raw.session.get(),
        sequence: raw.sequence.get(),
        detail: raw.detail.get(),
    };
    Ok(Datagram { header, part, parts, message_crc: raw.message_crc.get(), body })
}

/// What a header says that may be wrong: for those who show datagrams and do not act on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Version of the protocol.
    pub version: u8,
    /// 0 of a request, 1 of a reply, 2 of a nudge.
    pub kind: u8,
    /// An [`Operation`]'s code, perhaps.
    pub operation: u16,
    /// Whose.
    pub session: u64,
    /// Which.
    pub sequence: u64,
    /// Request: the lowest mutation not answered yet. Reply: detail of a refusal.
    pub detail: u64,
    /// Which part of the message, and of how many.
    pub part: (u16, u16),
    /// 0, or a [`Refusal`]'s code.
    pub status: u16,
    /// Whether the checksum is that of header and body.
    pub sound: bool,
    /// Whether there is an authenticator.
    pub sealed: bool,
}

/// What bytes say that begin as a datagram of this protocol does.
pub fn claimed(bytes: &[u8]) -> Option<Claimed> {
    let (raw, body) = RawHeader::read_from_prefix(bytes).ok()?;
    (raw.magic == MAGIC).then(|| Claimed {
        version: raw.version,
        kind: raw.kind,
        operation: raw.operation.get(),
        session: raw.session.get(),
        sequence: raw.sequence.get(),
        detail: raw.detail.get(),
        part: (raw.part.get(), raw.parts.get()),
        status: raw.status.get(),
        sound: raw.length.get() as usize == body.len() && datagram_crc(&raw, body) == raw.crc.get(),
        sealed: raw.authenticator != [0; AUTHENTICATOR_BYTES],
    })
}

/// The session that bytes name which may be a datagram; `None` where they are too few.
pub fn session_of(bytes: &[u8]) -> Option<u64> {
    RawHeader::read_from_prefix(bytes).ok().map(|(raw, _)| raw.session.get())
}

/// The datagrams of one message, none larger than `payload_max`.
pub fn encode(header: &Header, body: &[u8], payload_max: usize) -> Vec<Vec<u8>> {
    assert!(payload_max >= PAYLOAD_MIN, "a link of {payload_max} bytes carries no message");
    assert!(body.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", body.len());
    let chunk = payload_max.min(PAYLOAD_MAX) - HEADER_BYTES;
    let parts = body.len().div_ceil(chunk).max(1);
    assert!(parts <= PARTS_MAX, "a message of {parts} parts");
    let message_crc = crc32c(body);
    (0..parts)
        .map(|part| {
            let piece = &body[part * chunk..body.len().min((part + 1) * chunk)];
            encode_part(header, piece, part as u16, parts as u16, message_crc)
        })
        .collect()
}

fn encode_part(header: &Header, body: &[u8], part: u16, parts: u16, message_crc: u32) -> Vec<u8> {
    let (kind, status) = match header.kind {
        Kind::Request => (0, 0),
        Kind::Nudge => (2, 0),
        Kind::Reply(Ok(())) => (1, 0),
        Kind::Reply(Err(refusal)) => (1, refusal.code()),
    };
    let mut raw = RawHeader {
        magic: MAGIC,
        version: VERSION,
        kind,
        operation: U16::new(header.operation as u16),
        session: U64::new(header.session),
        sequence: U64::new(header.sequence),
        detail: U64::new(header.detail),
        part: U16::new(part),
        parts: U16::new(parts),
        length: U32::new(body.len() as u32),
        status: U16::new(status),
        reserved: U16::ZERO,
        message_crc: U32::new(message_crc),
        crc: U32::ZERO,
        reserved_too: U32::ZERO,
        authenticator: [0; AUTHENTICATOR_BYTES],
    };
    raw.crc = U32::new(datagram_crc(&raw, body));
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(raw.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The checksum of a datagram: of its header up to the authenticator, its own field zero, and body.
fn datagram_crc(raw: &RawHeader, body: &[u8]) -> u32 {
    let mut covered = *raw;
    covered.crc = U32::ZERO;
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&covered.as_bytes()[..AUTHENTICATED_BYTES]);
    digest.update(body);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: Kind) -> Header {
        Header { kind, operation: Operation::Transact, session: 7, sequence: 9, detail: 3 }
    }

    proptest! {
        /// Goal: whatever is encoded parses to itself, whatever its size and the link's.
        #[test]
        fn encoded_messages_parse(
            body in proptest::collection::vec(any::<u8>(), 0..9000),
            payload in PAYLOAD_MIN..4000,
            sequence: u64, detail: u64, session: u64,
            reply: bool,
        ) {
            let kind = if reply { Kind::Reply(Err(Refusal::NameTaken)) } else { Kind::Request };
            let header = Header { session, sequence, detail, ..header(kind) };
            let datagrams = encode(&header, &body, payload);
            let mut joined = Vec::new();
            for (i, bytes) in datagrams.iter().enumerate() {
                prop_assert!(bytes.len() <= payload);
                let datagram = parse(bytes).unwrap();
                prop_assert_eq!(datagram.header, header);
                prop_assert_eq!(usize::from(datagram.part), i);
                prop_assert_eq!(usize::from(datagram.parts), datagrams.len());
                prop_assert_eq!(datagram.message_crc, crc32c(&body));
                joined.extend_from_slice(datagram.body);
            }
            prop_assert_eq!(joined, body);
        }

        /// Goal: any bytes at all are refused or parsed, never a panic.
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        /// Goal: a datagram with any one bit wrong, but in the authenticator, is refused.
        #[test]
        fn any_flipped_bit_is_seen(
            body in proptest::collection::vec(any::<u8>(), 0..100),
            at: prop::sample::Index, bit in 0..8u8,
        ) {
            let mut bytes = encode(&header(Kind::Request), &body, PAYLOAD_MIN).remove(0);
            let at = at.index(bytes.len());
            prop_assume!(!(56..72).contains(&at));
            bytes[at] ^= 1 << bit;
            prop_assert!(parse(&bytes).is_err());
        }
    }

    /// Goal: operations survive their codes.
    #[test]
    fn operations_round_trip() {
        for operation in Operation::ALL {
            assert_eq!(Operation::from_code(*operation as u16), Some(*operation));
        }
    }
}
