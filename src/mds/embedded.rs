//! The server on a thread of its own, behind channels: the default, one process with all of it.
//!
//! The store is synchronous; a thread keeps its waits off the ring. All that waits when the thread
//! looks is one turn of the server, and so one durable transaction.
//!
//! # Contracts
//!
//! - **End**: the thread ends, and closes the store, when the sender of requests is dropped.
//! - **Panics** end the process: clients ask until they are answered, so that a process without its
//!   server would neither serve nor end. What it leaves is what a kill leaves.

use std::io;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::abort;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::server::Server;
use crate::env::Moment;

/// The most datagrams of one turn.
const TURN_DATAGRAMS_MAX: usize = 4096;
/// Name of the thread.
const THREAD_NAME: &str = "flipside-mds";

/// The ends of a running server that its client holds.
#[derive(Debug)]
pub struct Embedded {
    /// Where requests go; dropping it (and its clones) ends the server.
    pub requests: Sender<Vec<u8>>,
    /// Where answers come from.
    pub replies: UnboundedReceiver<Vec<u8>>,
    /// The thread.
    pub thread: JoinHandle<()>,
}

/// Starts the server on its thread, with new channels.
pub fn start(server: Server<()>) -> io::Result<Embedded> {
    let (requests, arriving) = channel();
    let (leaving, replies) = unbounded_channel();
    let thread = start_with(server, arriving, leaving)?;
    Ok(Embedded { requests, replies, thread })
}

/// Starts the server on its thread, with these channels.
pub fn start_with(
    server: Server<()>,
    requests: Receiver<Vec<u8>>,
    replies: UnboundedSender<Vec<u8>>,
) -> io::Result<JoinHandle<()>> {
    let body = move || {
        let serve = AssertUnwindSafe(|| run(server, &requests, &replies));
        if catch_unwind(serve).is_err() {
            abort();
        }
    };
    Builder::new().name(THREAD_NAME.to_owned()).spawn(body)
}

fn run(mut server: Server<()>, requests: &Receiver<Vec<u8>>, replies: &UnboundedSender<Vec<u8>>) {
    let started = Instant::now();
    let mut failed = false;
    while let Ok(first) = requests.recv() {
        let waiting = iter::once(first).chain(requests.try_iter());
        let batch: Vec<_> = waiting.take(TURN_DATAGRAMS_MAX).map(|bytes| ((), bytes)).collect();
        let now = Moment(started.elapsed().as_nanos() as u64);
        for ((), reply) in server.handle(now, batch) {
            if replies.send(reply).is_err() {
                return;
            }
        }
        if let Some(error) = server.failure()
            && !failed
        {
            failed = true;
            tracing::error!(%error, "the metadata server serves no more");
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::super::pools::Pools;
    use super::super::raw::RawAttach;
    use super::super::records::Claim;
    use super::super::testing;
    use super::super::wire::{Header, Kind, Operation, PAYLOAD_MIN, encode, parse};
    use super::*;
    use crate::format::ids::{Incarnation, PoolId, UnitId};

    /// Goal: the thread answers, ends when its requests end, and leaves a store that opens.
    #[test]
    fn answers_and_ends() {
        let (memory, catalog) = testing::create(10, 1);
        let mut embedded = start(Server::new(Pools::single(catalog)).unwrap()).unwrap();
        let attach = RawAttach::new(
            &Claim::of(PoolId::default(), UnitId(0), Incarnation(1)),
            PAYLOAD_MIN as u32,
        );
        let header = Header {
            kind: Kind::Request,
            operation: Operation::Attach,
            session: 1,
            sequence: 0,
            detail: 0,
        };
        embedded.requests.send(b"garbage".to_vec()).unwrap();
        for datagram in encode(&header, attach.as_bytes(), PAYLOAD_MIN) {
            embedded.requests.send(datagram).unwrap();
        }
        let reply = embedded.replies.blocking_recv().unwrap();
        assert_eq!(parse(&reply).unwrap().header.kind, Kind::Reply(Ok(())));
        drop(embedded.requests);
        embedded.thread.join().unwrap();
        assert_eq!(testing::open(&memory).pool().extents, 10);
    }
}
