//! Datagram sockets: UDP, received by one operation that goes on answering, into memory that the
//! kernel chooses from a ring of buffers.
//!
//! # Contracts
//!
//! - **Cancellation**: dropping the future of a receive loses nothing: what has arrived waits for
//!   the next one. Dropping the socket ends its operations.
//! - **Loss**: while all buffers are full, datagrams wait in the kernel's socket buffer; what does
//!   not fit there is lost, as on any network. So is what is sent while [`SENDS_MAX`] datagrams
//!   wait for room, and what the network refuses.
//! - **Size**: a datagram that is larger than a buffer is dropped and counted.
//! - **Lifetime**: the buffers belong to the receive until the kernel has answered it for the last
//!   time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll, Waker};

use io_uring::types::{BufRingEntry, RecvMsgOut};
use io_uring::{cqueue, opcode};
use memmap2::MmapMut;
use nix::libc;
use nix::sys::socket::{SockaddrLike, SockaddrStorage, setsockopt, sockopt};

use super::fd::Fd;
use super::operation::{Held, OnDrop, Operation};
use super::ring::{Core, Ring};
use super::socket::set_blocking;

/// How many datagrams may wait to be sent; more are lost.
pub const SENDS_MAX: usize = 4096;
/// What the kernel is asked to keep of what arrives while nobody looks, in bytes.
const SOCKET_BUFFER_LEN: usize = 8 << 20;
/// What the kernel writes before a payload: a header, and the address in full width.
const PREFIX_LEN: usize = 16 + size_of::<libc::sockaddr_storage>();

/// How a datagram socket receives.
#[derive(Clone, Copy, Debug)]
pub struct DatagramOptions {
    /// The largest datagram that is taken, in bytes.
    pub payload_max: usize,
    /// How many datagrams the ring takes before anybody looks; a power of two.
    pub buffers: u16,
}

/// A datagram socket.
pub struct Datagrams {
    core: Rc<Core>,
    fd: Fd,
    arrivals: Rc<Arrivals>,
    /// The receive that goes on; `None` until somebody asks, and when the kernel has ended it.
    receive: RefCell<Option<Operation>>,
    sending: Rc<Cell<usize>>,
    oversized: Cell<u64>,
}

/// A datagram that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Where it came from.
    pub from: SocketAddr,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// What the kernel fills, and which of it is filled. It is held by the receive that uses it.
pub(super) struct Arrivals {
    header: Box<libc::msghdr>,
    buffers: Buffers,
    /// The filled buffers, oldest first.
    filled: RefCell<VecDeque<u16>>,
    waker: RefCell<Option<Waker>>,
    group: u16,
    core: Weak<Core>,
}

/// Equal buffers, and the ring in which the kernel is told of those that are empty.
struct Buffers {
    ring: MmapMut,
    memory: MmapMut,
    size: usize,
    count: u16,
    tail: Cell<u16>,
}

/// A datagram on its way out, at an address that stays while the kernel reads it.
pub(super) struct Outgoing {
    header: libc::msghdr,
    piece: libc::iovec,
    to: Option<SockaddrStorage>,
    bytes: Vec<u8>,
    sending: Rc<Cell<usize>>,
}

impl Ring {
    /// Takes over a UDP socket. Needs Linux 6.0.
    pub fn datagrams(&self, socket: UdpSocket, options: DatagramOptions) -> io::Result<Datagrams> {
        enlarge_buffers(&socket);
        let fd = socket.into();
        set_blocking(&fd)?;
        let core = self.core();
        let arrivals = Rc::new(Arrivals::register(core, options)?);
        Ok(Datagrams {
            core: Rc::clone(core),
            fd: self.register_file(fd),
            arrivals,
            receive: RefCell::new(None),
            sending: Rc::default(),
            oversized: Cell::new(0),
        })
    }
}

/// Asks for room in the kernel: as much as is wanted where we may, else as much as we may.
fn enlarge_buffers(socket: &UdpSocket) {
    // A socket with less room loses more, which is what datagrams may do.
    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER_LEN).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER_LEN);
    }
    if setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER_LEN).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER_LEN);
    }
}

