//! A request's way from bytes to something that may be done: parsed, then checked against the
//! export, here and nowhere else.

use zerocopy::FromBytes;

use super::meta;
use super::wire::{self, Errno, ExtendedRequestHeader, Framing, RequestHeader, StatusFilter};
use crate::front::export::PAYLOAD_MAX;

/// What follows a header and is dropped unread, at most, in bytes; more ends the connection.
pub const SKIP_MAX: u64 = 2 * PAYLOAD_MAX as u64;

/// The client's name for a request.
pub type Cookie = [u8; 8];

/// What a reply repeats of its request, and what its form depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The client's name for the request.
    pub cookie: Cookie,
    /// Where the request begins in the export.
    pub offset: u64,
    /// Whether it is a read.
    pub read: bool,
}

/// A request as the client sent it; nothing of it is believed yet.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    cookie: Cookie,
    flags: u16,
    command: u16,
    offset: u64,
    length: u64,
    payload: u64,
    /// The metadata context that the client names, where it does.
    context: Option<u32>,
}

/// What stays the same for all requests of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Size of the export in bytes.
    pub size: u64,
    /// The length and alignment of what is zeroed without writing zeros.
    pub block_size: u32,
    /// The longest payload, in bytes.
    pub payload_max: u32,
    /// How requests and replies are framed.
    pub framing: Framing,
    /// Whether block status was agreed on.
    pub status: bool,
    /// Whether the client may not write.
    pub read_only: bool,
}

impl Terms {
    /// The longest payload that is dropped unread when its request is refused, in bytes; the
    /// protocol wants less patience with extended headers.
    pub fn skip_max(&self) -> u64 {
        match self.framing {
            Framing::Simple | Framing::Structured => SKIP_MAX,
            Framing::Extended => self.payload_max.into(),
        }
    }
}

/// A request that makes sense: its range lies within the export and its flags are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send these bytes. They may be none.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes; at most [`Terms::payload_max`].
        length: u32,
    },
    /// Take these bytes. They may be none.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes; at most [`Terms::payload_max`].
        length: u32,
        /// Durable before the reply.
        fua: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// Forget these bytes. They may be none.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Durable before the reply.
        fua: bool,
    },
    /// Zero these bytes. They may be none.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Durable before the reply.
        fua: bool,
        /// Keep them backed.
        no_hole: bool,
    },
    /// Be ready to send these bytes. They may be none.
    Cache,
    /// Say which of these bytes have contents of their own.
    Status {
        /// First byte.
        offset: u64,
        /// Bytes; not zero.
        length: u64,
        /// Only the first run.
        one: bool,
    },
    /// Leave when all is answered.
    Disconnect,
}

/// A request that is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The number to answer with.
    pub errno: Errno,
    /// The reason, for people.
    pub reason: &'static str,
}

/// What the client sends is not a request: where the next one begins cannot be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client sent {0:#010x} where a request begins")]
pub struct NotARequest(pub u32);

impl Request {
    /// Reads a header of as many bytes as the framing has in it.
    pub fn parse(framing: Framing, bytes: &[u8]) -> Result<Self, NotARequest> {
        const SIZE: &str = "as many bytes as a header has";
        let (magic, wanted, mut request) = match framing {
            Framing::Simple | Framing::Structured => {
                let header = RequestHeader::read_from_bytes(bytes).expect(SIZE);
                let request = Self {
                    cookie: header.cookie,
                    flags: header.flags.get(),
                    command: header.command.get(),
                    offset: header.offset.get(),
                    length: header.length.get().into(),
                    payload: 0,
                    context: None,
                };
                (header.magic.get(), wire::REQUEST_MAGIC, request)
            }
            Framing::Extended => {
                let header = ExtendedRequestHeader::read_from_bytes(bytes).expect(SIZE);
                let request = Self {
                    cookie: header.cookie,
                    flags: header.flags.get(),
                    command: header.command.get(),
                    offset: header.offset.get(),
                    length: header.length.get(),
                    payload: 0,
                    context: None,
                };
                (header.magic.get(), wire::EXTENDED_REQUEST_MAGIC, request)
            }
        };
        // A write brings its payload even without the flag: QEMU 10 never sets it.
        let says_so = request.flags & wire::command_flags::PAYLOAD_LEN != 0;
        if request.command == wire::command::WRITE || (framing == Framing::Extended && says_so) {
            request.payload = request.length;
        }
        if magic == wanted { Ok(request) } else { Err(NotARequest(magic)) }
    }

