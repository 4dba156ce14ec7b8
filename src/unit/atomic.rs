//! Atomic requests: writes to several volumes that become visible and durable together, with
//! everything that was acknowledged before on those volumes, or not at all (design section 6,
//! "Atomic requests").
//!
//! The volumes are of one commit domain: one volume, or volumes of one consistency group. What is
//! written waits beside the epochs ([`super::staged`]), and joins one at the instant of its seal.
//!
//! # Contracts
//!
//! - **Isolation**: a request holds its blocks from the moment it is staged until it has ended:
//!   writes to them wait, reads find what was there before.
//! - **Time**: it waits for others and holds what it has for [`HOLD_MAX`] in all before it joins an
//!   epoch. Then it is dropped: nothing has changed. From then on only the commit ends it.
//! - **Cancellation**: the future of [`Unit::stage`] must be driven to its end once polled. A
//!   [`Ready`] that is dropped before the request has joined an epoch drops the request.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::admission::{Outcome, Purpose};
use super::error::IoError;
use super::request::{Change, Seat, Span, covering, split};
use super::staged::{Fate, Progress, Staged};
use super::{Inner, Unit};
use crate::env::{Env, Moment};
use crate::format::group::TransactionId;
use crate::txn::{Atomic, AtomicId};

/// How long an atomic request may hold blocks before it joins an epoch.
pub const HOLD_MAX: Duration = Duration::from_secs(10);
/// The most data of an atomic request on one unit, in bytes, where nothing else was said.
pub const TXN_MAX_DEFAULT: u64 = 16 << 20;
/// The bytes that are written at a time.
const RUN_MAX: u64 = 1 << 20;

/// A write of an atomic request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtomicWrite {
    /// The volume's name.
    pub volume: String,
    /// The first byte.
    pub offset: u64,
    /// What is written; later writes of the request cover earlier ones.
    pub bytes: Vec<u8>,
}

/// Why an atomic request did not take place, or is not known to have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtomicError {
    /// There is no such volume.
    #[error("nothing was written: no volume is named {0}")]
    Unknown(String),
    /// Its volumes do not commit together.
    #[error(
        "nothing was written: the volumes are not all in one consistency group; make a group of \
         them: flipside group create NAME VOLUME..."
    )]
    Apart,
    /// It is larger than may be.
    #[error(
        "nothing was written: {bytes} bytes are more than {max}, the most that a request may \
             have (serve --txn-max)"
    )]
    TooLarge {
        /// Its bytes.
        bytes: u64,
        /// The most that there may be.
        max: u64,
    },
    /// It has too many pieces.
    #[error("nothing was written: the writes are to too many places for one request")]
    Scattered,
    /// It has waited for too long.
    #[error("nothing was written: {0}; try again")]
    Late(&'static str),
    /// Its transaction was aborted, or something else came between.
    #[error("nothing was written: {0}; try again")]
    Aborted(Arc<str>),
    /// A write of it is not possible.
    #[error("nothing was written: {0}")]
    Io(IoError),
    /// Nobody can say.
    #[error(
        "it is not known whether the request took place ({0}): apply it again when the target is \
         well, the writes are the same"
    )]
    OutcomeUnknown(Arc<str>),
}

/// An atomic request that is staged: written where nobody sees it, and its blocks held.
pub struct Ready<E: Env> {
    unit: Rc<Inner<E>>,
    id: AtomicId,
    domain: usize,
    fate: Fate,
}

/// Blocks of a volume that follow each other, and are written together.
struct Run {
    seat: Seat,
    span: Span,
    /// Whether the request's writes cover it.
    whole: bool,
    /// Those that have a part in it.
    writes: Vec<usize>,
}

impl<E: Env> Unit<E> {
    /// The most data that an atomic request may have on this unit, in bytes.
    pub fn txn_max(&self) -> u64 {
        self.0.txn_max()
    }

    /// Writes the part that this unit has in an atomic request to where nobody sees it, and holds
    /// its blocks. What is pending on them is committed first.
    pub async fn stage(
        &self,
        atomic: Atomic,
        writes: &[AtomicWrite],
    ) -> Result<Ready<E>, AtomicError> {
        let inner = &self.0;
        let since = inner.env.now();
        let seats = inner.seats(writes)?;
        inner.check_size(writes)?;
        let staged = inner.take_turn(atomic, &seats, since).await?;
        for run in inner.runs(writes, &seats) {
            inner.stage_run(&staged, &run, writes, since).await?;
        }
        if let Some(of) = inner.state.borrow_mut().staged_mut(atomic.id) {
            of.progress = Progress::Ready;
        }
        inner.env.spawn(Rc::clone(inner).let_go(atomic.id, Rc::clone(&staged.fate), since));
        staged.check()?;
        Ok(staged)
    }
}

impl<E: Env> Inner<E> {
    fn txn_max(&self) -> u64 {
        self.config.txn_max.min(self.limits.epoch_data_bytes / 2)
    }

