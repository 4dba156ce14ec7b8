//! A connection's replies: queued by whoever finished, gathered by one task into few sends.
//!
//! # Contracts
//!
//! - **Bound**: every reply holds one of its connection's places ([`Place`]) until it was sent, so
//!   that no more replies can wait than requests may be on the way.
//! - **Order**: replies leave in the order in which they were queued, each whole.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use tokio::sync::{Notify, Semaphore};

use super::progress::Progress;
use super::reply::{HEAD_MAX, Outcome};
use super::request::Tag;
use super::wire::Framing;
use crate::uring::Socket;
use crate::uring::buffers::{Buf, View};

/// The most that one send carries, in bytes: what a client must take within its time.
const SEND_MAX: usize = 1 << 20;
/// Bytes for the heads of replies that leave together.
pub const HEADS: usize = 8 << 10;
/// The most replies that leave together.
const GATHER_MAX: usize = 256;
const _: () = assert!(HEADS >= HEAD_MAX);

/// One of something counted, given back when dropped.
pub struct Place {
    of: Rc<Semaphore>,
    count: u32,
}

impl Place {
    /// Waits for `count` of it.
    pub async fn take(of: &Rc<Semaphore>, count: u32) -> Self {
        of.acquire_many(count).await.expect("these semaphores are never closed").forget();
        Self { of: Rc::clone(of), count }
    }

    /// Takes `count` of it, if nobody waits.
    pub fn try_take(of: &Rc<Semaphore>, count: u32) -> Option<Self> {
        of.try_acquire_many(count).ok()?.forget();
        Some(Self { of: Rc::clone(of), count })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.add_permits(self.count as usize);
    }
}

/// What a request holds until its reply was sent.
#[expect(dead_code, reason = "held to be dropped")]
pub struct Places {
    /// One of the requests that its connection may have on the way.
    pub connection: Place,
    /// One of those that all connections together may have.
    pub process: Place,
    /// Its share of the memory for large payloads, if it has one.
    pub bulk: Option<Place>,
}

/// A reply that is ready.
pub struct Reply {
    /// What it needs of its request.
    pub tag: Tag,
    /// What it says.
    pub outcome: Outcome,
    /// The data that follows its head.
    pub data: Option<View>,
    /// Given back when it was sent.
    #[expect(dead_code, reason = "held to be dropped")]
    pub places: Places,
}

/// The replies of one connection that wait to be sent.
#[derive(Default)]
pub struct Outbox {
    waiting: RefCell<VecDeque<Reply>>,
    changed: Notify,
    closed: Cell<bool>,
}

impl Outbox {
    /// Queues a reply.
    pub fn push(&self, reply: Reply) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push_back(reply);
        if waiting.len() == 1 {
            self.changed.notify_one();
        }
    }

    /// Ends [`Outbox::send_all`] when all is sent.
    pub fn close(&self) {
        self.closed.set(true);
        self.changed.notify_one();
    }

    /// Sends what is queued, until closed. After a failed send it only drops what is queued; the
    /// failure is returned at the end, and `on_failure` is called at once.
    pub async fn send_all(
        &self,
        socket: &Socket,
        mut heads: Buf,
        framing: Framing,
        progress: &Progress,
        on_failure: impl Fn(),
    ) -> io::Result<()> {
        let mut result = Ok(());
        let mut batch = Vec::with_capacity(GATHER_MAX);
        while self.next_batch(&mut batch).await {
            if result.is_ok() {
                let pieces = gather(&batch, &mut heads, framing);
                progress.sending();
                result = send_pieces(socket, pieces, progress).await;
                if result.is_err() {
                    on_failure();
                }
            }
            batch.clear();
        }
        result
    }

    /// Waits for replies and takes as many as may leave together; false when closed.
    async fn next_batch(&self, batch: &mut Vec<Reply>) -> bool {
        loop {
            {
                let mut waiting = self.waiting.borrow_mut();
                let count = waiting.len().min(GATHER_MAX).min(HEADS / HEAD_MAX);
                batch.extend(waiting.drain(..count));
            }
            if !batch.is_empty() {
                return true;
            }
            if self.closed.get() {
                return false;
            }
            self.changed.notified().await;
        }
    }
}

/// The heads and the data of these replies, in order.
fn gather(batch: &[Reply], heads: &mut Buf, framing: Framing) -> Vec<View> {
    let mut ends = [0; GATHER_MAX];
    let mut end = 0;
    let bytes = heads.as_mut_slice();
    for (reply, place) in batch.iter().zip(&mut ends) {
        end += reply.outcome.encode(reply.tag, framing, &mut bytes[end..]);
        *place = end;
    }
    let mut pieces = Vec::with_capacity(2 * batch.len());
    let mut start = 0;
    for (index, (reply, end)) in batch.iter().zip(ends).enumerate() {
        // Heads without data between them leave as one piece.
        if reply.data.is_some() || index + 1 == batch.len() {
            pieces.push(heads.view(start..end));
            start = end;
        }
        pieces.extend(reply.data.iter().map(|data| data.narrow(0..data.len())));
    }
    pieces
}

/// Sends the pieces in portions of at most [`SEND_MAX`] bytes.
async fn send_pieces(socket: &Socket, pieces: Vec<View>, progress: &Progress) -> io::Result<()> {
    let mut portion = Vec::with_capacity(pieces.len());
    let mut room = SEND_MAX;
    for mut piece in pieces {
        while piece.len() > room {
            portion.push(piece.narrow(0..room));
            piece = piece.narrow(room..piece.len());
            socket.send_all(std::mem::take(&mut portion)).await?;
            progress.sent(true);
            room = SEND_MAX;
        }
        room -= piece.len();
        portion.push(piece);
    }
    socket.send_all(portion).await?;
    progress.sent(false);
    Ok(())
}