    /// Whether a [`StatusFilter`] follows, for [`Request::narrow`].
    pub fn has_filter(&self) -> bool {
        self.command == wire::command::BLOCK_STATUS
            && self.payload == size_of::<StatusFilter>() as u64
    }

    /// The request with what its payload says, which is done with then.
    #[must_use]
    pub fn narrow(self, filter: &StatusFilter) -> Self {
        let (length, context) = (filter.length.get(), Some(filter.context.get()));
        Self { length, context, payload: 0, ..self }
    }

    /// Bytes that follow the header, whether or not the request is refused.
    pub fn payload(&self) -> u64 {
        self.payload
    }

    /// What its reply needs of it.
    pub fn tag(&self) -> Tag {
        let read = self.command == wire::command::READ;
        Tag { cookie: self.cookie, offset: self.offset, read }
    }

    /// Whether this is the client's farewell, to which there is no reply.
    pub fn is_disconnect(&self) -> bool {
        self.command == wire::command::DISC
    }

    /// What is to be done, or why it is not.
    pub fn check(&self, terms: Terms) -> Result<Command, Refusal> {
        let Self { offset, length, .. } = *self;
        let fua = self.flags & wire::command_flags::FUA != 0;
        if self.flags & !self.flags_allowed(terms.framing) != 0 && !self.is_disconnect() {
            return refuse(Errno::Invalid, "a flag that this command does not have");
        }
        self.check_permission(terms)?;
        match self.command {
            wire::command::READ => {
                let length = self.check_payload(terms, Errno::Overflow)?;
                self.check_range(terms, Errno::Invalid)?;
                Ok(Command::Read { offset, length })
            }
            wire::command::WRITE => {
                let length = self.check_payload(terms, Errno::Invalid)?;
                self.check_range(terms, Errno::NoSpace)?;
                Ok(Command::Write { offset, length, fua })
            }
            wire::command::DISC => Ok(Command::Disconnect),
            wire::command::FLUSH if offset != 0 || length != 0 => {
                refuse(Errno::Invalid, "a flush has no range")
            }
            wire::command::FLUSH => Ok(Command::Flush),
            wire::command::TRIM => {
                self.check_range(terms, Errno::Invalid)?;
                Ok(Command::Trim { offset, length, fua })
            }
            wire::command::WRITE_ZEROES => {
                self.check_range(terms, Errno::NoSpace)?;
                let no_hole = self.flags & wire::command_flags::NO_HOLE != 0;
                self.check_fast(terms, no_hole)?;
                Ok(Command::WriteZeroes { offset, length, fua, no_hole })
            }
            wire::command::CACHE => {
                self.check_range(terms, Errno::Invalid)?;
                Ok(Command::Cache)
            }
            wire::command::BLOCK_STATUS if !terms.status => {
                refuse(Errno::Invalid, "no metadata context was selected")
            }
            wire::command::BLOCK_STATUS if length == 0 => {
                refuse(Errno::Invalid, "the status of nothing")
            }
            wire::command::BLOCK_STATUS
                if self.payload > 0 || self.context.is_some_and(|id| id != meta::ALLOCATION_ID) =>
            {
                refuse(Errno::Invalid, "the payload names a context that was not selected")
            }
            wire::command::BLOCK_STATUS => {
                self.check_range(terms, Errno::Invalid)?;
                let one = self.flags & wire::command_flags::REQ_ONE != 0;
                Ok(Command::Status { offset, length, one })
            }
            _ => refuse(Errno::Invalid, "an unknown command"),
        }
    }

    fn flags_allowed(&self, framing: Framing) -> u16 {
        use wire::command::{BLOCK_STATUS, READ, WRITE, WRITE_ZEROES};
        use wire::command_flags::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        let payload = if framing == Framing::Extended { PAYLOAD_LEN } else { 0 };
        // FUA is allowed everywhere: clients are known to set it on requests that write nothing.
        FUA | match self.command {
            READ if framing.has_chunks() => DF,
            WRITE => payload,
            WRITE_ZEROES => NO_HOLE | FAST_ZERO,
            BLOCK_STATUS => REQ_ONE | payload,
            _ => 0,
        }
    }

