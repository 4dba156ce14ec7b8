use std::io;

use proptest::prelude::*;
use redb::StorageBackend;

use super::*;
use crate::format::ids::{Incarnation, PoolId, Slot};
use crate::mds::catalog::{Catalog, PoolSpec};
use crate::mds::raw::RawAttach;
use crate::mds::records::TRANSACT_PRIMITIVES_MAX;
use crate::mds::redb_store::RedbStore;
use crate::mds::testing::{EXTENT_SIZE, Memory, create, pair, serve};
use crate::mds::wire::{PAYLOAD_MAX, encode, parse};

const SESSION: u64 = 99;

fn request(operation: Operation, sequence: u64, floor: u64, body: &[u8]) -> Vec<Vec<u8>> {
    let header =
        Header { kind: Kind::Request, operation, session: SESSION, sequence, detail: floor };
    encode(&header, body, PAYLOAD_MIN)
}

fn attach(incarnation: u32) -> Vec<u8> {
    let body = RawAttach::new(
        &Claim::of(PoolId::default(), UnitId(1), Incarnation(incarnation)),
        PAYLOAD_MAX as u32,
    );
    request(Operation::Attach, 0, 0, body.as_bytes()).remove(0)
}

fn send(server: &mut Server<()>, datagrams: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let replies = server.handle(Moment(1), datagrams.into_iter().map(|bytes| ((), bytes)));
    replies.into_iter().map(|((), bytes)| bytes).collect()
}

/// Sends one request and gives the body or refusal of its one answer.
fn ask(
    server: &mut Server<()>,
    operation: Operation,
    sequence: u64,
    body: &[u8],
) -> Result<Vec<u8>, (Refusal, u64)> {
    let replies = send(server, request(operation, sequence, sequence.max(1), body));
    assert_eq!(replies.len(), 1, "{operation:?} {sequence}");
    let datagram = parse(&replies[0]).unwrap();
    match datagram.header.kind {
        Kind::Reply(Ok(())) => Ok(datagram.body.to_vec()),
        Kind::Reply(Err(refusal)) => Err((refusal, datagram.header.detail)),
        Kind::Request | Kind::Nudge => panic!("nothing was asked"),
    }
}

/// A server of 4,000 extents with a volume and an attached unit.
fn attached(extents: u32) -> (Memory, Server<()>) {
    let (memory, mut catalog) = create(extents, 0);
    catalog.create_volume("vol0", u64::from(extents) * u64::from(EXTENT_SIZE)).unwrap();
    catalog.commit().unwrap();
    let mut server = Server::new(Pools::single(catalog)).unwrap();
    assert_eq!(send(&mut server, vec![attach(1)]).len(), 1);
    (memory, server)
}

fn batch(primitives: impl IntoIterator<Item = Primitive>) -> Vec<u8> {
    raw::pack(primitives.into_iter().map(|primitive| RawPrimitive::from(&primitive)))
}

/// Goal: 1,000 areas at a batch of 100 are exactly 10 metadata transactions, counted by primitive.
#[test]
fn a_thousand_areas_are_ten_transactions() {
    let (_, mut server) = attached(4000);
    ask(&mut server, Operation::AllocateDataExtents, 1, U32::new(2000).as_bytes()).unwrap();
    let both = |i: u32, generation, slot| pair(i, generation, [Some(i), Some(1000 + i)], slot);
    let dirty = (0..1000).map(|i| Primitive::AssociateDataJournal(both(i, 1, Slot::Zero)));
    ask(&mut server, Operation::Transact, 2, &batch(dirty)).unwrap();
    let before = server.status();
    for round in 0..10 {
        let settled = (round * 100..(round + 1) * 100).map(|i| {
            if i % 4 == 0 {
                Primitive::SwapDataJournal(both(i, 2, Slot::One))
            } else {
                Primitive::CommitDataJournal(both(i, 2, Slot::Zero))
            }
        });
        let body = batch(settled);
        ask(&mut server, Operation::Transact, 3 + u64::from(round), &body).unwrap();
    }
    let after = server.status();
    assert_eq!(after.transactions - before.transactions, 10);
    assert_eq!(after.store_commits - before.store_commits, 10);
    assert_eq!((after.swaps, after.commits, after.associates), (250, 750, 1000));
}

