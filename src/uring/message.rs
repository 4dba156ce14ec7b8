//! Several buffers sent as one message.

use io_uring::types;
use nix::libc;

use super::buffers::View;

/// The most pieces of one message; the kernel's limit (`UIO_MAXIOV`).
pub const PIECES_MAX: usize = 1024;

/// The views of a message and what the kernel reads to find them: at an address that stays, and not
/// touched while an operation uses it.
pub(super) struct Message(Box<Inner>);

struct Inner {
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
    views: Vec<View>,
    /// The first piece that is not sent whole.
    next: usize,
}

impl Message {
    pub(super) fn new() -> Self {
        // SAFETY: msghdr is a plain C struct of pointers and lengths; all zero means empty.
        let header = unsafe { std::mem::zeroed() };
        let (pieces, views) = (Vec::new(), Vec::new());
        Self(Box::new(Inner { header, pieces, views, next: 0 }))
    }

    /// Takes pieces until there are [`PIECES_MAX`] of them; says whether it got any.
    pub(super) fn load(&mut self, pieces: &mut impl Iterator<Item = View>) -> bool {
        self.clear();
        self.0.views.extend(pieces.filter(|view| !view.is_empty()).take(PIECES_MAX));
        let Inner { pieces, views, .. } = &mut *self.0;
        pieces.extend(
            views
                .iter()
                .map(|view| libc::iovec { iov_base: view.as_ptr().cast(), iov_len: view.len() }),
        );
        !self.0.views.is_empty()
    }

    /// Lets go of the buffers.
    pub(super) fn clear(&mut self) {
        self.0.views.clear();
        self.0.pieces.clear();
        self.0.next = 0;
    }

    /// Points the header at what is not sent yet, for an operation that starts now.
    pub(super) fn prepare(&mut self) -> *const libc::msghdr {
        let Inner { header, pieces, next, .. } = &mut *self.0;
        let rest = &mut pieces[*next..];
        header.msg_iov = rest.as_mut_ptr();
        header.msg_iovlen = rest.len();
        &raw const *header
    }

    /// Notes that `sent` more bytes have left; says whether all have.
    pub(super) fn advance(&mut self, mut sent: usize) -> bool {
        let Inner { pieces, next, .. } = &mut *self.0;
        while let Some(piece) = pieces.get_mut(*next) {
            if sent < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(sent);
                piece.iov_len -= sent;
                return false;
            }
            sent -= piece.iov_len;
            *next += 1;
        }
        assert!(sent == 0, "the kernel sent more than it was given");
        true
    }
}

/// The entry that sends what is left of the message.
pub(super) fn send_entry(
    fd: types::Fd,
    message: &mut Message,
    flags: i32,
) -> io_uring::squeue::Entry {
    io_uring::opcode::SendMsg::new(fd, message.prepare()).flags(flags.cast_unsigned()).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::buffers::{ARENA_BLOCK, BufferPool};

    /// Goal: whatever part of a message leaves at a time, each byte leaves once.
    #[test]
    fn partial_sends_go_on_where_they_stopped() {
        let pool = BufferPool::new(ARENA_BLOCK, ARENA_BLOCK).unwrap();
        let mut buf = pool.try_acquire(100).unwrap();
        let mut message = Message::new();
        let pieces = [buf.view(0..10), buf.view(10..10), buf.view(20..50), buf.view(60..61)];
        assert!(message.load(&mut pieces.into_iter()));
        assert_eq!(message.0.pieces.len(), 3);
        let start = message.0.pieces[1].iov_base;
        assert!(!message.advance(4));
        assert!(!message.advance(6 + 7));
        assert_eq!(message.0.pieces[1].iov_base as usize, start as usize + 7);
        message.prepare();
        assert_eq!(message.0.header.msg_iovlen, 2);
        assert!(message.advance(23 + 1));
        message.clear();
        assert!(buf.is_idle());
    }
}
