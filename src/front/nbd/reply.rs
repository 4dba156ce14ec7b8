//! Replies as bytes.

use zerocopy::IntoBytes;
use zerocopy::big_endian::{U32, U64};

use super::meta;
use super::request::{Cookie, Tag};
use super::wire::{
    self, ChunkHeader, Errno, ExtendedChunkHeader, ExtendedStatusHead, ExtendedStatusRun, Framing,
    SimpleReply, StatusRun, allocation, chunk,
};
use crate::front::export::{ErrorKind, ExportError, Run};

/// The longest message that goes along with an error, in bytes.
pub const MESSAGE_MAX: usize = 96;
/// The longest head of a reply, in bytes: a structured error with its message.
pub const HEAD_MAX: usize = size_of::<ExtendedChunkHeader>() + 6 + MESSAGE_MAX;
const _: () = assert!(HEAD_MAX >= size_of::<ExtendedChunkHeader>() + size_of::<U64>());
/// The payload of a block status, in bytes at most.
pub const STATUS_MAX: usize = 4096;

/// What a reply says; the data of a read lies apart and follows it.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Done; nothing to send with it.
    Done,
    /// The data of a read from `offset` follows, `length` bytes.
    Data {
        /// First byte.
        offset: u64,
        /// Bytes; not zero.
        length: u32,
    },
    /// A metadata context and its runs follow, `length` bytes.
    Status {
        /// Bytes.
        length: u32,
    },
    /// Not done.
    Failed {
        /// The number.
        errno: Errno,
        /// The reason, for people.
        message: std::borrow::Cow<'static, str>,
    },
}

impl Outcome {
    /// A failed operation as a client sees it. Running out of range is no space to who writes.
    pub fn failed(error: ExportError, writes: bool) -> Self {
        let errno = match error.kind {
            ErrorKind::OutOfRange if writes => Errno::NoSpace,
            ErrorKind::Invalid | ErrorKind::OutOfRange => Errno::Invalid,
            ErrorKind::NoSpace => Errno::NoSpace,
            ErrorKind::Device => Errno::Io,
            ErrorKind::ReadOnly => Errno::Permission,
            ErrorKind::ShuttingDown => Errno::Shutdown,
        };
        Self::Failed { errno, message: error.message }
    }

    /// Writes the reply's head into `out` and says how many bytes it has.
    ///
    /// With structured replies, reads and errors are chunks; the protocol allows simple replies
    /// for what carries no payload, and they are shorter. With extended headers all are chunks.
    pub fn encode(&self, tag: Tag, framing: Framing, out: &mut [u8]) -> usize {
        if !framing.has_chunks() {
            let error = if let Self::Failed { errno, .. } = self { *errno as u32 } else { 0 };
            return put(out, &[simple(tag.cookie, error).as_bytes()]);
        }
        match self {
            Self::Done if !tag.read && framing == Framing::Structured => {
                put(out, &[simple(tag.cookie, 0).as_bytes()])
            }
            Self::Done => put_chunk(out, tag, framing, chunk::NONE, &[], 0),
            Self::Data { offset, length } => {
                let offset = U64::new(*offset);
                put_chunk(out, tag, framing, chunk::OFFSET_DATA, &[offset.as_bytes()], *length)
            }
            Self::Status { length } => {
                let kind = match framing {
                    Framing::Simple | Framing::Structured => chunk::BLOCK_STATUS,
                    Framing::Extended => chunk::BLOCK_STATUS_EXT,
                };
                put_chunk(out, tag, framing, kind, &[], *length)
            }
            Self::Failed { errno, message } => {
                let message = cut(message).as_bytes();
                let errno = (*errno as u32).to_be_bytes();
                let length = (message.len() as u16).to_be_bytes();
                put_chunk(out, tag, framing, chunk::ERROR, &[&errno, &length, message], 0)
            }
        }
    }
}

