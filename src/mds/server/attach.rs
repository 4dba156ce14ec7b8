//! Who may ask: sessions are attached, pools are registered and forgotten.
//!
//! All of these are asked for without a session that the server knows, and are executed at once, in
//! the turn's transaction.

use std::collections::BTreeMap;

use zerocopy::IntoBytes;

use super::{Server, Turn, well_formed};
use crate::format::ids::PoolId;
use crate::mds::catalog::{Catalog, Fault};
use crate::mds::error::Refusal;
use crate::mds::overview::{PoolSeen, SessionSeen};
use crate::mds::ownership::{self, Owner, Start};
use crate::mds::raw::{self, RawAttach, RawForget, RawPool};
use crate::mds::records::Claim;
use crate::mds::session::{NEXT_MAX, Session};
use crate::mds::wire::{Datagram, Operation, PAYLOAD_MAX, PAYLOAD_MIN};

fn refuse<T>((refusal, detail): (Refusal, u64)) -> Result<T, Fault> {
    Err(Fault::Refused(refusal, detail))
}

impl<P: Clone + PartialEq> Server<P> {
    /// Takes one request that needs no session; false where it is dropped.
    pub(super) fn take_sessionless(
        &mut self,
        turn: &mut Turn<P>,
        peer: P,
        datagram: &Datagram<'_>,
    ) -> bool {
        let header = datagram.header;
        if header.sequence >= NEXT_MAX || datagram.parts != 1 {
            return false;
        }
        let result = match header.operation {
            Operation::Attach => self.attach(header.session, header.sequence, datagram.body),
            Operation::RegisterPool => self.register(datagram.body),
            Operation::ForgetPool => self.forget(datagram.body),
            Operation::CreateGroup => self.create_group(datagram.body),
            Operation::DeleteGroup => self.delete_group(datagram.body),
            other => unreachable!("{} needs a session", other.name()),
        };
        let outcome = match result {
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

    fn attach(&mut self, id: u64, sequence: u64, body: &[u8]) -> Result<Vec<u8>, Fault> {
        let attach: RawAttach = well_formed(raw::one(body))?;
        let claim = well_formed(Claim::try_from(&attach))?;
        if let Some(known) = self.sessions.get(id) {
            let known = *known.claim();
            let same =
                (known.pool, known.unit, known.reads) == (claim.pool, claim.unit, claim.reads);
            return if same {
                self.pool_told(&known)
            } else {
                refuse((Refusal::UnknownSession, 0))
            };
        }
        let payload_max = attach.payload_max.get();
        if !(PAYLOAD_MIN as u32..=PAYLOAD_MAX as u32).contains(&payload_max) {
            return refuse((Refusal::OutOfRange, u64::from(payload_max)));
        }
        let claim = Claim { lease_ms: ownership::lease_ms(&claim), ..claim };
        let granted =
            if claim.reads { self.attach_reader(claim)? } else { self.attach_writer(id, claim)? };
        // What it will know is no older than this.
        let view = self.pools.catalog(granted.pool).map_or(0, Catalog::view);
        let mut session = Session::new(granted, payload_max, sequence);
        session.begin(self.now);
        session.acknowledge(view);
        self.put_session(granted.pool, id, Some(session.row()));
        self.sessions.insert(id, session);
        self.pool_told(&granted)
    }

    /// A pool that can be attached to.
    fn known_pool(&self, pool: PoolId) -> Result<&Catalog, Fault> {
        let refusal =
            if self.pools.is_damaged(pool) { Refusal::PoolDamaged } else { Refusal::UnknownPool };
        self.pools.catalog(pool).ok_or(Fault::Refused(refusal, 0))
    }

    fn attach_reader(&mut self, claim: Claim) -> Result<Claim, Fault> {
        let catalog = self.known_pool(claim.pool)?;
        ownership::may_read(catalog.flags_here(), &claim).or_else(refuse)?;
        let last = Some(catalog.readers(claim.unit));
        let number = ownership::start(last, Start::After(claim.after)).or_else(refuse)?;
        self.check_room()?;
        if let Some(catalog) = self.pools.catalog_mut(claim.pool) {
            catalog.attach_reader(claim.unit, number);
        }
        Ok(Claim { incarnation: None, ..claim })
    }

    fn attach_writer(&mut self, id: u64, claim: Claim) -> Result<Claim, Fault> {
        let catalog = self.known_pool(claim.pool)?;
        let attached = catalog.attached(claim.unit);
        let owner = attached.and_then(|session| self.sessions.get(session)).map(|session| Owner {
            host: session.claim().host,
            left_ms: session.left_ms(self.now),
        });
        let asked = claim.incarnation.map_or(Start::After(claim.after), Start::Is);
        let last = catalog.last_start(claim.unit);
        ownership::may_go_on(catalog.last_begun(claim.unit), &claim).or_else(refuse)?;
        ownership::may_attach(owner, last, asked, &claim).or_else(refuse)?;
        if owner.is_none() {
            self.check_room()?;
        }
        let catalog = self.pools.catalog_mut(claim.pool).expect("looked up above");
        let (incarnation, earlier) = catalog.attach(claim.unit, asked, id)?;
        let flags_here = catalog.flags_here();
        if let Some(earlier) = earlier {
            self.sessions.remove(earlier);
        }
        let pool = self.pools.name_here(claim.pool);
        self.groups.attached(pool, earlier.is_some(), flags_here, self.now);
        if !flags_here {
            // What readers knew of the flags is not kept up any more.
            self.forget_readers(|session| session.claim().pool == claim.pool);
        }
        Ok(Claim { incarnation: Some(incarnation), ..claim })
    }

    /// Forgets sessions of readers; what they ask from now on is refused.
    pub(super) fn forget_readers(&mut self, which: impl Fn(&Session<P>) -> bool) {
        let chosen = self.sessions.readers().filter(|(_, session)| which(session));
        let chosen: Vec<_> = chosen.map(|(id, session)| (id, session.claim().pool)).collect();
        for (id, pool) in chosen {
            self.sessions.remove(id);
            self.put_session(pool, id, None);
        }
    }

    /// Keeps what a session has executed, or forgets it.
    pub(super) fn put_session(&mut self, pool: PoolId, id: u64, row: Option<Vec<u8>>) {
        if let Some(catalog) = self.pools.catalog_mut(pool) {
            catalog.put_session(id, row);
        }
    }

    fn check_room(&self) -> Result<(), Fault> {
        let most = self.pools.sessions_max();
        if self.sessions.len() < most { Ok(()) } else { refuse((Refusal::TooLarge, most as u64)) }
    }

    /// What is told of its pool to who attached with that granted claim.
    fn pool_told(&self, claim: &Claim) -> Result<Vec<u8>, Fault> {
        let catalog = self.pools.catalog(claim.pool);
        let catalog = catalog.ok_or(Fault::Refused(Refusal::UnknownPool, 0))?;
        let incarnation = claim.incarnation.unwrap_or_default();
        let pool = RawPool::new(catalog.pool(), incarnation, claim.lease_ms);
        Ok(pool.as_bytes().to_vec())
    }

    fn register(&mut self, body: &[u8]) -> Result<Vec<u8>, Fault> {
        let (pool, spec) = well_formed(raw::pool_spec(body))?;
        self.pools.register(pool, spec)?;
        Ok(Vec::new())
    }

    fn forget(&mut self, body: &[u8]) -> Result<Vec<u8>, Fault> {
        let (pool, number, force) =
            well_formed(raw::one::<RawForget>(body).and_then(|raw| raw.parts()))?;
        match self.pools.number(pool) {
            Some(known) if known != number => {
                return refuse((Refusal::RegisteredAnew, u64::from(known)));
            }
            _ => {}
        }
        let attached = self.sessions.iter().filter(|(_, session)| session.claim().pool == pool);
        let attached: Vec<u64> = attached.map(|(id, _)| id).collect();
        if !attached.is_empty() && !force {
            return refuse((Refusal::PoolAttached, 0));
        }
        if self.groups.holds(pool, None) {
            return refuse((Refusal::PoolInGroup, 0));
        }
        self.pools.forget(pool)?;
        attached.into_iter().for_each(|id| self.sessions.remove(id));
        Ok(Vec::new())
    }

    /// Up to `limit` pools from a name on, as they are shown.
    pub(super) fn pools_seen(&self, from: PoolId, limit: usize) -> Vec<PoolSeen> {
        let sound = self.pools.iter().map(|(pool, catalog)| catalog.seen(pool));
        let damaged = self.pools.damaged().map(|(pool, _)| PoolSeen::damaged(pool));
        let by_name = sound.chain(damaged).map(|seen| (seen.pool, seen));
        let by_name: BTreeMap<PoolId, PoolSeen> = by_name.collect();
        by_name.into_values().skip_while(|seen| seen.pool < from).take(limit).collect()
    }

    /// Up to `limit` sessions after the first `skip`, as they are shown.
    pub(super) fn sessions_seen(&self, skip: u64, limit: usize) -> Vec<SessionSeen> {
        let seen = |session: &Session<P>| {
            let claim = session.claim();
            SessionSeen {
                pool: claim.pool,
                host: claim.host,
                unit: claim.unit,
                incarnation: claim.incarnation.unwrap_or_default(),
                reads: claim.reads,
                lease_ms: claim.lease_ms,
                age_ms: self.now.since(session.since()).as_millis() as u64,
                left_ms: session.left_ms(self.now),
                requests: session.requests(),
            }
        };
        let shown = self.sessions.iter().skip(skip as usize).take(limit);
        shown.map(|(_, session)| seen(session)).collect()
    }
}
