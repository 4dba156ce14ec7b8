//! Everything outside of the tasks: time, events to come, media, the network.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use tokio::sync::oneshot;

use super::calls::{Calls, Fate};
use super::faults::Faults;
use super::link::{Peer, Server};
use super::medium::{Mark, Medium, WriteId};
use super::nvram::{NvramMedium, PersistId};
use super::rng::{Rng, mix};
use crate::env::Moment;
use crate::uring::buffers::View;

/// Tells a task that its operation has ended.
pub(super) type Done = oneshot::Sender<io::Result<()>>;

/// Something that happens at a time to come.
pub(super) enum Event {
    Wake(oneshot::Sender<()>),
    Read { disk: usize, offset: u64, view: View, done: Done },
    Write { disk: usize, id: WriteId, view: Option<View>, done: Done },
    Flush { disk: usize, mark: Mark, done: Done },
    NvramRead { offset: u64, view: View, done: Done },
    Persist { id: PersistId, views: Vec<View>, done: Done },
    ToServer(Peer, Vec<u8>),
    ServerTurn,
    ToClient(Peer, Vec<u8>),
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
    pub inboxes: BTreeMap<Peer, Inbox>,
    pub server: Option<Box<dyn Server>>,
    /// What has arrived at the server since its last turn.
    waiting: Vec<(Peer, Vec<u8>)>,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    pub calls: Calls,
    /// A hash of all that happened.
    pub trace: u64,
    /// Whether every call is printed.
    pub loud: bool,
}

impl World {
    pub fn new(seed: u64, disks: Vec<Medium>, nvram: Option<NvramMedium>, faults: Faults) -> Self {
        Self {
            now: 0,
            rng: Rng::new(seed),
            faults,
            disks,
            nvram,
            inboxes: BTreeMap::new(),
            server: None,
            waiting: Vec::new(),
            events: BTreeMap::new(),
            scheduled: 0,
            calls: Calls::new(None),
            trace: seed,
            loud: false,
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
        let stall = if self.rng.chance(self.faults.stall_ppm) { self.faults.stall_ns } else { 0 };
        self.rng.log_between(low, high) + stall
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
        match event {
            Event::Wake(sender) => drop(sender.send(())),
            Event::Read { disk, offset, view, done } => self.end_read(disk, offset, view, done),
            Event::Write { disk, id, view, done } => self.end_write(disk, id, view, done),
            Event::Flush { disk, mark, done } => self.end_flush(disk, mark, done),
            Event::NvramRead { offset, mut view, done } => {
                let nvram = self.nvram.as_ref().expect("a read of what is there");
                view.with_mut(|out| nvram.read(offset, out, &mut self.rng));
                finish(view, done, Ok(()));
            }
            Event::Persist { id, views, done } => {
                self.note("persisted", id, views.len() as u64);
                self.nvram.as_mut().expect("a persist of what is there").complete(id);
                finish(views, done, Ok(()));
            }
            Event::ToServer(peer, datagram) => {
                if self.waiting.is_empty() {
                    let delay = self.rng.log_between(100, 50_000);
                    self.schedule(delay, Event::ServerTurn);
                }
                self.waiting.push((peer, datagram));
            }
            Event::ServerTurn => self.server_turn(),
            Event::ToClient(peer, datagram) => {
                let inbox = self.inboxes.entry(peer).or_default();
                inbox.datagrams.push_back(datagram);
                if let Some(waiter) = inbox.waiter.take() {
                    waiter.wake();
                }
            }
        }
    }

    /// Sends a datagram towards the server or a client, as the network lets it.
    pub fn send(&mut self, datagram: &[u8], event: impl Fn(Vec<u8>) -> Event) {
        let copies = 1 + u32::from(self.rng.chance(self.faults.datagram_repeat_ppm));
        for _ in 0..copies {
            if !self.rng.chance(self.faults.datagram_loss_ppm) {
                let (low, high) = self.faults.datagram_ns;
                let delay = self.rng.log_between(low, high);
                self.schedule(delay, event(datagram.to_vec()));
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

    fn server_turn(&mut self) {
        let arrived = std::mem::take(&mut self.waiting);
        self.note("server", 0, arrived.len() as u64);
        let Some(mut server) = self.server.take() else { return };
        let answers = server.turn(arrived);
        self.server = Some(server);
        if self.calls.crashed() {
            return;
        }
        for (peer, datagram) in answers {
            self.send(&datagram, |datagram| Event::ToClient(peer, datagram));
        }
    }

    fn end_read(&mut self, disk: usize, offset: u64, mut view: View, done: Done) {
        let failed = self.rng.chance(self.faults.read_error_ppm);
        let (medium, rng) = (&self.disks[disk], &mut self.rng);
        let result = match view.with_mut(|out| medium.read(offset, out, rng)) {
            Ok(()) if !failed => Ok(()),
            Ok(()) => Err(io::Error::other("injected: read failed")),
            Err(sector) => Err(io::Error::other(format!("sector {sector} is unreadable"))),
        };
        self.note("read end", offset, u64::from(result.is_ok()));
        finish(view, done, result);
    }

    fn end_write(&mut self, disk: usize, id: WriteId, view: Option<View>, done: Done) {
        let failed = self.rng.chance(self.faults.write_error_ppm);
        self.note("write end", id, u64::from(!failed));
        if failed {
            self.disks[disk].fail(id, &mut self.rng);
            finish(view, done, Err(io::Error::other("injected: write failed")));
        } else {
            self.disks[disk].complete(id);
            finish(view, done, Ok(()));
        }
    }

    fn end_flush(&mut self, disk: usize, mark: Mark, done: Done) {
        let failed = self.rng.chance(self.faults.flush_error_ppm);
        self.note("flush end", mark, u64::from(!failed));
        if failed {
            self.disks[disk].flush_failed(mark, &mut self.rng);
            finish((), done, Err(io::Error::other("injected: flush failed")));
        } else {
            self.disks[disk].flushed(mark);
            finish((), done, Ok(()));
        }
    }
}

/// Gives back what the operation owned, and only then tells its task.
fn finish<T>(owned: T, done: Done, result: io::Result<()>) {
    drop(owned);
    // The task may have gone: the operation took effect all the same.
    drop(done.send(result));
}
