//! One client's connection from greeting to farewell.
//!
//! ```text
//!  handshake ──▶ receive task ──request──▶ task for each request ──reply──▶ send task
//!                     ▲                                                        │
//!                     └───────────── a place for another request ◀─────────────┘
//! ```
//!
//! # Contracts
//!
//! - **Bound**: a connection has at most [`super::Limits::requests_per_connection`] requests that
//!   are not answered; then nothing more is received from it.
//! - **End**: however a connection ends, requests that have arrived whole are carried out; then the
//!   export is flushed, if the client wrote anything.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::rc::Rc;

use tokio::sync::Semaphore;

use super::handshake::{Finished, Handshake, Offer, Reason};
use super::inbox::Inbox;
use super::outbox::{Outbox, Place};
use super::progress::{Phase, Progress};
use super::receive;
use super::request::{NotARequest, Terms};
use super::server::{Server, end};
use super::wire::Framing;
use crate::front::export::Export;
use crate::uring::Socket;
use crate::uring::buffers::Buf;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("no memory is left for another connection")]
    NoRoom,
    #[error(transparent)]
    Handshake(#[from] Reason),
    #[error("the client vanished in the middle of something")]
    Vanished,
    #[error(transparent)]
    Garbage(#[from] NotARequest),
    #[error("the client announced a payload of {0} bytes")]
    TooLong(u64),
    #[error(transparent)]
    Connection(#[from] io::Error),
}

/// A connection in transmission, shared by its tasks.
pub(super) struct Line<X: Export> {
    pub(super) server: Server<X>,
    pub(super) export: X,
    pub(super) terms: Terms,
    pub(super) socket: Socket,
    pub(super) progress: Rc<Progress>,
    pub(super) outbox: Outbox,
    /// The requests that may still come before one is answered.
    pub(super) places: Rc<Semaphore>,
    /// Whether the client changed anything.
    pub(super) wrote: Cell<bool>,
}

/// Serves a client until the connection has ended.
pub(super) async fn serve<X: Export>(
    server: &Server<X>,
    number: u64,
    socket: Socket,
    progress: Rc<Progress>,
) {
    let ended = talk(server, number, socket, progress).await;
    match ended {
        Ok(()) | Err(Ended::Handshake(Reason::Aborted)) => {
            tracing::debug!("connection {number} has ended");
        }
        Err(reason @ (Ended::Vanished | Ended::Connection(_))) => {
            tracing::info!("connection {number} has ended: {reason}");
        }
        Err(reason) => {
            server.0.counters.connections_dropped.increment();
            tracing::warn!("connection {number} is dropped: {reason}");
        }
    }
}

async fn talk<X: Export>(
    server: &Server<X>,
    number: u64,
    socket: Socket,
    progress: Rc<Progress>,
) -> Result<(), Ended> {
    let room = server.room();
    let mut heads = room.heads().ok_or(Ended::NoRoom)?;
    let mut inbox = Inbox::new(room).ok_or(Ended::NoRoom)?;
    let agreed = shake_hands(server, &socket, &progress, &mut inbox, &mut heads).await?;
    let Some(Agreed { export, framing, status }) = agreed else { return Ok(()) };
    server.agreed(number, &export);
    progress.enter(Phase::Idle);
    let places_max = server.0.limits.requests_per_connection;
    let line = Rc::new(Line {
        server: server.clone(),
        terms: Terms {
            size: export.size(),
            block_size: export.block_size(),
            payload_max: export.payload_max(),
            framing,
            status,
            read_only: server.0.limits.read_only,
        },
        export,
        socket,
        progress,
        outbox: Outbox::default(),
        places: Rc::new(Semaphore::new(places_max as usize)),
        wrote: Cell::new(false),
    });
    server.0.ring.spawn(send(Rc::clone(&line), heads));
    let ended = receive::receive_all(&line, inbox).await;
    line.progress.enter(Phase::Idle);
    // When every place has come back, every request was carried out and its reply has left.
    let all = Place::take(&line.places, places_max).await;
    line.outbox.close();
    drop(all);
    if line.wrote.get() {
        server.0.ring.spawn(flush(Rc::clone(&line)));
    }
    ended
}

/// The send task. When the client is gone, the receive task is told by the end of the stream.
async fn send<X: Export>(line: Rc<Line<X>>, heads: Buf) {
    let on_failure = || end(&line.socket, Shutdown::Both);
    let Line { outbox, socket, progress, terms, .. } = &*line;
    let sent = outbox.send_all(socket, heads, terms.framing, progress, on_failure).await;
    if let Err(error) = sent {
        tracing::debug!("replies could not be sent: {error}");
    }
}

/// A client's leaving closes the epoch.
async fn flush<X: Export>(line: Rc<Line<X>>) {
    if let Err(error) = line.export.flush().await {
        tracing::warn!("{}: not flushed at a client's leaving: {error}", line.export.name());
    }
}

/// What a handshake agreed on.
struct Agreed<X> {
    /// The export that the client took.
    export: X,
    /// How requests and replies are framed.
    framing: Framing,
    /// Whether with block status.
    status: bool,
}

/// The handshake: what was agreed on, or nothing where the client left in good order.
async fn shake_hands<X: Export>(
    server: &Server<X>,
    socket: &Socket,
    progress: &Progress,
    inbox: &mut Inbox,
    heads: &mut Buf,
) -> Result<Option<Agreed<X>>, Ended> {
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(&mut out);
    loop {
        let exports = server.offer();
        let offer = Offer { exports: &exports, shutting_down: server.is_draining() };
        let step = handshake.advance(inbox.bytes(), offer, &mut out);
        inbox.consume(step.consumed);
        if step.consumed > 0 {
            progress.completed();
        }
        send_vec(socket, progress, heads, &mut out).await?;
        match step.finished {
            Some(Finished::Transmission { export, framing, status }) => {
                let wanted = &exports[export].name;
                // It may have been removed while the reply was on its way.
                let export = server.export(wanted).ok_or(Reason::UnknownExport)?;
                let export = export.opened().await;
                return Ok(Some(Agreed { export, framing, status }));
            }
            Some(Finished::Close(reason)) => return Err(reason.into()),
            None => {}
        }
        let between = handshake.is_between_options() && inbox.is_empty();
        progress.enter(if between { Phase::Handshake } else { Phase::Partial });
        if inbox.fill(socket).await? == 0 {
            return if between { Ok(None) } else { Err(Ended::Vanished) };
        }
    }
}

/// Sends and empties `out`, through a buffer that may be smaller.
async fn send_vec(
    socket: &Socket,
    progress: &Progress,
    buf: &mut Buf,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let size = buf.len();
    for piece in out.chunks(size) {
        buf.as_mut_slice()[..piece.len()].copy_from_slice(piece);
        progress.sending();
        socket.send(buf.view(0..piece.len())).await?;
        progress.sent(false);
    }
    out.clear();
    Ok(())
}
