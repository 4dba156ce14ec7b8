//! The metadata server: a synchronous actor that takes datagrams and gives datagrams.
//!
//! A batch of whatever has arrived is one turn: its mutations are staged in the catalog one after
//! another, with what their sessions keep of them; one durable store transaction holds it all; then
//! come the answers, and the queries see what was committed.
//!
//! # Contracts
//!
//! - **Order of effects**: no answer to a mutation leaves before its transaction is durable.
//! - **Bounds**: parts and waiting requests take at most [`BUFFERED_BYTES_MAX`] and one message a
//!   session; sessions are at most [`SESSIONS_MAX`].
//! - **Fail stop**: once the store has failed, everything is refused with that reason.
//! - **Garbage**: dropped and counted. A refusal is a header without a body, and so never larger
//!   than what it refuses.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::format::home::Line;
use crate::format::ids::{ExtentRun, LogicalExtent, PairId, UnitId, VolumeId};
use crate::format::record;
use crate::mds::catalog::{Catalog, Fault, space::Use};
use crate::mds::error::Refusal;
use crate::mds::raw::{
    self, Malformed, RawAttach, RawChanges, RawOwned, RawPage, RawPair, RawPairLine, RawPool,
    RawPrimitive, RawRun, RawTold, RawVolume,
};
use crate::mds::records::{
    Claim, LinesSeen, Primitive, RETURN_RUNS_MAX, ServerStatus, TRANSACT_PRIMITIVES_MAX, Told,
    VolumeInfo,
};
use crate::mds::session::{Admitted, Answer, Session};
use crate::mds::store::StoreError;
use crate::mds::wire::{self, Datagram, Header, Kind, Operation, PAYLOAD_MAX, PAYLOAD_MIN};
use crate::mutants::{Mutant, mutated};

/// Memory for parts and requests that wait for their turn, over all sessions, in bytes.
pub const BUFFERED_BYTES_MAX: usize = 64 << 20;
/// The most sessions at a time.
pub const SESSIONS_MAX: usize = 256;
/// The largest body of a page, in bytes.
const PAGE_BYTES_MAX: usize = 32 << 10;

/// The most lines that one answer tells of that changed.
const CHANGES_MAX: usize = wire::MESSAGE_BYTES_MAX / 2 / size_of::<RawPairLine>();

const _: () = assert!(PAGE_BYTES_MAX < wire::MESSAGE_BYTES_MAX);

/// The server. `P` is where a datagram came from and its answer goes.
pub struct Server<P> {
    catalog: Catalog,
    sessions: BTreeMap<u64, Session<P>>,
    counters: ServerStatus,
    failure: Option<StoreError>,
}

/// An answer that leaves at the end of the turn.
struct Reply<P> {
    peer: P,
    header: Header,
    payload_max: usize,
    outcome: Outcome,
}

type Outcome = Result<Vec<u8>, (Refusal, u64)>;

/// A query that waits for the end of the turn.
struct Query<P> {
    peer: P,
    header: Header,
    unit: UnitId,
    payload_max: usize,
    body: Vec<u8>,
}

/// What a turn has gathered.
struct Turn<P> {
    replies: Vec<Reply<P>>,
    queries: Vec<Query<P>>,
}

impl<P: Clone> Server<P> {
    /// A server of that pool, with the sessions that it has kept.
    pub fn new(catalog: Catalog) -> Result<Self, StoreError> {
        let mut sessions = BTreeMap::new();
        for (id, row) in catalog.sessions()? {
            sessions.insert(id, Session::from_row(&row)?);
        }
        Ok(Server { catalog, sessions, counters: ServerStatus::default(), failure: None })
    }

