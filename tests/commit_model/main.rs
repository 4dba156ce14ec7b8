//! The commit protocol of consistency groups as a model, every state of it looked at: units that
//! write, commit, crash and stop, a coordinator that crashes, and a network that loses, repeats,
//! reorders and keeps everything for ever.
//!
//! What decides is the project's own code, [`Coordinator`] and [`Standing`]; the model moves the
//! messages, and keeps the writes and what is durable of them.
//!
//! Two things keep the states few and lose none that matters. A message that can never do anything
//! again, at a standing that only goes forward, is dropped ([`World::tidy`]). And whether everybody
//! comes to rest depends on the server and the units alone, so it is looked at once for all
//! networks.

mod world;

use std::collections::BTreeSet;

use flipside::env::Moment;
use flipside::txn::coordinator::SILENT_AFTER;
use stateright::{Checker, HasDiscoveries, Model, Property};

use world::{
    ATOMIC, CLOSED, DURABLE, FREE, Flaw, GROUP, KEPT, Message, NOW, Server, Unit, World, Write,
    pool,
};

const ALWAYS: [&str; 5] = [ATOMIC, CLOSED, KEPT, DURABLE, FREE];
const COMMITS: &str = "a transaction takes place";
const BOTH: &str = "the cut has writes of several units";
const AGAIN: &str = "a write of a later life is committed";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Deliver(Message),
    /// A unit says where it is.
    Reports(usize),
    Write(usize),
    Acknowledge(usize),
    Flush(usize),
    Crash(usize),
    Start(usize),
    Stop(usize),
    Persist(usize),
    ServerCrashes,
    /// The server has something to store, and so stores who is done, too.
    Stores,
    /// Who has not voted counts as silent.
    Silence,
}

