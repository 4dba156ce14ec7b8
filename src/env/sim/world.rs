//! Everything outside of the tasks: time, events to come, media, the network.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::calls::{Calls, Fate};
use super::faults::{Fault, Faults, Struck};
use super::link::{Peer, Server};
use super::medium::{Failing, Mark, Medium, WriteId};
use super::network::{Network, Towards};
use super::nvram::{NvramMedium, PersistId};
use super::points::{Point, Points};
use super::rng::{Rng, mix};
use crate::env::Moment;
use crate::uring::buffers::View;

/// Tells a task that its operation has ended.
pub(super) type Done = oneshot::Sender<io::Result<()>>;

/// Something that happens at a time to come.
pub(super) enum Event {
    Wake(oneshot::Sender<()>),
    Read { disk: usize, offset: u64, view: View, done: Done },
    Write { disk: usize, id: WriteId, view: Option<View>, done: Done, point: Option<Point> },
    LateWrite { disk: usize, id: WriteId },
    Flush { disk: usize, mark: Mark, done: Done, point: Point },
    NvramRead { offset: u64, view: View, done: Done },
    Persist { id: PersistId, views: Vec<View>, done: Done, point: Point },
    Arrival(Towards, Peer, Rc<[u8]>),
    ServerTurn,
}

/// What arrived for one client and was not yet received.
#[derive(Default)]
pub(super) struct Inbox {
    pub datagrams: VecDeque<Vec<u8>>,
    pub waiter: Option<std::task::Waker>,
}

/// The media, and what acts on them while the machine is up.
pub(super) struct World {
    pub now: u64,
    pub rng: Rng,
    pub faults: Faults,
    pub disks: Vec<Medium>,
    pub nvram: Option<NvramMedium>,
    /// What outlives a process, and not the machine.
    pub memory: Vec<u8>,
    pub inboxes: BTreeMap<Peer, Inbox>,
    pub server: Option<Box<dyn Server>>,
    /// What has arrived at the server since its last turn.
    waiting: Vec<(Peer, Vec<u8>)>,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    /// How far the clock has jumped in all, in nanoseconds.
    pub jumped: u64,
    /// When the last write of a killed predecessor arrives.
    pub late_until: u64,
    pub network: Network,
    /// Which faults struck in this period.
    pub struck: Struck,
    pub points: Points,
    pub calls: Calls,
    /// A crash that is planned for a write of a certain part.
    pub aim: Option<Aim>,
    /// A hash of all that happened.
    pub trace: u64,
    /// Whether every call is printed.
    pub loud: bool,
    /// Whether flushes do nothing.
    pub flushes_ignored: bool,
    /// Of the writes and flushes of disks to come, how many end before the one that fails;
    /// discards do not count.
    pub fails_in: Option<u64>,
    /// A write or a flush has failed, and nobody was told yet.
    pub change_failed: bool,
}

/// Where a crash is planned: a few calls after a write of a certain part of a medium.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    /// The part, by its name.
    pub part: &'static str,
    /// Which of its writes: 1 is the next.
    pub passes: u64,
    /// How many calls of the environment come between the write and the crash.
    pub calls: u64,
}

impl World {
    pub fn new(seed: u64, disks: Vec<Medium>, nvram: Option<NvramMedium>, faults: Faults) -> Self {
        Self {
            now: 0,
            rng: Rng::new(seed),
            faults,
            disks,
            nvram,
            memory: Vec::new(),
            inboxes: BTreeMap::new(),
            server: None,
            waiting: Vec::new(),
            events: BTreeMap::new(),
            scheduled: 0,
            jumped: 0,
            late_until: 0,
            network: Network::default(),
            struck: Struck::default(),
            points: Points::default(),
            calls: Calls::new(None),
            aim: None,
            trace: seed,
            loud: false,
            flushes_ignored: false,
            fails_in: None,
            change_failed: false,
        }
    }

    /// Counts a call of the environment.
    pub fn call(&mut self, what: &str, place: u64, len: u64) -> Fate {
        let fate = self.calls.call();
        self.note(what, place, len);
        if self.loud && fate == Fate::Struck {
            eprintln!("{:>12} ns  -- crash --", self.now);
        }
        fate
    }

    /// A write of that part of a medium is on its way.
    pub fn writes(&mut self, part: &'static str) {
        let Some(aim) = self.aim.as_mut().filter(|aim| aim.part == part) else { return };
        aim.passes -= 1;
        if aim.passes == 0 {
            self.calls.crash_in(Some(aim.calls));
            self.aim = None;
        }
    }

