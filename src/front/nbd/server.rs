//! The NBD server: exports, listeners, all connections, and what they share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use nix::sys::socket;
use tokio::sync::{Notify, Semaphore};

use super::connection;
use super::handshake::ExportInfo;
use super::inbox::{LARGE, SMALL};
use super::outbox::{HEADS, Place};
use super::progress::{Patience, Progress, TICK};
use crate::front::export::{Export, PAYLOAD_MAX};
use crate::front::listen::Bound;
use crate::observe::{Counters, Latencies};
use crate::uring::buffers::{ARENA_BLOCK, Buf, BufferPool, PAGE};
use crate::uring::{Listener, Ring, Socket};

/// What clients may use at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more are closed at once.
    pub connections: u32,
    /// Requests of one connection that are not answered.
    pub requests_per_connection: u32,
    /// Requests of all connections that are not answered.
    pub requests: u32,
    /// How long clients may stand still.
    pub patience: Patience,
    /// Bytes of replies that the kernel takes for a client on a unix socket; 0 leaves it at the
    /// system's default. TCP finds its own measure.
    pub send_buffer: usize,
    /// Whether clients may not write at all.
    pub read_only: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            requests_per_connection: 128,
            requests: 16 << 10,
            patience: Patience::default(),
            send_buffer: SEND_BUFFER,
            read_only: false,
        }
    }
}

/// Large replies that fit whole wake their client once; the system's default takes a fifth of one.
const SEND_BUFFER: usize = 2 << 20;
/// Receive buffers that may be grown at a time.
const GROWN_MAX: u32 = 64;
/// The least capacity of the pool for payloads: three quarters of it hold the largest request,
/// unaligned and rounded up to a power of two.
pub const PAYLOADS_MIN: usize = 3 * PAYLOAD_MAX as usize;
/// A payload's buffer larger than this counts against the share of large ones.
const BULK: usize = 64 << 10;
/// How long a drain waits for clients.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// After a failure to accept, the pause before the next attempt.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An NBD server on one ring. Cheap to clone: a handle.
pub struct Server<X: Export>(pub(super) Rc<Shared<X>>);

impl<X: Export> Clone for Server<X> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// What all connections share.
pub(super) struct Shared<X> {
    pub(super) ring: Ring,
    pub(super) limits: Limits,
    pub(super) counters: Rc<Counters>,
    pub(super) latencies: Rc<Latencies>,
    pub(super) exports: RefCell<Vec<X>>,
    pub(super) payloads: Payloads,
    /// Requests of all connections on the way.
    pub(super) requests: Rc<Semaphore>,
    room: Room,
    connections: RefCell<BTreeMap<u64, Member<X>>>,
    /// Exports that have a client which is no connection.
    attached: RefCell<Vec<X>>,
    accepted: Cell<u64>,
    draining: Cell<bool>,
    /// Tells the listeners to end.
    stop: Notify,
    /// Told when a connection ends.
    ended: Notify,
    watching: Cell<bool>,
}

/// A connection as the server sees it.
struct Member<X> {
    /// What it serves, once that was agreed on.
    export: Option<X>,
    /// Whether the watchdog has ended it.
    left: Cell<bool>,
    socket: Socket,
    progress: Rc<Progress>,
}

impl<X: Export> Member<X> {
    fn serves(&self, name: &str) -> bool {
        self.export.as_ref().is_some_and(|export| export.name() == name)
    }
}

impl<X: Export> Server<X> {
    /// A server without exports. Payloads come from `payloads`, which may be shared with others
    /// and has a capacity of at least [`PAYLOADS_MIN`].
    pub fn new(
        ring: &Ring,
        payloads: &BufferPool,
        limits: Limits,
        counters: Rc<Counters>,
        latencies: Rc<Latencies>,
    ) -> io::Result<Self> {
        assert!(payloads.capacity() >= PAYLOADS_MIN, "a pool too small for the largest request");
        Ok(Self(Rc::new(Shared {
            ring: ring.clone(),
            limits,
            counters,
            latencies,
            exports: RefCell::default(),
            payloads: Payloads::new(payloads.clone()),
            requests: Rc::new(Semaphore::new(limits.requests as usize)),
            room: Room::new(limits.connections)?,
            connections: RefCell::default(),
            attached: RefCell::default(),
            accepted: Cell::new(0),
            draining: Cell::new(false),
            stop: Notify::new(),
            ended: Notify::new(),
            watching: Cell::new(false),
        })))
    }

    /// Offers an export from now on. The first one is also the one without a name. Its name and
    /// size are asked for whenever a client wants to know, and may change.
    pub fn add_export(&self, export: X) {
        self.0.exports.borrow_mut().push(export);
    }