/// How much happens.
#[derive(Clone, Copy, Debug)]
struct Protocol {
    flaw: Flaw,
    units: usize,
    writes: usize,
    flushes: u8,
    crashes: u8,
    server_crashes: u8,
    stops: u8,
    silences: u8,
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut world = World {
            server: Server::new(self.units),
            units: vec![Unit::default(); self.units],
            network: BTreeSet::new(),
            writes: Vec::new(),
            cut: 0,
            crashes: 0,
            server_crashes: 0,
            flushes: 0,
            stops: 0,
            silences: 0,
            broken: None,
        };
        for number in 0..self.units {
            world.start(number, self.flaw);
        }
        for _ in 0..2 {
            (0..self.units).for_each(|number| world.exchange(number, self.flaw));
        }
        world.tidy();
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let news = world.network.iter().filter(|message| world.is_news(message));
        actions.extend(news.cloned().map(Action::Deliver));
        for (number, unit) in world.units.iter().enumerate() {
            let Some(running) = &unit.running else {
                actions.push(Action::Start(number));
                continue;
            };
            actions.push(Action::Reports(number));
            if world.crashes < self.crashes {
                actions.push(Action::Crash(number));
            }
            let quiet = running.open | running.sealed == 0 && !running.standing.is_busy();
            if world.stops < self.stops && quiet && running.standing.version > 0 {
                actions.push(Action::Stop(number));
            }
            if running.whole == running.standing.life && running.whole > 0 {
                if world.writes.len() < self.writes {
                    actions.push(Action::Write(number));
                }
                if world.flushes < self.flushes && !running.wants() {
                    actions.push(Action::Flush(number));
                }
            }
            if running.unpersisted.is_some() {
                actions.push(Action::Persist(number));
            }
        }
        for (nth, write) in world.writes.iter().enumerate() {
            let running = world.units[write.unit].running.as_ref();
            let held = running.is_none_or(|running| running.withholds(self.flaw));
            if !write.acknowledged && !write.lost && !held {
                actions.push(Action::Acknowledge(nth));
            }
        }
        if world.server_crashes < self.server_crashes {
            actions.push(Action::ServerCrashes);
            if world.server.may_store(self.flaw) {
                actions.push(Action::Stores);
            }
        }
        if world.silences < self.silences {
            actions.push(Action::Silence);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Deliver(Message::Reports(number, session, reports)) => {
                world.hear(number, session, &reports, self.flaw);
                let answer = world.answer(number, &reports, self.flaw).into_iter();
                world.network.extend(answer.map(|order| Message::Order(number, session, order)));
            }
            Action::Deliver(Message::Order(number, session, order)) => {
                let running = world.units[number].running.as_ref();
                if running.is_some_and(|running| running.session == session) {
                    world.obey(number, &order, self.flaw);
                }
            }
            Action::Reports(number) => {
                let running = world.units[number].running.as_ref()?;
                let reports = running.standing.reports(GROUP, running.wants(), None);
                world.network.insert(Message::Reports(number, running.session, reports));
            }
            Action::Write(unit) => {
                let (nth, after) = (world.writes.len(), world.acknowledged());
                let running = world.units[unit].running.as_mut()?;
                running.open |= 1 << nth;
                let life = running.standing.life;
                world.writes.push(Write { unit, after, acknowledged: false, lost: false, life });
            }
            Action::Acknowledge(nth) => world.writes[nth].acknowledged = true,
            Action::Flush(number) => {
                world.flushes += 1;
                let of_unit = |(nth, write): (usize, &Write)| {
                    let own = write.unit == number && write.acknowledged && !write.lost;
                    if own { 1 << nth } else { 0 }
                };
                let known = world.writes.iter().enumerate().map(of_unit).fold(0, |a, b| a | b);
                world.units[number].running.as_mut()?.flush = Some(known);
            }
            Action::Crash(number) => {
                world.crashes += 1;
                world.crash(number);
            }
            Action::Start(number) => world.start(number, self.flaw),
            Action::Stop(number) => {
                world.stops += 1;
                world.units[number].running = None;
                world.forget(number);
                world.server.sessions[number] = None;
                world.server.coordinator.detached(pool(number));
                world.server.turn(NOW, self.flaw);
            }
            Action::Persist(number) => {
                let transaction = world.units[number].running.as_mut()?.unpersisted.take()?;
                world.end(number, transaction, true);
            }
            Action::ServerCrashes => {
                world.server_crashes += 1;
                world.server.restart();
            }
            Action::Stores => {
                world.server.decision = world.server.coordinator.decision().cloned();
            }
            Action::Silence => {
                world.silences += 1;
                let late = Moment(2 * SILENT_AFTER.as_nanos() as u64);
                world.server.turn(late, self.flaw);
            }
        }
        if world == *before {
            return None;
        }
        world.look();
        world.tidy();
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn sound(world: &World, what: &str) -> bool {
            world.broken != Some(what)
        }
        vec![
            Property::always(ATOMIC, |_, world: &World| sound(world, ATOMIC)),
            Property::always(CLOSED, |_, world: &World| sound(world, CLOSED)),
            Property::always(KEPT, |_, world: &World| sound(world, KEPT)),
            Property::always(DURABLE, |_, world: &World| sound(world, DURABLE)),
            Property::always(FREE, |protocol: &Protocol, world: &World| {
                world.broken.is_some() || world.comes_to_rest(protocol.flaw)
            }),
            Property::sometimes(COMMITS, |_, world: &World| {
                let mut ended = world.units.iter().flat_map(|unit| &unit.durable.ended);
                ended.any(|(_, took_place)| *took_place)
            }),
            Property::sometimes(BOTH, |_, world: &World| {
                let units = world.units.iter().filter(|unit| unit.durable.committed != 0);
                units.count() > 1
            }),
            Property::sometimes(AGAIN, |_, world: &World| {
                let mut writes = world.writes.iter().enumerate();
                writes.any(|(nth, write)| write.life > 1 && world.cut & (1 << nth) != 0)
            }),
        ]
    }

    /// What was broken is looked at no further.
    fn within_boundary(&self, world: &World) -> bool {
        world.broken.is_none() || world.cut != u8::MAX
    }
}

