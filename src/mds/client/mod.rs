//! The client of the metadata server, as a storage unit uses it, its consistency groups in
//! [`groups`]; and [`pools`], for who needs no session.
//!
//! # Contracts
//!
//! - **At least once**: a request is sent until it is answered; the server executes a mutation
//!   once. While the server is silent calls wait; [`Client::status`] says since when.
//! - **Ordering**: mutations are executed in the order in which their calls were made (first
//!   polled). Queries are not ordered against mutations under way.
//! - **Window**: at most [`wire::WINDOW`] mutations and as many queries are unanswered; who comes
//!   then waits in order of arrival.
//! - **Cancellation**: dropping a call's future gives up the answer, not the request.
//! - **End**: the client's tasks end when its last handle is dropped; calls under way then fail as
//!   closed.
//! - **Garbage**: datagrams that are not an awaited answer are counted and dropped.

mod exchange;
pub mod groups;
pub mod pools;
#[cfg(test)]
mod tests;
mod timer;

use std::rc::Rc;
use std::time::Duration;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use self::exchange::Exchange;
use super::error::{MdsError, Refusal};
use super::groups::prepared::Part;
use super::ownership;
use super::raw::{
    self, Malformed, RawAttach, RawChanges, RawOwned, RawPage, RawPool, RawPrimitive, RawRun,
    RawSince, RawTold, RawVolume,
};
use super::records::{
    Claim, Grants, LayoutPage, LinesSeen, PairRecord, PoolInfo, Primitive, RETURN_RUNS_MAX,
    ServerStatus, TRANSACT_PRIMITIVES_MAX, Told, VolumeInfo,
};
use super::wire::{self, Operation};
use crate::env::{Env, Link, Moment};
use crate::format::ids::{ExtentRun, Incarnation, LogicalExtent, UnitId, VolumeId};
use crate::format::record::{self, Record};

/// Records of a page, by what a page holds.
const VOLUMES_PAGE: u32 = 64;
const RUNS_PAGE: u32 = 1024;
const LAYOUT_PAGE: u32 = 512;
const LINES_PAGE: u32 = 256;

/// A session with the metadata server. Cheap to clone: a handle.
pub struct Client<E: Env> {
    exchange: Rc<Exchange<E>>,
    pool: PoolInfo,
    incarnation: Incarnation,
    lease: Duration,
}

impl<E: Env> Clone for Client<E> {
    fn clone(&self) -> Self {
        Client { exchange: Rc::clone(&self.exchange), ..*self }
    }
}

/// How the exchange with the server goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStatus {
    /// The first sending that nothing has been heard after, while the server is silent.
    pub silent_since: Option<Moment>,
    /// Requests that wait for an answer.
    pub waiting: usize,
    /// Requests made.
    pub requests: u64,
    /// Requests sent again.
    pub repeated: u64,
    /// Datagrams that were no awaited answer.
    pub dropped: u64,
    /// The smoothed round trip, once there is one.
    pub round_trip: Option<Duration>,
}

impl<E: Env> Client<E> {
    /// Begins a session of this start of the unit; ends any of an earlier start.
    ///
    /// Refused as [`Refusal::StaleIncarnation`], with the last one as detail, where the unit was
    /// attached with this or a higher incarnation and the claim is not asked for again
    /// ([`ownership::ask_again`]): as the next start, where the last one never began; and where the
    /// server counts, with the last start that it told. So a claim that arrives late, or is
    /// replayed, is not taken for a new one. A claim that says that it is fenced does so only when
    /// it knows from whom, and is then refused where another has attached meanwhile.
    pub async fn attach(env: E, link: E::Link, claim: Claim) -> Result<Client<E>, MdsError> {
        let payload_max = link.payload_max().min(wire::PAYLOAD_MAX) as u32;
        let counted_there = claim.incarnation.is_none();
        let first = Claim { fenced: claim.fenced && !counted_there, ..claim };
        let mut asked = first;
        let exchange = Exchange::start(&env, link);
        let reply = loop {
            let attach = RawAttach::new(&asked, payload_max);
            let answered = exchange.call(Operation::Attach, attach.as_bytes()).await;
            let again = match &answered {
                Err(MdsError::Refused { refusal: Refusal::StaleIncarnation, detail, .. }) => {
                    ownership::ask_again(&claim, &asked, Incarnation(*detail as u32))
                }
                Err(MdsError::Refused { refusal: Refusal::OwnedElsewhere, .. }) => {
                    ownership::ask_fenced(&claim, &asked)
                }
                _ => None,
            };
            match again {
                Some(next) => asked = next,
                None => break answered?,
            }
        };
        let pool = parsed(Operation::Attach, raw::one::<RawPool>(&reply))?;
        let incarnation = Incarnation(pool.incarnation.get());
        let lease = Duration::from_millis(pool.lease_ms.get().into());
        Ok(Client { exchange, pool: pool.into(), incarnation, lease })
    }