    /// Offers these exports to new connections, and no others.
    pub fn replace_exports(&self, exports: Vec<X>) {
        self.0.exports.replace(exports);
    }

    /// Offers the export to no new connection.
    pub fn remove_export(&self, name: &str) {
        self.0.exports.borrow_mut().retain(|export| export.name() != name);
    }

    /// How many clients are connected to the export.
    pub fn clients_of(&self, name: &str) -> usize {
        let connections = self.0.connections.borrow();
        let connected = connections.values().filter(|member| member.serves(name)).count();
        let attached = self.0.attached.borrow();
        connected + attached.iter().filter(|export| export.name() == name).count()
    }

    /// Counts one more client of the export that is no connection, from now on.
    pub fn attach(&self, export: X) {
        self.0.attached.borrow_mut().push(export);
    }

    /// Takes no more requests of those who are connected to the export, and ends their connections
    /// when what has arrived is answered.
    pub fn disconnect(&self, name: &str) {
        for member in self.0.connections.borrow().values().filter(|member| member.serves(name)) {
            end(&member.socket, Shutdown::Read);
        }
    }

    /// Notes what a connection serves.
    pub(super) fn agreed(&self, number: u64, export: &X) {
        if let Some(member) = self.0.connections.borrow_mut().get_mut(&number) {
            member.export = Some(export.clone());
        }
    }

    /// Serves clients there, until the server is drained.
    pub fn listen(&self, bound: Bound) -> io::Result<()> {
        let listener = self.0.ring.listener(bound.as_fd().try_clone_to_owned()?)?;
        let server = self.clone();
        self.0.ring.spawn(async move { server.accept_all(bound, listener).await });
        Ok(())
    }

    /// How many clients are connected.
    pub fn connections_open(&self) -> u64 {
        self.0.connections.borrow().len() as u64
    }

    /// Accepts nobody any more, answers what has arrived, and returns when all connections have
    /// ended.
    ///
    /// Clients that do not take their last replies in time are dropped.
    pub async fn drain(&self) {
        self.0.draining.set(true);
        self.0.stop.notify_waiters();
        self.end_all(Shutdown::Read);
        let deadline = pin!(self.0.ring.sleep(DRAIN_MAX));
        let emptied = pin!(self.emptied());
        if let Either::Left(((), emptied)) = select(deadline, emptied).await {
            self.end_all(Shutdown::Both);
            emptied.await;
        }
    }

    async fn emptied(&self) {
        while self.connections_open() > 0 {
            self.0.ended.notified().await;
        }
    }

    fn end_all(&self, how: Shutdown) {
        for member in self.0.connections.borrow().values() {
            end(&member.socket, how);
        }
    }

    /// Whether the server takes no more requests.
    pub(super) fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    /// What clients are told of the exports now.
    pub(super) fn offer(&self) -> Vec<ExportInfo> {
        let exports = self.0.exports.borrow();
        let info = |export: &X| ExportInfo {
            name: export.name(),
            size: export.size(),
            block_size: export.block_size(),
            payload_max: export.payload_max(),
            read_only: self.0.limits.read_only,
        };
        exports.iter().map(info).collect()
    }

    /// The export of that name, if it is still offered.
    pub(super) fn export(&self, name: &str) -> Option<X> {
        self.0.exports.borrow().iter().find(|export| export.name() == name).cloned()
    }

    /// Room for connections' own buffers.
    pub(super) fn room(&self) -> Room {
        self.0.room.clone()
    }

