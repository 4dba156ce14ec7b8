//! The commit protocol of consistency groups as a model, every state of it looked at: units that
//! write, commit, crash and stop, a coordinator that crashes, and a network that loses, repeats,
//! reorders and keeps everything for ever.
//!
//! What decides is the project's own code, [`Coordinator`] and [`Standing`]; the model moves the
//! messages, and keeps the writes and what is durable of them.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Instant;

use flipside::env::Moment;
use flipside::format::group::TransactionId;
use flipside::format::ids::{Incarnation, PoolId, VolumeId};
use flipside::txn::coordinator::{Coordinator, Decision, Group, SILENT_AFTER};
use flipside::txn::participant::{Action as Told, Progress, Standing};
use flipside::txn::{COORDINATOR, GroupId, Order, Phase, Report, Stage};
use stateright::{Checker, HasDiscoveries, Model, Property};

const ATOMIC: &str = "a transaction takes place everywhere or nowhere";
const CLOSED: &str = "the cut is closed";
const KEPT: &str = "what is in the cut stays in it";
const DURABLE: &str = "an acknowledged flush is in the cut";
const FREE: &str = "nobody waits for ever once all are back";
const ALWAYS: [&str; 5] = [ATOMIC, CLOSED, KEPT, DURABLE, FREE];
const COMMITS: &str = "a transaction takes place";
const BOTH: &str = "the cut has writes of several units";
const AGAIN: &str = "a write of a later life is committed";

const GROUP: GroupId = GroupId(1);
/// When everything is heard.
const NOW: Moment = Moment(0);

/// A set of writes, a bit each.
type Writes = u8;

/// What is on the network; nothing ever leaves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Reports(usize, u8, Vec<Report>),
    Orders(usize, u8, Vec<Order>),
}

/// A write of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Write {
    unit: usize,
    /// What was acknowledged, and not known to be lost, when it was sent.
    after: Writes,
    acknowledged: bool,
    lost: bool,
    life: u32,
}

/// What a unit has in its journal of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Prepared {
    transaction: TransactionId,
    writes: Writes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Durable {
    prepared: Option<Prepared>,
    committed: Writes,
    /// Transactions that ended here, and whether they took place.
    ended: Vec<(TransactionId, bool)>,
}

/// The volatile part of a unit's start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Running {
    session: u8,
    standing: Standing,
    open: Writes,
    sealed: Writes,
    /// What a flush under way waits for, while its epoch is open and once that is sealed.
    flush: Option<Writes>,
    flush_sealed: Option<Writes>,
    /// The last life in which the group was told as whole.
    whole: u32,
    /// It has said that it is done and has not made it durable, which is a flaw.
    unpersisted: Option<TransactionId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Unit {
    durable: Durable,
    running: Option<Running>,
    starts: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Server {
    coordinator: Coordinator,
    begun: u64,
    /// By all starts.
    begun_ever: u64,
    start: u32,
    /// What is stored.
    group: Group,
    decision: Option<Decision>,
    starts: u32,
    sessions: Vec<Option<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    server: Server,
    units: Vec<Unit>,
    network: BTreeSet<Arc<Message>>,
    writes: Vec<Write>,
    /// All that was ever in the cut.
    cut: Writes,
    crashes: u8,
    server_crashes: u8,
    flushes: u8,
    stops: u8,
    silences: u8,
    broken: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Deliver(Arc<Message>),
    Write(usize),
    Acknowledge(usize),
    Flush(usize),
    Crash(usize),
    Start(usize),
    Stop(usize),
    Persist(usize),
    ServerCrashes,
    /// Who has not voted counts as silent.
    Silence,
}

/// What a rule that is left out would allow: the model must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// A decision is told and is not stored.
    DecisionVolatile,
    /// Who is prepared is told to commit before all are.
    CommitEarly,
    /// Writes are acknowledged before all have sealed.
    AcknowledgedEarly,
    /// Who wants no commit takes no part.
    IdleLeftOut,
    /// A unit says that it is done before that is durable.
    DoneEarly,
    /// What is not known took place.
    CommitPresumed,
    /// A lost epoch begins no new life.
    LifeIgnored,
    /// A volume is opened in a new life before all are in it.
    OpenedEarly,
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
    transactions: u64,
}

