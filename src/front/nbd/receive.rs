//! A connection's receive task: bytes in, requests out.
//!
//! Small payloads come through the receive buffer and are copied once, so that one receive brings
//! many requests; large ones are received straight into the aligned buffer that goes to the device.
//! A write is handed on only when its payload is complete.

use std::rc::Rc;

use zerocopy::FromBytes;

use super::connection::{Ended, Line};
use super::inbox::Inbox;
use super::outbox::{Place, Places, Reply};
use super::perform::{Work, perform};
use super::progress::Phase;
use super::reply::{Outcome, STATUS_MAX, put_status, status_runs_max};
use super::request::{Command, Refusal, Request};
use super::wire::{Errno, StatusFilter};
use crate::front::export::{Export, Placement};
use crate::uring::buffers::{Buf, View};

/// Longer payloads are received straight into their own buffer, in bytes.
pub const THROUGH_INBOX_MAX: usize = 16 << 10;

/// Receives requests and sets them to work until the client leaves.
pub(super) async fn receive_all<X: Export>(
    line: &Rc<Line<X>>,
    mut inbox: Inbox,
) -> Result<(), Ended> {
    let framing = line.terms.framing;
    let header = framing.request_header();
    loop {
        while inbox.len() < header {
            let idle = inbox.is_empty();
            if idle && line.server.is_draining() {
                return Ok(());
            }
            let phase = if idle { Phase::Idle } else { Phase::Partial };
            if fill(line, &mut inbox, phase).await? == 0 {
                return if idle { Ok(()) } else { Err(Ended::Vanished) };
            }
        }
        let mut request = Request::parse(framing, &inbox.bytes()[..header])?;
        inbox.consume(header);
        if request.has_filter() {
            let length = size_of::<StatusFilter>();
            arrive(line, &mut inbox, length).await?;
            let bytes = &inbox.bytes()[..length];
            request = request.narrow(&StatusFilter::read_from_bytes(bytes).expect("it arrived"));
            inbox.consume(length);
        }
        line.progress.completed();
        if request.is_disconnect() {
            return Ok(());
        }
        take(line, &mut inbox, request).await?;
    }
}

/// Takes one request from its header on: its payload, its places, and its task.
async fn take<X: Export>(
    line: &Rc<Line<X>>,
    inbox: &mut Inbox,
    request: Request,
) -> Result<(), Ended> {
    let checked = if line.server.is_draining() {
        Err(Refusal { errno: Errno::Shutdown, reason: "the target is shutting down" })
    } else {
        request.check(line.terms)
    };
    let mut places = places(line).await;
    let tag = request.tag();
    let work = match checked {
        Err(refusal) => {
            skip(line, inbox, request.payload()).await?;
            line.server.0.counters.errors.increment();
            let Refusal { errno, reason } = refusal;
            let outcome = Outcome::Failed { errno, message: reason.into() };
            line.outbox.push(Reply { tag, outcome, data: None, places });
            return Ok(());
        }
        Ok(Command::Read { length: 0, .. } | Command::Write { length: 0, .. } | Command::Cache) => {
            let outcome = Outcome::Done;
            line.outbox.push(Reply { tag, outcome, data: None, places });
            return Ok(());
        }
        Ok(Command::Status { offset, length, one }) => {
            let (outcome, data) = status(line, offset, length, one).await;
            line.outbox.push(Reply { tag, outcome, data, places });
            return Ok(());
        }
        Ok(Command::Read { offset, length }) => {
            let Placement { lead, total } = line.export.placement(offset, length);
            let (buf, bulk) = line.server.0.payloads.acquire(total).await;
            places.bulk = bulk;
            Work::Read { offset, length, lead, buf }
        }
        Ok(Command::Write { offset, length, fua }) => {
            let (buf, bulk) = payload(line, inbox, offset, length).await?;
            places.bulk = bulk;
            Work::Write { offset, length, buf, fua }
        }
        Ok(Command::Flush | Command::Disconnect) => Work::Flush,
        Ok(Command::Trim { offset, length, fua }) => Work::Trim { offset, length, fua },
        Ok(Command::WriteZeroes { offset, length, fua, no_hole }) => {
            Work::WriteZeroes { offset, length, fua, no_hole }
        }
    };
    line.server.0.ring.spawn(perform(Rc::clone(line), tag, work, places));
    Ok(())
}