impl Datagrams {
    /// The next datagram. One caller at a time. What a network says of its own state (nobody
    /// listens there, no route) is no error: it is silence.
    pub fn receive(&self) -> impl Future<Output = io::Result<Arrived>> + '_ {
        poll_fn(|cx| self.poll_receive(cx))
    }

    /// A datagram that has arrived already.
    pub fn try_receive(&self) -> Option<Arrived> {
        loop {
            let id = self.arrivals.filled.borrow_mut().pop_front()?;
            let arrived = self.arrivals.parse(id);
            self.arrivals.buffers.give(id);
            match arrived {
                Some(arrived) => return Some(arrived),
                None => self.oversized.set(self.oversized.get() + 1),
            }
        }
    }

    /// Sends one datagram, at the end of this turn of the ring; to whom the socket is connected
    /// where no address is given.
    pub fn send(&self, to: Option<SocketAddr>, bytes: Vec<u8>) {
        if self.sending.get() >= SENDS_MAX {
            return;
        }
        let mut outgoing = Outgoing::new(to, bytes, &self.sending);
        let header = outgoing.prepare();
        let entry = opcode::SendMsg::new(self.fd.number(), header)
            .flags(libc::MSG_NOSIGNAL.cast_unsigned())
            .build();
        let (file, held) = (Some(self.fd.clone()), Held::Outgoing(outgoing));
        // Nobody waits for it: it ends by itself, and nobody is told how.
        drop(Operation::start(&self.core, file, held, OnDrop::Await, entry));
    }

    /// How many datagrams were dropped because they were larger than a buffer.
    pub fn oversized(&self) -> u64 {
        self.oversized.get()
    }

    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Arrived>> {
        loop {
            if let Some(arrived) = self.try_receive() {
                return Poll::Ready(Ok(arrived));
            }
            let mut receive = self.receive.borrow_mut();
            let operation = receive.get_or_insert_with(|| self.arm());
            match Pin::new(operation).poll(cx) {
                Poll::Ready((ended, _)) => {
                    *receive = None;
                    drop(receive);
                    if let Err(error) = ended
                        && !is_passing(&error)
                    {
                        return Poll::Ready(Err(error));
                    }
                }
                Poll::Pending => {
                    *self.arrivals.waker.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }

    /// Starts a receive that goes on until the kernel has no empty buffer.
    fn arm(&self) -> Operation {
        let header = &raw const *self.arrivals.header;
        let entry =
            opcode::RecvMsgMulti::new(self.fd.number(), header, self.arrivals.group).build();
        let (file, held) = (Some(self.fd.clone()), Held::Arrivals(Rc::clone(&self.arrivals)));
        Operation::start(&self.core, file, held, OnDrop::Cancel, entry)
    }
}

/// Whether a receive that ended so may simply be started again: the buffers were full, it was
/// interrupted, or the network told of something that was sent before.
fn is_passing(error: &io::Error) -> bool {
    let passing = [
        libc::ENOBUFS,
        libc::EINTR,
        libc::ECONNREFUSED,
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
        libc::ENETDOWN,
        libc::EMSGSIZE,
        libc::EPERM,
    ];
    error.raw_os_error().is_some_and(|errno| passing.contains(&errno))
}

impl Arrivals {
    fn register(core: &Rc<Core>, options: DatagramOptions) -> io::Result<Self> {
        let buffers = Buffers::new(PREFIX_LEN + options.payload_max, options.buffers)?;
        // SAFETY: msghdr is a plain C struct of pointers and lengths; all zero means empty.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        let group = core.register_buffer_ring(buffers.ring.as_ptr() as u64, buffers.count)?;
        (0..buffers.count).for_each(|id| buffers.give(id));
        let (filled, waker) = (RefCell::default(), RefCell::default());
        let core = Rc::downgrade(core);
        Ok(Arrivals { header, buffers, filled, waker, group, core })
    }

    /// Takes one of the kernel's answers to the receive.
    pub(super) fn arrived(&self, flags: u32) {
        if let Some(id) = cqueue::buffer_select(flags) {
            self.filled.borrow_mut().push_back(id);
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// What is in a filled buffer; `None` where not all of it is there.
    fn parse(&self, id: u16) -> Option<Arrived> {
        let message = RecvMsgOut::parse(self.buffers.filled(id), &self.header).ok()?;
        let whole = !message.is_payload_truncated() && !message.is_name_data_truncated();
        let from = address(message.name_data()).filter(|_| whole)?;
        Some(Arrived { from, bytes: message.payload_data().to_vec() })
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        // Without a ring, or with one that ends, nothing is registered any more.
        if let Some(core) = self.core.upgrade() {
            core.unregister_buffer_ring(self.group);
        }
    }
}

impl Buffers {
    fn new(size: usize, count: u16) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "a ring of {count} buffers");
        // The kernel wants the ring to start with a page, which a mapping does.
        let ring = MmapMut::map_anon(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = MmapMut::map_anon(usize::from(count) * size)?;
        Ok(Buffers { ring, memory, size, count, tail: Cell::new(0) })
    }

    fn start(&self, id: u16) -> *const u8 {
        assert!(id < self.count, "buffer {id} of {}", self.count);
        self.memory.as_ptr().wrapping_add(usize::from(id) * self.size)
    }

    /// The bytes of a buffer that the kernel has filled and that was not given back yet.
    fn filled(&self, id: u16) -> &[u8] {
        // SAFETY: the memory is ours and mapped, zero where nobody wrote; the kernel has handed
        // this buffer over and does not touch it before it is given back, after the use of this.
        unsafe { std::slice::from_raw_parts(self.start(id), self.size) }
    }

    /// Tells the kernel that a buffer is empty.
    #[expect(clippy::cast_ptr_alignment, reason = "a mapping starts with a page")]
    fn give(&self, id: u16) {
        let entries = self.ring.as_ptr().cast::<BufRingEntry>().cast_mut();
        let index = usize::from(self.tail.get() & (self.count - 1));
        // SAFETY: the entry is inside of the mapping, which nothing else in this process refers
        // to; the kernel reads it only once the tail says that it is there.
        unsafe {
            let entry = entries.add(index);
            (*entry).set_addr(self.start(id) as u64);
            (*entry).set_len(self.size as u32);
            (*entry).set_bid(id);
        }
        self.tail.set(self.tail.get().wrapping_add(1));
        // SAFETY: the tail lies in the mapping, is aligned, and is shared with the kernel alone,
        // which reads it atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut()) };
        tail.store(self.tail.get(), Ordering::Release);
    }
}

impl Outgoing {
    fn new(to: Option<SocketAddr>, bytes: Vec<u8>, sending: &Rc<Cell<usize>>) -> Box<Self> {
        sending.set(sending.get() + 1);
        // SAFETY: both are plain C structs of pointers and lengths; all zero means empty.
        let (header, piece) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let to = to.map(SockaddrStorage::from);
        Box::new(Outgoing { header, piece, to, bytes, sending: Rc::clone(sending) })
    }

    /// Points the header at address and bytes, which stay where they are from here on.
    fn prepare(&mut self) -> *const libc::msghdr {
        self.piece.iov_base = self.bytes.as_mut_ptr().cast();
        self.piece.iov_len = self.bytes.len();
        self.header.msg_iov = &raw mut self.piece;
        self.header.msg_iovlen = 1;
        if let Some(to) = &self.to {
            self.header.msg_name = to.as_ptr().cast_mut().cast();
            self.header.msg_namelen = to.len();
        }
        &raw const self.header
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.sending.set(self.sending.get() - 1);
    }
}

/// The address that the kernel has written: a `sockaddr_in` or a `sockaddr_in6`.
fn address(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*name.first_chunk()?);
    let port = u16::from_be_bytes(name.get(2..4)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = name.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::from((Ipv4Addr::from(ip), port)))
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(name.get(4..8)?.try_into().ok()?);
            let ip: [u8; 16] = name.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(name.get(24..28)?.try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::RingOptions;
    use super::*;

    const SMALL: DatagramOptions = DatagramOptions { payload_max: 2000, buffers: 8 };

    fn bound(ring: &Ring, address: &str, options: DatagramOptions) -> (Datagrams, SocketAddr) {
        let socket = UdpSocket::bind(address).unwrap();
        let at = socket.local_addr().unwrap();
        (ring.datagrams(socket, options).unwrap(), at)
    }

    fn bytes(number: u32) -> Vec<u8> {
        number.to_le_bytes().repeat(1 + number as usize % 400)
    }

    /// Goal: many more datagrams than there are buffers arrive, whole, in order and once, with the
    /// address of who sent them; answers find their way; over IPv4 and IPv6.
    #[test]
    fn datagrams_arrive() {
        const COUNT: u32 = 1000;
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let ring = Ring::new(&RingOptions::default()).unwrap();
            let (server, at) = bound(&ring, address, SMALL);
            let (client, own) = bound(&ring, address, SMALL);
            ring.block_on(async move {
                for burst in 0..COUNT / 50 {
                    let numbers = burst * 50..(burst + 1) * 50;
                    numbers.clone().for_each(|number| client.send(Some(at), bytes(number)));
                    for number in numbers.clone() {
                        let arrived = server.receive().await.unwrap();
                        assert_eq!(arrived, Arrived { from: own, bytes: bytes(number) });
                        server.send(Some(arrived.from), bytes(number + 1));
                    }
                    for number in numbers {
                        let arrived = client.receive().await.unwrap();
                        assert_eq!(arrived, Arrived { from: at, bytes: bytes(number + 1) });
                    }
                }
                assert_eq!((server.oversized(), client.oversized()), (0, 0));
            });
            ring.shutdown();
            assert_eq!(ring.in_flight(), 0);
        }
    }

    /// Goal: what does not fit a buffer is dropped and counted; the largest and the empty datagram
    /// arrive.
    #[test]
    fn sizes_have_their_bound() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let largest = DatagramOptions { payload_max: 65507, buffers: 4 };
        let (small, at_small) = bound(&ring, "127.0.0.1:0", SMALL);
        let (large, at_large) = bound(&ring, "127.0.0.1:0", largest);
        ring.block_on(async move {
            large.send(Some(at_small), vec![1; SMALL.payload_max + 1]);
            large.send(Some(at_small), vec![2; SMALL.payload_max]);
            assert_eq!(small.receive().await.unwrap().bytes, vec![2; SMALL.payload_max]);
            assert_eq!(small.oversized(), 1);
            for len in [0, 65507] {
                small.send(Some(at_large), vec![3; len]);
                assert_eq!(large.receive().await.unwrap().bytes, vec![3; len]);
            }
        });
        ring.shutdown();
    }

    /// Goal: a connected socket outlives that nobody listens, and talks to whoever is bound there
    /// later; a receive that is given up loses nothing.
    #[test]
    fn the_other_end_comes_and_goes() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let first = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = first.local_addr().unwrap();
        drop(first);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(at).unwrap();
        let own = socket.local_addr().unwrap();
        let client = ring.datagrams(socket, SMALL).unwrap();
        let handle = ring.clone();
        ring.block_on(async move {
            client.send(None, vec![1]);
            {
                let receive = std::pin::pin!(client.receive());
                let pause = handle.sleep(std::time::Duration::from_millis(20));
                let ended = futures_util::future::select(receive, pause).await;
                assert!(matches!(ended, futures_util::future::Either::Right(_)), "no error, none");
            }
            let server = UdpSocket::bind(at).unwrap();
            server.send_to(&[2, 3], own).unwrap();
            assert_eq!(client.receive().await.unwrap().bytes, [2, 3]);
            // The kernel tells of one more port that was closed before it takes this.
            client.send(None, vec![4]);
            client.send(None, vec![5]);
            handle.sleep(std::time::Duration::from_millis(1)).await;
            let mut taken = [0; 10];
            let count = server.recv(&mut taken).unwrap();
            assert!(count == 1 && [4, 5].contains(&taken[0]));
        });
        ring.shutdown();
    }

    /// Goal: a socket that is dropped while it waits leaves nothing behind, and the ring can have
    /// more of them.
    #[test]
    fn sockets_come_and_go() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        for _ in 0..20 {
            let (socket, at) = bound(&ring, "127.0.0.1:0", SMALL);
            ring.block_on(async move {
                socket.send(Some(at), vec![7]);
                assert_eq!(socket.receive().await.unwrap().bytes, [7]);
                assert_eq!(socket.try_receive(), None);
            });
        }
        ring.shutdown();
        assert_eq!(ring.in_flight(), 0);
    }
}