fn pool(unit: usize) -> PoolId {
    PoolId([unit as u8 + 1; 16])
}

impl Server {
    fn new(units: usize) -> Self {
        let members = (0..units).map(|unit| (pool(unit), [VolumeId(0)].into())).collect();
        let group = Group { id: GROUP, name: String::new(), version: 1, life: 1, members };
        let coordinator = Coordinator::new(group.clone(), None, |_| false, NOW);
        let sessions = vec![None; units];
        let (begun, begun_ever, start, decision, starts) = (0, 0, 1, None, 0);
        Server { coordinator, begun, begun_ever, start, group, decision, starts, sessions }
    }

    /// Starts again from what is stored.
    fn restart(&mut self) {
        let attached: Vec<PoolId> = (0..self.sessions.len())
            .filter(|unit| self.sessions[*unit].is_some())
            .map(pool)
            .collect();
        let (group, decision) = (self.group.clone(), self.decision.clone());
        self.coordinator = Coordinator::new(group, decision, |of| attached.contains(&of), NOW);
        (self.begun, self.start) = (0, self.starts + 1);
    }

    /// The end of a turn: a step, and the store transaction.
    fn turn(&mut self, now: Moment, flaw: Flaw) {
        let (begun, begun_ever, start) = (&mut self.begun, &mut self.begun_ever, self.start);
        self.coordinator.step(now, || {
            *begun += 1;
            *begun_ever += 1;
            let incarnation = Incarnation(start);
            TransactionId { coordinator: COORDINATOR, incarnation, number: *begun }
        });
        let changed = self.coordinator.take_changes();
        if changed.group {
            self.group = self.coordinator.group().clone();
        }
        // Who is done is stored as late as can be: with the next decision.
        if changed.decided && flaw != Flaw::DecisionVolatile {
            self.decision = self.coordinator.decision().cloned();
        }
        if self.begun > 0 {
            self.starts = self.start;
        }
    }

    fn decided(&self, transaction: TransactionId) -> bool {
        self.decision.as_ref().is_some_and(|of| of.transaction == transaction)
    }
}

impl Running {
    fn new(session: u8, prepared: Option<Prepared>) -> Self {
        let transaction = prepared.map(|of| (of.transaction, Progress::Prepared));
        Running {
            session,
            standing: Standing { version: 0, life: 0, transaction },
            open: 0,
            sealed: 0,
            flush: None,
            flush_sealed: None,
            whole: 0,
            unpersisted: None,
        }
    }

    /// Whether writes of the open epoch are not acknowledged.
    fn withholds(&self, flaw: Flaw) -> bool {
        let sealed = self.standing.transaction.is_some_and(|(_, at)| at == Progress::Sealed);
        sealed && flaw != Flaw::AcknowledgedEarly
    }

    fn wants(&self) -> bool {
        self.flush.is_some()
    }
}

impl World {
    /// The writes that a crash of everything would leave.
    fn durable(&self) -> Writes {
        let of_unit = |unit: &Unit| {
            let prepared = unit.durable.prepared;
            let decided = prepared.filter(|of| self.server.decided(of.transaction));
            unit.durable.committed | decided.map_or(0, |of| of.writes)
        };
        self.units.iter().map(of_unit).fold(0, |all, writes| all | writes)
    }

    fn break_with(&mut self, what: &'static str) {
        self.broken.get_or_insert(what);
    }

    /// Looks at the cut.
    fn look(&mut self) {
        let cut = self.durable();
        if self.cut & !cut != 0 {
            self.break_with(KEPT);
        }
        self.cut |= cut;
        let missing =
            |(nth, write): (usize, &Write)| cut & (1 << nth) != 0 && write.after & !cut != 0;
        if self.writes.iter().enumerate().any(missing) {
            self.break_with(CLOSED);
        }
        let ended = |took_place| {
            let all = self.units.iter().flat_map(|unit| &unit.durable.ended);
            all.filter(move |(_, it_did)| *it_did == took_place).map(|(of, _)| *of)
        };
        if ended(true).any(|of| ended(false).any(|other| other == of)) {
            self.break_with(ATOMIC);
        }
    }

    /// Writes are lost, and who sent them knows.
    fn lose(&mut self, writes: Writes) {
        for (nth, write) in self.writes.iter_mut().enumerate() {
            write.lost |= writes & (1 << nth) != 0;
        }
    }