/// How many runs fit into [`STATUS_MAX`].
pub fn status_runs_max(framing: Framing) -> usize {
    match framing {
        Framing::Simple | Framing::Structured => {
            (STATUS_MAX - size_of::<U32>()) / size_of::<StatusRun>()
        }
        Framing::Extended => {
            (STATUS_MAX - size_of::<ExtendedStatusHead>()) / size_of::<ExtendedStatusRun>()
        }
    }
}

/// Writes the payload of a block status into `out` and says how many bytes it has.
///
/// # Panics
/// Without extended headers, if a run is of 4 GiB or more: no request was that long.
pub fn put_status(framing: Framing, runs: &[Run], out: &mut [u8]) -> usize {
    let flags = |run: &Run| if run.used { 0 } else { allocation::HOLE | allocation::ZERO };
    let context = U32::new(meta::ALLOCATION_ID);
    match framing {
        Framing::Simple | Framing::Structured => {
            let mut end = put(out, &[context.as_bytes()]);
            for run in runs {
                let length = u32::try_from(run.length).expect("no run is longer than the request");
                let run = StatusRun { length: length.into(), flags: flags(run).into() };
                end += put(&mut out[end..], &[run.as_bytes()]);
            }
            end
        }
        Framing::Extended => {
            let head = ExtendedStatusHead { context, count: (runs.len() as u32).into() };
            let mut end = put(out, &[head.as_bytes()]);
            for run in runs {
                let flags = u64::from(flags(run)).into();
                let run = ExtendedStatusRun { length: run.length.into(), flags };
                end += put(&mut out[end..], &[run.as_bytes()]);
            }
            end
        }
    }
}

fn simple(cookie: Cookie, error: u32) -> SimpleReply {
    SimpleReply { magic: wire::SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie }
}

/// Writes the header of a reply's only chunk and the first pieces of its payload; `beyond` bytes
/// follow from elsewhere.
fn put_chunk(
    out: &mut [u8],
    tag: Tag,
    framing: Framing,
    kind: u16,
    pieces: &[&[u8]],
    beyond: u32,
) -> usize {
    let (flags, kind) = (chunk::FLAG_DONE.into(), kind.into());
    let length = pieces.iter().map(|piece| piece.len() as u32).sum::<u32>() + beyond;
    let Tag { cookie, offset, .. } = tag;
    let end = match framing {
        Framing::Simple | Framing::Structured => {
            let magic = wire::CHUNK_MAGIC.into();
            let header = ChunkHeader { magic, flags, kind, cookie, length: length.into() };
            put(out, &[header.as_bytes()])
        }
        Framing::Extended => {
            let magic = wire::EXTENDED_CHUNK_MAGIC.into();
            let (offset, length) = (offset.into(), u64::from(length).into());
            let header = ExtendedChunkHeader { magic, flags, kind, cookie, offset, length };
            put(out, &[header.as_bytes()])
        }
    };
    end + put(&mut out[end..], pieces)
}

fn put(out: &mut [u8], pieces: &[&[u8]]) -> usize {
    let mut end = 0;
    for piece in pieces {
        out[end..end + piece.len()].copy_from_slice(piece);
        end += piece.len();
    }
    end
}