    async fn accept_all(&self, bound: Bound, listener: Listener) {
        while !self.is_draining() {
            let stop = pin!(self.0.stop.notified());
            let accepted = match select(stop, pin!(listener.accept())).await {
                Either::Left(_) => return,
                Either::Right((accepted, _)) => accepted,
            };
            match accepted {
                Ok(socket) => {
                    if !bound.is_tcp() && self.0.limits.send_buffer > 0 {
                        socket.set_send_buffer(self.0.limits.send_buffer);
                    }
                    self.admit(socket);
                }
                Err(error) => {
                    tracing::warn!("{bound}: a client could not be accepted: {error}");
                    self.0.ring.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, socket: Socket) {
        let counters = &self.0.counters;
        counters.connections.increment();
        if self.connections_open() >= u64::from(self.0.limits.connections) {
            counters.connections_dropped.increment();
            tracing::warn!("a client is turned away: {} are connected", self.connections_open());
            return;
        }
        let number = self.0.accepted.get() + 1;
        self.0.accepted.set(number);
        let progress = Rc::new(Progress::default());
        let member = Member {
            export: None,
            left: Cell::new(false),
            socket: socket.clone(),
            progress: Rc::clone(&progress),
        };
        self.0.connections.borrow_mut().insert(number, member);
        let server = self.clone();
        self.0.ring.spawn(async move {
            connection::serve(&server, number, socket, progress).await;
            server.0.connections.borrow_mut().remove(&number);
            server.0.ended.notify_one();
        });
        if !self.0.watching.replace(true) {
            let server = self.clone();
            self.0.ring.spawn(async move { server.watch().await });
        }
    }

    /// Looks after clients that stand still, while there are any clients.
    async fn watch(&self) {
        while self.connections_open() > 0 {
            self.0.ring.sleep(TICK).await;
            let contended = self.0.payloads.are_contended();
            for (number, member) in self.0.connections.borrow().iter() {
                let stall = member.progress.look(TICK, contended, &self.0.limits.patience);
                if let Some(stall) = stall
                    && !member.left.replace(true)
                {
                    tracing::warn!("connection {number} is dropped: {stall}");
                    self.0.counters.connections_dropped.increment();
                    end(&member.socket, Shutdown::Both);
                }
            }
        }
        self.0.watching.set(false);
    }
}

/// Ends one or both directions at once; whoever waits in them is answered.
pub(super) fn end(socket: &Socket, how: Shutdown) {
    let how = match how {
        Shutdown::Read => socket::Shutdown::Read,
        Shutdown::Write => socket::Shutdown::Write,
        Shutdown::Both => socket::Shutdown::Both,
    };
    // It fails only where the client has ended the connection already.
    let _ = socket::shutdown(socket.as_fd().as_raw_fd(), how);
}

/// Memory for payloads. Large ones share three quarters of it, so that clients that hold large
/// buffers and stand still never keep small requests waiting.
pub(super) struct Payloads {
    pool: BufferPool,
    bulk: Rc<Semaphore>,
    waiting: Cell<u32>,
}

impl Payloads {
    fn new(pool: BufferPool) -> Self {
        let bulk = Rc::new(Semaphore::new(pool.capacity() / PAGE / 4 * 3));
        Self { pool, bulk, waiting: Cell::new(0) }
    }

    /// A buffer of `total` bytes, waiting in order of arrival until there is room.
    pub(super) async fn acquire(&self, total: usize) -> (Buf, Option<Place>) {
        if total <= BULK {
            if let Some(buf) = self.pool.try_acquire(total) {
                return (buf, None);
            }
            return (self.wait(self.pool.acquire(total)).await, None);
        }
        let pages = total.div_ceil(PAGE).next_power_of_two() as u32;
        let place = match Place::try_take(&self.bulk, pages) {
            Some(place) => place,
            None => self.wait(Place::take(&self.bulk, pages)).await,
        };
        let buf = match self.pool.try_acquire(total) {
            Some(buf) => buf,
            None => self.wait(self.pool.acquire(total)).await,
        };
        (buf, Some(place))
    }

    /// Whether anyone waits for memory.
    fn are_contended(&self) -> bool {
        self.waiting.get() > 0
    }

    /// Waits for something while being counted as one who waits.
    pub(super) async fn wait<T>(&self, for_what: impl Future<Output = T>) -> T {
        self.waiting.set(self.waiting.get() + 1);
        let got = for_what.await;
        self.waiting.set(self.waiting.get() - 1);
        got
    }
}

/// Memory for connections' own buffers: a small receive buffer and the heads of replies for each,
/// and some large receive buffers for those who are busy. Cheap to clone: a handle.
#[derive(Clone)]
pub(super) struct Room(Rc<RoomInner>);

struct RoomInner {
    pool: BufferPool,
    grown: Cell<u32>,
}

impl Room {
    fn new(connections: u32) -> io::Result<Self> {
        let capacity =
            connections as usize * (SMALL + HEADS) + GROWN_MAX as usize * (LARGE + SMALL);
        let capacity = capacity.next_multiple_of(ARENA_BLOCK);
        let pool = BufferPool::new(capacity, capacity)?;
        Ok(Self(Rc::new(RoomInner { pool, grown: Cell::new(0) })))
    }

    /// A buffer to receive into.
    pub(super) fn small(&self) -> Option<Buf> {
        self.0.pool.try_acquire(SMALL)
    }

    /// A larger one, where there are few enough of them.
    pub(super) fn large(&self) -> Option<Buf> {
        if self.0.grown.get() == GROWN_MAX {
            return None;
        }
        let buf = self.0.pool.try_acquire(LARGE)?;
        self.0.grown.set(self.0.grown.get() + 1);
        Some(buf)
    }

    /// A large one is given back.
    pub(super) fn gave_large_back(&self) {
        self.0.grown.set(self.0.grown.get() - 1);
    }

    /// A buffer for the heads of replies.
    pub(super) fn heads(&self) -> Option<Buf> {
        self.0.pool.try_acquire(HEADS)
    }
}
