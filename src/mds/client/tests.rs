use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::env::{Disk, Durability, Nvram, Region};
use crate::format::home::Line;
use crate::format::ids::{ExtentId, Generation, Incarnation, PairId, PoolId, Slot};
use crate::format::record::{Binding, Record};
use crate::mds::catalog::PoolSpec;
use crate::mds::pools::Pools;
use crate::mds::redb_store::RedbStore;
use crate::mds::server::Server;
use crate::mds::testing::{EXTENT_SIZE, Memory, create, pair, serve};
use crate::uring::buffers::{BufferPool, View};

/// What a test needs no instance of.
#[derive(Clone)]
enum Never {}

impl Disk for Never {
    fn name(&self) -> &str {
        match *self {}
    }
    fn len(&self) -> u64 {
        match *self {}
    }
    fn sector(&self) -> u32 {
        match *self {}
    }
    fn volatile_cache(&self) -> bool {
        match *self {}
    }
    fn read(&self, _: u64, _: View) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::pending()
    }
    fn write(
        &self,
        _: u64,
        _: View,
        _: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::pending()
    }
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::pending()
    }
    fn discard(&self, _: u64, _: u64) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::pending()
    }
}

impl Region for Never {
    fn len(&self) -> u64 {
        match *self {}
    }
    fn sector(&self) -> u32 {
        match *self {}
    }
    fn read(&self, _: u64, _: View) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::pending()
    }
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::pending()
    }
    fn persist(&self, _: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::pending()
    }
}

impl Nvram for Never {
    fn name(&self) -> &str {
        match *self {}
    }
    fn part(&self, _: u64, _: u64) -> Self {
        match *self {}
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

enum Arrival {
    AtServer(Vec<u8>),
    AtClient(Vec<u8>),
}

/// A world of virtual time: one client, one server, and a network between them that is as bad as
/// `loss_percent` says.
struct World {
    now: Cell<u64>,
    random: Cell<u64>,
    timers: RefCell<Vec<u64>>,
    tasks: RefCell<Vec<Task>>,
    network: RefCell<BTreeMap<(u64, u64), Arrival>>,
    arrived: RefCell<VecDeque<Vec<u8>>>,
    server: RefCell<Option<Server<()>>>,
    loss_percent: Cell<u64>,
    payload_max: usize,
    pool: BufferPool,
}

#[derive(Clone)]
struct TestEnv(Rc<World>);

#[derive(Clone)]
struct TestLink(Rc<World>);

impl World {
    fn draw(&self) -> u64 {
        // xorshift64*: any sequence will do, as long as it is the same each time.
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn transmit(&self, arrival: impl Fn() -> Arrival) {
        let bad = |percent: u64| self.draw() % 100 < percent;
        let loss = self.loss_percent.get();
        for _ in 0..=u64::from(bad(loss)) {
            if !bad(loss) {
                let at = self.now.get() + 1_000_000 + self.draw() % 20_000_000;
                let number = self.draw();
                self.network.borrow_mut().insert((at, number), arrival());
            }
        }
    }

    /// Lets everything that can happen now happen, then moves to the next moment.
    fn step(&self) {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..3 {
            let mut tasks = std::mem::take(&mut *self.tasks.borrow_mut());
            tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            let mut spawned = self.tasks.borrow_mut();
            tasks.append(&mut spawned);
            *spawned = tasks;
        }
        let timer = self.timers.borrow().iter().copied().min();
        let event = self.network.borrow().keys().next().map(|(at, _)| *at);
        let next = timer.into_iter().chain(event).min();
        self.now.set(next.unwrap_or(0).max(self.now.get()));
        let now = self.now.get();
        self.timers.borrow_mut().retain(|at| *at > now);
        let later = self.network.borrow_mut().split_off(&(now + 1, 0));
        let due = std::mem::replace(&mut *self.network.borrow_mut(), later);
        let mut requests = Vec::new();
        for arrival in due.into_values() {
            match arrival {
                Arrival::AtServer(bytes) => requests.push(((), bytes)),
                Arrival::AtClient(bytes) => self.arrived.borrow_mut().push_back(bytes),
            }
        }
        let mut server = self.server.borrow_mut();
        let replies =
            server.as_mut().map(|server| server.handle(Moment(now), requests)).unwrap_or_default();
        for ((), reply) in replies {
            self.transmit(|| Arrival::AtClient(reply.clone()));
        }
    }
}

impl Env for TestEnv {
    type Disk = Never;
    type Nvram = Never;
    type Link = TestLink;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.tasks.borrow_mut().push(Box::pin(task));
    }
    fn now(&self) -> Moment {
        Moment(self.0.now.get())
    }
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let world = Rc::clone(&self.0);
        let until = world.now.get() + duration.as_nanos() as u64;
        world.timers.borrow_mut().push(until);
        poll_fn(move |_| if world.now.get() >= until { Poll::Ready(()) } else { Poll::Pending })
    }
    fn random(&self) -> u64 {
        self.0.draw()
    }
    fn buffers(&self) -> &BufferPool {
        &self.0.pool
    }
}

impl Link for TestLink {
    fn payload_max(&self) -> usize {
        self.0.payload_max
    }
    fn send(&self, datagram: Vec<u8>) {
        self.0.transmit(|| Arrival::AtServer(datagram.clone()));
    }
    async fn receive(&self) -> Vec<u8> {
        let arrived = &self.0.arrived;
        poll_fn(|_| arrived.borrow_mut().pop_front().map_or(Poll::Pending, Poll::Ready)).await
    }
}

/// A pool of 5,000 extents with one volume, and its server in a world.
fn world(seed: u64, loss_percent: u64, payload_max: usize) -> (Memory, TestEnv) {
    let (memory, mut catalog) = create(5000, 500);
    catalog.create_volume("vol0", 5000 * u64::from(EXTENT_SIZE)).unwrap();
    catalog.commit().unwrap();
    let world = World {
        now: Cell::new(1),
        random: Cell::new(seed),
        timers: RefCell::default(),
        tasks: RefCell::default(),
        network: RefCell::default(),
        arrived: RefCell::default(),
        server: RefCell::new(Some(Server::new(Pools::single(catalog)).unwrap())),
        loss_percent: Cell::new(loss_percent),
        payload_max,
        pool: BufferPool::new(4 << 20, 2 << 20).unwrap(),
    };
    (memory, TestEnv(Rc::new(world)))
}

/// Runs the world until the future has ended.
fn run<T: 'static>(env: &TestEnv, future: impl Future<Output = T> + 'static) -> T {
    let result = Rc::new(RefCell::new(None));
    let place = Rc::clone(&result);
    env.spawn(async move {
        let value = future.await;
        *place.borrow_mut() = Some(value);
    });
    for _ in 0..1_000_000 {
        env.0.step();
        if let Some(value) = result.borrow_mut().take() {
            return value;
        }
    }
    panic!("no end");
}