    /// The volumes of some writes, which must be of one domain, and have room for them.
    fn seats(&self, writes: &[AtomicWrite]) -> Result<Vec<Seat>, AtomicError> {
        let state = self.state.borrow();
        let mut seats = Vec::new();
        let mut domain = None;
        for write in writes {
            let found = state.live().find(|(_, volume)| *volume.name == *write.volume);
            let (index, volume) = found.ok_or(AtomicError::Unknown(write.volume.clone()))?;
            if *domain.get_or_insert(volume.domain) != volume.domain {
                return Err(AtomicError::Apart);
            }
            let (offset, len) = (write.offset, write.bytes.len() as u64);
            let size = volume.size;
            if offset.checked_add(len).is_none_or(|end| end > size) || len == 0 {
                let what = "a write";
                return Err(AtomicError::Io(IoError::OutOfRange { what, offset, len, size }));
            }
            seats.push(Seat { volume: index, life: volume.life });
        }
        Ok(seats)
    }

    fn check_size(&self, writes: &[AtomicWrite]) -> Result<(), AtomicError> {
        let bytes = writes.iter().map(|write| write.bytes.len() as u64).sum();
        let max = self.txn_max();
        if bytes > max { Err(AtomicError::TooLarge { bytes, max }) } else { Ok(()) }
    }

    /// Waits until no other atomic request is held.
    async fn take_turn(
        self: &Rc<Self>,
        atomic: Atomic,
        seats: &[Seat],
        since: Moment,
    ) -> Result<Ready<E>, AtomicError> {
        loop {
            let ended = {
                let mut state = self.state.borrow_mut();
                let first = seats.first().ok_or(AtomicError::Late("it has no writes"))?;
                let domain = state.volumes[first.volume].domain;
                if seats.iter().any(|seat| state.volumes[seat.volume].domain != domain) {
                    return Err(AtomicError::Apart);
                }
                if state.stopping {
                    return Err(AtomicError::Io(IoError::ShuttingDown));
                }
                if state.staged.is_none() {
                    let staged = Staged::new(atomic, domain);
                    let fate = Rc::clone(&staged.fate);
                    state.staged = Some(staged);
                    let unit = Rc::clone(self);
                    return Ok(Ready { unit, id: atomic.id, domain, fate });
                }
                Rc::clone(&state.staged_ended)
            };
            let timer = pin!(self.env.sleep(self.left(since)));
            if let Either::Right(_) = select(pin!(ended.notified()), timer).await {
                return Err(AtomicError::Late("another atomic request is under way for long"));
            }
        }
    }

    fn left(&self, since: Moment) -> Duration {
        HOLD_MAX.saturating_sub(self.env.now().since(since))
    }

    /// The runs of blocks that some writes touch.
    fn runs(&self, writes: &[AtomicWrite], seats: &[Seat]) -> Vec<Run> {
        let block = u64::from(self.geometry.block_size());
        let max = (RUN_MAX.min(self.limits.request_bytes) / block).max(1);
        let span_of =
            |write: &AtomicWrite| Span { offset: write.offset, len: write.bytes.len() as u64 };
        let mut touched: Vec<_> = (0..writes.len())
            .map(|at| (seats[at].volume, covering(span_of(&writes[at]), self.geometry), at))
            .collect();
        touched.sort_by_key(|(volume, blocks, _)| (*volume, blocks.start));
        let mut runs: Vec<Run> = Vec::new();
        for (volume, blocks, at) in touched {
            let Span { offset, len } = span_of(&writes[at]);
            let whole = offset.is_multiple_of(block) && len.is_multiple_of(block);
            let mut from = blocks.start;
            // The rest of runs that it shares with earlier writes, and new ones.
            for run in runs.iter_mut().filter(|run| run.seat.volume == volume) {
                let end = (run.span.offset + run.span.len) / block;
                if run.span.offset / block < blocks.end && end > blocks.start {
                    run.writes.push(at);
                    run.whole &= whole;
                    from = from.max(end);
                }
            }
            while from < blocks.end {
                let to = blocks.end.min(from + max);
                let span = Span { offset: from * block, len: (to - from) * block };
                runs.push(Run { seat: seats[at], span, whole, writes: vec![at] });
                from = to;
            }
        }
        runs.iter_mut().for_each(|run| run.writes.sort_unstable());
        runs
    }

