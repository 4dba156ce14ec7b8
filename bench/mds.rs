//! The metadata server's durable primitives a second, and what bounds them.
//!
//! ```text
//! cargo bench --bench mds -- [--dir DIR] [--seconds N] [--rate N] [--json]
//! ```
//!
//! Sessions send `Transact` requests of a batch of primitives each, as sealed datagrams, to a
//! server in this process; every turn of it is one durable commit. Two ways of sending:
//!
//! - *closed*: each session has its window full; an answer is followed by the next request at once.
//!   What the server can do at most; latency is then the window over the throughput.
//! - *paced*: requests are due at a fixed rate, whether the server is ready or not, and latency
//!   counts from when a request was due.
//!
//! Each session goes round and round over the pairs of its unit, which have all been made before.
//!
//! Three stores take the same load: our log before redb, redb alone, and none but the device: as
//! many bytes as the log wrote for a turn, appended durably and nothing else.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use flipside::env::Moment;
use flipside::format::ids::{
    ExtentId, ExtentRun, Generation, Incarnation, LogicalExtent, PairId, PoolId, Slot, UnitId,
    VolumeId,
};
use flipside::mds::catalog::PoolSpec;
use flipside::mds::hosted;
use flipside::mds::log::format::BLOCK;
use flipside::mds::log::place::{FilePlace, LogPlace};
use flipside::mds::pools::Pools;
use flipside::mds::raw::{self, RawAttach, RawPrimitive};
use flipside::mds::records::{Claim, PairRecord, Primitive};
use flipside::mds::redb_store::RedbStore;
use flipside::mds::server::Server;
use flipside::mds::store::Store;
use flipside::mds::wire::{self, Header, Kind, Operation, PAYLOAD_MAX, WINDOW};
use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::Serialize;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

/// Pairs of all units.
const PAIRS: u32 = 64 << 10;
/// Primitives of a request while pairs are made.
const SETUP_BATCH: u32 = 256;
const EXTENT_SIZE: u32 = 1 << 20;
const BATCHES: [u32; 4] = [1, 16, 64, 512];
/// Sessions, and how many requests each has on its way.
const CLIENTS: [(u32, u64); 2] = [(1, WINDOW), (64, 1)];

/// The metadata server's durable primitives a second.
#[derive(Parser)]
struct Options {
    /// Where the stores are put; a folder of the build by default
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench-mds"))]
    dir: PathBuf,
    /// For how long each case is measured
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Primitives a second that the paced cases offer
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Only cases of this store
    #[arg(long)]
    store: Option<String>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What was measured.
#[derive(Serialize)]
struct Outcome {
    store: &'static str,
    load: &'static str,
    sessions: u32,
    window: u64,
    batch: u32,
    primitives_per_second: u64,
    p50_us: u64,
    p99_us: u64,
    max_us: u64,
    primitives_per_commit: u64,
    bytes_per_primitive: u64,
    cpu_percent: u64,
}

/// One session's side of the conversation.
struct Client {
    session: u64,
    /// The next request's number.
    sequence: u64,
    /// The lowest that is not answered.
    floor: u64,
    /// When each request on its way was due, oldest first.
    waiting: VecDeque<Instant>,
    /// Its extents, two for each pair.
    extents: Vec<ExtentId>,
    /// Its pairs: how many, and the next one's number.
    pairs: u32,
    next_pair: u32,
    generation: u32,
}

impl Client {
    fn request(&mut self, operation: Operation, body: &[u8]) -> Vec<((), Vec<u8>)> {
        let header = Header {
            kind: Kind::Request,
            operation,
            session: self.session,
            sequence: self.sequence,
            detail: self.floor,
        };
        self.sequence += 1;
        let datagrams = wire::encode(&header, body, PAYLOAD_MAX);
        datagrams.into_iter().map(|bytes| ((), bytes)).collect()
    }