    /// Takes all that has arrived, and gives all answers: one turn, one store transaction.
    pub fn handle(&mut self, batch: impl IntoIterator<Item = (P, Vec<u8>)>) -> Vec<(P, Vec<u8>)> {
        let mut turn = Turn { replies: Vec::new(), queries: Vec::new() };
        for (peer, bytes) in batch {
            self.counters.datagrams += 1;
            let taken = match wire::parse(&bytes) {
                Ok(datagram) if datagram.header.kind == Kind::Request => {
                    self.take(&mut turn, peer, &datagram)
                }
                _ => false,
            };
            self.counters.dropped += u64::from(!taken);
        }
        if self.failure.is_none() {
            self.failure = self.catalog.commit().err();
        }
        for query in std::mem::take(&mut turn.queries) {
            let outcome = self.query(query.header, query.unit, &query.body);
            let Query { peer, header, payload_max, .. } = query;
            turn.replies.push(Reply { peer, header, payload_max, outcome });
        }
        let failure = self.failure.as_ref().map(refusal_of);
        let mut datagrams = Vec::new();
        for mut reply in turn.replies {
            if let Some(refusal) = failure {
                reply.outcome = Err((refusal, 0));
            }
            self.counters.refused += u64::from(reply.outcome.is_err());
            datagrams.extend(reply.encode());
        }
        datagrams
    }

    /// Why the server serves no more, if it does not.
    pub fn failure(&self) -> Option<&StoreError> {
        self.failure.as_ref()
    }

    /// The counters.
    pub fn status(&self) -> ServerStatus {
        ServerStatus {
            datagrams: self.counters.datagrams,
            dropped: self.counters.dropped,
            repeated: self.counters.repeated,
            refused: self.counters.refused,
            sessions: self.sessions.len() as u64,
            ..self.catalog.counters()
        }
    }

    /// Takes one request's datagram; false where it is dropped.
    fn take(&mut self, turn: &mut Turn<P>, peer: P, datagram: &Datagram<'_>) -> bool {
        let header = datagram.header;
        if self.failure.is_some() {
            // Whatever it is, its outcome will be the failure.
            turn.reply(peer, header, PAYLOAD_MIN, Ok(Vec::new()));
            return true;
        }
        if header.session == 0 {
            return false;
        }
        if header.operation == Operation::Attach {
            return self.take_attach(turn, peer, datagram);
        }
        self.harden_for_anyone(datagram);
        let Some(session) = self.sessions.get_mut(&header.session) else {
            // A session that is detached already is what a repeated detach wants.
            let detached = header.operation == Operation::Detach;
            let outcome = if detached { Ok(Vec::new()) } else { Err((Refusal::UnknownSession, 0)) };
            if datagram.part == 0 {
                turn.reply(peer, header, PAYLOAD_MIN, outcome);
            }
            return true;
        };
        let payload_max = session.payload_max();
        if !header.operation.is_ordered() {
            let (unit, body) = (session.unit(), datagram.body.to_vec());
            if datagram.parts != 1 {
                return false;
            }
            turn.queries.push(Query { peer, header, unit, payload_max, body });
            return true;
        }
        let buffered: usize = self.sessions.values().map(Session::buffered).sum();
        let room = buffered + datagram.body.len() <= BUFFERED_BYTES_MAX;
        let session = self.sessions.get_mut(&header.session).expect("looked up above");
        match session.admit(&peer, datagram, room) {
            Admitted::Kept => true,
            Admitted::Dropped => false,
            Admitted::Ready => {
                self.run_ready(turn, header.session);
                true
            }
            Admitted::Repeated(_) if Self::executes_again(header.operation, datagram.parts) => {
                let unit = self.sessions[&header.session].unit();
                let again = self.mutate(header.operation, unit, header.session, datagram.body);
                if let Ok(body) = again {
                    turn.reply(peer, header, payload_max, Ok(body));
                }
                true
            }
            Admitted::Repeated(answer) => {
                if let Some(answer) = answer {
                    self.counters.repeated += 1;
                    turn.reply(peer, header, payload_max, answer.outcome);
                }
                true
            }
        }
    }

    /// Hardens for a session that was replaced, which is a mutant's doing.
    fn harden_for_anyone(&mut self, datagram: &Datagram<'_>) {
        let stale = mutated(Mutant::HardenOfStaleSession)
            && !self.sessions.contains_key(&datagram.header.session)
            && datagram.header.operation == Operation::HardenExtentFlags;
        let unit = self.sessions.values().next().map(Session::unit).filter(|_| stale);
        if let (Some(unit), Some(records)) = (unit, record::unpack(datagram.body)) {
            // Refused or not: who asked is not told.
            let _ = self.catalog.harden(unit, &records);
        }
    }

