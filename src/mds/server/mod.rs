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
//!   session; sessions are at most [`Pools::sessions_max`].
//! - **Leases** are counted from the last request of a session that was executed; by a server that
//!   starts again, from its first turn. A reader is forgotten at the end of its lease. A writer
//!   stays attached: what is its own is not given to others before its journal was replayed.
//! - **Damage** of one pool stops that pool alone: a claim to it is refused with that reason, and a
//!   target that was attached hears nothing, as of a server that is away.
//! - **Fail stop**: once the store has failed, everything is refused with that reason.
//! - **Garbage**: dropped and counted. A refusal is a header without a body, and so never larger
//!   than what it refuses.
//! - **Strangers**: who has no session is never sent more bytes than it has sent. What was recorded
//!   of a session and is sent again changes nothing, and a query of it is answered only to where
//!   the session's client is.

mod attach;
mod groups;
#[cfg(test)]
mod pools_tests;
mod sessions;
#[cfg(test)]
mod stranger_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use self::sessions::Sessions;
use crate::env::Moment;
use crate::format::home::Line;
use crate::format::ids::{ExtentRun, LogicalExtent, PairId, PoolId, UnitId, VolumeId};
use crate::format::record;
use crate::mds::catalog::{Catalog, Fault, space::Use};
use crate::mds::error::Refusal;
use crate::mds::groups::Groups;
use crate::mds::overview::{
    PAGE_BYTES_MAX, RawGroupSeen, RawMemberSeen, RawPoolSeen, RawSessionSeen, SEEN_BYTES_MAX,
    Section,
};
use crate::mds::pools::Pools;
use crate::mds::raw::{
    self, Malformed, RawChanges, RawOwned, RawPage, RawPair, RawPairLine, RawPrimitive, RawRun,
    RawSince, RawTold, RawVolume,
};
use crate::mds::records::{
    Claim, LinesSeen, Primitive, RETURN_RUNS_MAX, ServerStatus, TRANSACT_PRIMITIVES_MAX, Told,
    VolumeInfo,
};
use crate::mds::session::{Admitted, Answer, Session};
use crate::mds::store::StoreError;
use crate::mds::wire::{self, Datagram, HEADER_BYTES, Header, Kind, Operation, PAYLOAD_MIN};
use crate::mutants::{Mutant, mutated};

/// Memory for parts and requests that wait for their turn, over all sessions, in bytes.
pub const BUFFERED_BYTES_MAX: usize = 64 << 20;

/// The most lines that one answer tells of that changed.
const CHANGES_MAX: usize = wire::MESSAGE_BYTES_MAX / 2 / size_of::<RawPairLine>();

const _: () = assert!(PAGE_BYTES_MAX < wire::MESSAGE_BYTES_MAX);

/// The server. `P` is where a datagram came from and its answer goes.
pub struct Server<P> {
    pools: Pools,
    groups: Groups,
    sessions: Sessions<P>,
    /// Of pools that are set aside: not answered, as their targets can go on without.
    silent: BTreeSet<u64>,
    /// When the turn under way began; none before the first.
    now: Moment,
    started: bool,
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
    /// Whose it is; nobody's where no session is needed.
    claim: Option<Claim>,
    payload_max: usize,
    body: Vec<u8>,
}

/// What a turn has gathered.
struct Turn<P> {
    replies: Vec<Reply<P>>,
    queries: Vec<Query<P>>,
}

impl<P: Clone + PartialEq> Server<P> {
    /// A server of those pools, with the sessions that they have kept.
    pub fn new(mut pools: Pools) -> Result<Self, StoreError> {
        let mut sessions = BTreeMap::new();
        let mut damaged = Vec::new();
        for (pool, catalog) in pools.iter() {
            match kept_sessions(pool, catalog, pools.is_single(), &sessions) {
                Ok(kept) => sessions.extend(kept),
                Err(StoreError::Damaged(reason)) if !pools.is_single() => {
                    damaged.push((pool, reason));
                }
                Err(error) => return Err(error),
            }
        }
        damaged.into_iter().for_each(|(pool, reason)| pools.set_aside(pool, reason));
        let silent = pools.sessions_set_aside()?;
        let groups = Groups::load(&pools)?;
        let counters = ServerStatus::default();
        Ok(Server {
            pools,
            groups,
            sessions: Sessions::new(sessions),
            silent,
            now: Moment::default(),
            started: false,
            counters,
            failure: None,
        })
    }

