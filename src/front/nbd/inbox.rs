//! A connection's receive buffer: big receives, many requests out of each.
//!
//! It starts small, so that a thousand connections are cheap, grows while a client fills it and
//! shrinks when it no longer does.

use std::io;

use super::server::Room;
use crate::uring::Socket;
use crate::uring::buffers::Buf;

/// A receive buffer that has not grown, in bytes: holds the longest option, and the longest payload
/// that is taken through the receive buffer.
pub const SMALL: usize = 32 << 10;
/// A receive buffer that has grown, in bytes: 32 requests of 4 KiB and more fit.
pub const LARGE: usize = 256 << 10;
/// A grown buffer goes back after this many receives that a small one would have held.
const QUIET_MAX: u32 = 256;

const _: () = assert!(SMALL >= super::handshake::INPUT_MAX);
const _: () = assert!(SMALL >= super::wire::REQUEST_HEADER_MAX + super::receive::THROUGH_INBOX_MAX);

/// Bytes that have arrived and were not looked at: `start..end` of the buffer.
pub struct Inbox {
    buf: Buf,
    start: usize,
    end: usize,
    quiet: u32,
    room: Room,
}

impl Inbox {
    /// An empty one, where there is room for another.
    pub fn new(room: Room) -> Option<Self> {
        let buf = room.small()?;
        Some(Self { buf, start: 0, end: 0, quiet: 0, room })
    }

    /// What has arrived.
    pub fn bytes(&self) -> &[u8] {
        &self.buf.as_slice()[self.start..self.end]
    }

    /// How much has arrived.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets go of the first `count` bytes.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len(), "consumed more than has arrived");
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Receives more, once; says how many bytes came. Zero is the end.
    pub async fn fill(&mut self, socket: &Socket) -> io::Result<usize> {
        self.make_room();
        let free = self.buf.len() - self.end;
        let received = socket.receive(self.buf.view(self.end..self.end + free)).await?;
        self.end += received;
        self.quiet = if self.end > SMALL { 0 } else { self.quiet.saturating_add(1) };
        if received == free && self.buf.len() == SMALL {
            self.replace(self.room.large());
        }
        Ok(received)
    }

    /// Moves what is left to the front, so that the next receive is a big one.
    fn make_room(&mut self) {
        if self.buf.len() == LARGE && self.quiet >= QUIET_MAX && self.len() < SMALL {
            let small = self.room.small();
            if small.is_some() {
                self.replace(small);
                self.room.gave_large_back();
            }
        }
        if self.start > 0 {
            let (start, end) = (self.start, self.end);
            self.buf.as_mut_slice().copy_within(start..end, 0);
            (self.start, self.end) = (0, end - start);
        }
        assert!(self.end < self.buf.len(), "the inbox is full and nobody takes from it");
    }

    /// Goes on in another buffer, if there is one.
    fn replace(&mut self, other: Option<Buf>) {
        let Some(mut other) = other else { return };
        let length = self.len();
        other.as_mut_slice()[..length].copy_from_slice(self.bytes());
        self.buf = other;
        (self.start, self.end, self.quiet) = (0, length, 0);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        if self.buf.len() == LARGE {
            self.room.gave_large_back();
        }
    }
}
