//! The metadata server of a cluster: one for several machines, which crashes by itself.
//!
//! It has no clock of its own: it lives in the true time of the machines
//! ([`crate::env::sim::Pace`]), and what one of them sends it is heard there and then. What it
//! stores outlives its crashes; a commit that the crash struck was applied or was not.
//!
//! Faults, drawn by the seed: it crashes before a turn, at the commit of one, or after it and
//! before anything was answered; then it is away, up to minutes; and a turn is put off, so that
//! what several machines asked is one turn, and one commit.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::metadata::Tables;
use crate::env::Moment;
use crate::env::sim::calls::Calls;
use crate::env::sim::rng::Rng;
use crate::env::sim::{self, Pace, Peer, SimEnv};
use crate::format::ids::{ExtentRun, PoolId};
use crate::mds::catalog::CatalogFacts;
use crate::mds::pools::Pools;
use crate::mds::server::Server;

/// The most machines of a cluster, those not counted that take over.
pub(super) const MACHINES_MAX: usize = 16;

/// Where a datagram comes from: a machine's seat, and the client on it.
type Place = (usize, Peer);
type Datagrams<P> = Vec<(P, Vec<u8>)>;

/// What a host tends to do.
#[derive(Clone, Copy, Debug, Default)]
struct Habits {
    /// How often a turn meets a crash, in parts per million.
    crash_ppm: u32,
    /// How often a turn waits for the next one.
    waits_ppm: u32,
    /// How long it is away, at least and at most, in nanoseconds.
    away_ns: (u64, u64),
}

/// What a host has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Turns.
    pub turns: u64,
    /// Turns that heard several machines.
    pub shared: u64,
    /// Crashes, those at a commit included.
    pub crashes: u64,
    /// Crashes at a commit.
    pub struck: u64,
}

impl Seen {
    /// All of another's, too.
    pub fn add_all(&mut self, other: &Seen) {
        self.turns += other.turns;
        self.shared += other.shared;
        self.crashes += other.crashes;
        self.struck += other.struck;
    }
}

/// The server, with what it stores. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Host(Rc<RefCell<Inner>>);

struct Inner {
    tables: Tables,
    server: Option<Server<Place>>,
    calls: Calls,
    habits: Habits,
    rng: Rng,
    /// The time of the last turn, and when it is back, in nanoseconds of true time.
    now: u64,
    back_at: u64,
    waiting: Datagrams<Place>,
    outboxes: BTreeMap<usize, Datagrams<Peer>>,
    /// Seats that something was put out for of which nobody was told.
    fresh: BTreeSet<usize>,
    /// When each seat was last answered anything.
    answered: BTreeMap<usize, u64>,
    seen: Seen,
}

/// A place at a host for one machine, which has one pool.
#[derive(Clone)]
pub struct Seat {
    host: Host,
    number: usize,
}

/// Who looks whether a machine goes on beyond its lease.
#[derive(Clone)]
pub(super) struct LeaseWatch {
    seat: Seat,
    lease_ns: u64,
    pace: Pace,
}

/// What a machine takes for the server.
struct Relay {
    seat: Seat,
    pace: Pace,
}

impl Host {
    /// A host with nothing stored.
    pub fn draw(rng: &mut Rng) -> Self {
        let habits = Habits {
            crash_ppm: rng.pick(&[0, 1_000, 10_000, 20_000]),
            waits_ppm: rng.pick(&[0, 50_000, 200_000]),
            // The last is longer than a lease, as the others are seldom.
            away_ns: rng.pick(&[
                (1, 1_000_000),
                (1, 1_000_000_000),
                (1, 100_000_000_000),
                (2_000_000_000, 20_000_000_000),
            ]),
        };
        Self::of(Tables::default(), habits, rng.fork())
    }

    fn of(tables: Tables, habits: Habits, rng: Rng) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            tables,
            server: None,
            calls: Calls::new(None),
            habits,
            rng,
            now: 0,
            back_at: 0,
            waiting: Vec::new(),
            outboxes: BTreeMap::new(),
            fresh: BTreeSet::new(),
            answered: BTreeMap::new(),
            seen: Seen::default(),
        })))
    }

    /// The place of that number.
    pub fn seat(&self, number: usize) -> Seat {
        Seat { host: self.clone(), number }
    }

    /// What it has been through.
    pub fn seen(&self) -> Seen {
        self.0.borrow().seen
    }

    /// Whether there is something for the machine of a seat since the last time.
    pub(super) fn has_mail(&self, seat: usize) -> bool {
        self.0.borrow_mut().fresh.remove(&seat)
    }

    /// A hash of all that is stored.
    pub fn stored(&self) -> u64 {
        self.0.borrow().tables.hash()
    }

    /// From now on it neither crashes nor is away.
    pub fn calm(&self) {
        let mut inner = self.0.borrow_mut();
        inner.habits = Habits::default();
        inner.back_at = 0;
    }

    /// All that is stored of a pool; the store's invariants are checked.
    pub(super) fn facts(&self, pool: PoolId) -> Result<CatalogFacts, String> {
        let text = |error| format!("the metadata server's store: {error}");
        let store = self.0.borrow().tables.fork().open(Calls::new(None), false);
        let pools = Pools::hosted(Box::new(store)).map_err(text)?;
        pools.check_strays().map_err(text)?;
        let catalog = pools.catalog(pool).ok_or("the metadata server has lost a pool")?;
        let facts = catalog.facts().map_err(text)?;
        // That each session is of a unit, and each unit's there.
        Server::<Place>::new(pools).map_err(text)?;
        check_extents(&facts)?;
        Ok(facts)
    }
}