    fn acknowledged(&self) -> Writes {
        let known = self.writes.iter().enumerate().filter(|(_, of)| of.acknowledged && !of.lost);
        known.fold(0, |all, (nth, _)| all | 1 << nth)
    }

    fn start(&mut self, number: usize, flaw: Flaw) {
        let unit = &mut self.units[number];
        unit.starts += 1;
        unit.running = Some(Running::new(unit.starts, unit.durable.prepared));
        let earlier = self.server.sessions[number].replace(unit.starts);
        let cold = earlier.is_some() && flaw != Flaw::LifeIgnored;
        self.server.coordinator.attached(pool(number), cold, false, NOW);
        self.server.turn(NOW, flaw);
    }

    fn crash(&mut self, number: usize) {
        let unit = &mut self.units[number];
        let Some(running) = unit.running.take() else { return };
        let prepared = unit.durable.prepared.map_or(0, |of| of.writes);
        // What was prepared is lost, too, once it turns out that it was aborted.
        self.lose((running.open | running.sealed) & !prepared);
        self.forget(number);
    }

    /// What the starts of a unit that are over have sent, and were sent, is for nobody.
    fn forget(&mut self, number: usize) {
        self.network.retain(|message| {
            let (Message::Reports(of, ..) | Message::Orders(of, ..)) = **message;
            of != number
        });
    }

    /// Ends a transaction at a unit, durably.
    fn end(&mut self, number: usize, transaction: TransactionId, took_place: bool) {
        let durable = &mut self.units[number].durable;
        durable.ended.push((transaction, took_place));
        let prepared = durable.prepared.take_if(|of| of.transaction == transaction);
        if took_place {
            durable.committed |= prepared.map_or(0, |of| of.writes);
        }
    }

    /// A unit does what it is told, as long as that is something.
    fn obey(&mut self, number: usize, order: &Order, flaw: Flaw) {
        while let Some(running) = &self.units[number].running
            && let Some(told) = running.standing.next(order)
        {
            self.act(number, told, order, flaw);
        }
        if let Some(running) = &mut self.units[number].running
            && (order.version, order.life) == (running.standing.version, running.standing.life)
            && (order.whole || flaw == Flaw::OpenedEarly)
        {
            running.whole = order.life;
        }
    }

    fn act(&mut self, number: usize, told: Told, order: &Order, flaw: Flaw) {
        let unit = &mut self.units[number];
        let Some(running) = &mut unit.running else { return };
        let standing = &mut running.standing;
        let own = standing.transaction.map(|(of, _)| of);
        match (told, own) {
            (Told::Seal(transaction), _) => {
                running.sealed = std::mem::take(&mut running.open);
                running.flush_sealed = running.flush.take();
                standing.transaction = Some((transaction, Progress::Sealed));
            }
            (Told::Prepare, Some(transaction)) => {
                standing.transaction = Some((transaction, Progress::Prepared));
                let writes = running.sealed;
                unit.durable.prepared = Some(Prepared { transaction, writes });
            }
            (Told::Commit, Some(transaction)) => {
                running.sealed = 0;
                standing.transaction = Some((transaction, Progress::Done));
                let flushed = running.flush_sealed.take();
                if flaw == Flaw::DoneEarly {
                    running.unpersisted = Some(transaction);
                } else {
                    self.end(number, transaction, true);
                }
                if flushed.unwrap_or(0) & !self.durable() != 0 {
                    self.break_with(DURABLE);
                }
            }
            (Told::Abort, Some(transaction)) => {
                running.open |= std::mem::take(&mut running.sealed);
                running.flush = match (running.flush.take(), running.flush_sealed.take()) {
                    (Some(newer), older) => Some(newer | older.unwrap_or(0)),
                    (None, older) => older,
                };
                standing.transaction = Some((transaction, Progress::Done));
                let recovered = unit.durable.prepared.filter(|_| running.session > 1);
                self.end(number, transaction, false);
                // Of a start that found it prepared, nothing is pending.
                let pending = self.pending(number);
                self.lose(recovered.map_or(0, |of| of.writes) & !pending);
            }
            (Told::Acknowledge(transaction), _) => {
                standing.transaction = Some((transaction, Progress::Done));
            }
            (Told::GoBack(life), _) => {
                standing.life = life;
                let dropped = std::mem::take(&mut running.open);
                running.flush = None;
                self.lose(dropped);
            }
            (Told::Regroup, _) => {
                (standing.version, standing.life) = (order.version, order.life);
            }
            (Told::Prepare | Told::Commit | Told::Abort, None) => unreachable!("of no transaction"),
        }
    }