fn claim() -> Claim {
    Claim::of(PoolId::default(), UnitId(1), Incarnation(1))
}

async fn attach(env: TestEnv) -> Client<TestEnv> {
    let link = TestLink(Rc::clone(&env.0));
    Client::attach(env, link, claim()).await.unwrap()
}

fn binds(from: u32, count: u32) -> Vec<Primitive> {
    (from..from + count)
        .map(|i| Primitive::BindData(pair(i, 1, [Some(i), None], Slot::Zero)))
        .collect()
}

/// Goal: over a network that loses, repeats and reorders a fifth, at several payloads, everything
/// asked is done exactly once, in order, and read back whole.
#[test]
fn a_bad_network() {
    for (seed, payload_max) in [(1, 1472), (2, 1472), (3, 1200), (4, 60 << 10)] {
        let (_, env) = world(seed, 20, payload_max);
        let mine = env.clone();
        run(&env, async move {
            let client = attach(mine).await;
            assert_eq!(client.pool().extents, 5000);
            let allocations = (0..40).map(|_| client.allocate_data_extents(50));
            let given = futures_util::future::join_all(allocations).await;
            let mut extents: Vec<u32> = given
                .into_iter()
                .flat_map(|grants| grants.unwrap().runs)
                .flat_map(|run| run.iter().map(|extent| extent.0).collect::<Vec<_>>())
                .collect();
            extents.sort_unstable();
            assert!(extents.iter().copied().eq(0..2000));
            let batches: Vec<_> = (0..10).map(|i| binds(i * 100, 100)).collect();
            let all = batches.iter().map(|batch| client.transact(batch));
            for result in futures_util::future::join_all(all).await {
                result.unwrap();
            }
            let status = client.server_status().await.unwrap();
            assert_eq!((status.transactions, status.binds, status.stale), (10, 1000, 0));
            assert_eq!(status.data_allocations, 40);
            let grants = client.grants().await.unwrap();
            assert_eq!((grants.data_quota, grants.runs.len()), (2000, 1));
            let mut next = Some(LogicalExtent(0));
            let mut pairs = Vec::new();
            while let Some(from) = next {
                let page = client.layout(VolumeId(0), from).await.unwrap();
                next = page.next;
                pairs.extend(page.pairs.into_iter().map(|(_, pair)| Primitive::BindData(pair)));
            }
            assert_eq!(pairs, binds(0, 1000));
            let made = client.create_volume("second", 1 << 30).await.unwrap();
            assert_eq!(client.volumes().await.unwrap()[1], made);
            client.resize_volume(made.id, 1 << 31).await.unwrap();
            client.rename_volume(made.id, "third").await.unwrap();
            let long = client.rename_volume(made.id, &"x".repeat(200)).await.unwrap_err();
            assert!(matches!(long, MdsError::Refused { refusal: Refusal::NameInvalid, .. }));
            client.delete_volume(made.id).await.unwrap();
            let third = client.volumes().await.unwrap().remove(1);
            assert_eq!((&*third.name, third.size, third.deleting), ("third", 1 << 31, true));
            client.remove_volume(made.id).await.unwrap();
            assert_eq!(client.volumes().await.unwrap().len(), 1);
            client.renew().await.unwrap();
            assert!(client.status().repeated > 0);
            client.detach().await.unwrap();
            let after = client.renew().await.unwrap_err();
            assert!(matches!(after, MdsError::Refused { refusal: Refusal::UnknownSession, .. }));
        });
    }
}

