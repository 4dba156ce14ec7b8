//! What every request goes through on the processor alone: the pure functions of the hot paths.
//!
//! ```text
//! cargo bench --bench hot_paths [NAME]
//! ```

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use flipside::env::sim::rng::Rng;
use flipside::format::blocks::{BLOCKS_MAX, BlockMap, BlockSet, Location};
use flipside::format::group::{Group, GroupState, Link, Part, Parts, SLOT_BYTES, TransactionId};
use flipside::format::ids::{Generation, Incarnation, PairId, PoolId, Sequence, Slot};
use flipside::format::layout::Geometry;
use flipside::format::record::Record;
use flipside::front::PAYLOAD_MAX;
use flipside::front::nbd::request::{Request, Terms};
use flipside::front::nbd::wire::{self, Framing, RequestHeader};
use flipside::unit::block::{Pending, write_targets};
use flipside::unit::request::{Change, Span, split};
use zerocopy::IntoBytes;

const POOL: PoolId = PoolId([5; 16]);
/// Random blocks written between two flushes, as in the measure of write amplification.
const RECORDS: u64 = 32;

/// Every other block or so: the worst for anything that goes by runs.
fn scattered(seed: u64) -> BlockSet {
    let mut rng = Rng::new(seed);
    (0..BLOCKS_MAX / 2)
        .fold(BlockSet::EMPTY, |set, _| set | BlockSet::one(rng.below(BLOCKS_MAX as u64) as usize))
}

/// A pair as a random workload leaves it: blocks on both sides, some of them written again.
fn pair() -> (BlockMap, Pending) {
    let mut committed = BlockMap::NONE;
    committed.set(BlockSet::range(0..BLOCKS_MAX), Location::At(Slot::Zero));
    committed.set(scattered(1), Location::At(Slot::One));
    let mut open = Pending::NONE;
    let written = scattered(2);
    open.set(written & committed.side(Slot::Zero), Location::At(Slot::One));
    open.set(written & committed.side(Slot::One), Location::At(Slot::Zero));
    (committed, open)
}

fn blocks(criterion: &mut Criterion) {
    let (committed, open) = pair();
    let one = BlockSet::one(77);
    criterion.bench_function("write_targets/one_block", |bencher| {
        bencher.iter(|| write_targets(black_box(one), committed, black_box(&open), Slot::Zero));
    });
    criterion.bench_function("pending_over", |bencher| {
        bencher.iter(|| black_box(&open).over(black_box(committed)));
    });
    for (name, set) in [("one", one), ("all", BlockSet::range(0..256)), ("many", scattered(3))] {
        criterion.bench_function(&format!("runs/{name}"), |bencher| {
            bencher.iter(|| black_box(set).runs().map(|run| run.len()).sum::<usize>());
        });
    }
}

fn requests(criterion: &mut Criterion) {
    for (name, len) in [("4k", 4096), ("1m_unaligned", (1 << 20) + 512)] {
        let span = Span { offset: 7 * 4096, len };
        criterion.bench_function(&format!("split/{name}"), |bencher| {
            bencher.iter(|| split(Change::Write, black_box(span), Geometry::DEFAULT));
        });
    }
    let header = RequestHeader {
        magic: wire::REQUEST_MAGIC.into(),
        flags: 0.into(),
        command: wire::command::WRITE.into(),
        cookie: *b"a cookie",
        offset: (7 * 4096).into(),
        length: 4096.into(),
    };
    let mut bytes = [0; size_of::<RequestHeader>()];
    bytes.copy_from_slice(header.as_bytes());
    let terms = Terms {
        size: 1 << 30,
        block_size: 4096,
        payload_max: PAYLOAD_MAX,
        framing: Framing::Structured,
        status: true,
        read_only: false,
    };
    criterion.bench_function("nbd_request", |bencher| {
        bencher.iter(|| {
            let request =
                Request::parse(Framing::Structured, black_box(&bytes)).expect("the magic is right");
            request.check(black_box(terms))
        });
    });
}

fn group() -> Group {
    let mut rng = Rng::new(4);
    let place = |_| Record::Place {
        pair: PairId(rng.below(1 << 16) as u32),
        generation: Generation(3),
        first: rng.below(BLOCKS_MAX as u64) as u16,
        count: 1,
        location: Location::At(Slot::One),
        payload: None,
    };
    Group {
        sequence: Sequence(77),
        incarnation: Incarnation(3),
        transaction: TransactionId { coordinator: 1, incarnation: Incarnation(3), number: 9 },
        domain: 0,
        state: GroupState::Done,
        link: Link { slot: 12, sequence: Sequence(78) },
        records: (0..RECORDS).map(place).collect(),
    }
}

fn groups(criterion: &mut Criterion) {
    let group = group();
    let slots: Vec<u32> = (3..).take(Parts::of(&group.records).count()).collect();
    let mut out = vec![0; slots.len() * SLOT_BYTES];
    criterion.bench_function("group_store/32_records", |bencher| {
        bencher.iter(|| {
            let parts = Parts::of(black_box(&group.records));
            group.store(POOL, &parts, &slots, black_box(&mut out));
        });
    });
    criterion.bench_function("group_parse/32_records", |bencher| {
        bencher.iter(|| {
            let parts: BTreeMap<u32, Part> = (3..)
                .zip(out.chunks(SLOT_BYTES))
                .filter_map(|(slot, bytes)| Some((slot, Part::parse(bytes, POOL)?)))
                .collect();
            Group::assemble(3, |slot| parts.get(&slot)).expect("what was stored is whole")
        });
    });
}

criterion_group!(benches, blocks, requests, groups);
criterion_main!(benches);
