//! A server of many pools: registration, ownership, leases, readers, and what it tells of itself.

use std::sync::{Arc, Mutex};

use zerocopy::IntoBytes;

use super::*;
use crate::format::ids::{ExtentId, HostId, Incarnation, PoolId};
use crate::mds::catalog::PoolSpec;
use crate::mds::overview::{PoolSeen, SessionSeen};
use crate::mds::raw::{RawAttach, RawForget, RawPool};
use crate::mds::redb_store::RedbStore;
use crate::mds::store::{Changes, Row, Store, Table};
use crate::mds::testing::{EXTENT_SIZE, Memory};
use crate::mds::wire::{encode, parse};

const ONE: PoolId = PoolId([1; 16]);
const TWO: PoolId = PoolId([2; 16]);
const A: HostId = HostId([0xA; 16]);
const B: HostId = HostId([0xB; 16]);
const LEASE_MS: u32 = 1000;

/// A store that counts its commits.
struct Counting(RedbStore, Arc<Mutex<u32>>);

impl Store for Counting {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(table, key)
    }
    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.0.range(table, from, limit)
    }
    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        *self.1.lock().unwrap() += 1;
        self.0.commit(changes)
    }
    fn bytes_written(&self) -> u64 {
        self.0.bytes_written()
    }
}

/// A server, what it stores, and the time.
struct Rig {
    memory: Memory,
    commits: Arc<Mutex<u32>>,
    server: Server<()>,
    now_ms: u64,
}

type Asked = (Operation, u64, u64, Vec<u8>);
type Answered = Result<Vec<u8>, (Refusal, u64)>;

fn open(memory: &Memory, commits: &Arc<Mutex<u32>>) -> Server<()> {
    let store = RedbStore::open(memory.clone()).unwrap();
    let store = Box::new(Counting(store, Arc::clone(commits)));
    Server::new(Pools::hosted(store).unwrap()).unwrap()
}

impl Rig {
    fn new() -> Rig {
        let (memory, commits) = (Memory::default(), Arc::default());
        let server = open(&memory, &commits);
        Rig { memory, commits, server, now_ms: 5 }
    }

    /// As after a crash at this moment.
    fn restart(&mut self) {
        self.memory = self.memory.snapshot();
        self.server = open(&self.memory, &self.commits);
    }

    /// One turn of requests: what, of which session, the how-manieth, with what.
    fn turn(&mut self, asked: &[Asked]) -> Vec<Answered> {
        let datagrams = asked.iter().map(|(operation, session, sequence, body)| {
            let (kind, operation) = (Kind::Request, *operation);
            let (session, sequence) = (*session, *sequence);
            let header = Header { kind, operation, session, sequence, detail: 0 };
            ((), encode(&header, body, PAYLOAD_MIN).remove(0))
        });
        let now = Moment(self.now_ms * 1_000_000);
        let replies = self.server.handle(now, datagrams.collect::<Vec<_>>());
        let answer = |bytes: &[u8]| {
            let reply = parse(bytes).unwrap();
            match reply.header.kind {
                Kind::Reply(Ok(())) => Ok(reply.body.to_vec()),
                Kind::Reply(Err(refusal)) => Err((refusal, reply.header.detail)),
                Kind::Request | Kind::Nudge => panic!("nothing was asked"),
            }
        };
        replies.iter().map(|((), bytes)| answer(bytes)).collect()
    }