/// Goal: calls wait while the server is away, the status says since when, and when it is back
/// (started again from its store) all goes on and nothing is done twice.
#[test]
fn a_server_that_goes_away() {
    let (memory, env) = world(7, 10, 1472);
    let client = run(&env, attach(env.clone()));
    assert_eq!(client.status().silent_since, None);
    for round in 0..5u32 {
        let asked = client.clone();
        let answers = Rc::new(Cell::new(0));
        let counted = Rc::clone(&answers);
        env.spawn(async move {
            let both = (asked.allocate_journal_space(7), asked.allocate_journal_space(5));
            let (a, b) = futures_util::future::join(both.0, both.1).await;
            let total = |grants: Grants| grants.runs.iter().map(|run| run.count).sum::<u32>();
            counted.set(total(a.unwrap()) + total(b.unwrap()));
        });
        (0..round * 3).for_each(|_| env.0.step());
        *env.0.server.borrow_mut() = None;
        let left = env.0.now.get();
        while client.status().silent_since.is_none() && client.status().waiting > 0 {
            env.0.step();
        }
        if let Some(since) = client.status().silent_since {
            assert!(since.0 <= env.0.now.get() && env.0.now.get() > left);
        }
        *env.0.server.borrow_mut() = Some(serve(&memory));
        while answers.get() == 0 {
            env.0.step();
        }
        assert_eq!(answers.get(), 12);
        assert_eq!(client.status().silent_since, None);
        let server = env.0.server.borrow();
        let free = server.as_ref().unwrap().status().extents_free;
        assert_eq!(free, 5000 - 12 * (u64::from(round) + 1));
    }
}

/// Goal: a newer start of the unit ends the older session, and an older one is refused.
#[test]
fn a_newer_start() {
    let (_, env) = world(9, 5, 1472);
    drop(run(&env, attach(env.clone())));
    // It has not begun, and so it is counted past; this one has.
    let client = run(&env, attach(env.clone()));
    assert_eq!(client.incarnation(), Incarnation(2));
    run(&env, async move { client.begin().await.unwrap() });
    let link = TestLink(Rc::clone(&env.0));
    let old = run(&env, Client::attach(env.clone(), link, claim()));
    let expected =
        MdsError::Refused { operation: "Attach", refusal: Refusal::FlagsTooOld, detail: 2 };
    assert_eq!(old.err(), Some(expected));
}

/// Goal: over a bad network groups of many datagrams are hardened whole, once and in order; the
/// lines are read back, and what changed since a view; a start that counts at the server comes
/// after all that the server knows.
#[test]
fn flags_at_the_server() {
    let record = |pair: u32, generation| {
        let binding = Binding {
            generation: Generation(generation),
            owner: Some((VolumeId(0), LogicalExtent(pair))),
            extents: [Some(ExtentId(pair)), None],
            data_slot: Slot::Zero,
        };
        Record::Binding { pair: PairId(pair), binding }
    };
    for start in 1..=2 {
        let (_, env) = world(start, 20, 1472);
        let mine = env.clone();
        run(&env, async move {
            let counted = Claim { incarnation: None, ..claim() };
            let link = || TestLink(Rc::clone(&mine.0));
            let first = Client::attach(mine.clone(), link(), counted).await.unwrap();
            assert_eq!(first.incarnation(), Incarnation(1));
            drop(first);
            mine.sleep(Duration::from_secs(60)).await;
            let client = Client::attach(mine.clone(), link(), counted).await.unwrap();
            assert_eq!(client.incarnation(), Incarnation(2));
            while !client.allocate_data_extents(5000).await.unwrap().is_empty() {}
            let before = client.renew().await.unwrap();
            assert_eq!(before.horizon, u64::MAX, "nobody reads");
            let groups = (1..=3_u32)
                .map(|round| (0..1000).map(|pair| record(pair, round)).collect::<Vec<Record>>());
            let groups: Vec<_> = groups.collect();
            let all = groups.iter().map(|group| client.harden(group));
            for told in futures_util::future::join_all(all).await {
                assert!(told.unwrap().view > before.view);
            }
            let seen = client.lines().await.unwrap();
            assert_eq!(seen.lines.len(), 1000);
            let newest = |(_, line): &(PairId, Line)| line.binding.generation == Generation(3);
            assert!(seen.lines.iter().all(newest));
            assert_eq!(client.changes(before.view, 0).await.unwrap(), Some(seen.clone()));
            assert_eq!(client.changes(seen.view, 0).await.unwrap().unwrap().lines, []);
            assert_eq!(client.changes(0, 0).await.unwrap(), None);
            assert_eq!(client.server_status().await.unwrap().hardens, 3);
        });
    }
}