/// Looks at every state, or at so many, the nearest first; the properties that are decided, and how
/// many states there are.
fn look(
    protocol: Protocol,
    until: HasDiscoveries,
    most: Option<usize>,
) -> (BTreeSet<&'static str>, usize) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let checker = protocol.checker().threads(threads).finish_when(until);
    let checker = match most {
        Some(most) => checker.target_state_count(most),
        None => checker,
    };
    let checked = checker.spawn_bfs().join();
    (checked.discoveries().into_keys().collect(), checked.unique_state_count())
}

/// States of each small world that are looked at where not all are.
const FEW: usize = 10_000;

const SOUND: Protocol = Protocol {
    flaw: Flaw::None,
    units: 2,
    writes: 2,
    flushes: 1,
    crashes: 0,
    server_crashes: 0,
    stops: 0,
    silences: 0,
};

/// Goal: over every order, loss and repetition of the messages, crashes of units and of the
/// coordinator at every step included, transactions are atomic, cuts closed, flushes durable, and
/// nobody waits for ever.
///
/// The first [`FEW`] states of small worlds; `FLIPSIDE_STATES=all` looks at all, and at larger
/// worlds, too.
#[test]
fn every_state_is_sound() {
    let small = [Protocol { writes: 1, ..SOUND }, Protocol { writes: 0, crashes: 1, ..SOUND }];
    let large = [
        Protocol { ..SOUND },
        Protocol { writes: 1, crashes: 1, ..SOUND },
        Protocol { writes: 0, server_crashes: 1, ..SOUND },
        Protocol { writes: 0, stops: 1, ..SOUND },
        Protocol { writes: 0, silences: 1, ..SOUND },
        Protocol { crashes: 1, ..SOUND },
        Protocol { writes: 1, server_crashes: 1, ..SOUND },
        Protocol { server_crashes: 1, silences: 1, ..SOUND },
        Protocol { stops: 1, ..SOUND },
        Protocol { flushes: 2, ..SOUND },
    ];
    let all = std::env::var_os("FLIPSIDE_STATES").is_some();
    for protocol in small.into_iter().chain(large.into_iter().filter(|_| all)) {
        let (found, states) = look(protocol, HasDiscoveries::All, (!all).then_some(FEW));
        println!("{states} states: {protocol:?}");
        let broken: Vec<_> = ALWAYS.iter().filter(|name| found.contains(*name)).collect();
        assert!(broken.is_empty(), "broken: {broken:?}, {protocol:?}");
        assert!(!all || found.contains(COMMITS), "{found:?}");
    }
}

/// Goal: a rule that is left out is noticed, by the property that it is there for.
///
/// `FLIPSIDE_STATES=all` looks at those, too, that only larger worlds show.
#[test]
fn flaws_are_noticed() {
    let one_crash = Protocol { crashes: 1, ..SOUND };
    let no_writes = Protocol { writes: 0, ..SOUND };
    let quick = [
        (Flaw::CommitEarly, Protocol { silences: 1, ..no_writes }, ATOMIC),
        (Flaw::AcknowledgedEarly, SOUND, CLOSED),
        (Flaw::IdleLeftOut, SOUND, CLOSED),
    ];
    let slow = [
        (Flaw::DecisionVolatile, Protocol { server_crashes: 1, ..no_writes }, ATOMIC),
        (Flaw::DoneEarly, Protocol { writes: 1, crashes: 1, ..SOUND }, KEPT),
        (Flaw::CommitPresumed, Protocol { silences: 1, ..no_writes }, ATOMIC),
        (Flaw::LifeIgnored, one_crash, CLOSED),
        (Flaw::OpenedEarly, Protocol { writes: 2, ..one_crash }, CLOSED),
    ];
    let all = std::env::var_os("FLIPSIDE_STATES").is_some();
    for (flaw, protocol, broken) in quick.into_iter().chain(slow.into_iter().filter(|_| all)) {
        let until = HasDiscoveries::AnyOf([broken].into());
        let (found, states) = look(Protocol { flaw, ..protocol }, until, None);
        println!("{flaw:?} after {states} states: {found:?}");
        assert!(found.contains(broken), "{flaw:?}: {found:?}");
    }
}