/// As much of the message as fits, in whole characters.
fn cut(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromBytes;

    const COOKIE: Cookie = *b"cookie!!";

    fn encode(outcome: &Outcome, read: bool, framing: Framing) -> Vec<u8> {
        let mut out = [0; HEAD_MAX];
        let length = outcome.encode(Tag { cookie: COOKIE, offset: 5, read }, framing, &mut out);
        out[..length].to_vec()
    }

    /// All kinds of outcomes, and the bytes that follow each.
    fn outcomes() -> [(Outcome, usize); 4] {
        let long = "ü".repeat(MESSAGE_MAX) + "x";
        [
            (Outcome::Done, 0),
            (Outcome::Data { offset: 5, length: 600 }, 600),
            (Outcome::Status { length: 24 }, 24),
            (Outcome::Failed { errno: Errno::Io, message: long.into() }, 0),
        ]
    }

    /// Goal: without structured replies all replies are simple ones.
    #[test]
    fn simple_replies() {
        let failed = Outcome::Failed { errno: Errno::NoSpace, message: "full".into() };
        for (outcome, error) in
            [(Outcome::Done, 0), (Outcome::Data { offset: 5, length: 6 }, 0), (failed, 28)]
        {
            let bytes = encode(&outcome, true, Framing::Simple);
            let reply = SimpleReply::read_from_bytes(&bytes).unwrap();
            assert_eq!(reply.error.get(), error);
            assert_eq!(reply.cookie, COOKIE);
        }
    }

    /// Goal: with structured replies a read never gets a simple one, and lengths add up.
    #[test]
    fn structured_replies() {
        for (outcome, beyond) in outcomes() {
            let bytes = encode(&outcome, true, Framing::Structured);
            let (head, rest) = ChunkHeader::read_from_prefix(&bytes).unwrap();
            assert_eq!(head.magic.get(), wire::CHUNK_MAGIC);
            assert_eq!(head.length.get() as usize, rest.len() + beyond);
            assert!(bytes.len() <= HEAD_MAX);
        }
        let done = encode(&Outcome::Done, false, Framing::Structured);
        assert_eq!(done.len(), size_of::<SimpleReply>());
    }

    /// Goal: with extended headers every reply has one, with the request's cookie and offset, and
    /// lengths add up.
    #[test]
    fn extended_replies() {
        for (outcome, beyond) in outcomes() {
            for read in [false, true] {
                let bytes = encode(&outcome, read, Framing::Extended);
                let (head, rest) = ExtendedChunkHeader::read_from_prefix(&bytes).unwrap();
                assert_eq!(head.magic.get(), wire::EXTENDED_CHUNK_MAGIC);
                assert_eq!((head.cookie, head.offset.get()), (COOKIE, 5));
                assert_eq!(head.length.get() as usize, rest.len() + beyond);
                assert_eq!(head.kind.get() == 6, matches!(outcome, Outcome::Status { .. }));
                assert!(bytes.len() <= HEAD_MAX);
            }
        }
    }

    /// Goal: as many runs as may be fill the payload and no more, in either form; only the
    /// extended one takes long ones.
    #[test]
    fn status_payloads() {
        for (framing, wanted) in [(Framing::Structured, 511), (Framing::Extended, 255)] {
            let max = status_runs_max(framing);
            assert_eq!(max, wanted);
            let runs = vec![Run { length: 4096, used: false }; max];
            assert!(put_status(framing, &runs, &mut [0; STATUS_MAX]) <= STATUS_MAX);
        }
        let mut out = [0; STATUS_MAX];
        let runs = [Run { length: 1 << 40, used: true }, Run { length: 9, used: false }];
        let end = put_status(Framing::Extended, &runs, &mut out);
        let (head, rest) = ExtendedStatusHead::read_from_prefix(&out[..end]).unwrap();
        assert_eq!((head.context.get(), head.count.get()), (meta::ALLOCATION_ID, 2));
        let runs = <[ExtendedStatusRun; 2]>::read_from_bytes(rest).unwrap();
        let runs = runs.map(|run| (run.length.get(), run.flags.get()));
        assert_eq!(runs, [(1 << 40, 0), (9, 3)]);
    }

    /// Goal: each kind of error has its number.
    #[test]
    fn kinds_have_numbers() {
        let errno = |kind, writes| match Outcome::failed(ExportError::new(kind, ""), writes) {
            Outcome::Failed { errno, .. } => errno,
            _ => unreachable!("a failure"),
        };
        assert_eq!(errno(ErrorKind::OutOfRange, true), Errno::NoSpace);
        assert_eq!(errno(ErrorKind::OutOfRange, false), Errno::Invalid);
        assert_eq!(errno(ErrorKind::NoSpace, true), Errno::NoSpace);
        assert_eq!(errno(ErrorKind::Device, false), Errno::Io);
        assert_eq!(errno(ErrorKind::ShuttingDown, false), Errno::Shutdown);
    }
}