    /// Writes one run to the free sides of its blocks, and holds them.
    async fn stage_run(
        &self,
        ready: &Ready<E>,
        run: &Run,
        writes: &[AtomicWrite],
        since: Moment,
    ) -> Result<(), AtomicError> {
        let Span { offset, len } = run.span;
        let mut buf = self.env.buffers().acquire(len as usize).await;
        let parts = split(Change::Write, run.span, self.geometry);
        let holds = self.state.borrow().staged_in(ready.domain).is_some_and(Staged::holds);
        let admitted = {
            let purpose = Purpose::Atomic { holds };
            let admit = pin!(self.admit_for(run.seat, parts, len, purpose));
            match select(admit, pin!(self.env.sleep(self.left(since)))).await {
                Either::Left((admitted, _)) => admitted.map_err(AtomicError::Io)?,
                Either::Right(_) => return Err(AtomicError::Late("blocks or extents are in use")),
            }
        };
        if !run.whole {
            let blocks = covering(run.span, self.geometry);
            let read = self.read_blocks(run.seat.volume, blocks, &mut buf, 0..len as usize).await;
            if let Err(error) = read {
                admitted.finish(Outcome::Nothing);
                return Err(AtomicError::Io(error));
            }
        }
        for write in run.writes.iter().map(|at| &writes[*at]) {
            lay_over(&mut buf.as_mut_slice()[..len as usize], offset, write);
        }
        let pieces = self.write_pieces(&admitted.parts, |at| (at - offset) as usize);
        if let Err(error) = self.write_all(&admitted, &mut buf, &pieces).await {
            admitted.finish(Outcome::Torn(&error.to_string()));
            return Err(AtomicError::Io(error));
        }
        let record_bytes = admitted.record_bytes;
        admitted.finish(Outcome::Staged(ready.id));
        ready.check()?;
        let mut state = self.state.borrow_mut();
        let records_max = self.records_max(&state, ready.domain) / 2;
        let staged = state.staged_mut(ready.id).expect("it has not ended");
        staged.record_bytes += record_bytes;
        staged.data_bytes += len;
        pieces.iter().for_each(|piece| staged.devices |= 1 << piece.device);
        let scattered = staged.record_bytes as u64 > records_max
            || staged.data_bytes > self.limits.epoch_data_bytes / 2;
        if scattered { Err(AtomicError::Scattered) } else { Ok(()) }
    }

    /// Drops a request that joins no epoch in good time.
    async fn let_go(self: Rc<Self>, id: AtomicId, fate: Fate, since: Moment) {
        self.env.sleep(self.left(since)).await;
        let mut state = self.state.borrow_mut();
        let waits = state.staged_mut(id).is_some_and(|staged| !staged.is_joined());
        if waits && fate.get().is_none() {
            state.drop_staged(AtomicError::Late("its blocks were held for too long"));
        }
    }
}

impl<E: Env> Ready<E> {
    /// Has the request take place with the next commit of its volumes; gives the transaction that
    /// it took place in. Where other units have a part in it, all of them must have staged theirs.
    pub async fn apply(&self) -> Result<TransactionId, AtomicError> {
        self.ask()?;
        let since = self.unit.env.now();
        let mut told = Ok(());
        loop {
            if let Some(fate) = self.fate.get() {
                let owned = self.unit.check_owned();
                let lost = |error: IoError| AtomicError::OutcomeUnknown(error.to_string().into());
                return fate.clone().and_then(|applied| owned.map(|()| applied).map_err(lost));
            }
            let decided = {
                let mut state = self.unit.state.borrow_mut();
                let domain = &state.domains[self.domain];
                let failed = domain.failed.clone().map(IoError::Latched);
                let decided = Rc::clone(&domain.decided);
                if let Some(error) = told.clone().err().or(failed) {
                    if state.joined_in(self.domain).is_some() {
                        return Err(AtomicError::OutcomeUnknown(error.to_string().into()));
                    }
                    state.drop_staged(AtomicError::Io(error));
                    continue;
                }
                decided
            };
            told = self.unit.group_news(self.domain, &decided, since).await;
        }
    }

    /// Says that the request is wanted.
    fn ask(&self) -> Result<(), AtomicError> {
        self.check()?;
        let mut guard = self.unit.state.borrow_mut();
        let state = &mut *guard;
        let staged = state.staged_mut(self.id).expect("it has not ended");
        let members = staged.atomic.members;
        if staged.progress == Progress::Ready {
            staged.progress = Progress::Asked;
        }
        let domain = &mut state.domains[self.domain];
        if !domain.is_shared() && members != 1 {
            state.drop_staged(AtomicError::Apart);
            drop(guard);
            return self.check();
        }
        domain.want(domain.open.number);
        domain.wake.notify_one();
        Ok(())
    }

    /// The error where the request has ended otherwise than by taking place.
    fn check(&self) -> Result<(), AtomicError> {
        match self.fate.get() {
            Some(Err(reason)) => Err(reason.clone()),
            Some(Ok(_)) | None => Ok(()),
        }
    }
}

impl<E: Env> Drop for Ready<E> {
    fn drop(&mut self) {
        if self.fate.get().is_none()
            && let Ok(mut state) = self.unit.state.try_borrow_mut()
            && state.staged_mut(self.id).is_some_and(|staged| !staged.is_joined())
        {
            state.drop_staged(AtomicError::Aborted("its client has left".into()));
        }
    }
}

/// Puts the bytes of a write that lie in a buffer, which begins at a byte of the volume, there.
fn lay_over(buf: &mut [u8], start: u64, write: &AtomicWrite) {
    let end = start + buf.len() as u64;
    let from = write.offset.clamp(start, end);
    let to = (write.offset + write.bytes.len() as u64).clamp(start, end);
    let source = (from - write.offset) as usize..(to - write.offset) as usize;
    buf[(from - start) as usize..(to - start) as usize].copy_from_slice(&write.bytes[source]);
}
