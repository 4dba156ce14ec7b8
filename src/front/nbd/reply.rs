//! Replies as bytes.

use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::request::Cookie;
use super::wire::{self, ChunkHeader, Errno, SimpleReply, chunk};
use crate::front::export::{ErrorKind, ExportError};

/// The longest message that goes along with an error, in bytes.
pub const MESSAGE_MAX: usize = 96;
/// The longest head of a reply, in bytes: a structured error with its message.
pub const HEAD_MAX: usize = size_of::<ChunkHeader>() + 6 + MESSAGE_MAX;
const _: () = assert!(HEAD_MAX >= size_of::<ChunkHeader>() + size_of::<U64>());

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
    /// With `structured`, reads and errors are chunks; the protocol allows simple replies for what
    /// carries no payload, and they are shorter.
    pub fn encode(&self, cookie: Cookie, read: bool, structured: bool, out: &mut [u8]) -> usize {
        if !structured {
            let error = if let Self::Failed { errno, .. } = self { *errno as u32 } else { 0 };
            return put(out, simple(cookie, error).as_bytes(), &[]);
        }
        match self {
            Self::Done if read => put(out, header(chunk::NONE, cookie, 0).as_bytes(), &[]),
            Self::Done => put(out, simple(cookie, 0).as_bytes(), &[]),
            Self::Data { offset, length } => {
                let offset = U64::new(*offset);
                let length = size_of::<U64>() as u32 + length;
                let head = header(chunk::OFFSET_DATA, cookie, length);
                put(out, head.as_bytes(), &[offset.as_bytes()])
            }
            Self::Status { length } => {
                put(out, header(chunk::BLOCK_STATUS, cookie, *length).as_bytes(), &[])
            }
            Self::Failed { errno, message } => {
                let message = cut(message).as_bytes();
                let head = header(chunk::ERROR, cookie, 6 + message.len() as u32);
                let errno = (*errno as u32).to_be_bytes();
                let length = (message.len() as u16).to_be_bytes();
                put(out, head.as_bytes(), &[&errno, &length, message])
            }
        }
    }
}

fn simple(cookie: Cookie, error: u32) -> SimpleReply {
    SimpleReply { magic: wire::SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie }
}

fn header(kind: u16, cookie: Cookie, length: u32) -> ChunkHeader {
    ChunkHeader {
        magic: wire::CHUNK_MAGIC.into(),
        flags: chunk::FLAG_DONE.into(),
        kind: kind.into(),
        cookie,
        length: length.into(),
    }
}

fn put(out: &mut [u8], head: &[u8], pieces: &[&[u8]]) -> usize {
    let mut end = head.len();
    out[..end].copy_from_slice(head);
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

    fn encode(outcome: &Outcome, read: bool, structured: bool) -> Vec<u8> {
        let mut out = [0; HEAD_MAX];
        let length = outcome.encode(COOKIE, read, structured, &mut out);
        out[..length].to_vec()
    }

    /// Goal: without structured replies all replies are simple ones.
    #[test]
    fn simple_replies() {
        let failed = Outcome::Failed { errno: Errno::NoSpace, message: "full".into() };
        for (outcome, error) in
            [(Outcome::Done, 0), (Outcome::Data { offset: 5, length: 6 }, 0), (failed, 28)]
        {
            let reply = SimpleReply::read_from_bytes(&encode(&outcome, true, false)).unwrap();
            assert_eq!(reply.error.get(), error);
            assert_eq!(reply.cookie, COOKIE);
        }
    }

    /// Goal: with structured replies a read never gets a simple one, and lengths add up.
    #[test]
    fn structured_replies() {
        let long = "ü".repeat(MESSAGE_MAX) + "x";
        let failed = Outcome::Failed { errno: Errno::Io, message: long.into() };
        for (outcome, payload_beyond) in
            [(Outcome::Done, 0), (Outcome::Data { offset: 5, length: 600 }, 600), (failed, 0)]
        {
            let bytes = encode(&outcome, true, true);
            let (head, rest) = ChunkHeader::read_from_prefix(&bytes).unwrap();
            assert_eq!(head.magic.get(), wire::CHUNK_MAGIC);
            assert_eq!(head.length.get() as usize, rest.len() + payload_beyond);
            assert!(bytes.len() <= HEAD_MAX);
        }
        assert_eq!(encode(&Outcome::Done, false, true).len(), size_of::<SimpleReply>());
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