/// Goal: dropping the last handle ends the client's tasks, and a call that waits fails as closed;
/// a call that was dropped leaves no gap behind which later mutations would wait.
#[test]
fn endings() {
    let (_, env) = world(11, 0, 1472);
    let client = run(&env, attach(env.clone()));
    {
        let mut dropped = Box::pin(client.allocate_journal_space(3));
        assert!(dropped.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let asked = client.clone();
    run(&env, async move { asked.allocate_journal_space(4).await.unwrap() });
    assert_eq!(env.0.server.borrow().as_ref().unwrap().status().extents_free, 5000 - 7);
    assert_eq!(env.0.tasks.borrow().len(), 2);
    drop(client);
    let clock = env.clone();
    run(&env, async move { clock.sleep(Duration::from_secs(30)).await });
    assert_eq!(env.0.tasks.borrow().len(), 0);
}

/// Goal: garbage and answers to nothing are counted and harm nobody.
#[test]
fn garbage() {
    let (_, env) = world(13, 0, 1472);
    let client = run(&env, attach(env.clone()));
    env.0.arrived.borrow_mut().extend([vec![], vec![1; 72], b"FSmd".to_vec()]);
    let asked = client.clone();
    run(&env, async move { asked.renew().await.unwrap() });
    assert_eq!(client.status().dropped, 3);
    let many = vec![binds(0, 1)[0]; TRANSACT_PRIMITIVES_MAX + 1];
    let refused = run(&env, async move { client.transact(&many).await });
    assert!(matches!(refused, Err(MdsError::TooLarge { .. })));
}

/// Goal: over a bad network pools are registered, starts that the server counts are each one more,
/// and an overview of many pages has every pool and session; a forgotten pool is gone.
#[test]
fn pools_of_a_bad_network() {
    for seed in 1..4 {
        let (_, env) = world(seed, 20, wire::PAYLOAD_MIN);
        let store = Box::new(RedbStore::open(Memory::default()).unwrap());
        let hosted = Server::new(Pools::hosted(store).unwrap()).unwrap();
        *env.0.server.borrow_mut() = Some(hosted);
        let mine = env.clone();
        run(&env, async move {
            let link = || TestLink(Rc::clone(&mine.0));
            let run = ExtentRun { start: crate::format::ids::ExtentId(0), count: 100 };
            let spec = PoolSpec { extent_size: EXTENT_SIZE, devices: vec![run], reserve: 10 };
            let claim = |number| {
                let claim = Claim::of(PoolId([number; 16]), UnitId(0), Incarnation(0));
                Claim { incarnation: None, lease_ms: 1000, ..claim }
            };
            for number in 0..40 {
                pools::register(&mine, link(), PoolId([number; 16]), &spec).await.unwrap();
                let client = Client::attach(mine.clone(), link(), claim(number)).await.unwrap();
                assert_eq!(client.incarnation(), Incarnation(1));
            }
            for start in 2..6 {
                let client = Client::attach(mine.clone(), link(), claim(7)).await.unwrap();
                assert_eq!(client.incarnation(), Incarnation(start));
                assert_eq!(client.lease(), Duration::from_secs(1));
            }
            let seen = pools::overview(&mine, link()).await.unwrap();
            let names = seen.pools.iter().map(|pool| pool.pool);
            assert!(names.eq((0..40).map(|number| PoolId([number; 16]))));
            assert_eq!((seen.sessions.len(), seen.counters.extents), (40, 4000));
            let attached = pools::forget(&mine, link(), PoolId([7; 16]), false).await.unwrap_err();
            assert!(attached.to_string().contains("stop the target"), "{attached}");
            pools::forget(&mine, link(), PoolId([7; 16]), true).await.unwrap();
            let seen = pools::overview(&mine, link()).await.unwrap();
            assert_eq!((seen.pools.len(), seen.sessions.len()), (39, 39));
        });
    }
}