    /// Whether a repeated request is executed again, which is a mutant's doing.
    fn executes_again(operation: Operation, parts: u16) -> bool {
        let absolute = operation == Operation::Transact;
        parts == 1
            && (mutated(Mutant::RequestRepeated)
                || mutated(Mutant::GenerationUnchecked) && absolute)
    }

    fn take_attach(&mut self, turn: &mut Turn<P>, peer: P, datagram: &Datagram<'_>) -> bool {
        let header = datagram.header;
        if header.sequence != 0 || datagram.parts != 1 {
            return false;
        }
        let outcome = match self.attach(header.session, datagram.body) {
            Ok(body) => Ok(body),
            Err(Fault::Refused(refusal, detail)) => Err((refusal, detail)),
            Err(Fault::Store(error)) => {
                self.failure = Some(error);
                Ok(Vec::new())
            }
        };
        turn.reply(peer, header, PAYLOAD_MIN, outcome);
        true
    }

    fn attach(&mut self, id: u64, body: &[u8]) -> Result<Vec<u8>, Fault> {
        let attach: RawAttach = well_formed(raw::one(body))?;
        let claim = well_formed(Claim::try_from(&attach))?;
        let unit = claim.unit;
        let last = self.catalog.incarnation(unit);
        let pool = self.catalog.pool();
        let told = |incarnation| RawPool::new(pool, incarnation, 0).as_bytes().to_vec();
        if let Some(known) = self.sessions.get(&id) {
            let same = known.unit() == unit;
            let refused = Err(Fault::Refused(Refusal::UnknownSession, 0));
            return if same { Ok(told(last)) } else { refused };
        }
        // Who does not count its starts itself is told the last one, and asks with the next: an
        // attach that repeats what an ended session sent must not be a new one.
        let stale = Fault::Refused(Refusal::StaleIncarnation, u64::from(last.0));
        let incarnation = claim.incarnation.ok_or(stale)?;
        let payload_max = attach.payload_max.get();
        if !(PAYLOAD_MIN as u32..=PAYLOAD_MAX as u32).contains(&payload_max) {
            return Err(Fault::Refused(Refusal::OutOfRange, u64::from(payload_max)));
        }
        let replaces = self.sessions.values().any(|session| session.unit() == unit);
        if self.sessions.len() >= SESSIONS_MAX && !replaces {
            return Err(Fault::Refused(Refusal::TooLarge, SESSIONS_MAX as u64));
        }
        let earlier = self.catalog.attach(unit, incarnation, id)?;
        if let Some(earlier) = earlier {
            self.sessions.remove(&earlier);
        }
        let session = Session::new(unit, payload_max);
        self.catalog.put_session(id, Some(session.row()));
        self.sessions.insert(id, session);
        Ok(told(incarnation))
    }

    /// Executes the mutations of a session whose turn it is, as far as they are there.
    fn run_ready(&mut self, turn: &mut Turn<P>, id: u64) {
        while let Some(session) = self.sessions.get_mut(&id) {
            let Some((peer, header, body)) = session.take_ready() else {
                return;
            };
            let (unit, payload_max) = (session.unit(), session.payload_max());
            let outcome = match self.mutate(header.operation, unit, id, &body) {
                Ok(body) => Ok(body),
                Err(Fault::Refused(refusal, detail)) => Err((refusal, detail)),
                Err(Fault::Store(error)) => {
                    self.failure = Some(error);
                    turn.reply(peer, header, payload_max, Ok(Vec::new()));
                    return;
                }
            };
            if let Some(session) = self.sessions.get_mut(&id) {
                session.executed(Answer { operation: header.operation, outcome: outcome.clone() });
                self.catalog.put_session(id, Some(session.row()));
            }
            turn.reply(peer, header, payload_max, outcome);
        }
    }