    /// Pairs, one after the other, each with the next generation when all have had this one.
    fn next_pairs(&mut self, count: u32) -> Vec<PairRecord> {
        let pairs = (0..count).map(|_| {
            let pair = self.next_pair;
            let (slot, generation) = (pair as usize * 2, self.generation);
            self.next_pair = (pair + 1) % self.pairs;
            self.generation += u32::from(self.next_pair == 0);
            PairRecord {
                volume: VolumeId(0),
                logical: LogicalExtent(self.extents[slot].0 / 2),
                pair: PairId(pair),
                generation: Generation(generation),
                slots: [Some(self.extents[slot]), Some(self.extents[slot + 1])],
                data_slot: if generation.is_multiple_of(2) { Slot::Zero } else { Slot::One },
            }
        });
        pairs.collect()
    }

    fn transact(&mut self, batch: u32) -> Vec<((), Vec<u8>)> {
        let pairs = self.next_pairs(batch).into_iter();
        let body = raw::pack(pairs.map(|pair| {
            RawPrimitive::from(&match pair.generation {
                Generation(1) => Primitive::AssociateDataJournal(pair),
                _ => Primitive::SwapDataJournal(pair),
            })
        }));
        self.request(Operation::Transact, &body)
    }
}

/// A server and its clients.
struct Bench {
    server: Server<()>,
    clients: Vec<Client>,
    start: Instant,
}

/// The pool of a session: each is a target of its own.
fn pool(number: u32) -> PoolId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&(number + 1).to_le_bytes());
    PoolId(id)
}

impl Bench {
    fn new(store: Box<dyn Store>, sessions: u32) -> Bench {
        let mut pools = Pools::hosted(store).expect("a new store");
        let extents = 2 * PAIRS / sessions;
        for number in 0..sessions {
            let devices = vec![ExtentRun { start: ExtentId(0), count: extents }];
            let spec = PoolSpec { extent_size: EXTENT_SIZE, devices, reserve: 0 };
            pools.register(pool(number), spec).expect("a new pool");
            let catalog = pools.catalog_mut(pool(number)).expect("it was registered");
            let size = u64::from(extents) * u64::from(EXTENT_SIZE);
            catalog.create_volume("bench", size).expect("a new volume");
        }
        pools.commit().expect("new pools");
        let server = Server::new(pools).expect("a new server");
        let mut bench = Bench { server, clients: Vec::new(), start: Instant::now() };
        for number in 0..sessions {
            bench.attach(number, PAIRS / sessions);
        }
        bench
    }

    fn handle(&mut self, datagrams: Vec<((), Vec<u8>)>) -> Vec<((), Vec<u8>)> {
        self.server.handle(Moment(self.start.elapsed().as_nanos() as u64), datagrams)
    }

    fn attach(&mut self, number: u32, pairs: u32) {
        let claim = Claim::of(pool(number), UnitId(0), Incarnation(1));
        let mut client = Client {
            session: u64::from(number) + 1,
            sequence: 0,
            floor: 0,
            waiting: VecDeque::new(),
            extents: Vec::new(),
            pairs,
            next_pair: 0,
            generation: 1,
        };
        let attach = RawAttach::new(&claim, PAYLOAD_MAX as u32);
        let request = client.request(Operation::Attach, attach.as_bytes());
        self.handle(request);
        let wanted = U32::new(pairs * 2);
        let request = client.request(Operation::AllocateDataExtents, wanted.as_bytes());
        let replies = self.handle(request);
        let reply = wire::parse(&replies[0].1).expect("a reply");
        let runs = raw::runs(reply.body).expect("runs");
        client.extents = runs.into_iter().flat_map(ExtentRun::iter).collect();
        assert_eq!(client.extents.len() as u32, pairs * 2, "all that was asked for");
        client.floor = client.sequence;
        while client.generation == 1 {
            let request = client.transact(SETUP_BATCH);
            let replies = self.handle(request);
            check(&replies[0].1);
            client.floor = client.sequence;
        }
        self.clients.push(client);
    }

    /// One turn: the server gets all of it; the time of each answer is counted.
    fn turn(&mut self, datagrams: Vec<((), Vec<u8>)>, times: &mut Histogram<u64>) -> u64 {
        let replies = self.handle(datagrams);
        let now = Instant::now();
        for ((), reply) in &replies {
            let session = check(reply);
            let client = &mut self.clients[session as usize - 1];
            let due = client.waiting.pop_front().expect("it was asked");
            client.floor += 1;
            times.saturating_record((now - due).as_micros() as u64);
        }
        replies.len() as u64
    }

