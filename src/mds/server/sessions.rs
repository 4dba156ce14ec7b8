//! All sessions of a server, and what would else be looked for in all of them at each request: who
//! reads, how much waits, and whose rows are to be stored.

use std::collections::{BTreeMap, BTreeSet};

use super::BUFFERED_BYTES_MAX;
use crate::env::Moment;
use crate::format::ids::PoolId;
use crate::mds::session::{Admitted, Answer, Session};
use crate::mds::wire::{Datagram, Header};

/// The sessions, by their names.
pub(super) struct Sessions<P> {
    all: BTreeMap<u64, Session<P>>,
    /// Those that read beside the unit of their pool.
    readers: BTreeSet<(PoolId, u64)>,
    /// Those that have executed something in this turn.
    executed: BTreeSet<u64>,
    /// Bytes of mutations that wait.
    buffered: usize,
}

impl<P: Clone + PartialEq> Sessions<P> {
    /// Those that were kept.
    pub(super) fn new(kept: BTreeMap<u64, Session<P>>) -> Self {
        let (readers, executed) = (BTreeSet::new(), BTreeSet::new());
        let mut sessions = Sessions { all: BTreeMap::new(), readers, executed, buffered: 0 };
        kept.into_iter().for_each(|(id, session)| sessions.insert(id, session));
        sessions
    }

    /// They begin for this server.
    pub(super) fn begin(&mut self, now: Moment) {
        self.all.values_mut().for_each(|session| session.begin(now));
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Session<P>)> {
        self.all.iter().map(|(id, session)| (*id, session))
    }

    pub(super) fn get(&self, id: u64) -> Option<&Session<P>> {
        self.all.get(&id)
    }

    /// A session, for queries and what it says of itself.
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Session<P>> {
        self.all.get_mut(&id)
    }

    /// The readers of a pool.
    pub(super) fn readers_of(&self, pool: PoolId) -> impl Iterator<Item = &Session<P>> {
        let readers = self.readers.range((pool, 0)..=(pool, u64::MAX));
        readers.filter_map(|(_, id)| self.all.get(id))
    }

    /// All readers.
    pub(super) fn readers(&self) -> impl Iterator<Item = (u64, &Session<P>)> {
        self.readers.iter().filter_map(|(_, id)| Some((*id, self.all.get(id)?)))
    }

    pub(super) fn insert(&mut self, id: u64, session: Session<P>) {
        if session.claim().reads {
            self.readers.insert((session.claim().pool, id));
        }
        self.buffered += session.buffered();
        let earlier = self.all.insert(id, session);
        assert!(earlier.is_none(), "a session is attached once");
    }

    pub(super) fn remove(&mut self, id: u64) {
        if let Some(session) = self.all.remove(&id) {
            self.buffered -= session.buffered();
            self.readers.remove(&(session.claim().pool, id));
        }
    }

    /// Takes a mutation's datagram; `None`: of no session.
    pub(super) fn admit(&mut self, peer: &P, datagram: &Datagram<'_>) -> Option<Admitted> {
        let session = self.all.get_mut(&datagram.header.session)?;
        // The next one is kept in any case, and is the usual one.
        let room = session.is_next(datagram.header.sequence)
            || self.buffered + datagram.body.len() <= BUFFERED_BYTES_MAX;
        let before = session.buffered();
        let admitted = session.admit(peer, datagram, room);
        self.buffered = self.buffered + session.buffered() - before;
        Some(admitted)
    }

    /// The next mutation of a session, where it is whole.
    pub(super) fn take_ready(&mut self, id: u64) -> Option<(P, Header, Vec<u8>)> {
        let session = self.all.get_mut(&id)?;
        let ready = session.take_ready()?;
        self.buffered -= ready.2.len();
        Some(ready)
    }

    /// Keeps the answer to a session's next mutation, if that has not ended it.
    pub(super) fn executed(&mut self, id: u64, answer: Answer) {
        if let Some(session) = self.all.get_mut(&id) {
            session.executed(answer);
            self.executed.insert(id);
        }
    }

    /// What the store is to keep of those that have executed something since the last time.
    pub(super) fn take_rows(&mut self) -> Vec<(PoolId, u64, Vec<u8>)> {
        let executed = std::mem::take(&mut self.executed);
        let rows = executed.into_iter().filter_map(|id| {
            let session = self.all.get(&id)?;
            Some((session.claim().pool, id, session.row()))
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{Incarnation, UnitId};
    use crate::mds::records::Claim;
    use crate::mds::wire::{self, Kind, Operation, PAYLOAD_MIN};

    fn claim(pool: u8, reads: bool) -> Claim {
        Claim { reads, ..Claim::of(PoolId([pool; 16]), UnitId(0), Incarnation(1)) }
    }

    /// Goal: what waits is counted over all sessions as it comes and goes: executed, repeated, of
    /// a session that ends; and readers are known by their pools.
    #[test]
    fn counts() {
        let mut sessions = Sessions::<u8>::new(BTreeMap::new());
        for (id, pool, reads) in [(1, 1, false), (2, 2, false), (3, 1, true), (4, 2, true)] {
            sessions.insert(id, Session::new(claim(pool, reads), PAYLOAD_MIN as u32, 0));
        }
        let send = |sessions: &mut Sessions<u8>, session, sequence, parts| {
            let (kind, operation) = (Kind::Request, Operation::Transact);
            let header = Header { kind, operation, session, sequence, detail: 0 };
            let body = vec![7; 2000];
            for datagram in wire::encode(&header, &body, PAYLOAD_MIN).iter().take(parts) {
                sessions.admit(&0, &wire::parse(datagram).unwrap());
            }
        };
        let part = PAYLOAD_MIN - wire::HEADER_BYTES;
        send(&mut sessions, 1, 2, usize::MAX);
        send(&mut sessions, 1, 2, usize::MAX);
        send(&mut sessions, 2, 3, 1);
        assert_eq!(sessions.buffered, 2000 + part);
        send(&mut sessions, 1, 1, usize::MAX);
        let answer = Answer { operation: Operation::Transact, outcome: Ok(Vec::new()) };
        for left in [2000, 0] {
            assert_eq!(sessions.take_ready(1).unwrap().2.len(), 2000);
            sessions.executed(1, answer.clone());
            assert_eq!(sessions.buffered, left + part);
        }
        assert!(sessions.take_ready(1).is_none() && sessions.take_ready(2).is_none());
        assert_eq!(sessions.take_rows().len(), 1);
        assert!(sessions.take_rows().is_empty());
        sessions.remove(2);
        assert_eq!((sessions.buffered, sessions.len()), (0, 3));
        let ids: Vec<u64> = sessions.readers().map(|(id, _)| id).collect();
        assert_eq!(ids, [3, 4]);
        sessions.remove(4);
        assert_eq!(sessions.readers_of(PoolId([1; 16])).count(), 1);
        assert_eq!(sessions.readers_of(PoolId([2; 16])).count(), 0);
    }
}