    /// Says that this start has begun: from now on its flags are what a later one must have found.
    pub async fn begin(&self) -> Result<(), MdsError> {
        self.transact(&[]).await.map(drop)
    }

    /// Ends the session. Further calls are refused.
    pub async fn detach(&self) -> Result<(), MdsError> {
        self.exchange.call(Operation::Detach, &[]).await.map(drop)
    }

    /// Says that the session lives; tells how far readers beside the unit have come.
    pub async fn renew(&self) -> Result<Told, MdsError> {
        told(Operation::Renew, &self.exchange.call(Operation::Renew, &[]).await?)
    }

    /// The pool, as told at attach.
    pub fn pool(&self) -> PoolInfo {
        self.pool
    }

    /// Which start of the unit the session is of, as the server counts.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// For how long each renewal is good, as the server granted it; zero: for ever.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Every volume, by id; also those that are being deleted.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>, MdsError> {
        let operation = Operation::ListVolumes;
        let mut volumes: Vec<VolumeInfo> = Vec::new();
        loop {
            let from = volumes.last().map_or(0, |last| u64::from(last.id.0) + 1);
            let reply = self.page(operation, VolumeId(0), VOLUMES_PAGE, from).await?;
            let page = parsed(operation, raw::many::<RawVolume>(&reply))?;
            for record in page {
                volumes.push(parsed(operation, VolumeInfo::try_from(record))?);
            }
            if page.len() < VOLUMES_PAGE as usize {
                return Ok(volumes);
            }
        }
    }

    /// What this unit was granted.
    pub async fn grants(&self) -> Result<Grants, MdsError> {
        let operation = Operation::ListGrants;
        let mut grants = Grants::default();
        loop {
            let from = grants.runs.last().map_or(0, |last| u64::from(last.end().0));
            let reply = self.page(operation, VolumeId(0), RUNS_PAGE, from).await?;
            let page = parsed(operation, raw::grants(&reply))?;
            grants.data_quota = page.data_quota;
            let count = page.runs.len();
            grants.runs.extend(page.runs);
            if count < RUNS_PAGE as usize {
                return Ok(grants);
            }
        }
    }

    /// Asks for so much of the quota for data, and as many extents: may be less of each, nothing
    /// when the pool is full.
    pub async fn allocate_data_extents(&self, count: u32) -> Result<Grants, MdsError> {
        self.allocate(Operation::AllocateDataExtents, count).await
    }

    /// Asks for extents of any use (Allocate_Journal_Space): may be fewer, none when no extent is
    /// free.
    pub async fn allocate_journal_space(&self, count: u32) -> Result<Grants, MdsError> {
        self.allocate(Operation::AllocateJournalSpace, count).await
    }

    /// Gives extents back that are in no pair, and `data` of the quota with them.
    pub async fn return_extents(&self, runs: &[ExtentRun], data: u32) -> Result<(), MdsError> {
        if runs.len() > RETURN_RUNS_MAX {
            return Err(MdsError::TooLarge { what: "runs", limit: RETURN_RUNS_MAX });
        }
        let mut body = U32::new(data).as_bytes().to_vec();
        body.extend(raw::pack(runs.iter().map(|run| RawRun::from(*run))));
        self.exchange.call(Operation::ReturnExtents, &body).await.map(drop)
    }

    /// Executes all of the batch as one durable transaction, or none of it.
    pub async fn transact(&self, primitives: &[Primitive]) -> Result<Told, MdsError> {
        if primitives.len() > TRANSACT_PRIMITIVES_MAX {
            return Err(MdsError::TooLarge { what: "primitives", limit: TRANSACT_PRIMITIVES_MAX });
        }
        let body = raw::pack(primitives.iter().map(RawPrimitive::from));
        told(Operation::Transact, &self.exchange.call(Operation::Transact, &body).await?)
    }

    /// Harden_Extent_Flags: applies a group's records to the lines that the server keeps, as one
    /// durable transaction, or none of them. They are [`wire::MESSAGE_BYTES_MAX`] at most together.
    pub async fn harden(&self, records: &[Record]) -> Result<Told, MdsError> {
        self.harden_by(Operation::HardenExtentFlags, record::pack(records)).await
    }

    /// As [`Client::harden`], with a transaction's decision, if that is made.
    pub async fn prepare(&self, part: &Part) -> Result<Told, MdsError> {
        self.harden_by(Operation::PrepareExtentFlags, part.body()).await
    }

    async fn harden_by(&self, operation: Operation, body: Vec<u8>) -> Result<Told, MdsError> {
        if body.len() > wire::MESSAGE_BYTES_MAX {
            let limit = wire::MESSAGE_BYTES_MAX;
            return Err(MdsError::TooLarge { what: "bytes of records", limit });
        }
        told(operation, &self.exchange.call(operation, &body).await?)
    }

    /// Every line that the server keeps of this unit. Where they change meanwhile, the view is one
    /// from before: what changed since then may be in them or not.
    pub async fn lines(&self) -> Result<LinesSeen, MdsError> {
        let operation = Operation::Lines;
        let mut seen: Option<LinesSeen> = None;
        loop {
            let last = seen.as_ref().and_then(|seen| seen.lines.last());
            let from = last.map_or(0, |(pair, _)| u64::from(pair.0) + 1);
            let reply = self.page(operation, VolumeId(0), LINES_PAGE, from).await?;
            let (view, rest) = parsed(operation, raw::first::<U64>(&reply))?;
            let page = parsed(operation, raw::lines(rest))?;
            let full = page.len() >= LINES_PAGE as usize;
            let first = LinesSeen { view: view.get(), lines: Vec::new() };
            let seen = seen.get_or_insert(first);
            seen.lines.extend(page);
            if !full {
                return Ok(std::mem::replace(seen, LinesSeen { view: 0, lines: Vec::new() }));
            }
        }
    }

    /// The lines that changed since a view, up to the view that the answer is of, which is no
    /// older than this call; `None` where that is not known: then all are to be asked for. Says
    /// that nothing from before the view `used` is used here any more.
    pub async fn changes(&self, since: u64, used: u64) -> Result<Option<LinesSeen>, MdsError> {
        let operation = Operation::Changes;
        let mut seen = LinesSeen { view: since, lines: Vec::new() };
        loop {
            let asked = RawSince { since: U64::new(seen.view), used: U64::new(used) };
            let reply = self.exchange.call(operation, asked.as_bytes()).await?;
            let (head, rest) = parsed(operation, raw::first::<RawChanges>(&reply))?;
            if head.rest == raw::REST_UNKNOWN {
                return Ok(None);
            }
            seen.view = head.view.get();
            seen.lines.extend(parsed(operation, raw::lines(rest))?);
            if head.rest != raw::REST_MORE {
                return Ok(Some(seen));
            }
        }
    }

    /// The live pairs of a volume from a logical extent on.
    pub async fn layout(
        &self,
        volume: VolumeId,
        from: LogicalExtent,
    ) -> Result<LayoutPage, MdsError> {
        let operation = Operation::Layout;
        let reply = self.page(operation, volume, LAYOUT_PAGE, u64::from(from.0)).await?;
        let page = parsed(operation, raw::many::<RawOwned>(&reply))?;
        let mut pairs = Vec::with_capacity(page.len());
        for record in page {
            let pair = parsed(operation, PairRecord::try_from(&record.pair))?;
            pairs.push((UnitId(record.unit.get()), pair));
        }
        let full = pairs.len() >= LAYOUT_PAGE as usize;
        let last = pairs.last().filter(|_| full).map(|(_, pair)| pair.logical.0);
        let next = last.and_then(|last| last.checked_add(1)).map(LogicalExtent);
        Ok(LayoutPage { pairs, next })
    }

    /// The server's counters.
    pub async fn server_status(&self) -> Result<ServerStatus, MdsError> {
        let reply = self.exchange.call(Operation::Status, &[]).await?;
        let words = parsed(Operation::Status, raw::one::<[U64; ServerStatus::COUNT]>(&reply))?;
        Ok(ServerStatus::from_words(words.map(U64::get)))
    }

    /// Makes a volume, thin.
    pub async fn create_volume(&self, name: &str, size: u64) -> Result<VolumeInfo, MdsError> {
        let operation = Operation::CreateVolume;
        let record = named(operation, VolumeId(0), name, size)?;
        let reply = self.exchange.call(operation, record.as_bytes()).await?;
        let made = parsed(operation, raw::one::<RawVolume>(&reply))?;
        parsed(operation, VolumeInfo::try_from(&made))
    }

    /// Changes a volume's size; refused where that would lose bound extents.
    pub async fn resize_volume(&self, volume: VolumeId, size: u64) -> Result<(), MdsError> {
        let record = RawVolume::nameless(volume, size);
        self.exchange.call(Operation::ResizeVolume, record.as_bytes()).await.map(drop)
    }

    /// Gives a volume another name.
    pub async fn rename_volume(&self, volume: VolumeId, name: &str) -> Result<(), MdsError> {
        let operation = Operation::RenameVolume;
        let record = named(operation, volume, name, 0)?;
        self.exchange.call(operation, record.as_bytes()).await.map(drop)
    }

    /// Begins a volume's deletion: it is listed as being deleted until [`Client::remove_volume`].
    pub async fn delete_volume(&self, volume: VolumeId) -> Result<(), MdsError> {
        let record = RawVolume::nameless(volume, 0);
        self.exchange.call(Operation::DeleteVolume, record.as_bytes()).await.map(drop)
    }

    /// Ends a volume's deletion; refused while any of its extents is bound.
    pub async fn remove_volume(&self, volume: VolumeId) -> Result<(), MdsError> {
        let record = RawVolume::nameless(volume, 0);
        self.exchange.call(Operation::RemoveVolume, record.as_bytes()).await.map(drop)
    }

    /// How the exchange with the server goes.
    pub fn status(&self) -> ClientStatus {
        self.exchange.status()
    }

    async fn allocate(&self, operation: Operation, count: u32) -> Result<Grants, MdsError> {
        let reply = self.exchange.call(operation, U32::new(count).as_bytes()).await?;
        parsed(operation, raw::grants(&reply))
    }

    async fn page(
        &self,
        operation: Operation,
        volume: VolumeId,
        count: u32,
        from: u64,
    ) -> Result<Vec<u8>, MdsError> {
        let page =
            RawPage { volume: U32::new(volume.0), count: U32::new(count), from: U64::new(from) };
        self.exchange.call(operation, page.as_bytes()).await
    }
}

/// The record of a volume with a name, which is refused here where it does not even fit.
fn named(
    operation: Operation,
    volume: VolumeId,
    name: &str,
    size: u64,
) -> Result<RawVolume, MdsError> {
    let (operation, refusal) = (operation.name(), Refusal::NameInvalid);
    let invalid = MdsError::Refused { operation, refusal, detail: 0 };
    RawVolume::named(volume, name, size).ok_or(invalid)
}

fn told(operation: Operation, reply: &[u8]) -> Result<Told, MdsError> {
    parsed(operation, raw::one::<RawTold>(reply)).map(Told::from)
}

fn parsed<T>(operation: Operation, result: Result<T, Malformed>) -> Result<T, MdsError> {
    result.map_err(|Malformed| MdsError::BadReply { operation: operation.name() })
}