/// Goal: an allocation whose answer was lost is answered from the record, also by a server that
/// was started again, and is not executed twice.
#[test]
fn an_allocation_is_executed_once() {
    let (memory, mut server) = attached(100);
    let allocate = request(Operation::AllocateJournalSpace, 1, 1, U32::new(10).as_bytes());
    let first = send(&mut server, allocate.clone());
    assert_eq!(
        send(&mut server, [allocate.clone(), allocate.clone()].concat()),
        [first.clone(), first.clone()].concat()
    );
    assert_eq!((server.status().extents_free, server.status().repeated), (90, 2));
    let mut server: Server<()> = serve(&memory.snapshot());
    assert_eq!(send(&mut server, allocate.clone()), first);
    assert_eq!(server.status().extents_free, 90);
    // Once the client has the answer a late repeat of the request gets none and does nothing.
    ask(&mut server, Operation::AllocateJournalSpace, 2, U32::new(1).as_bytes()).unwrap();
    assert_eq!(send(&mut server, allocate), Vec::<Vec<u8>>::new());
    assert_eq!(server.status().extents_free, 89);
}

/// Goal: all that waits, of whatever order, is one durable store transaction, and queries see it.
#[test]
fn one_turn_is_one_commit() {
    let (_, mut server) = attached(100);
    let before = server.status().store_commits;
    let mut waiting: Vec<Vec<u8>> = (1..=20)
        .flat_map(|sequence| {
            request(Operation::AllocateJournalSpace, sequence, 1, U32::new(1).as_bytes())
        })
        .collect();
    waiting.reverse();
    waiting.insert(7, request(Operation::Status, 0, 1, &[]).remove(0));
    let replies = send(&mut server, waiting);
    assert_eq!(replies.len(), 21);
    assert_eq!(server.status().store_commits - before, 1);
    let status = parse(replies.last().unwrap()).unwrap();
    let words = raw::one::<[U64; ServerStatus::COUNT]>(status.body).unwrap();
    assert_eq!(ServerStatus::from_words(words.map(U64::get)).extents_free, 80);
}

/// Goal: also a turn that must know what is bound, to shrink and remove volumes, is one commit: or
/// a crash between two leaves extents given back of a request that is then executed again.
#[test]
fn a_turn_that_removes_a_volume_is_one_commit() {
    let (_, mut server) = attached(100);
    ask(&mut server, Operation::AllocateJournalSpace, 1, U32::new(10).as_bytes()).unwrap();
    let before = server.status().store_commits;
    let bind = Primitive::BindData(pair(5, 1, [Some(5), None], Slot::Zero));
    let release = Primitive::ReleasePair(pair(5, 2, [None, None], Slot::Zero));
    let run = ExtentRun { start: crate::format::ids::ExtentId(5), count: 5 };
    let back = [U32::ZERO.as_bytes(), &raw::pack([RawRun::from(run)])].concat();
    let sized = |extents| {
        let size = extents * u64::from(EXTENT_SIZE);
        RawVolume::nameless(VolumeId(0), size).as_bytes().to_vec()
    };
    let asked = [
        (Operation::Transact, batch([bind])),
        (Operation::ResizeVolume, sized(5)),
        (Operation::Transact, batch([release])),
        (Operation::ResizeVolume, sized(5)),
        (Operation::ReturnExtents, back),
        (Operation::DeleteVolume, sized(0)),
        (Operation::RemoveVolume, sized(0)),
    ];
    let datagrams = asked
        .into_iter()
        .zip(2..)
        .flat_map(|((operation, body), sequence)| request(operation, sequence, 2, &body));
    let replies = send(&mut server, datagrams.collect());
    let refused = replies.iter().map(|reply| match parse(reply).unwrap().header.kind {
        Kind::Reply(outcome) => outcome.err(),
        Kind::Request | Kind::Nudge => panic!("nothing was asked"),
    });
    let busy = Some(Refusal::VolumeBusy);
    assert_eq!(refused.collect::<Vec<_>>(), [None, busy, None, None, None, None, None]);
    assert_eq!(server.status().store_commits - before, 1);
}

/// Goal: a request of many datagrams is executed when all are there, as one transaction; the
/// largest allowed one too.
#[test]
fn many_datagrams_are_one_transaction() {
    let count = TRANSACT_PRIMITIVES_MAX as u32;
    let (_, mut server) = attached(count);
    ask(&mut server, Operation::AllocateDataExtents, 1, U32::new(count).as_bytes()).unwrap();
    let binds = (0..count).map(|i| Primitive::BindData(pair(i, 1, [Some(i), None], Slot::Zero)));
    let mut parts = request(Operation::Transact, 2, 2, &batch(binds));
    assert!(parts.len() > 900);
    let last = parts.pop().unwrap();
    assert!(send(&mut server, parts).is_empty());
    assert_eq!(server.status().transactions, 0);
    assert_eq!(send(&mut server, vec![last]).len(), 1);
    assert_eq!((server.status().transactions, server.status().binds), (1, u64::from(count)));
}