    /// The pools, to be looked at.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Takes all that has arrived by `now`, and gives all answers: one turn, one store transaction.
    /// The moments of turns are of one clock and in order.
    pub fn handle(
        &mut self,
        now: Moment,
        batch: impl IntoIterator<Item = (P, Vec<u8>)>,
    ) -> Vec<(P, Vec<u8>)> {
        self.begin_turn(now);
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
        let early = mutated(Mutant::AnsweredBeforeCommit) && self.counters.datagrams % 2 == 1;
        if self.failure.is_none() && !early {
            self.stage_sessions();
            let staged = self.stage_groups();
            self.failure = staged.and_then(|()| self.pools.commit()).err();
        }
        for query in std::mem::take(&mut turn.queries) {
            let outcome = self.query(query.header, query.claim.as_ref(), &query.body);
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
        if failure.is_none() {
            datagrams.extend(self.nudges());
        }
        datagrams
    }

    /// Leases are looked at, and readers without one forgotten.
    fn begin_turn(&mut self, now: Moment) {
        self.now = self.now.max(now);
        if !self.started {
            self.started = true;
            self.sessions.begin(now);
            self.groups.begin(now);
        }
        if self.failure.is_none() {
            self.forget_readers(|session| session.left_ms(now) == 0);
        }
    }

    /// Why the server serves no more, if it does not.
    pub fn failure(&self) -> Option<&StoreError> {
        self.failure.as_ref()
    }

    /// How many datagrams were dropped before this server saw them, for lack of the key's proof.
    pub fn note_unauthenticated(&mut self, count: u64) {
        self.counters.unauthenticated = count;
    }

    /// The counters, of all pools together.
    pub fn status(&self) -> ServerStatus {
        self.with_own(self.pools.totals())
    }

    fn with_own(&self, counters: ServerStatus) -> ServerStatus {
        ServerStatus {
            datagrams: self.counters.datagrams,
            dropped: self.counters.dropped,
            unauthenticated: self.counters.unauthenticated,
            repeated: self.counters.repeated,
            refused: self.counters.refused,
            sessions: self.sessions.len() as u64,
            ..counters
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
        if header.operation == Operation::Overview {
            return turn.ask_overview(peer, datagram);
        }
        if header.operation.is_sessionless() {
            return self.take_sessionless(turn, peer, datagram);
        }
        if self.silent.contains(&header.session) {
            return false;
        }
        self.harden_for_anyone(datagram);
        let Some(session) = self.sessions.get_mut(header.session) else {
            turn.answer_unknown(peer, datagram);
            return true;
        };
        let payload_max = session.payload_max();
        if !header.operation.is_ordered() {
            if datagram.parts != 1 || !session.asks(&peer, header.sequence) {
                return false;
            }
            session.hear(self.now);
            let (claim, body) = (Some(*session.claim()), datagram.body.to_vec());
            if let (Operation::Coordinate, Some(claim)) = (header.operation, &claim) {
                self.hear_reports(claim, &body);
            }
            turn.queries.push(Query { peer, header, claim, payload_max, body });
            return true;
        }
        let admitted = self.sessions.admit(&peer, datagram).expect("looked up above");
        let session = self.sessions.get_mut(header.session).expect("looked up above");
        if admitted != Admitted::Dropped {
            session.hear(self.now);
        }
        match admitted {
            Admitted::Kept => true,
            Admitted::Dropped => false,
            Admitted::Ready => {
                self.run_ready(turn, header.session);
                true
            }
            Admitted::Repeated(_) if Self::executes_again(header.operation, datagram.parts) => {
                let claim = *session.claim();
                let again = self.mutate(header.operation, &claim, header.session, datagram.body);
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
            && self.sessions.get(datagram.header.session).is_none()
            && datagram.header.operation == Operation::HardenExtentFlags;
        let claim = self.sessions.iter().next().map(|(_, of)| *of.claim()).filter(|_| stale);
        if let (Some(claim), Some(records)) = (claim, record::unpack(datagram.body))
            && let Some(catalog) = self.pools.catalog_mut(claim.pool)
        {
            // Refused or not: who asked is not told.
            let _ = catalog.harden(claim.unit, &records);
        }
    }

    /// Whether a repeated request is executed again, which is a mutant's doing.
    fn executes_again(operation: Operation, parts: u16) -> bool {
        let absolute = operation == Operation::Transact;
        parts == 1
            && (mutated(Mutant::RequestRepeated)
                || mutated(Mutant::GenerationUnchecked) && absolute)
    }

    /// Executes the mutations of a session whose turn it is, as far as they are there.
    fn run_ready(&mut self, turn: &mut Turn<P>, id: u64) {
        while let Some((peer, header, body)) = self.sessions.take_ready(id) {
            let session = self.sessions.get(id).expect("it is the session's mutation");
            let (claim, payload_max) = (*session.claim(), session.payload_max());
            let outcome = match self.mutate(header.operation, &claim, id, &body) {
                Ok(body) => Ok(body),
                Err(Fault::Refused(refusal, detail)) => Err((refusal, detail)),
                Err(Fault::Store(error)) => {
                    self.failure = Some(error);
                    turn.reply(peer, header, payload_max, Ok(Vec::new()));
                    return;
                }
            };
            if outcome.is_ok()
                && let Some(catalog) = self.pools.catalog_mut(claim.pool)
            {
                catalog.begin(claim.unit, id);
            }
            let answer = Answer { operation: header.operation, outcome: outcome.clone() };
            self.sessions.executed(id, answer);
            turn.reply(peer, header, payload_max, outcome);
        }
    }

    /// What sessions have executed in this turn is kept with what that did.
    fn stage_sessions(&mut self) {
        for (pool, id, row) in self.sessions.take_rows() {
            if !mutated(Mutant::SessionNotStored) {
                self.put_session(pool, id, Some(row));
            }
        }
    }

    fn mutate(
        &mut self,
        operation: Operation,
        claim: &Claim,
        session: u64,
        body: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let unit = claim.unit;
        if operation == Operation::DeleteVolume {
            self.check_in_no_group(claim.pool, body)?;
        }
        let catalog = self.pools.catalog_mut(claim.pool);
        let catalog = catalog.ok_or(Fault::Refused(Refusal::UnknownPool, 0))?;
        if claim.reads && operation != Operation::Detach {
            return Err(Fault::Refused(Refusal::ReadsOnly, 0));
        }
        match operation {
            Operation::Detach => {
                catalog.detach(unit, session);
                if !claim.reads {
                    self.groups.detached(self.pools.name_here(claim.pool));
                }
                self.sessions.remove(session);
            }
            Operation::Transact => {
                catalog.transact(unit, &primitives(body)?)?;
                return Ok(self.told(claim.pool));
            }
            Operation::HardenExtentFlags | Operation::PrepareExtentFlags => {
                return self.harden(operation, claim, body);
            }
            Operation::AllocateJournalSpace | Operation::AllocateDataExtents => {
                let any = operation == Operation::AllocateJournalSpace;
                let purpose = if any { Use::Journal } else { Use::Data };
                let count: U32 = well_formed(raw::one(body))?;
                return Ok(raw::grants_body(&catalog.allocate(unit, purpose, count.get())));
            }
            Operation::ReturnExtents => {
                let (data, rest): (U32, _) = well_formed(raw::first(body))?;
                let runs: Vec<ExtentRun> = well_formed(raw::runs(rest))?;
                check_count(runs.len(), RETURN_RUNS_MAX)?;
                catalog.give_back(unit, &runs, data.get())?;
            }
            Operation::CreateVolume
            | Operation::ResizeVolume
            | Operation::RenameVolume
            | Operation::DeleteVolume
            | Operation::RemoveVolume => return change_volume(catalog, operation, body),
            Operation::Attach
            | Operation::Renew
            | Operation::ListVolumes
            | Operation::ListGrants
            | Operation::Layout
            | Operation::Status
            | Operation::Lines
            | Operation::Changes
            | Operation::RegisterPool
            | Operation::ForgetPool
            | Operation::Coordinate
            | Operation::CreateGroup
            | Operation::DeleteGroup
            | Operation::Overview => {
                unreachable!("{} is no ordered mutation", operation.name())
            }
        }
        Ok(Vec::new())
    }

    /// How far lines of a pool have changed, what this turn did so far included, and its readers
    /// followed.
    fn told(&self, pool: PoolId) -> Vec<u8> {
        let view = self.pools.catalog(pool).map_or(0, Catalog::view);
        let acknowledged = self.sessions.readers_of(pool).filter_map(Session::acknowledged);
        let told = Told { view, horizon: acknowledged.min().unwrap_or(u64::MAX) };
        RawTold::from(told).as_bytes().to_vec()
    }

    fn query(&mut self, header: Header, claim: Option<&Claim>, body: &[u8]) -> Outcome {
        if header.operation == Operation::Changes
            && let Ok(asked) = raw::one::<RawSince>(body)
            && let Some(session) = self.sessions.get_mut(header.session)
        {
            // A view that there is not, of a store that lost count, says nothing of later ones.
            let catalog = self.pools.catalog(session.claim().pool);
            let view = catalog.map_or(0, Catalog::view);
            session.acknowledge(if asked.used.get() <= view { asked.used.get() } else { 0 });
        }
        let result = match claim {
            Some(claim) if header.operation == Operation::Coordinate => {
                self.give_orders(claim, body)
            }
            Some(claim) => self.answer_query(header.operation, claim, body),
            None => self.answer_overview(body),
        };
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
        claim: &Claim,
        body: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let catalog = self.pools.catalog(claim.pool);
        let catalog = catalog.ok_or(Fault::Refused(Refusal::UnknownPool, 0))?;
        let page = || well_formed(raw::one::<RawPage>(body));
        match operation {
            Operation::Renew => Ok(self.told(claim.pool)),
            Operation::Status => {
                let counters = self.with_own(self.pools.counters(claim.pool));
                Ok(raw::pack(counters.words().map(U64::new)))
            }
            Operation::ListVolumes => {
                let page = page()?;
                let volumes = catalog.list_volumes(page.from.get(), limit::<RawVolume>(&page));
                Ok(raw::pack(volumes.into_iter().map(RawVolume::from)))
            }
            Operation::ListGrants if claim.reads => Err(Fault::Refused(Refusal::ReadsOnly, 0)),
            Operation::ListGrants => {
                let page = page()?;
                let limit = limit::<RawRun>(&page);
                let (quota, runs) = catalog.grants(claim.unit, page.from.get(), limit);
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
                let pairs = catalog.layout(volume, LogicalExtent(from), limit)?;
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
                let limit = limit::<RawPairLine>(&page);
                let lines = catalog.lines(claim.unit, PairId(from), limit)?;
                let mut reply = U64::new(catalog.view()).as_bytes().to_vec();
                reply.extend(raw::pack(lines.into_iter().map(pair_line)));
                Ok(reply)
            }
            Operation::Changes => {
                let since = well_formed(raw::one::<RawSince>(body))?.since.get();
                let seen = catalog.changes(claim.unit, since, CHANGES_MAX)?;
                Ok(changes(seen, catalog.view()))
            }
            _ => unreachable!("{} is no query of a session", operation.name()),
        }
    }

    /// What is told of the server: no more bytes than it was asked with.
    fn answer_overview(&self, body: &[u8]) -> Result<Vec<u8>, Fault> {
        let room = body.len().min(PAGE_BYTES_MAX);
        let reply = match well_formed(Section::parse(body))? {
            Section::Counters => raw::pack(self.status().words().map(U64::new)),
            Section::Pools(from) => {
                let seen = self.pools_seen(from, room / size_of::<RawPoolSeen>());
                raw::pack(seen.iter().map(RawPoolSeen::from))
            }
            Section::Sessions(from) => {
                let seen = self.sessions_seen(from, room / size_of::<RawSessionSeen>());
                raw::pack(seen.iter().map(RawSessionSeen::from))
            }
            Section::Groups(from) => {
                let seen = self.groups_seen(from, room / size_of::<RawGroupSeen>());
                raw::pack(seen.iter().map(RawGroupSeen::from))
            }
            Section::Members(from) => {
                let seen = self.members_seen(from, room / size_of::<RawMemberSeen>());
                raw::pack(seen.iter().map(RawMemberSeen::from))
            }
        };
        // Room for not one record would read as the end of the list.
        if reply.len() > room || room < SEEN_BYTES_MAX {
            return Err(Fault::Refused(Refusal::TooLarge, room as u64));
        }
        Ok(reply)
    }
}

impl<P> Turn<P> {
    /// Takes a question that needs no session; its answer is no larger than it.
    fn ask_overview(&mut self, peer: P, datagram: &Datagram<'_>) -> bool {
        let (header, body) = (datagram.header, datagram.body.to_vec());
        let payload_max = (HEADER_BYTES + body.len()).max(PAYLOAD_MIN);
        if datagram.parts == 1 {
            self.queries.push(Query { peer, header, claim: None, payload_max, body });
        }
        datagram.parts == 1
    }

    /// Answers a mutation or question of a session that there is not (any more).
    fn answer_unknown(&mut self, peer: P, datagram: &Datagram<'_>) {
        // A session that is detached already is what a repeated detach wants.
        let detached = datagram.header.operation == Operation::Detach;
        let outcome = if detached { Ok(Vec::new()) } else { Err((Refusal::UnknownSession, 0)) };
        if datagram.part == 0 {
            self.reply(peer, datagram.header, PAYLOAD_MIN, outcome);
        }
    }

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

/// The sessions that a pool's catalog has kept: of its units, and readers.
fn kept_sessions<P: Clone + PartialEq>(
    pool: PoolId,
    catalog: &Catalog,
    single: bool,
    others: &BTreeMap<u64, Session<P>>,
) -> Result<Vec<(u64, Session<P>)>, StoreError> {
    let mut sessions = Vec::new();
    let mut writers = 0;
    for (id, row) in catalog.sessions()? {
        let session = Session::from_row(&row)?;
        let claim = session.claim();
        let of_pool = single || claim.pool == pool;
        let attached = claim.reads || catalog.attached(claim.unit) == Some(id);
        writers += usize::from(!claim.reads);
        if !of_pool || !attached || others.contains_key(&id) {
            return Err(StoreError::Damaged("a session of no unit".to_owned()));
        }
        sessions.push((id, session));
    }
    if writers != catalog.attached_count() {
        return Err(StoreError::Damaged("a unit's session is lost".to_owned()));
    }
    Ok(sessions)
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

/// What changed, of all up to a view; `None`: what is not known.
fn changes(seen: Option<LinesSeen>, last: u64) -> Vec<u8> {
    let rest = match &seen {
        None => raw::REST_UNKNOWN,
        Some(seen) if seen.view < last => raw::REST_MORE,
        Some(_) => raw::REST_NONE,
    };
    let LinesSeen { view, lines } = seen.unwrap_or(LinesSeen { view: 0, lines: Vec::new() });
    let head = RawChanges { view: U64::new(view), rest: U32::new(rest) };
    let mut reply = head.as_bytes().to_vec();
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

/// Executes a mutation of a volume.
fn change_volume(
    catalog: &mut Catalog,
    operation: Operation,
    body: &[u8],
) -> Result<Vec<u8>, Fault> {
    let record = volume(body)?;
    let named = || well_formed(VolumeInfo::try_from(&record));
    let id = VolumeId(record.id.get());
    match operation {
        Operation::CreateVolume => {
            let asked = named()?;
            let made = catalog.create_volume(&asked.name, asked.size)?;
            return Ok(RawVolume::from(&made).as_bytes().to_vec());
        }
        Operation::ResizeVolume => catalog.resize_volume(id, record.size.get())?,
        Operation::RenameVolume => catalog.rename_volume(id, &named()?.name)?,
        Operation::DeleteVolume => catalog.delete_volume(id)?,
        Operation::RemoveVolume => catalog.remove_volume(id)?,
        _ => unreachable!("{} changes no volume", operation.name()),
    }
    Ok(Vec::new())
}

/// How many records of that type a page may have: at least one.
fn limit<T>(page: &RawPage) -> usize {
    (page.count.get() as usize).clamp(1, PAGE_BYTES_MAX / size_of::<T>())
}