impl Seat {
    /// The same at a host that parts from this one here, by a crash.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut inner = self.host.0.borrow_mut();
        let (tables, rng) = (inner.tables.fork(), inner.rng.fork());
        Host::of(tables, Habits::default(), rng).seat(self.number)
    }

    /// That of another machine for the same pool.
    #[must_use]
    pub fn of_another_machine(&self) -> Self {
        Self { host: self.host.clone(), number: self.number + MACHINES_MAX }
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Looks after a lease that a machine has.
    pub(super) fn watch(&self, env: &SimEnv, lease: Duration) -> LeaseWatch {
        let (seat, pace) = (self.clone(), env.pace().clone());
        LeaseWatch { seat, lease_ns: lease.as_nanos() as u64, pace }
    }

    /// Becomes the server of a machine.
    pub fn serve(&self, env: &SimEnv) {
        let (seat, pace) = (self.clone(), env.pace().clone());
        env.serve(Box::new(Relay { seat, pace }));
    }
}

impl LeaseWatch {
    /// Something was acknowledged as durable, which must not be when the lease has ended: that
    /// counts at the latest from when the server has last answered.
    pub fn acknowledged(&self) {
        let answered = self.seat.host.0.borrow().answered.get(&self.seat.number).copied();
        let (now, lease_ns) = (self.pace.next(), self.lease_ns);
        let ended = answered.is_none_or(|answered| now > answered + lease_ns);
        assert!(
            !ended,
            "acknowledged at {now} ns, last answered at {answered:?}: the lease is over"
        );
    }
}

/// Whether every extent of a pool is free or granted to one unit, and the pairs' are granted, each
/// of them in one pair.
fn check_extents(facts: &CatalogFacts) -> Result<(), String> {
    let extents = |runs: &[ExtentRun]| -> Vec<u32> {
        runs.iter().flat_map(|run| run.start.0..run.end().0).collect()
    };
    let granted: Vec<u32> = facts.units.iter().flat_map(|unit| extents(&unit.granted)).collect();
    let mut all = [extents(&facts.free), granted.clone()].concat();
    all.sort_unstable();
    if all.len() as u64 != u64::from(facts.pool.extents)
        || all.windows(2).any(|two| two[0] == two[1])
    {
        let (count, extents) = (all.len(), facts.pool.extents);
        return Err(format!("{count} extents are free or granted, and the pool has {extents}"));
    }
    let slots = facts.pairs.iter().flat_map(|(_, pair)| pair.slots).flatten();
    let mut bound: Vec<u32> = slots.map(|extent| extent.0).collect();
    bound.sort_unstable();
    if let Some([extent, _]) = bound.windows(2).find(|two| two[0] == two[1]) {
        return Err(format!("extent {extent} is in two pairs"));
    }
    match bound.iter().find(|extent| !granted.contains(extent)) {
        Some(extent) => Err(format!("extent {extent} is in a pair, and of no grant")),
        None => Ok(()),
    }
}

impl sim::Server for Relay {
    /// The machine's own clock says nothing here: it jumps.
    fn turn(&mut self, _: Moment, arrived: Datagrams<Peer>) -> Datagrams<Peer> {
        let number = self.seat.number;
        let mut host = self.seat.host.0.borrow_mut();
        host.now = host.now.max(self.pace.next());
        host.waiting.extend(arrived.into_iter().map(|(peer, bytes)| ((number, peer), bytes)));
        let habits = host.habits;
        if !host.rng.chance(habits.waits_ppm) {
            host.turn();
        }
        host.fresh.remove(&number);
        host.outboxes.remove(&number).unwrap_or_default()
    }
}

impl Inner {
    /// Handles what waits, unless there is nobody.
    fn turn(&mut self) {
        let arrived = std::mem::take(&mut self.waiting);
        if self.server.is_none() && self.now < self.back_at {
            return;
        }
        let crashes = self.rng.chance(self.habits.crash_ppm);
        let when = self.rng.below(3);
        if crashes && when == 0 {
            return self.crash();
        }
        let mut server = self.server.take().unwrap_or_else(|| self.start());
        if crashes && when == 1 {
            self.calls.crash_in(Some(0));
        }
        self.seen.turns += 1;
        let seat = |arrived: &(Place, Vec<u8>)| arrived.0.0;
        self.seen.shared += u64::from(arrived.windows(2).any(|two| seat(&two[0]) != seat(&two[1])));
        let answers = server.handle(Moment(self.now), arrived);
        let struck = self.calls.crashed();
        self.seen.struck += u64::from(struck);
        if struck || crashes && when == 2 {
            return self.crash();
        }
        assert!(server.failure().is_none(), "the server has failed: {:?}", server.failure());
        self.calls.crash_in(None);
        self.server = Some(server);
        for ((seat, peer), bytes) in answers {
            self.outboxes.entry(seat).or_default().push((peer, bytes));
            self.fresh.insert(seat);
            self.answered.insert(seat, self.now);
        }
    }

    fn start(&mut self) -> Server<Place> {
        self.calls = Calls::new(None);
        let store = self.tables.open(self.calls.clone(), self.rng.chance(500_000));
        let pools = Pools::hosted(Box::new(store)).and_then(|pools| {
            pools.check_strays()?;
            Server::new(pools)
        });
        pools.unwrap_or_else(|error| panic!("the metadata server does not start again: {error}"))
    }

    fn crash(&mut self) {
        self.server = None;
        self.outboxes.clear();
        self.seen.crashes += 1;
        let (shortest, longest) = self.habits.away_ns;
        self.back_at = self.now + self.rng.log_between(shortest.max(1), longest.max(1));
    }
}