    fn check_permission(&self, terms: Terms) -> Result<(), Refusal> {
        use wire::command::{TRIM, WRITE, WRITE_ZEROES};
        if terms.read_only && [WRITE, TRIM, WRITE_ZEROES].contains(&self.command) {
            return refuse(Errno::Permission, "the export is read-only");
        }
        Ok(())
    }

    /// Whole blocks become unused, which is fast; all else is written.
    fn check_fast(&self, terms: Terms, no_hole: bool) -> Result<(), Refusal> {
        let block = u64::from(terms.block_size);
        let whole = self.offset.is_multiple_of(block) && self.length.is_multiple_of(block);
        if self.flags & wire::command_flags::FAST_ZERO != 0 && (no_hole || !whole) {
            return refuse(Errno::NotSupported, "these zeros would be written");
        }
        Ok(())
    }

    /// The length, which memory is needed for.
    fn check_payload(&self, terms: Terms, errno: Errno) -> Result<u32, Refusal> {
        match u32::try_from(self.length) {
            Ok(length) if length <= terms.payload_max => Ok(length),
            _ => refuse(errno, "longer than the largest payload"),
        }
    }

    fn check_range(&self, terms: Terms, errno: Errno) -> Result<(), Refusal> {
        match self.offset.checked_add(self.length) {
            Some(end) if end <= terms.size => Ok(()),
            _ => refuse(errno, "beyond the end of the export"),
        }
    }
}