    fn pending(&self, number: usize) -> Writes {
        self.units[number].running.as_ref().map_or(0, |running| running.open | running.sealed)
    }

    /// The server hears reports and answers.
    fn hear(
        &mut self,
        number: usize,
        session: u8,
        reports: &[Report],
        flaw: Flaw,
    ) -> Option<Message> {
        if self.server.sessions[number] != Some(session) {
            return None;
        }
        for report in reports {
            self.server.coordinator.hear(pool(number), report, NOW);
        }
        self.server.turn(NOW, flaw);
        if flaw == Flaw::IdleLeftOut {
            self.speak_for_the_idle();
        }
        let said: Vec<&Report> = reports.iter().collect();
        let mut orders = self.server.coordinator.orders(pool(number), &said, NOW);
        for order in &mut orders {
            // Who waits for whom is for people, and would only make more states.
            order.trouble = None;
            let prepared = reports.iter().any(|report| {
                report.phase == Phase::Prepared && report.transaction == order.transaction
            });
            match (flaw, order.stage) {
                (Flaw::CommitEarly, Stage::AllSealed) if prepared => order.stage = Stage::Committed,
                (Flaw::CommitPresumed, Stage::Aborted) => order.stage = Stage::Committed,
                _ => {}
            }
        }
        Some(Message::Orders(number, session, orders))
    }

    /// Everything is said at once that may be said and changes nothing but the network: whoever
    /// does not hear it is as if it had not been said. So there are no states that differ only in
    /// what could be said.
    fn say_all(&mut self, flaw: Flaw) {
        for number in 0..self.units.len() {
            let Some(running) = &self.units[number].running else { continue };
            let reports = running.standing.reports(GROUP, running.wants(), None);
            self.network.insert(Arc::new(Message::Reports(number, running.session, reports)));
        }
        for message in self.network.clone() {
            let Message::Reports(number, session, reports) = &*message else { continue };
            let before = self.server.clone();
            let answer = self.hear(*number, *session, reports, flaw);
            if self.server == before {
                self.network.extend(answer.map(Arc::new));
            } else {
                self.server = before;
            }
        }
    }

    /// Votes in the place of units that want no commit and have not sealed.
    fn speak_for_the_idle(&mut self) {
        for number in 0..self.units.len() {
            let Some(running) = &self.units[number].running else { continue };
            let present = self.server.coordinator.present(pool(number));
            let idle = !running.wants() && !running.standing.is_busy();
            let Some(transaction) = present.transaction.filter(|_| idle) else { continue };
            for phase in [Phase::Sealed, Phase::Prepared, Phase::Done] {
                let Standing { version, life, .. } = running.standing;
                let transaction = Some(transaction);
                let (group, wants, atomic) = (GROUP, false, None);
                let report = Report { group, version, life, wants, atomic, transaction, phase };
                self.server.coordinator.hear(pool(number), &report, NOW);
                self.server.turn(NOW, Flaw::None);
            }
        }
    }

    /// Whether everybody comes to rest once all are back and the network loses nothing. That is
    /// the same whatever else is on the network.
    fn comes_to_rest(&self, flaw: Flaw) -> bool {
        thread_local! {
            static KNOWN: (RandomState, RefCell<HashMap<u64, bool>>) = Default::default();
        }
        KNOWN.with(|(hash, known)| {
            let key = hash.hash_one((&self.server, &self.units, flaw as u8));
            *known.borrow_mut().entry(key).or_insert_with(|| self.tries_to_rest(flaw))
        })
    }

    fn tries_to_rest(&self, flaw: Flaw) -> bool {
        let mut world = self.clone();
        for number in 0..world.units.len() {
            if world.units[number].running.is_none() {
                world.start(number, flaw);
            }
        }
        for _ in 0..12 {
            for number in 0..world.units.len() {
                world.exchange(number, flaw);
            }
            if world.rests() {
                return true;
            }
        }
        false
    }