/// Goal: what a server refuses, it refuses with the reason, in no more bytes than it was asked.
#[test]
fn refusals() {
    let (_, mut server) = attached(10);
    let malformed = ask(&mut server, Operation::Transact, 1, &[1, 2, 3]);
    assert_eq!(malformed, Err((Refusal::Malformed, 0)));
    let flags = Primitive::HardenExtentFlags(pair(0, 1, [Some(0), None], Slot::Zero));
    let unsupported = ask(&mut server, Operation::Transact, 2, &batch([flags]));
    assert_eq!(unsupported, Err((Refusal::Unsupported, 0)));
    let header = Header {
        kind: Kind::Request,
        operation: Operation::Status,
        session: 5,
        sequence: 0,
        detail: 0,
    };
    let replies = send(&mut server, encode(&header, &[], PAYLOAD_MIN));
    let reply = parse(&replies[0]).unwrap();
    assert_eq!(reply.header.kind, Kind::Reply(Err(Refusal::UnknownSession)));
    assert_eq!(replies[0].len(), HEADER_BYTES);
    // A detach, and its repeat when the answer was lost, are both fine.
    assert_eq!(ask(&mut server, Operation::Detach, 3, &[]), Ok(Vec::new()));
    assert_eq!(ask(&mut server, Operation::Detach, 3, &[]), Ok(Vec::new()));
    assert_eq!(server.status().sessions, 0);
    let stale = send(&mut server, vec![attach(1)]);
    let stale = parse(&stale[0]).unwrap();
    assert_eq!(stale.header.kind, Kind::Reply(Err(Refusal::StaleIncarnation)));
    assert_eq!(stale.header.detail, 1);
}

/// Goal: pages as the client asks for them are never cut by the server's own limit.
#[test]
fn pages_fit() {
    let page = |count| RawPage { volume: U32::ZERO, count: U32::new(count), from: U64::ZERO };
    assert_eq!(limit::<RawVolume>(&page(64)), 64);
    assert_eq!(limit::<RawRun>(&page(1024)), 1024);
    assert_eq!(limit::<RawOwned>(&page(512)), 512);
    assert_eq!(limit::<RawOwned>(&page(u32::MAX)), PAGE_BYTES_MAX / 32);
    assert_eq!(limit::<RawOwned>(&page(0)), 1);
}

/// A backend that is full, or broken, from some length on.
#[derive(Debug)]
struct Small(Memory, u64);

impl StorageBackend for Small {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        if length > self.1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.set_len(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// Goal: a store that is full refuses with that reason, for good, and has lost nothing
/// acknowledged.
#[test]
fn a_full_store() {
    let memory = Memory::default();
    let store = Box::new(RedbStore::open(Small(memory.clone(), 3 << 20)).unwrap());
    let run = ExtentRun { start: crate::format::ids::ExtentId(0), count: 60_000 };
    let spec = PoolSpec { extent_size: EXTENT_SIZE, devices: vec![run], reserve: 0 };
    let mut catalog = Catalog::create(store, &spec).unwrap();
    catalog.create_volume("v", 60_000 * u64::from(EXTENT_SIZE)).unwrap();
    let mut server = Server::new(Pools::single(catalog)).unwrap();
    send(&mut server, vec![attach(1)]);
    ask(&mut server, Operation::AllocateDataExtents, 1, U32::new(60_000).as_bytes()).unwrap();
    let mut done = 0;
    let refusal = loop {
        let binds = (done * 1000..(done + 1) * 1000)
            .map(|i| Primitive::BindData(pair(i, 1, [Some(i), None], Slot::Zero)));
        match ask(&mut server, Operation::Transact, 2 + u64::from(done), &batch(binds)) {
            Ok(_) => done += 1,
            Err((refusal, _)) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::StoreFull);
    assert!(done > 0);
    assert_eq!(ask(&mut server, Operation::Status, 0, &[]), Err((Refusal::StoreFull, 0)));
    let again: Server<()> = serve(&memory.snapshot());
    let last = LogicalExtent(done * 1000 - 1);
    let catalog = again.pools.catalog(PoolId::default()).unwrap();
    let page = catalog.layout(VolumeId(0), last, 10).unwrap();
    assert_eq!(page.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Goal: well-formed datagrams with senseless bodies, sequences and parts are refused or
    /// dropped, never a panic, and never more answers than datagrams.
    #[test]
    fn any_requests_are_taken(
        requests in proptest::collection::vec(
            (prop::sample::select(Operation::ALL), 0..40u64, 0..5u64,
             proptest::collection::vec(any::<u8>(), 0..200)), 1..60)
    ) {
        let (_, mut server) = attached(10);
        for (operation, sequence, floor, body) in requests {
            let replies = send(&mut server, request(operation, sequence, floor, &body));
            // A gap that closes may free what waited behind it.
            prop_assert!(replies.len() <= 33);
        }
        prop_assert!(server.failure().is_none());
    }
}