fn refuse<T>(errno: Errno, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { errno, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use crate::front::nbd::wire::REQUEST_HEADER_MAX;

    const TERMS: Terms = Terms {
        size: 1 << 30,
        block_size: 4096,
        payload_max: PAYLOAD_MAX,
        framing: Framing::Structured,
        status: true,
        read_only: false,
    };

    fn extended(command: u16, flags: u16, offset: u64, length: u64) -> Request {
        let header = ExtendedRequestHeader {
            magic: wire::EXTENDED_REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: *b"12345678",
            offset: offset.into(),
            length: length.into(),
        };
        Request::parse(Framing::Extended, header.as_bytes()).unwrap()
    }

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
        let header = RequestHeader {
            magic: wire::REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: *b"12345678",
            offset: offset.into(),
            length: length.into(),
        };
        Request::parse(Framing::Structured, header.as_bytes()).unwrap()
    }

    fn errno(command: u16, flags: u16, offset: u64, length: u32) -> Option<Errno> {
        request(command, flags, offset, length).check(TERMS).err().map(|refusal| refusal.errno)
    }

    /// Goal: each kind of bad request gets the number that the protocol names for it.
    #[test]
    fn refusals_are_the_protocols() {
        use wire::command::{FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
        let end = TERMS.size;
        assert_eq!(errno(READ, 0, end - 1, 1), None);
        assert_eq!(errno(READ, 0, end, 1), Some(Errno::Invalid));
        assert_eq!(errno(READ, 0, u64::MAX, 2), Some(Errno::Invalid));
        assert_eq!(errno(READ, 0, 0, PAYLOAD_MAX + 1), Some(Errno::Overflow));
        assert_eq!(errno(WRITE, 0, 0, PAYLOAD_MAX), None);
        assert_eq!(errno(WRITE, 0, 0, PAYLOAD_MAX + 1), Some(Errno::Invalid));
        assert_eq!(errno(WRITE, 0, end, 1), Some(Errno::NoSpace));
        assert_eq!(errno(WRITE_ZEROES, 0, end, 1), Some(Errno::NoSpace));
        assert_eq!(errno(WRITE_ZEROES, 0, 0, 1 << 30), None);
        assert_eq!(errno(TRIM, 0, end, 1), Some(Errno::Invalid));
        assert_eq!(errno(FLUSH, 0, 0, 1), Some(Errno::Invalid));
        assert_eq!(errno(99, 0, 0, 0), Some(Errno::Invalid));
    }

    /// Goal: a flag passes only where it has a meaning; FUA passes everywhere.
    #[test]
    fn flags_are_checked() {
        use wire::command::{BLOCK_STATUS, CACHE, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
        use wire::command_flags::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        for command in [READ, WRITE, FLUSH, TRIM, WRITE_ZEROES] {
            assert_eq!(errno(command, FUA, 0, 0), None);
            assert_eq!(errno(command, DF, 0, 0).is_none(), command == READ);
            assert_eq!(errno(command, NO_HOLE, 0, 0).is_none(), command == WRITE_ZEROES);
            assert_eq!(errno(command, 1 << 15, 0, 0), Some(Errno::Invalid));
        }
        assert_eq!(errno(WRITE_ZEROES, FAST_ZERO, 4096, 8192), None);
        assert_eq!(errno(WRITE_ZEROES, FAST_ZERO, 4096, 8191), Some(Errno::NotSupported));
        assert_eq!(errno(WRITE_ZEROES, FAST_ZERO, 1, 8192), Some(Errno::NotSupported));
        assert_eq!(errno(WRITE_ZEROES, FAST_ZERO | NO_HOLE, 0, 4096), Some(Errno::NotSupported));
        assert_eq!(errno(BLOCK_STATUS, REQ_ONE, 0, 1), None);
        assert_eq!(errno(BLOCK_STATUS, 0, 0, 0), Some(Errno::Invalid));
        assert_eq!(errno(CACHE, REQ_ONE, 0, 1), Some(Errno::Invalid));
        let without = Terms { status: false, ..TERMS };
        assert!(request(BLOCK_STATUS, 0, 0, 1).check(without).is_err());
        let simple = Terms { framing: Framing::Simple, ..TERMS };
        assert!(request(READ, DF, 0, 0).check(simple).is_err());
    }

    /// Goal: who may not write is told so, and may do all else.
    #[test]
    fn read_only() {
        use wire::command::{BLOCK_STATUS, CACHE, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
        let terms = Terms { read_only: true, ..TERMS };
        for command in [WRITE, TRIM, WRITE_ZEROES] {
            let refusal = request(command, 0, 0, 4096).check(terms).unwrap_err();
            assert_eq!(refusal.errno, Errno::Permission);
        }
        for (command, length) in [(READ, 1), (FLUSH, 0), (CACHE, 1), (BLOCK_STATUS, 1)] {
            assert!(request(command, 0, 0, length).check(terms).is_ok());
        }
    }

    const LARGE: Terms = Terms { size: 1 << 50, framing: Framing::Extended, ..TERMS };

    /// Goal: with extended headers ranges may be as long as the export; payloads may not, and who
    /// reads more than a payload is told so.
    #[test]
    fn long_ranges() {
        use wire::command::{BLOCK_STATUS, CACHE, READ, TRIM, WRITE_ZEROES};
        let check = |command, flags, length| extended(command, flags, 0, length).check(LARGE);
        let length = LARGE.size;
        assert_eq!(check(TRIM, 0, length), Ok(Command::Trim { offset: 0, length, fua: false }));
        let zeroes = Command::WriteZeroes { offset: 0, length, fua: false, no_hole: false };
        assert_eq!(check(WRITE_ZEROES, wire::command_flags::FAST_ZERO, length), Ok(zeroes));
        assert_eq!(check(CACHE, 0, length), Ok(Command::Cache));
        let status = Command::Status { offset: 0, length, one: false };
        assert_eq!(check(BLOCK_STATUS, 0, length), Ok(status));
        for command in [TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS] {
            assert!(check(command, 0, length + 1).is_err());
            assert!(extended(command, 0, 1, u64::MAX).check(LARGE).is_err());
        }
        let errno = |command, length| check(command, 0, length).unwrap_err().errno;
        assert_eq!(errno(READ, (1 << 32) + 1), Errno::Overflow);
        assert_eq!(errno(BLOCK_STATUS, 0), Errno::Invalid);
    }

    /// Goal: with extended headers what follows a header is what its flag says, whatever the
    /// command; without them the flag is unknown. A write always brings its payload.
    #[test]
    fn payloads_are_announced() {
        use wire::command::{BLOCK_STATUS, CACHE, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
        use wire::command_flags::PAYLOAD_LEN;
        for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 99] {
            let with = extended(command, PAYLOAD_LEN, 0, 4096);
            assert_eq!(with.payload(), 4096);
            assert_eq!(with.check(LARGE).unwrap_err().errno, Errno::Invalid, "{command}");
            assert_eq!(extended(command, 0, 0, 4096).payload(), 0);
            assert_eq!(request(command, PAYLOAD_LEN, 0, 4096).payload(), 0);
            assert_eq!(errno(command, PAYLOAD_LEN, 0, 4096), Some(Errno::Invalid));
        }
        let write = Command::Write { offset: 0, length: 4096, fua: false };
        assert_eq!(extended(WRITE, PAYLOAD_LEN, 0, 4096).check(LARGE), Ok(write));
        let without = extended(WRITE, 0, 0, 4096);
        assert_eq!((without.payload(), without.check(LARGE)), (4096, Ok(write)));
        assert_eq!(request(WRITE, PAYLOAD_LEN, 0, 4096).payload(), 4096);
        assert_eq!(errno(WRITE, PAYLOAD_LEN, 0, 4096), Some(Errno::Invalid));
        assert_eq!(LARGE.skip_max(), u64::from(PAYLOAD_MAX));
        assert!(TERMS.skip_max() > u64::from(PAYLOAD_MAX));
    }

    /// Goal: a block status with a payload is that of the one context, of the range in the payload;
    /// all else in it is refused.
    #[test]
    fn status_filters() {
        use wire::command::BLOCK_STATUS;
        use wire::command_flags::{PAYLOAD_LEN, REQ_ONE};
        let with = extended(BLOCK_STATUS, PAYLOAD_LEN | REQ_ONE, 4096, 12);
        assert!(with.has_filter());
        let filter = |length: u64, context: u32| {
            let filter = StatusFilter { length: length.into(), context: context.into() };
            let narrowed = with.narrow(&filter);
            assert_eq!(narrowed.payload(), 0);
            narrowed.check(LARGE)
        };
        let status = Command::Status { offset: 4096, length: 1 << 33, one: true };
        assert_eq!(filter(1 << 33, meta::ALLOCATION_ID), Ok(status));
        for (length, context) in [(1, 0), (1, 2), (0, 1), (LARGE.size, 1), (u64::MAX, 1)] {
            assert_eq!(filter(length, context).unwrap_err().errno, Errno::Invalid);
        }
        for length in [0, 1, 8, 11, 13, 16, 1 << 20] {
            let request = extended(BLOCK_STATUS, PAYLOAD_LEN, 0, length);
            assert!(!request.has_filter() && request.check(LARGE).is_err());
        }
        let without = Terms { status: false, ..LARGE };
        assert!(extended(BLOCK_STATUS, 0, 0, 1).check(without).is_err());
    }

    /// Goal: who speaks with the other kind of header is not understood.
    #[test]
    fn framings_are_apart() {
        for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
            for magic in [wire::REQUEST_MAGIC, wire::EXTENDED_REQUEST_MAGIC] {
                let mut bytes = vec![0; framing.request_header()];
                bytes[..4].copy_from_slice(&magic.to_be_bytes());
                let extended = magic == wire::EXTENDED_REQUEST_MAGIC;
                let parsed = Request::parse(framing, &bytes);
                assert_eq!(parsed.is_ok(), extended == (framing == Framing::Extended));
            }
        }
    }

    proptest! {
        /// Goal: whatever the bytes, parsing and checking never panic, and what passes lies within
        /// the export.
        #[test]
        fn any_bytes(
            mut bytes in any::<[u8; REQUEST_HEADER_MAX]>(),
            extended: bool,
            magic: bool,
            small: bool,
        ) {
            let framing = if extended { Framing::Extended } else { Framing::Structured };
            let terms = Terms { framing, ..TERMS };
            if magic {
                let magic =
                    if extended { wire::EXTENDED_REQUEST_MAGIC } else { wire::REQUEST_MAGIC };
                bytes[..4].copy_from_slice(&magic.to_be_bytes());
            }
            if small {
                bytes[6] = 0;
                bytes[7] %= 10;
            }
            let header = &bytes[..framing.request_header()];
            let Ok(request) = Request::parse(framing, header) else { return Ok(()) };
            let request = if request.has_filter() {
                let filter = StatusFilter { length: 1.into(), context: meta::ALLOCATION_ID.into() };
                request.narrow(&filter)
            } else {
                request
            };
            let within = |offset: u64, length: u64| offset + length <= terms.size;
            match request.check(terms) {
                Ok(Command::Read { offset, length } | Command::Write { offset, length, .. }) => {
                    prop_assert!(length <= PAYLOAD_MAX && within(offset, length.into()));
                }
                Ok(
                    Command::Trim { offset, length, .. }
                    | Command::WriteZeroes { offset, length, .. }
                    | Command::Status { offset, length, .. },
                ) => prop_assert!(within(offset, length)),
                Ok(Command::Flush | Command::Cache | Command::Disconnect) | Err(_) => {}
            }
        }
    }
}