    /// Adds to the trace.
    pub fn note(&mut self, what: &str, place: u64, len: u64) {
        let kind = what.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        self.trace = [self.now, kind, place, len].iter().fold(self.trace, |t, v| mix(t ^ v));
        if self.loud {
            eprintln!("{:>12} ns  {:>6}  {what} {place:#x} +{len:#x}", self.now, self.calls.made());
        }
    }

    /// Something will happen after a delay.
    pub fn schedule(&mut self, delay_ns: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((self.now.saturating_add(delay_ns), self.scheduled), event);
    }

    /// How long the next I/O takes, in nanoseconds.
    pub fn latency(&mut self) -> u64 {
        let (low, high) = self.faults.latency_ns;
        let stall = if self.strikes(Fault::Stall) { self.faults.stall_ns } else { 0 };
        self.rng.log_between(low, high) + stall
    }

    /// Whether a fault strikes here.
    pub fn strikes(&mut self, fault: Fault) -> bool {
        let strikes = self.rng.chance(self.faults.rate(fault));
        if strikes {
            self.struck.add(fault);
        }
        strikes
    }

    /// Whether a write or a flush fails here, because of its place or by chance.
    fn change_fails(&mut self, fault: Fault) -> bool {
        let planned = self.fails_in == Some(0);
        self.fails_in = self.fails_in.and_then(|left| left.checked_sub(1));
        if planned {
            self.struck.add(fault);
        }
        planned || self.strikes(fault)
    }

    /// The writes of a killed predecessor will arrive.
    pub fn schedule_late_writes(&mut self) {
        for disk in 0..self.disks.len() {
            for id in self.disks[disk].late().collect::<Vec<_>>() {
                let delay = self.rng.log_between(1_000, 200_000_000);
                self.late_until = self.late_until.max(self.now + delay);
                self.schedule(delay, Event::LateWrite { disk, id });
            }
        }
    }