    fn ask(&mut self, asked: Asked) -> Answered {
        let mut answers = self.turn(&[asked]);
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    /// Attaches, and gives the incarnation that was granted.
    fn attach(&mut self, session: u64, claim: &Claim, after: u32) -> Result<u32, (Refusal, u64)> {
        let body = self.ask(attach(session, claim, after))?;
        Ok(raw::one::<RawPool>(&body).unwrap().incarnation.get())
    }

    fn registered(pools: &[PoolId]) -> Rig {
        let mut rig = Rig::new();
        let asked: Vec<Asked> = pools.iter().map(|pool| register(*pool, 100)).collect();
        assert_eq!(rig.turn(&asked), vec![Ok(Vec::new()); pools.len()]);
        rig
    }
}

fn attach(session: u64, claim: &Claim, after: u32) -> Asked {
    let claim = Claim { after: Incarnation(after), ..*claim };
    let body = RawAttach::new(&claim, PAYLOAD_MIN as u32);
    (Operation::Attach, session, 0, body.as_bytes().to_vec())
}

fn register(pool: PoolId, extents: u32) -> Asked {
    let devices = vec![ExtentRun { start: ExtentId(0), count: extents }];
    let spec = PoolSpec { extent_size: EXTENT_SIZE, devices, reserve: 0 };
    (Operation::RegisterPool, 77, 0, raw::pool_spec_body(pool, &spec))
}

fn forget(pool: PoolId, number: u32, force: bool) -> Asked {
    (Operation::ForgetPool, 78, 0, RawForget::new(pool, number, force).as_bytes().to_vec())
}

/// A claim with a lease, of who keeps its flags at the server.
fn claim(pool: PoolId, host: HostId) -> Claim {
    let claim = Claim::of(pool, UnitId(0), Incarnation(0));
    Claim { host, incarnation: None, lease_ms: LEASE_MS, ..claim }
}

fn reader(pool: PoolId) -> Claim {
    Claim { reads: true, ..claim(pool, B) }
}

fn allocate(session: u64, sequence: u64) -> Asked {
    let body = U32::new(1).as_bytes().to_vec();
    (Operation::AllocateDataExtents, session, sequence, body)
}

fn renew(session: u64) -> Asked {
    (Operation::Renew, session, 0, Vec::new())
}

fn seen(rig: &Rig) -> (Vec<PoolSeen>, Vec<SessionSeen>) {
    (rig.server.pools_seen(PoolId::default(), 100), rig.server.sessions_seen(0, 100))
}

/// Goal: what several pools change in a turn, registrations and attaches included, is one commit of
/// the store, and each has its own.
#[test]
fn a_turn_of_many_pools_is_one_commit() {
    let mut rig = Rig::registered(&[ONE]);
    assert_eq!(*rig.commits.lock().unwrap(), 1);
    let answers = rig.turn(&[
        register(TWO, 50),
        register(ONE, 100),
        attach(1, &claim(ONE, A), 0),
        attach(2, &claim(TWO, A), 0),
        allocate(1, 1),
        allocate(2, 1),
        allocate(2, 2),
        renew(1),
    ]);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 8, "{answers:?}");
    assert_eq!(*rig.commits.lock().unwrap(), 2);
    let (pools, sessions) = seen(&rig);
    assert_eq!(pools.iter().map(|pool| pool.granted).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(sessions.iter().map(|of| of.requests).collect::<Vec<_>>(), [2, 2]);
    assert!(rig.turn(&[renew(1), renew(2)]).iter().all(Result::is_ok));
    assert_eq!(*rig.commits.lock().unwrap(), 2, "nothing was changed");
    // After a crash the same requests are answered from the record.
    rig.restart();
    let again = rig.turn(&[allocate(2, 2), attach(1, &claim(ONE, A), 0), register(TWO, 50)]);
    assert_eq!(again, [answers[6].clone(), answers[2].clone(), Ok(Vec::new())]);
    assert_eq!(seen(&rig).0.iter().map(|pool| pool.granted).collect::<Vec<_>>(), [1, 2]);
}

/// Goal: registrations are absolute; a pool is forgotten when nobody is attached, or by force, and
/// then nobody knows it.
#[test]
fn registration() {
    let mut rig = Rig::registered(&[ONE]);
    assert_eq!(rig.ask(register(ONE, 101)), Err((Refusal::PoolExists, 0)));
    assert_eq!(rig.attach(1, &claim(TWO, A), 0), Err((Refusal::UnknownPool, 0)));
    assert_eq!(rig.attach(1, &claim(ONE, A), 0), Ok(1));
    assert_eq!(rig.ask(forget(ONE, 0, false)), Err((Refusal::PoolAttached, 0)));
    rig.restart();
    assert_eq!(rig.ask(forget(ONE, 0, false)), Err((Refusal::PoolAttached, 0)));
    assert_eq!(rig.ask(forget(ONE, raw::NO_NUMBER, true)), Err((Refusal::RegisteredAnew, 0)));
    for _ in 0..2 {
        assert_eq!(rig.ask(forget(ONE, 0, true)), Ok(Vec::new()));
    }
    assert_eq!(rig.ask(allocate(1, 1)), Err((Refusal::UnknownSession, 0)));
    rig.restart();
    assert_eq!(seen(&rig), (vec![], vec![]));
    assert_eq!(rig.attach(1, &claim(ONE, A), 0), Err((Refusal::UnknownPool, 0)));
    // What was recorded then does nothing to a pool that was registered since.
    assert_eq!(rig.ask(register(ONE, 100)), Ok(Vec::new()));
    for _ in 0..2 {
        assert_eq!(rig.ask(forget(ONE, 0, true)), Err((Refusal::RegisteredAnew, 1)));
        rig.restart();
    }
    let mut garbage = register(ONE, 100);
    garbage.3[16..20].fill(0);
    assert_eq!(rig.ask(garbage), Err((Refusal::Malformed, 0)), "extents of no bytes");
}

/// Goal: another host's pool is refused, during its lease and after, until it has detached or its
/// devices are fenced; the refusal tells what is left.
#[test]
fn ownership_of_a_pool() {
    let mut rig = Rig::registered(&[ONE]);
    assert_eq!(rig.attach(1, &claim(ONE, A), 0), Ok(1));
    rig.now_ms += 400;
    let refused = |left| Err((Refusal::OwnedElsewhere, left));
    assert_eq!(rig.attach(2, &claim(ONE, B), 1), refused(600));
    assert!(rig.ask(renew(1)).is_ok());
    assert_eq!(rig.attach(2, &claim(ONE, B), 1), refused(1000));
    rig.now_ms += 5000;
    assert_eq!(rig.attach(2, &claim(ONE, B), 1), refused(0));
    // A server that starts again counts from then on; the owner is still the owner.
    rig.restart();
    assert_eq!(rig.attach(2, &claim(ONE, B), 1), refused(1000));
    assert!(rig.ask(allocate(1, 1)).is_ok());
    let fenced = Claim { fenced: true, ..claim(ONE, B) };
    assert_eq!(rig.attach(2, &fenced, 0), Err((Refusal::StaleIncarnation, 1)));
    assert_eq!(rig.attach(2, &fenced, 1), Ok(2));
    assert_eq!(rig.ask(allocate(1, 2)), Err((Refusal::UnknownSession, 0)));
    assert_eq!(rig.ask((Operation::Detach, 2, 1, Vec::new())), Ok(Vec::new()));
    assert_eq!(rig.attach(3, &claim(ONE, A), 2), Ok(3));
    // On one host a later start ends the earlier one; one without a lease has no end.
    let endless = Claim { lease_ms: 0, ..claim(ONE, A) };
    assert_eq!(rig.attach(4, &endless, 3), Ok(4));
    rig.now_ms += 1 << 40;
    assert_eq!(rig.attach(5, &claim(ONE, B), 4), refused(u64::MAX));
    assert_eq!(seen(&rig).1.len(), 1);
}

/// Goal: a claim whose datagram comes again is answered the same while its session lives, and takes
/// nothing from its successor afterwards, fenced or not.
#[test]
fn replayed_claims() {
    let mut rig = Rig::registered(&[ONE]);
    let fenced = Claim { fenced: true, ..claim(ONE, A) };
    assert_eq!(rig.attach(1, &fenced, 0), Ok(1));
    assert_eq!(rig.attach(1, &fenced, 0), Ok(1));
    assert_eq!(rig.attach(2, &Claim { fenced: true, ..claim(ONE, B) }, 1), Ok(2));
    assert_eq!(rig.attach(1, &fenced, 0), Err((Refusal::StaleIncarnation, 2)));
    rig.restart();
    assert_eq!(rig.attach(1, &fenced, 0), Err((Refusal::StaleIncarnation, 2)));
    assert!(rig.ask(allocate(2, 1)).is_ok());
    // The flags move away from the server: the unit counts on.
    let own = Claim { incarnation: Some(Incarnation(9)), ..claim(ONE, B) };
    assert_eq!(rig.attach(3, &own, 2), Ok(9));
    assert_eq!(rig.attach(1, &fenced, 0).unwrap_err().0, Refusal::StaleIncarnation);
}

/// Goal: of units that keep their flags themselves: a start that never began is no reason to refuse
/// the next one, however many there were; flags from before one that has begun are refused, also by
/// a server that starts again.
#[test]
fn starts_that_never_began() {
    let mut rig = Rig::registered(&[ONE]);
    let own = |start, after| Claim {
        incarnation: Some(Incarnation(start)),
        after: Incarnation(after),
        ..claim(ONE, A)
    };
    let attach = |rig: &mut Rig, id, start, after| rig.attach(id, &own(start, after), after);
    assert_eq!(attach(&mut rig, 1, 1, 0), Ok(1));
    assert!(rig.ask(allocate(1, 1)).is_ok());
    for start in 2..5 {
        rig.restart();
        let id = u64::from(start);
        assert_eq!(attach(&mut rig, id, start - 1, 1), Err((Refusal::StaleIncarnation, id - 1)));
        assert_eq!(attach(&mut rig, id, start, 1), Ok(start));
    }
    assert_eq!(attach(&mut rig, 9, 5, 0), Err((Refusal::FlagsTooOld, 1)));
    assert!(rig.ask(allocate(4, 1)).is_ok());
    rig.restart();
    for found in 0..4 {
        assert_eq!(attach(&mut rig, 9, 5, found), Err((Refusal::FlagsTooOld, 4)));
    }
    assert_eq!(attach(&mut rig, 9, 5, 4), Ok(5));
}

/// Goal: readers are let in beside the writer where the flags are at the server, may only read, and
/// are forgotten when their lease has ended; the writer never is.
#[test]
fn readers() {
    let mut rig = Rig::registered(&[ONE]);
    assert_eq!(rig.attach(9, &reader(ONE), 0), Err((Refusal::FlagsElsewhere, 0)));
    assert_eq!(rig.attach(1, &claim(ONE, A), 0), Ok(1));
    let endless = Claim { lease_ms: 0, ..reader(ONE) };
    assert_eq!(rig.attach(9, &endless, 0), Err((Refusal::OutOfRange, 0)));
    assert_eq!(rig.attach(9, &reader(ONE), 0), Ok(0));
    assert_eq!(rig.attach(9, &reader(ONE), 0), Ok(0));
    assert_eq!(rig.ask(allocate(9, 1)), Err((Refusal::ReadsOnly, 0)));
    let page = RawPage { volume: U32::ZERO, count: U32::new(9), from: U64::ZERO };
    let page = page.as_bytes().to_vec();
    let list = |operation| (operation, 9, 2, page.clone());
    assert_eq!(rig.ask(list(Operation::ListGrants)), Err((Refusal::ReadsOnly, 0)));
    assert_eq!(rig.ask(list(Operation::ListVolumes)), Ok(Vec::new()));
    assert_eq!(rig.ask(list(Operation::Layout)), Ok(Vec::new()));
    rig.restart();
    rig.now_ms += 900;
    let told = rig.ask(renew(9)).expect("it is kept over a restart");
    let told = Told::from(raw::one::<RawTold>(&told).unwrap());
    assert_eq!(told.horizon, 0, "nothing is known of what it uses");
    rig.now_ms += 1000;
    assert_eq!(rig.ask(renew(9)), Err((Refusal::UnknownSession, 0)));
    assert!(rig.ask(renew(1)).is_ok(), "its lease has ended, its session has not");
    rig.restart();
    assert_eq!(seen(&rig).1.len(), 1, "the reader is durably forgotten");
    // What is recorded of it and sent again lets nobody in.
    for _ in 0..2 {
        let again = Err((Refusal::StaleIncarnation, 1));
        assert_eq!(rig.attach(9, &reader(ONE), 0), again);
        rig.restart();
    }
    assert_eq!(seen(&rig).1.len(), 1);
    assert_eq!(rig.attach(10, &reader(ONE), 1), Ok(0));
    let own = Claim { incarnation: Some(Incarnation(9)), ..claim(ONE, A) };
    assert_eq!(rig.attach(3, &own, 8), Ok(9));
    assert_eq!(rig.ask(renew(10)), Err((Refusal::UnknownSession, 0)), "the flags went elsewhere");
    assert_eq!(rig.attach(10, &reader(ONE), 0), Err((Refusal::FlagsElsewhere, 0)));
}

/// Goal: whichever row of a pool is cut off, the other pool is served; the damaged one is refused
/// with that reason, shown, and its target hears nothing; it can be forgotten and registered anew.
#[test]
fn damage_of_one_pool() {
    let mut good = Rig::registered(&[ONE, TWO]);
    for (id, pool) in [(1, ONE), (2, TWO)] {
        assert_eq!(good.attach(id, &claim(pool, A), 0), Ok(1));
        assert!(good.ask(allocate(id, 1)).is_ok());
        assert_eq!(good.attach(10 + id, &reader(pool), 0), Ok(0));
    }
    let store = RedbStore::open(good.memory.snapshot()).unwrap();
    let number = good.server.pools().number(ONE).unwrap().to_be_bytes();
    let tables = Table::ALL.into_iter().map(|table| (table, store.range(table, &[], 100).unwrap()));
    let rows = tables.flat_map(|(table, rows)| rows.into_iter().map(move |row| (table, row)));
    let own = |key: &[u8]| key == ONE.0 || key.starts_with(&number);
    let rows: Vec<_> = rows.filter(|(_, (key, _))| own(key)).collect();
    assert!(rows.len() > 6, "{rows:?}");
    for (table, (key, mut value)) in rows {
        let mut rig = Rig { memory: good.memory.snapshot(), ..Rig::new() };
        value.pop();
        let mut store = RedbStore::open(rig.memory.clone()).unwrap();
        store.commit(&Changes::from([((table, key.clone()), Some(value))])).unwrap();
        drop(store);
        rig.restart();
        assert!(rig.ask(allocate(2, 2)).is_ok(), "{table:?} {key:?}");
        assert_eq!(rig.turn(&[allocate(1, 2), renew(11)]), [], "{table:?} {key:?}");
        assert_eq!(rig.attach(3, &claim(ONE, A), 1), Err((Refusal::PoolDamaged, 0)));
        assert_eq!(rig.ask(register(ONE, 100)), Err((Refusal::PoolDamaged, 0)));
        let (pools, sessions) = seen(&rig);
        assert_eq!(pools.iter().map(|of| of.damaged).collect::<Vec<_>>(), [true, false]);
        assert_eq!(sessions.len(), 2);
        assert!(rig.server.pools().check_whole().is_err());
        assert_eq!(rig.ask(forget(ONE, 0, false)), Ok(Vec::new()));
        assert_eq!(rig.ask(register(ONE, 50)), Ok(Vec::new()));
        rig.restart();
        rig.server.pools().check_whole().unwrap();
        assert_eq!(rig.attach(3, &claim(ONE, A), 0), Ok(1));
    }
}

/// Goal: what is told without a session is never more than was asked with, at any length.
#[test]
fn overviews_have_the_size_of_their_question() {
    let names: Vec<PoolId> = (0..30).map(|i| PoolId([i; 16])).collect();
    let mut rig = Rig::registered(&names);
    for (i, name) in names.iter().enumerate() {
        assert_eq!(rig.attach(100 + i as u64, &claim(*name, A), 0), Ok(1));
    }
    for len in [0, 24, 56, 71, 72, 100, 175, 176, 600, 1128] {
        let sections = [Section::Counters, Section::Pools(names[3]), Section::Sessions(2)];
        for section in sections {
            let body = section.body(len);
            let asked = body.len();
            match rig.ask((Operation::Overview, 5, 0, body)) {
                Ok(reply) => {
                    assert!(!reply.is_empty() && reply.len() <= asked, "{section:?} {len}");
                }
                Err(refusal) => assert_eq!(refusal, (Refusal::TooLarge, asked as u64)),
            }
        }
    }
    let last = rig.ask((Operation::Overview, 5, 0, Section::Sessions(29).body(1128))).unwrap();
    assert_eq!(raw::many::<RawSessionSeen>(&last).unwrap().len(), 1);
    let pools = rig.ask((Operation::Overview, 5, 0, Section::Pools(names[29]).body(1128))).unwrap();
    let pools = raw::many::<RawPoolSeen>(&pools).unwrap();
    assert_eq!(PoolSeen::from(&pools[0]).pool, names[29]);
}
