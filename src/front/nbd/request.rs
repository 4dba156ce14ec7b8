//! A request's way from bytes to something that may be done: parsed, then checked against the
//! export, here and nowhere else.

use zerocopy::FromBytes;

use super::wire::{self, Errno, REQUEST_HEADER, RequestHeader};
use crate::front::export::PAYLOAD_MAX;

/// What follows a header and is dropped unread, at most; more ends the connection.
pub const SKIP_MAX: u32 = 2 * PAYLOAD_MAX;
const _: () = assert!(SKIP_MAX >= PAYLOAD_MAX, "a refused write of the largest size can go on");

/// The client's name for a request.
pub type Cookie = [u8; 8];

/// A request as the client sent it; nothing of it is believed yet.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The client's name for it.
    pub cookie: Cookie,
    flags: u16,
    command: u16,
    offset: u64,
    length: u32,
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
    /// Whether replies to reads are structured.
    pub structured: bool,
    /// Whether block status was agreed on.
    pub status: bool,
    /// Whether the client may not write.
    pub read_only: bool,
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
        length: u32,
        /// Durable before the reply.
        fua: bool,
    },
    /// Zero these bytes. They may be none.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
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
        length: u32,
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
    /// Reads a header.
    pub fn parse(bytes: &[u8; REQUEST_HEADER]) -> Result<Self, NotARequest> {
        let header =
            RequestHeader::read_from_bytes(bytes).expect("the array has the header's size");
        if header.magic.get() != wire::REQUEST_MAGIC {
            return Err(NotARequest(header.magic.get()));
        }
        Ok(Self {
            cookie: header.cookie,
            flags: header.flags.get(),
            command: header.command.get(),
            offset: header.offset.get(),
            length: header.length.get(),
        })
    }

    /// Bytes that follow the header, whether or not the request is refused.
    pub fn payload(&self) -> u32 {
        if self.command == wire::command::WRITE { self.length } else { 0 }
    }

    /// Whether the reply is one of a read: its form then depends on what was negotiated.
    pub fn is_read(&self) -> bool {
        self.command == wire::command::READ
    }

    /// Whether this is the client's farewell, to which there is no reply.
    pub fn is_disconnect(&self) -> bool {
        self.command == wire::command::DISC
    }

    /// What is to be done, or why it is not.
    pub fn check(&self, terms: Terms) -> Result<Command, Refusal> {
        let Self { offset, length, .. } = *self;
        let fua = self.flags & wire::command_flags::FUA != 0;
        // FUA is allowed everywhere: clients are known to set it on requests that write nothing.
        let allowed = wire::command_flags::FUA
            | match self.command {
                wire::command::READ if terms.structured => wire::command_flags::DF,
                wire::command::WRITE_ZEROES => {
                    wire::command_flags::NO_HOLE | wire::command_flags::FAST_ZERO
                }
                wire::command::BLOCK_STATUS => wire::command_flags::REQ_ONE,
                _ => 0,
            };
        if self.flags & !allowed != 0 && !self.is_disconnect() {
            return refuse(Errno::Invalid, "a flag that this command does not have");
        }
        self.check_permission(terms)?;
        match self.command {
            wire::command::READ => {
                self.check_payload(terms, Errno::Overflow)?;
                self.check_range(terms, Errno::Invalid)?;
                Ok(Command::Read { offset, length })
            }
            wire::command::WRITE => {
                self.check_payload(terms, Errno::Invalid)?;
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
            wire::command::BLOCK_STATUS => {
                self.check_range(terms, Errno::Invalid)?;
                let one = self.flags & wire::command_flags::REQ_ONE != 0;
                Ok(Command::Status { offset, length, one })
            }
            _ => refuse(Errno::Invalid, "an unknown command"),
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
        let whole =
            self.offset.is_multiple_of(block) && u64::from(self.length).is_multiple_of(block);
        if self.flags & wire::command_flags::FAST_ZERO != 0 && (no_hole || !whole) {
            return refuse(Errno::NotSupported, "these zeros would be written");
        }
        Ok(())
    }

    fn check_payload(&self, terms: Terms, errno: Errno) -> Result<(), Refusal> {
        if self.length > terms.payload_max {
            return refuse(errno, "longer than the largest payload");
        }
        Ok(())
    }

    fn check_range(&self, terms: Terms, errno: Errno) -> Result<(), Refusal> {
        match self.offset.checked_add(u64::from(self.length)) {
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

    const TERMS: Terms = Terms {
        size: 1 << 30,
        block_size: 4096,
        payload_max: PAYLOAD_MAX,
        structured: true,
        status: true,
        read_only: false,
    };

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
        let header = RequestHeader {
            magic: wire::REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: *b"12345678",
            offset: offset.into(),
            length: length.into(),
        };
        Request::parse(header.as_bytes().try_into().unwrap()).unwrap()
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
        let simple = Terms { structured: false, ..TERMS };
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

    proptest! {
        /// Goal: whatever the bytes, parsing and checking never panic, and what passes lies within
        /// the export.
        #[test]
        fn any_bytes(mut bytes in any::<[u8; REQUEST_HEADER]>(), magic: bool, small: bool) {
            if magic {
                bytes[..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
            }
            if small {
                bytes[6] = 0;
                bytes[7] %= 10;
            }
            let Ok(request) = Request::parse(&bytes) else { return Ok(()) };
            let _ = request.payload();
            match request.check(TERMS) {
                Ok(Command::Read { offset, length } | Command::Write { offset, length, .. }) => {
                    prop_assert!(length <= PAYLOAD_MAX);
                    prop_assert!(offset + u64::from(length) <= TERMS.size);
                }
                Ok(
                    Command::Trim { offset, length, .. }
                    | Command::WriteZeroes { offset, length, .. }
                    | Command::Status { offset, length, .. },
                ) => prop_assert!(offset + u64::from(length) <= TERMS.size),
                Ok(Command::Flush | Command::Cache | Command::Disconnect) | Err(_) => {}
            }
        }
    }
}
