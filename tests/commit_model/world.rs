//! The world of the model: what everyone knows, has stored and has sent.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use flipside::env::Moment;
use flipside::format::group::TransactionId;
use flipside::format::ids::{Incarnation, PoolId, VolumeId};
use flipside::txn::coordinator::{Coordinator, Decision, Group};
use flipside::txn::participant::{Action as Told, Progress, Standing};
use flipside::txn::{COORDINATOR, GroupId, Order, Phase, Report, Stage};

pub const ATOMIC: &str = "a transaction takes place everywhere or nowhere";
pub const CLOSED: &str = "the cut is closed";
pub const KEPT: &str = "what is in the cut stays in it";
pub const DURABLE: &str = "an acknowledged flush is in the cut";
pub const FREE: &str = "nobody waits for ever once all are back";

pub const GROUP: GroupId = GroupId(1);
/// When everything is heard.
pub const NOW: Moment = Moment(0);

/// A set of writes, a bit each.
pub type Writes = u8;

/// What is on the network; nothing ever leaves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    Reports(usize, u8, Vec<Report>),
    Order(usize, u8, Order),
}

/// A write of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    pub unit: usize,
    /// What was acknowledged, and not known to be lost, when it was sent.
    pub after: Writes,
    pub acknowledged: bool,
    pub lost: bool,
    pub life: u32,
}

/// What a unit has in its journal of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prepared {
    pub transaction: TransactionId,
    pub writes: Writes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Durable {
    pub prepared: Option<Prepared>,
    pub committed: Writes,
    /// Transactions that ended here, and whether they took place.
    pub ended: Vec<(TransactionId, bool)>,
}

/// The volatile part of a unit's start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Running {
    pub session: u8,
    pub standing: Standing,
    pub open: Writes,
    pub sealed: Writes,
    /// What a flush under way waits for, while its epoch is open and once that is sealed.
    pub flush: Option<Writes>,
    pub flush_sealed: Option<Writes>,
    /// The last life in which the group was told as whole.
    pub whole: u32,
    /// It has said that it is done and has not made it durable, which is a flaw.
    pub unpersisted: Option<TransactionId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Unit {
    pub durable: Durable,
    pub running: Option<Running>,
    pub starts: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    pub coordinator: Coordinator,
    pub begun: u64,
    pub start: u32,
    /// What is stored.
    pub group: Group,
    pub decision: Option<Decision>,
    pub starts: u32,
    pub sessions: Vec<Option<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub server: Server,
    pub units: Vec<Unit>,
    pub network: BTreeSet<Message>,
    pub writes: Vec<Write>,
    /// All that was ever in the cut.
    pub cut: Writes,
    pub crashes: u8,
    pub server_crashes: u8,
    pub flushes: u8,
    pub stops: u8,
    pub silences: u8,
    pub broken: Option<&'static str>,
}

/// What a rule that is left out would allow: the model must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flaw {
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

pub fn pool(unit: usize) -> PoolId {
    PoolId([unit as u8 + 1; 16])
}

impl Server {
    pub fn new(units: usize) -> Self {
        let members = (0..units).map(|unit| (pool(unit), [VolumeId(0)].into())).collect();
        let group = Group { id: GROUP, name: String::new(), version: 1, life: 1, members };
        let coordinator = Coordinator::new(group.clone(), None, |_| false, NOW);
        let sessions = vec![None; units];
        Server { coordinator, begun: 0, start: 1, group, decision: None, starts: 0, sessions }
    }

    /// Starts again from what is stored.
    pub fn restart(&mut self) {
        let attached: Vec<PoolId> = (0..self.sessions.len())
            .filter(|unit| self.sessions[*unit].is_some())
            .map(pool)
            .collect();
        let (group, decision) = (self.group.clone(), self.decision.clone());
        self.coordinator = Coordinator::new(group, decision, |of| attached.contains(&of), NOW);
        (self.begun, self.start) = (0, self.starts + 1);
    }

