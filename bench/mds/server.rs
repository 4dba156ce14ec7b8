//! The server as it is used: the process `flipside mds`, asked over UDP by targets' clients.
//!
//! All clients are tasks of one thread here, each with its session and socket. What they draw from
//! their work goes to the server in that order, and no record of it may be stale there.

use std::cell::{Cell, RefCell};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use flipside::env::Env as _;
use flipside::env::os::{OsEnv, OsLink};
use flipside::format::ids::{ExtentRun, Incarnation, PoolId, UnitId};
use flipside::mds::client::{Client, pools};
use flipside::mds::records::{Claim, ServerStatus};
use flipside::uring::buffers::{ARENA_BLOCK, BufferPool};
use flipside::uring::{Ring, RingOptions};
use tokio::sync::Notify;

use crate::outcome::{Outcome, Times, per_second};
use crate::process::Process;
use crate::work::{EXTENT_SIZE, Work, pool_of};

/// Primitives of a request while pairs are made.
const SETUP_BATCH: u32 = 256;

/// How requests come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Each session has its window full: an answer is followed by the next request at once.
    Closed,
    /// So many primitives a second are due, over all sessions in turn, answered or not.
    Paced(u64),
}

/// What a case is.
#[derive(Clone, Copy)]
pub struct Case {
    pub load: Load,
    pub sessions: u32,
    pub window: u64,
    pub batch: u32,
    /// Pairs of all sessions.
    pub pairs: u32,
    /// The largest datagram, in bytes.
    pub datagram: usize,
    pub length: Duration,
}

/// One target: its session, and what it asks for.
struct Target {
    client: Client<OsEnv>,
    work: RefCell<Work>,
}

/// What all targets have done.
struct Tally {
    times: RefCell<Times>,
    done: Cell<u64>,
    /// Tasks that have not ended.
    running: Cell<u64>,
    all_ended: Notify,
}

impl Target {
    /// The session of a unit in a new pool of its own, with all pairs made.
    async fn new(env: &OsEnv, at: SocketAddr, number: u32, case: Case) -> Target {
        let link = || OsLink::udp(env.ring(), at, case.datagram, None).expect("a socket");
        let mut pool = PoolId::default();
        pool.0[..4].copy_from_slice(&(number + 1).to_le_bytes());
        let pairs = case.pairs / case.sessions;
        pools::register(env, link(), pool, &pool_of(pairs)).await.expect("a new pool");
        let claim = Claim::of(pool, UnitId(0), Incarnation(1));
        let client = Client::attach(env.clone(), link(), claim).await.expect("a session");
        let size = u64::from(pairs) * u64::from(EXTENT_SIZE);
        client.create_volume("bench", size).await.expect("a new volume");
        let granted = client.allocate_data_extents(pairs * 2).await.expect("a grant");
        let mut work = Work::new(granted.runs.into_iter().flat_map(ExtentRun::iter).collect());
        while !work.is_made() {
            client.transact(&work.batch(SETUP_BATCH)).await.expect("new pairs");
        }
        Target { client, work: RefCell::new(work) }
    }

    /// One request; its latency counts from when it was due.
    async fn ask(&self, batch: u32, due: Instant, tally: &Tally) {
        let primitives = self.work.borrow_mut().batch(batch);
        self.client.transact(&primitives).await.expect("an answer");
        tally.times.borrow_mut().end(due);
        tally.done.set(tally.done.get() + u64::from(batch));
    }
}

impl Tally {
    fn new() -> Rc<Tally> {
        Rc::new(Tally {
            times: RefCell::new(Times::new()),
            done: Cell::new(0),
            running: Cell::new(0),
            all_ended: Notify::new(),
        })
    }

    fn spawn(self: &Rc<Self>, env: &OsEnv, task: impl Future<Output = ()> + 'static) {
        self.running.set(self.running.get() + 1);
        let tally = Rc::clone(self);
        env.spawn(async move {
            task.await;
            tally.running.set(tally.running.get() - 1);
            tally.all_ended.notify_one();
        });
    }

    async fn all_ended(&self) {
        while self.running.get() > 0 {
            self.all_ended.notified().await;
        }
    }
}

/// Starts the requests of a case, and waits for all answers.
async fn drive(env: &OsEnv, targets: &[Rc<Target>], case: Case, start: Instant, tally: &Rc<Tally>) {
    let end = start + case.length;
    match case.load {
        Load::Closed => {
            for target in targets.iter().flat_map(|of| (0..case.window).map(move |_| of)) {
                let (target, of_task) = (Rc::clone(target), Rc::clone(tally));
                tally.spawn(env, async move {
                    while Instant::now() < end {
                        target.ask(case.batch, Instant::now(), &of_task).await;
                    }
                });
            }
        }
        Load::Paced(rate) => {
            let interval = Duration::from_nanos(u64::from(case.batch) * 1_000_000_000 / rate);
            let mut due = start;
            for target in targets.iter().cycle() {
                if due >= end {
                    break;
                }
                let early = due.saturating_duration_since(Instant::now());
                if !early.is_zero() {
                    env.sleep(early).await;
                }
                let (target, of_task) = (Rc::clone(target), Rc::clone(tally));
                tally.spawn(env, async move { target.ask(case.batch, due, &of_task).await });
                due += interval;
            }
        }
    }
    tally.all_ended().await;
}

async fn measured(env: OsEnv, process: Rc<Process>, case: Case) -> Outcome {
    let mut targets = Vec::new();
    for number in 0..case.sessions {
        targets.push(Rc::new(Target::new(&env, process.at, number, case).await));
    }
    let status = async || targets[0].client.server_status().await.expect("counters");
    let resent = || targets.iter().map(|of| of.client.status().repeated).sum::<u64>();
    let before: (ServerStatus, u64) = (status().await, resent());
    let (start, cpu) = (Instant::now(), process.cpu_time());
    let tally = Tally::new();
    drive(&env, &targets, case, start, &tally).await;
    let (elapsed, cpu, done) = (start.elapsed(), process.cpu_time() - cpu, tally.done.get());
    let after = status().await;
    assert_eq!(after.stale, before.0.stale, "what was asked for was done");
    let commits = after.store_commits - before.0.store_commits;
    let bytes = after.store_bytes_written - before.0.store_bytes_written;
    Outcome {
        who: "server",
        load: if case.load == Load::Closed { "closed" } else { "paced" },
        sessions: case.sessions,
        window: case.window,
        batch: case.batch,
        primitives_per_commit: done / commits.max(1),
        bytes_per_primitive: bytes / done.max(1),
        cpu_percent: per_second(cpu, elapsed) / 10_000,
        repeated: resent() - before.1,
        ..tally.times.borrow().outcome(done, elapsed)
    }
}

/// A server with a new store in that folder, under the load of a case.
pub fn server(folder: &Path, case: Case) -> Outcome {
    fs::create_dir_all(folder).expect("a folder");
    let process = Rc::new(Process::start(&folder.join("store")));
    let ring = Ring::new(&RingOptions::default()).expect("a ring");
    let buffers = BufferPool::new(ARENA_BLOCK, ARENA_BLOCK).expect("memory");
    let env = OsEnv::new(ring.clone(), buffers);
    let outcome = ring.block_on(measured(env, process, case));
    ring.shutdown();
    fs::remove_dir_all(folder).expect("the folder goes");
    outcome
}