    fn mutate(
        &mut self,
        operation: Operation,
        unit: UnitId,
        session: u64,
        body: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let catalog = &mut self.catalog;
        match operation {
            Operation::Detach => {
                catalog.detach(unit, session);
                self.sessions.remove(&session);
            }
            Operation::Transact => {
                catalog.transact(unit, &primitives(body)?)?;
                return Ok(RawTold::from(self.told()).as_bytes().to_vec());
            }
            Operation::HardenExtentFlags => {
                let records = record::unpack(body).ok_or(Malformed);
                catalog.harden(unit, &well_formed(records)?)?;
                return Ok(RawTold::from(self.told()).as_bytes().to_vec());
            }
            Operation::AllocateJournalSpace | Operation::AllocateDataExtents => {
                let purpose = match operation {
                    Operation::AllocateJournalSpace => Use::Journal,
                    _ => Use::Data,
                };
                let count: U32 = well_formed(raw::one(body))?;
                let runs = catalog.allocate(unit, purpose, count.get());
                return Ok(raw::pack(runs.into_iter().map(RawRun::from)));
            }
            Operation::ReturnExtents => {
                let (data, rest): (U32, _) = well_formed(raw::first(body))?;
                let runs: Vec<ExtentRun> = well_formed(raw::runs(rest))?;
                check_count(runs.len(), RETURN_RUNS_MAX)?;
                catalog.give_back(unit, &runs, data.get())?;
            }
            Operation::CreateVolume => {
                let asked = well_formed(VolumeInfo::try_from(&volume(body)?))?;
                let made = catalog.create_volume(&asked.name, asked.size)?;
                return Ok(RawVolume::from(&made).as_bytes().to_vec());
            }
            Operation::ResizeVolume => {
                let record = volume(body)?;
                catalog.resize_volume(VolumeId(record.id.get()), record.size.get())?;
            }
            Operation::RenameVolume => {
                let asked = well_formed(VolumeInfo::try_from(&volume(body)?))?;
                catalog.rename_volume(asked.id, &asked.name)?;
            }
            Operation::DeleteVolume => {
                catalog.delete_volume(VolumeId(volume(body)?.id.get()))?;
            }
            Operation::RemoveVolume => {
                catalog.remove_volume(VolumeId(volume(body)?.id.get()))?;
            }
            Operation::Attach
            | Operation::Renew
            | Operation::ListVolumes
            | Operation::ListGrants
            | Operation::Layout
            | Operation::Status
            | Operation::Lines
            | Operation::Changes
            | Operation::RegisterPool
            | Operation::ForgetPool => {
                unreachable!("{} is no ordered mutation", operation.name())
            }
        }
        Ok(Vec::new())
    }

    /// How far lines have changed, what this turn did so far included, and the readers followed.
    fn told(&self) -> Told {
        let acknowledged = self.sessions.values().filter_map(Session::acknowledged);
        Told { view: self.catalog.view(), horizon: acknowledged.min().unwrap_or(u64::MAX) }
    }

    fn query(&mut self, header: Header, unit: UnitId, body: &[u8]) -> Outcome {
        if header.operation == Operation::Changes
            && let Ok(since) = raw::one::<U64>(body)
            && let Some(session) = self.sessions.get_mut(&header.session)
        {
            session.acknowledge(since.get());
        }
        let result = self.answer_query(header.operation, unit, body);
        result.map_err(|fault| match fault {
            Fault::Refused(refusal, detail) => (refusal, detail),
            Fault::Store(error) => {
                let refusal = refusal_of(&error);
                self.failure.get_or_insert(error);
                (refusal, 0)
            }
        })
    }