    fn closed(&mut self, window: u64, batch: u32, times: &mut Histogram<u64>) -> u64 {
        let mut datagrams = Vec::new();
        for client in &mut self.clients {
            while (client.waiting.len() as u64) < window {
                client.waiting.push_back(Instant::now());
                datagrams.extend(client.transact(batch));
            }
        }
        self.turn(datagrams, times) * u64::from(batch)
    }

    /// Sends the requests that are due: the first is number `sent`.
    fn paced(
        &mut self,
        due: impl Fn(u64) -> Instant,
        sent: &mut u64,
        batch: u32,
        times: &mut Histogram<u64>,
    ) -> u64 {
        let mut datagrams = Vec::new();
        let sessions = self.clients.len() as u64;
        while due(*sent) <= Instant::now() {
            let client = &mut self.clients[(*sent % sessions) as usize];
            if client.waiting.len() as u64 == WINDOW {
                break;
            }
            client.waiting.push_back(due(*sent));
            datagrams.extend(client.transact(batch));
            *sent += 1;
        }
        if datagrams.is_empty() {
            std::thread::sleep(due(*sent).saturating_duration_since(Instant::now()));
            return 0;
        }
        self.turn(datagrams, times) * u64::from(batch)
    }
}

/// The session of an answer, which says that all went well.
fn check(reply: &[u8]) -> u64 {
    let reply = wire::parse(reply).expect("a reply");
    assert_eq!(reply.header.kind, Kind::Reply(Ok(())), "{reply:?}");
    reply.header.session
}

/// Processor time of all threads so far, in microseconds.
fn cpu_time() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("one's own usage");
    let times = [usage.user_time(), usage.system_time()];
    let micros =
        |time: &TimeVal| time.tv_sec().cast_unsigned() * 1_000_000 + time.tv_usec().cast_unsigned();
    times.iter().map(micros).sum()
}

/// How many of that in a second.
fn per_second(count: u64, elapsed: Duration) -> u64 {
    (u128::from(count) * 1_000_000 / elapsed.as_micros()) as u64
}

/// The part of one processor that was used, in percent.
fn cpu_percent(since: u64, elapsed: Duration) -> u64 {
    per_second(cpu_time() - since, elapsed) / 10_000
}

/// Of microseconds, up to a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("sound bounds")
}

/// What a case is.
#[derive(Clone, Copy)]
struct Case {
    store: &'static str,
    load: &'static str,
    sessions: u32,
    window: u64,
    batch: u32,
}

fn measured(options: &Options, case: Case) -> Outcome {
    let Case { store: name, load, sessions, window, batch } = case;
    let folder = options.dir.join("store");
    fs::create_dir_all(&folder).expect("a folder");
    let store: Box<dyn Store> = if name == "log" {
        hosted::open(&folder.join("logged")).expect("a new store")
    } else {
        let mut how = File::options();
        let how = how.read(true).write(true).create_new(true);
        let file = how.open(folder.join("redb")).expect("a new file");
        let backend = redb::backends::FileBackend::new(file).expect("a new file");
        Box::new(RedbStore::open(backend).expect("a new store"))
    };
    let mut bench = Bench::new(store, sessions);
    let mut times = histogram();
    let before = (bench.server.status(), cpu_time(), Instant::now());
    let length = Duration::from_secs(options.seconds);
    let (mut done, mut sent) = (0, 0);
    while before.2.elapsed() < length {
        done += if load == "closed" {
            bench.closed(window, batch, &mut times)
        } else {
            let interval = u64::from(batch) * 1_000_000_000 / options.rate;
            let due = |number| before.2 + Duration::from_nanos(number * interval);
            bench.paced(due, &mut sent, batch, &mut times)
        };
    }
    let elapsed = before.2.elapsed();
    let cpu_percent = cpu_percent(before.1, elapsed);
    let status = bench.server.status();
    let commits = status.store_commits - before.0.store_commits;
    let bytes = status.store_bytes_written - before.0.store_bytes_written;
    drop(bench);
    fs::remove_dir_all(&folder).expect("the folder goes");
    Outcome {
        store: name,
        load,
        sessions,
        window,
        batch,
        primitives_per_second: per_second(done, elapsed),
        p50_us: times.value_at_quantile(0.5),
        p99_us: times.value_at_quantile(0.99),
        max_us: times.max(),
        primitives_per_commit: done / commits.max(1),
        bytes_per_primitive: bytes / done.max(1),
        cpu_percent,
    }
}