    fn rests(&self) -> bool {
        let mut running = self.units.iter().filter_map(|unit| unit.running.as_ref());
        let idle = running.all(|running| {
            let whole = running.whole == running.standing.life;
            !running.standing.is_busy() && !running.wants() && whole
        });
        idle && self.server.coordinator.decision().is_none()
    }

    /// A unit reports and is answered, and nothing is lost.
    fn exchange(&mut self, number: usize, flaw: Flaw) {
        let Some(running) = &self.units[number].running else { return };
        let (session, wants) = (running.session, running.wants());
        let reports = running.standing.reports(GROUP, wants, None);
        if let Some(Message::Orders(_, _, orders)) = self.hear(number, session, &reports, flaw) {
            orders.iter().for_each(|order| self.obey(number, order, flaw));
        }
    }
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
        world.say_all(self.flaw);
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        actions.extend(world.network.iter().cloned().map(Action::Deliver));
        for (number, unit) in world.units.iter().enumerate() {
            let Some(running) = &unit.running else {
                actions.push(Action::Start(number));
                continue;
            };
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
        }
        if world.silences < self.silences {
            actions.push(Action::Silence);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Deliver(message) => match &*message {
                Message::Reports(number, session, reports) => {
                    let answer = world.hear(*number, *session, reports, self.flaw);
                    world.network.extend(answer.map(Arc::new));
                }
                Message::Orders(number, session, orders) => {
                    let running = world.units[*number].running.as_ref();
                    if running.is_some_and(|running| running.session == *session) {
                        orders.iter().for_each(|order| world.obey(*number, order, self.flaw));
                    }
                }
            },
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
            Action::Silence => {
                world.silences += 1;
                let late = Moment(2 * SILENT_AFTER.as_nanos() as u64);
                world.server.turn(late, self.flaw);
            }
        }
        world.say_all(self.flaw);
        world.look();
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

    /// Late reports that want a transaction would begin any number.
    fn within_boundary(&self, world: &World) -> bool {
        world.server.begun_ever <= self.transactions
    }
}

/// Looks at every state; the properties that are decided, and how many states there are.
fn look(protocol: Protocol, until: HasDiscoveries) -> (BTreeSet<&'static str>, usize) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let checker = protocol.checker().threads(threads).finish_when(until);
    let checked = checker.spawn_bfs().join();
    (checked.discoveries().into_keys().collect(), checked.unique_state_count())
}

const SOUND: Protocol = Protocol {
    flaw: Flaw::None,
    units: 2,
    writes: 2,
    flushes: 1,
    crashes: 0,
    server_crashes: 0,
    stops: 0,
    silences: 0,
    transactions: 2,
};

/// Goal: over every order, loss and repetition of the messages, crashes of units and of the
/// coordinator at every step included, transactions are atomic, cuts closed, flushes durable, and
/// nobody waits for ever.
///
/// All states of worlds with two units, at most two transactions, and a write, a crash of a unit or
/// one of the coordinator; `FLIPSIDE_STATES=all` looks at larger worlds, too.
#[test]
fn every_state_is_sound() {
    let small = [
        Protocol { writes: 1, ..SOUND },
        Protocol { writes: 0, crashes: 1, ..SOUND },
        Protocol { writes: 0, server_crashes: 1, ..SOUND },
    ];
    let large = [
        Protocol { writes: 0, crashes: 1, server_crashes: 1, ..SOUND },
        Protocol { ..SOUND },
        Protocol { writes: 1, crashes: 1, ..SOUND },
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
        let started = Instant::now();
        let (found, states) = look(protocol, HasDiscoveries::All);
        println!("{states} states in {:?}: {protocol:?}", started.elapsed());
        let broken: Vec<_> = ALWAYS.iter().filter(|name| found.contains(*name)).collect();
        assert!(broken.is_empty(), "broken: {broken:?}, {protocol:?}");
        assert!(found.contains(COMMITS), "{found:?}");
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
        let (found, states) = look(Protocol { flaw, ..protocol }, until);
        println!("{flaw:?} after {states} states: {found:?}");
        assert!(found.contains(broken), "{flaw:?}: {found:?}");
    }
}