    /// Wakes a task after `duration`.
    pub fn sleep(&mut self, duration: Duration) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        if self.call("sleep", 0, duration.as_nanos() as u64) != Fate::Dead {
            self.schedule(duration.as_nanos() as u64, Event::Wake(sender));
        }
        receiver
    }

    /// When the next event is due.
    pub fn next_event(&self) -> Option<Moment> {
        self.events.keys().next().map(|&(at, _)| Moment(at))
    }

    /// Lets the next event happen, going forward to its time.
    pub fn fire(&mut self) {
        let Some(((at, _), event)) = self.events.pop_first() else { return };
        self.now = self.now.max(at);
        if self.strikes(Fault::ClockJump) {
            let jump = self.rng.between(1, self.faults.jump_ns.max(1));
            self.now += jump;
            self.jumped += jump;
        }
        match event {
            Event::Wake(sender) => drop(sender.send(())),
            Event::Read { disk, offset, view, done } => self.end_read(disk, offset, view, done),
            Event::Write { disk, id, view, done, point } => {
                self.end_write(disk, id, view, done);
                self.points.passed(point);
            }
            Event::LateWrite { disk, id } => {
                self.note("late write", id, disk as u64);
                self.disks[disk].complete(id);
            }
            Event::Flush { disk, mark, done, point } => {
                self.end_flush(disk, mark, done);
                self.points.passed(Some(point));
            }
            Event::NvramRead { offset, mut view, done } => {
                let nvram = self.nvram.as_ref().expect("a read of what is there");
                let read = view.with_mut(|out| nvram.read(offset, out, &mut self.rng));
                let poisoned = |line| io::Error::other(format!("line {line} is poisoned"));
                finish(view, done, read.map_err(poisoned));
            }
            Event::Persist { id, views, done, point } => {
                self.note("persisted", id, views.len() as u64);
                self.nvram.as_mut().expect("a persist of what is there").complete(id);
                finish(views, done, Ok(()));
                self.points.passed(Some(point));
            }
            Event::Arrival(towards, peer, datagram) => self.arrive(towards, peer, &datagram),
            Event::ServerTurn => self.server_turn(),
        }
    }

    fn arrive(&mut self, towards: Towards, peer: Peer, datagram: &[u8]) {
        match towards {
            Towards::Server => {
                if self.waiting.is_empty() {
                    let delay = self.rng.log_between(100, 50_000);
                    self.schedule(delay, Event::ServerTurn);
                }
                self.waiting.push((peer, datagram.to_vec()));
            }
            Towards::Client => {
                let inbox = self.inboxes.entry(peer).or_default();
                inbox.datagrams.push_back(datagram.to_vec());
                if let Some(waiter) = inbox.waiter.take() {
                    waiter.wake();
                }
            }
        }
    }

    /// Forgets all that was to come; the media stay as they are.
    pub fn stop(&mut self) {
        self.events.clear();
        self.waiting.clear();
        self.inboxes.clear();
        self.server = None;
    }

    /// A turn of the server for which nothing has arrived.
    pub fn hear_server(&mut self, delay_ns: u64) {
        self.schedule(delay_ns, Event::ServerTurn);
    }

    fn server_turn(&mut self) {
        let arrived = std::mem::take(&mut self.waiting);
        self.note("server", 0, arrived.len() as u64);
        let Some(mut server) = self.server.take() else { return };
        let answers = server.turn(Moment(self.now), arrived);
        self.server = Some(server);
        if self.calls.crashed() {
            return;
        }
        for (peer, datagram) in answers {
            self.send(Towards::Client, peer, &datagram.into());
        }
    }

    fn end_read(&mut self, disk: usize, offset: u64, mut view: View, done: Done) {
        let failed = self.strikes(Fault::ReadError);
        // Where the region is, rot is injected on its own ([`super::machine`]).
        if self.disks[disk].is_data(offset) && self.strikes(Fault::BadSector) {
            let failing = Failing::UntilRewritten;
            self.disks[disk].break_sector(offset, view.len(), failing, &mut self.rng);
        }
        let (medium, rng) = (&self.disks[disk], &mut self.rng);
        let result = match view.with_mut(|out| medium.read(offset, out, rng)) {
            Ok(()) if !failed => Ok(()),
            Ok(()) => Err(io::Error::other("injected: read failed")),
            Err(unreadable) => {
                let why = match unreadable.failing {
                    Some(Failing::UntilRewritten) => {
                        self.struck.add(Fault::BadSector);
                        "bad"
                    }
                    Some(Failing::Dead) => {
                        self.struck.add(Fault::DeadSector);
                        "dead"
                    }
                    None => "torn",
                };
                let sector = unreadable.sector;
                Err(io::Error::other(format!("sector {sector} is unreadable: {why}")))
            }
        };
        self.note("read end", offset, u64::from(result.is_ok()));
        finish(view, done, result);
    }

    fn end_write(&mut self, disk: usize, id: WriteId, view: Option<View>, done: Done) {
        // A discard may fail, but that says nothing.
        if let Some(view) = view.as_ref()
            && self.strikes(Fault::DeadSector)
        {
            let (offset, failing) = (self.disks[disk].offset_of(id), Failing::Dead);
            self.disks[disk].break_sector(offset, view.len(), failing, &mut self.rng);
        }
        let medium = &mut self.disks[disk];
        let durable = medium.is_durable(id);
        let result = if medium.hits_dead(id) {
            medium.fail(id, &mut self.rng);
            self.struck.add(Fault::DeadSector);
            Err(io::Error::other("injected: a sector is dead"))
        } else if view.is_some() && self.change_fails(Fault::WriteError)
            || view.is_none() && self.strikes(Fault::WriteError)
        {
            self.disks[disk].fail(id, &mut self.rng);
            self.lose_cached(disk, durable);
            Err(io::Error::other("injected: write failed"))
        } else {
            self.disks[disk].complete(id);
            let cancelled = self.strikes(Fault::CancelledWrite);
            if cancelled { Err(io::Error::from_raw_os_error(ECANCELED)) } else { Ok(()) }
        };
        self.note("write end", id, u64::from(result.is_ok()));
        self.change_failed |= result.is_err() && view.is_some();
        finish(view, done, result);
    }

    /// Where a disk has no durable writes the system flushes it after one, which may be what has
    /// failed.
    fn lose_cached(&mut self, disk: usize, durable: bool) {
        if durable && self.rng.chance(500_000) {
            let medium = &mut self.disks[disk];
            medium.flush_failed(medium.mark(), &mut self.rng);
        }
    }

    fn end_flush(&mut self, disk: usize, mark: Mark, done: Done) {
        let failed = self.change_fails(Fault::FlushError);
        self.note("flush end", mark, u64::from(!failed));
        if failed {
            self.change_failed = true;
            self.disks[disk].flush_failed(mark, &mut self.rng);
            finish((), done, Err(io::Error::other("injected: flush failed")));
        } else {
            if !self.flushes_ignored {
                self.disks[disk].flushed(mark);
            }
            finish((), done, Ok(()));
        }
    }
}

/// Linux: the operation was cancelled.
const ECANCELED: i32 = 125;

/// Gives back what the operation owned, and only then tells its task.
fn finish<T>(owned: T, done: Done, result: io::Result<()>) {
    drop(owned);
    // The task may have gone: the operation took effect all the same.
    drop(done.send(result));
}