/// The device alone: what the log appends for one commit, again and again.
fn device(options: &Options, of: &Outcome) -> Outcome {
    let path = options.dir.join("appends");
    let len = 64 << 20;
    FilePlace::create(&path, &[0; BLOCK], len).expect("a new file");
    let lock = File::open(&options.dir).expect("the folder");
    let mut place = FilePlace::open(&path, lock).expect("the file");
    let bytes = of.bytes_per_primitive * of.primitives_per_commit;
    let blocks = vec![7; (bytes as usize).next_multiple_of(BLOCK)];
    let mut times = histogram();
    let (start, cpu) = (Instant::now(), cpu_time());
    let mut at = 0;
    while start.elapsed() < Duration::from_secs(options.seconds) {
        if at + blocks.len() as u64 > len {
            at = 0;
        }
        let before = Instant::now();
        place.write(at, &blocks).expect("a write");
        times.saturating_record(before.elapsed().as_micros() as u64);
        at += blocks.len() as u64;
    }
    let elapsed = start.elapsed();
    fs::remove_file(&path).expect("the file goes");
    let done = times.len() * of.primitives_per_commit;
    Outcome {
        store: "device",
        primitives_per_second: per_second(done, elapsed),
        p50_us: times.value_at_quantile(0.5),
        p99_us: times.value_at_quantile(0.99),
        max_us: times.max(),
        cpu_percent: cpu_percent(cpu, elapsed),
        ..*of
    }
}

/// The device under a folder, as findmnt names it.
fn device_of(dir: &Path) -> String {
    let mut command = Command::new("findmnt");
    match command.args(["-nro", "SOURCE,FSTYPE,OPTIONS", "--target"]).arg(dir).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(_) => "unknown".to_owned(),
    }
}

fn cases(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for store in ["log", "redb"] {
        if options.store.as_deref().is_some_and(|only| only != store) {
            continue;
        }
        for (sessions, window) in CLIENTS {
            for batch in BATCHES {
                cases.push(Case { store, load: "closed", sessions, window, batch });
            }
        }
        for batch in BATCHES {
            cases.push(Case { store, load: "paced", sessions: 64, window: WINDOW, batch });
        }
    }
    cases
}

fn show(outcome: &Outcome) {
    println!(
        "{:7} {:7} {:8} {:6} {:6} {:12} {:9} {:9} {:9} {:10} {:10} {:5}",
        outcome.store,
        outcome.load,
        outcome.sessions,
        outcome.window,
        outcome.batch,
        outcome.primitives_per_second,
        outcome.p50_us,
        outcome.p99_us,
        outcome.max_us,
        outcome.primitives_per_commit,
        outcome.bytes_per_primitive,
        outcome.cpu_percent,
    );
}

fn main() {
    let options = Options::parse();
    fs::create_dir_all(&options.dir).expect("a folder for the stores");
    let mut outcomes = Vec::new();
    let mut tell = |outcome: Outcome| {
        if !options.json {
            show(&outcome);
        }
        outcomes.push(outcome);
    };
    if !options.json {
        println!("device: {}; paced at {} a second", device_of(&options.dir), options.rate);
        println!(
            "{:7} {:7} {:8} {:6} {:6} {:12} {:9} {:9} {:9} {:10} {:10} {:5}",
            "store",
            "load",
            "sessions",
            "window",
            "batch",
            "primitives/s",
            "p50 us",
            "p99 us",
            "max us",
            "per commit",
            "bytes each",
            "cpu %"
        );
    }
    for case in cases(&options) {
        let outcome = measured(&options, case);
        let bound =
            (case.store == "log" && case.load == "closed").then(|| device(&options, &outcome));
        tell(outcome);
        bound.into_iter().for_each(&mut tell);
    }
    if options.json {
        let all = serde_json::json!({ "device": device_of(&options.dir), "rate": options.rate,
            "outcomes": outcomes });
        println!("{all:#}");
    }
}
