//! One request carried out, as a task of its own.
//!
//! What is counted here is what only a front end knows: bytes that reached clients, errors, times.
//! Requests by kind are counted below, whoever sends them.

use std::rc::Rc;
use std::time::Duration;

use super::connection::Line;
use super::outbox::{Places, Reply};
use super::reply::Outcome;
use super::request::Tag;
use crate::front::export::{Export, ExportError};
use crate::observe::Operation;
use crate::uring::buffers::{Buf, View};

/// A request with all that it needs.
pub(super) enum Work {
    Read { offset: u64, length: u32, lead: usize, buf: Buf },
    Write { offset: u64, length: u32, buf: Buf, fua: bool },
    Flush,
    Trim { offset: u64, length: u64, fua: bool },
    WriteZeroes { offset: u64, length: u64, fua: bool, no_hole: bool },
}

impl Work {
    fn kind(&self) -> Operation {
        match self {
            Self::Read { .. } => Operation::Read,
            Self::Write { .. } => Operation::Write,
            Self::Flush => Operation::Flush,
            Self::Trim { .. } | Self::WriteZeroes { .. } => Operation::Trim,
        }
    }
}

/// Does the work and queues the reply.
pub(super) async fn perform<X: Export>(line: Rc<Line<X>>, tag: Tag, work: Work, places: Places) {
    let ring = &line.server.0.ring;
    let begun_ns = ring.turned_ns();
    let kind = work.kind();
    let shared = &line.server.0;
    let (outcome, data) = match run(&line, work).await {
        Ok(done) => done,
        Err(error) => {
            shared.counters.errors.increment();
            let writes = matches!(kind, Operation::Write | Operation::Trim);
            (Outcome::failed(error, writes), None)
        }
    };
    shared.latencies.record(kind, Duration::from_nanos(ring.now_ns() - begun_ns));
    line.outbox.push(Reply { tag, outcome, data, places });
}

async fn run<X: Export>(
    line: &Line<X>,
    work: Work,
) -> Result<(Outcome, Option<View>), ExportError> {
    let counters = &line.server.0.counters;
    let export = &line.export;
    match work {
        Work::Read { offset, length, lead, buf } => {
            let mut buf = export.read(offset, length, buf).await?;
            counters.client_bytes_read.add(u64::from(length));
            let data = buf.view(lead..lead + length as usize);
            return Ok((Outcome::Data { offset, length }, Some(data)));
        }
        Work::Write { offset, length, buf, fua } => {
            line.wrote.set(true);
            export.write(offset, length, buf, fua).await?;
            counters.client_bytes_written.add(u64::from(length));
        }
        Work::Flush => export.flush().await?,
        Work::Trim { offset, length, fua } => {
            if length > 0 {
                line.wrote.set(true);
                export.trim(offset, length, fua).await?;
            }
        }
        Work::WriteZeroes { offset, length, fua, no_hole } => {
            if length > 0 {
                line.wrote.set(true);
                export.write_zeroes(offset, length, fua, no_hole).await?;
            }
        }
    }
    Ok((Outcome::Done, None))
}