/// The block status of a range, from the maps in memory: answered at once.
async fn status<X: Export>(
    line: &Line<X>,
    offset: u64,
    length: u64,
    one: bool,
) -> (Outcome, Option<View>) {
    let shared = &line.server.0;
    let framing = line.terms.framing;
    let runs_max = if one { 1 } else { status_runs_max(framing) };
    let runs = match line.export.status(offset, length, runs_max) {
        Ok(runs) => runs,
        Err(error) => {
            shared.counters.errors.increment();
            return (Outcome::failed(error, false), None);
        }
    };
    let (mut buf, _) = shared.payloads.acquire(STATUS_MAX).await;
    let end = put_status(framing, &runs, buf.as_mut_slice());
    (Outcome::Status { length: end as u32 }, Some(buf.view(0..end)))
}

/// A place for one more request, waiting until there is one.
async fn places<X: Export>(line: &Line<X>) -> Places {
    line.progress.enter(Phase::Idle);
    let connection = match Place::try_take(&line.places, 1) {
        Some(place) => place,
        None => Place::take(&line.places, 1).await,
    };
    let shared = &line.server.0;
    let process = match Place::try_take(&shared.requests, 1) {
        Some(place) => place,
        None => shared.payloads.wait(Place::take(&shared.requests, 1)).await,
    };
    Places { connection, process, bulk: None }
}

/// Receives a write's payload into a buffer of its own.
async fn payload<X: Export>(
    line: &Line<X>,
    inbox: &mut Inbox,
    offset: u64,
    length: u32,
) -> Result<(Buf, Option<Place>), Ended> {
    let placement = line.export.placement(offset, length);
    let length = length as usize;
    if length <= THROUGH_INBOX_MAX {
        arrive(line, inbox, length).await?;
    }
    line.progress.enter(Phase::Idle);
    let (mut buf, bulk) = line.server.0.payloads.acquire(placement.total).await;
    let mut filled = inbox.len().min(length);
    let target = placement.lead..placement.lead + length;
    buf.as_mut_slice()[target.clone()][..filled].copy_from_slice(&inbox.bytes()[..filled]);
    inbox.consume(filled);
    line.progress.enter(Phase::Payload);
    while filled < length {
        let received = line.socket.receive(buf.view(target.start + filled..target.end)).await?;
        if received == 0 {
            return Err(Ended::Vanished);
        }
        line.progress.received(received);
        filled += received;
    }
    line.progress.completed();
    Ok((buf, bulk))
}

/// Receives until the inbox holds `length` bytes, which fit into it.
async fn arrive<X: Export>(line: &Line<X>, inbox: &mut Inbox, length: usize) -> Result<(), Ended> {
    while inbox.len() < length {
        if fill(line, inbox, Phase::Partial).await? == 0 {
            return Err(Ended::Vanished);
        }
    }
    Ok(())
}

/// Receives and forgets the payload of a request that is refused.
async fn skip<X: Export>(line: &Line<X>, inbox: &mut Inbox, length: u64) -> Result<(), Ended> {
    if length > line.terms.skip_max() {
        return Err(Ended::TooLong(length));
    }
    let mut left = length as usize;
    loop {
        let skipped = inbox.len().min(left);
        inbox.consume(skipped);
        left -= skipped;
        if left == 0 {
            return Ok(());
        }
        if fill(line, inbox, Phase::Partial).await? == 0 {
            return Err(Ended::Vanished);
        }
    }
}

/// Receives into the inbox once, waiting for the client as `phase` says.
async fn fill<X: Export>(line: &Line<X>, inbox: &mut Inbox, phase: Phase) -> Result<usize, Ended> {
    line.progress.enter(phase);
    let received = inbox.fill(&line.socket).await?;
    line.progress.received(received);
    Ok(received)
}