    /// The end of a turn: a step, and the store transaction.
    pub fn turn(&mut self, now: Moment, flaw: Flaw) {
        let (begun, start) = (&mut self.begun, self.start);
        self.coordinator.step(now, || {
            *begun += 1;
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

    /// What it may store at any time, or never: who is done.
    pub fn may_store(&self, flaw: Flaw) -> bool {
        self.decision.as_ref() != self.coordinator.decision() && flaw != Flaw::DecisionVolatile
    }

    /// Whether nothing that is said of a transaction is news, now or after a start.
    pub fn is_past(&self, transaction: TransactionId) -> bool {
        let (under_way, ..) = self.coordinator.progress();
        let decisions = [self.decision.as_ref(), self.coordinator.decision()];
        let mut decided = decisions.into_iter().flatten().map(|of| of.transaction);
        under_way != Some(transaction) && decided.all(|decided| transaction < decided)
    }

    pub fn decided(&self, transaction: TransactionId) -> bool {
        self.decision.as_ref().is_some_and(|of| of.transaction == transaction)
    }
}

impl Running {
    pub fn new(session: u8, prepared: Option<Prepared>) -> Self {
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
    pub fn withholds(&self, flaw: Flaw) -> bool {
        let sealed = self.standing.transaction.is_some_and(|(_, at)| at == Progress::Sealed);
        sealed && flaw != Flaw::AcknowledgedEarly
    }

    pub fn wants(&self) -> bool {
        self.flush.is_some()
    }

    /// Whether it is done with a transaction.
    pub fn is_done_with(&self, transaction: TransactionId) -> bool {
        let newest = self.standing.transaction;
        newest.is_some_and(|(own, at)| {
            transaction < own || transaction == own && at == Progress::Done
        })
    }

    /// Whether an order can never make it do anything: its standing only goes forward.
    pub fn is_past(&self, order: &Order) -> bool {
        let Standing { version, life, .. } = self.standing;
        let over = order.transaction.is_none_or(|of| self.is_done_with(of))
            || order.stage == Stage::Seal && order.life < life;
        let opens = order.whole && order.life == life && self.whole != life;
        over && order.version <= version && order.life <= life && !opens
    }
}

impl World {
    /// The writes that a crash of everything would leave.
    pub fn durable(&self) -> Writes {
        let of_unit = |unit: &Unit| {
            let prepared = unit.durable.prepared;
            let decided = prepared.filter(|of| self.server.decided(of.transaction));
            unit.durable.committed | decided.map_or(0, |of| of.writes)
        };
        self.units.iter().map(of_unit).fold(0, |all, writes| all | writes)
    }

    pub fn break_with(&mut self, what: &'static str) {
        self.broken.get_or_insert(what);
    }

    /// Looks at the cut.
    pub fn look(&mut self) {
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
    pub fn lose(&mut self, writes: Writes) {
        for (nth, write) in self.writes.iter_mut().enumerate() {
            write.lost |= writes & (1 << nth) != 0;
        }
    }

    pub fn acknowledged(&self) -> Writes {
        let known = self.writes.iter().enumerate().filter(|(_, of)| of.acknowledged && !of.lost);
        known.fold(0, |all, (nth, _)| all | 1 << nth)
    }

    pub fn start(&mut self, number: usize, flaw: Flaw) {
        let unit = &mut self.units[number];
        unit.starts += 1;
        unit.running = Some(Running::new(unit.starts, unit.durable.prepared));
        let earlier = self.server.sessions[number].replace(unit.starts);
        let cold = earlier.is_some() && flaw != Flaw::LifeIgnored;
        self.server.coordinator.attached(pool(number), cold, false, NOW);
        self.server.turn(NOW, flaw);
    }

    pub fn crash(&mut self, number: usize) {
        let unit = &mut self.units[number];
        let Some(running) = unit.running.take() else { return };
        let prepared = unit.durable.prepared.map_or(0, |of| of.writes);
        // What was prepared is lost, too, once it turns out that it was aborted.
        self.lose((running.open | running.sealed) & !prepared);
        self.forget(number);
    }

    /// What the starts of a unit that are over have sent, and were sent, is for nobody.
    pub fn forget(&mut self, number: usize) {
        self.network.retain(|message| {
            let (Message::Reports(of, ..) | Message::Order(of, ..)) = message;
            *of != number
        });
    }

    /// Ends a transaction at a unit, durably.
    pub fn end(&mut self, number: usize, transaction: TransactionId, took_place: bool) {
        let durable = &mut self.units[number].durable;
        durable.ended.push((transaction, took_place));
        let prepared = durable.prepared.take_if(|of| of.transaction == transaction);
        if took_place {
            durable.committed |= prepared.map_or(0, |of| of.writes);
        }
    }

    /// A unit does what it is told, as long as that is something.
    pub fn obey(&mut self, number: usize, order: &Order, flaw: Flaw) {
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

    pub fn act(&mut self, number: usize, told: Told, order: &Order, flaw: Flaw) {
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

    pub fn pending(&self, number: usize) -> Writes {
        self.units[number].running.as_ref().map_or(0, |running| running.open | running.sealed)
    }

    /// The server hears reports.
    pub fn hear(&mut self, number: usize, session: u8, reports: &[Report], flaw: Flaw) {
        if self.server.sessions[number] != Some(session) {
            return;
        }
        for report in reports {
            self.server.coordinator.hear(pool(number), report, NOW);
        }
        self.server.turn(NOW, flaw);
        if flaw == Flaw::IdleLeftOut {
            self.speak_for_the_idle();
        }
    }

    /// What the server answers to reports.
    pub fn answer(&self, number: usize, reports: &[Report], flaw: Flaw) -> Vec<Order> {
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
        orders
    }

    /// Votes in the place of units that want no commit and have not sealed.
    pub fn speak_for_the_idle(&mut self) {
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

    /// Whether a message may do something now.
    pub fn is_news(&self, message: &Message) -> bool {
        let Message::Order(number, _, order) = message else { return true };
        let running = self.units[*number].running.as_ref();
        running.is_some_and(|running| {
            let opens = order.whole && order.life == running.standing.life;
            opens && running.whole != order.life || running.standing.next(order).is_some()
        })
    }

    /// What can never do anything again is dropped, and of reports of transactions that are past
    /// only the rest is kept, which still is news to a server that starts.
    pub fn tidy(&mut self) {
        let network = std::mem::take(&mut self.network);
        for message in network {
            let (Message::Reports(number, ..) | Message::Order(number, ..)) = message;
            let Some(running) = &self.units[number].running else { continue };
            match message {
                Message::Order(_, session, order) => self.network.extend(
                    (!running.is_past(&order)).then_some(Message::Order(number, session, order)),
                ),
                Message::Reports(_, session, mut reports) => {
                    let past = |of| self.server.is_past(of) && running.is_done_with(of);
                    for report in &mut reports {
                        if report.transaction.is_some_and(past) {
                            (report.transaction, report.phase) = (None, Phase::Idle);
                        }
                    }
                    self.network.insert(Message::Reports(number, session, reports));
                }
            }
        }
    }

    /// Whether everybody comes to rest once all are back and the network loses nothing.
    pub fn comes_to_rest(&self, flaw: Flaw) -> bool {
        static KNOWN: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
        let mut hasher = DefaultHasher::new();
        (&self.server, &self.units, flaw).hash(&mut hasher);
        let key = hasher.finish();
        if KNOWN.lock().expect("nobody panics with it").contains(&key) {
            return true;
        }
        let rests = self.rests_once_all_are_back(flaw);
        if rests {
            KNOWN.lock().expect("nobody panics with it").insert(key);
        }
        rests
    }

    pub fn rests_once_all_are_back(&self, flaw: Flaw) -> bool {
        let (server, units, writes) =
            (self.server.clone(), self.units.clone(), self.writes.clone());
        let network = BTreeSet::new();
        let mut world = World { server, units, network, writes, ..*self };
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

    pub fn rests(&self) -> bool {
        let mut running = self.units.iter().filter_map(|unit| unit.running.as_ref());
        let idle = running.all(|running| {
            let whole = running.whole == running.standing.life;
            !running.standing.is_busy() && !running.wants() && whole
        });
        idle && self.server.coordinator.decision().is_none()
    }

    /// A unit reports and is answered, and nothing is lost.
    pub fn exchange(&mut self, number: usize, flaw: Flaw) {
        let Some(running) = &self.units[number].running else { return };
        let (session, wants) = (running.session, running.wants());
        let reports = running.standing.reports(GROUP, wants, None);
        self.hear(number, session, &reports, flaw);
        let orders = self.answer(number, &reports, flaw);
        orders.iter().for_each(|order| self.obey(number, order, flaw));
    }
}