    fn answer_query(
        &self,
        operation: Operation,
        unit: UnitId,
        body: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let page = || well_formed(raw::one::<RawPage>(body));
        match operation {
            Operation::Renew => Ok(RawTold::from(self.told()).as_bytes().to_vec()),
            Operation::Status => Ok(raw::pack(self.status().words().map(U64::new))),
            Operation::ListVolumes => {
                let page = page()?;
                let volumes = self.catalog.list_volumes(page.from.get(), limit::<RawVolume>(&page));
                Ok(raw::pack(volumes.into_iter().map(RawVolume::from)))
            }
            Operation::ListGrants => {
                let page = page()?;
                let limit = limit::<RawRun>(&page);
                let (quota, runs) = self.catalog.grants(unit, page.from.get(), limit);
                let mut reply = U64::new(quota).as_bytes().to_vec();
                reply.extend(raw::pack(runs.into_iter().map(RawRun::from)));
                Ok(reply)
            }
            Operation::Layout => {
                let page = page()?;
                let volume = VolumeId(page.volume.get());
                let from = u32::try_from(page.from.get());
                let from = from.map_err(|_| Fault::Refused(Refusal::OutOfRange, 0))?;
                let limit = limit::<RawOwned>(&page);
                let pairs = self.catalog.layout(volume, LogicalExtent(from), limit)?;
                let record = |(unit, pair): (UnitId, _)| RawOwned {
                    unit: U32::new(unit.0),
                    pair: RawPair::from(&pair),
                };
                Ok(raw::pack(pairs.into_iter().map(record)))
            }
            Operation::Lines => {
                let page = page()?;
                let from = u32::try_from(page.from.get());
                let from = from.map_err(|_| Fault::Refused(Refusal::OutOfRange, 0))?;
                let lines = self.catalog.lines(unit, PairId(from), limit::<RawPairLine>(&page))?;
                let mut reply = U64::new(self.catalog.view()).as_bytes().to_vec();
                reply.extend(raw::pack(lines.into_iter().map(pair_line)));
                Ok(reply)
            }
            Operation::Changes => {
                let since = well_formed(raw::one::<U64>(body))?;
                Ok(changes(self.catalog.changes(unit, since.get(), CHANGES_MAX)?))
            }
            Operation::RegisterPool | Operation::ForgetPool => {
                Err(Fault::Refused(Refusal::Unsupported, 0))
            }
            _ => unreachable!("{} is no query", operation.name()),
        }
    }
}

impl<P> Turn<P> {
    fn reply(&mut self, peer: P, header: Header, payload_max: usize, outcome: Outcome) {
        self.replies.push(Reply { peer, header, payload_max, outcome });
    }
}

impl<P: Clone> Reply<P> {
    fn encode(self) -> impl Iterator<Item = (P, Vec<u8>)> {
        let (verdict, detail, body) = match self.outcome {
            Ok(body) => (Ok(()), 0, body),
            Err((refusal, detail)) => (Err(refusal), detail, Vec::new()),
        };
        let header = Header { kind: Kind::Reply(verdict), detail, ..self.header };
        let datagrams = wire::encode(&header, &body, self.payload_max);
        datagrams.into_iter().map(move |datagram| (self.peer.clone(), datagram))
    }
}

fn refusal_of(error: &StoreError) -> Refusal {
    match error {
        StoreError::Full(_) => Refusal::StoreFull,
        StoreError::Failed(_) | StoreError::Damaged(_) => Refusal::StoreFailed,
    }
}

fn well_formed<T>(result: Result<T, Malformed>) -> Result<T, Fault> {
    result.map_err(|Malformed| Fault::Refused(Refusal::Malformed, 0))
}

/// What changed; `None`: what is not known.
fn changes(seen: Option<LinesSeen>) -> Vec<u8> {
    let reset = U32::new(seen.is_none().into());
    let LinesSeen { view, lines } = seen.unwrap_or(LinesSeen { view: 0, lines: Vec::new() });
    let mut reply = RawChanges { view: U64::new(view), reset }.as_bytes().to_vec();
    reply.extend(raw::pack(lines.into_iter().map(pair_line)));
    reply
}

fn pair_line((pair, line): (PairId, Line)) -> RawPairLine {
    RawPairLine::new(pair, line.bytes())
}

fn check_count(count: usize, limit: usize) -> Result<(), Fault> {
    if count <= limit { Ok(()) } else { Err(Fault::Refused(Refusal::TooLarge, limit as u64)) }
}

fn primitives(body: &[u8]) -> Result<Vec<Primitive>, Fault> {
    let records = well_formed(raw::many::<RawPrimitive>(body))?;
    check_count(records.len(), TRANSACT_PRIMITIVES_MAX)?;
    let parse = |(index, record)| {
        let malformed = |Malformed| Fault::Refused(Refusal::Malformed, index as u64);
        Primitive::try_from(record).map_err(malformed)
    };
    records.iter().enumerate().map(parse).collect()
}

fn volume(body: &[u8]) -> Result<RawVolume, Fault> {
    well_formed(raw::one(body))
}

/// How many records of that type a page may have: at least one.
fn limit<T>(page: &RawPage) -> usize {
    (page.count.get() as usize).clamp(1, PAGE_BYTES_MAX / size_of::<T>())
}
