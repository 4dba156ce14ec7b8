//! Stream sockets: listeners and connections, over unix sockets and TCP.
//!
//! # Contracts
//!
//! - **Cancellation**: dropping the future of an accept, a receive, a send or a connect cancels it
//!   in the kernel. Bytes that a dropped receive had taken are lost, and nobody knows how much of a
//!   dropped send has left: give the connection up afterwards.
//! - **Ordering**: one receive and one send at a time; two of a kind at once mix their bytes.
//! - **Lifetime**: a connection is closed when its last handle is gone and its last operation has
//!   ended.

use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

use io_uring::opcode;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, setsockopt, socket,
    sockopt,
};

use super::buffers::View;
use super::fd::Fd;
use super::message::{Message, send_entry};
use super::operation::{Held, OnDrop, Operation};
use super::ring::{Core, Ring, ended_early};

/// A send that finds no reader must not raise a signal, and waits for room inside the kernel.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

/// A socket that connections come to. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Listener {
    core: Rc<Core>,
    fd: Fd,
}

/// A connection. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Socket {
    core: Rc<Core>,
    fd: Fd,
}

impl Ring {
    /// Listens on a unix socket. The path must not exist.
    pub fn listen_unix(&self, path: &Path) -> io::Result<Listener> {
        self.listener(UnixListener::bind(path)?)
    }

    /// Listens on a TCP address.
    pub fn listen_tcp(&self, address: SocketAddr) -> io::Result<Listener> {
        self.listener(std::net::TcpListener::bind(address)?)
    }

    /// Takes over a socket that listens already.
    pub fn listener(&self, listening: impl Into<OwnedFd>) -> io::Result<Listener> {
        let fd = listening.into();
        set_blocking(&fd)?;
        Ok(Listener { core: Rc::clone(self.core()), fd: self.register_file(fd) })
    }

    /// Takes over a connection.
    pub fn socket(&self, connected: impl Into<OwnedFd>) -> io::Result<Socket> {
        let fd = connected.into();
        set_blocking(&fd)?;
        Ok(Socket::new(self.core(), fd))
    }

    /// Connects to a unix socket.
    pub fn connect_unix(
        &self,
        path: &Path,
    ) -> impl Future<Output = io::Result<Socket>> + use<> + 'static {
        let address = UnixAddr::new(path).map_err(io::Error::from);
        let core = Rc::clone(self.core());
        async move {
            let address = address?;
            // SAFETY: the address is that of a unix socket, as long as it says it is.
            let storage =
                unsafe { SockaddrStorage::from_raw(address.as_ptr().cast(), Some(address.len())) };
            let storage = storage.ok_or(io::ErrorKind::InvalidInput)?;
            connect(core, AddressFamily::Unix, storage).await
        }
    }

    /// Connects over TCP.
    pub fn connect_tcp(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Socket>> + use<> + 'static {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        connect(Rc::clone(self.core()), family, SockaddrStorage::from(address))
    }
}

async fn connect(
    core: Rc<Core>,
    family: AddressFamily,
    address: SockaddrStorage,
) -> io::Result<Socket> {
    let raw = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let socket = Socket::new(&core, raw);
    let address = Box::new(address);
    let entry = opcode::Connect::new(socket.fd.number(), address.as_ptr(), address.len()).build();
    let (file, held) = (Some(socket.fd.clone()), Held::Address(address));
    Operation::start(&core, file, held, OnDrop::Cancel, entry).await.0?;
    Ok(socket)
}

impl Listener {
    /// The next connection.
    pub fn accept(&self) -> impl Future<Output = io::Result<Socket>> + use<> + 'static {
        let Listener { core, fd } = self.clone();
        async move {
            let null = std::ptr::null_mut();
            let raw = loop {
                let entry = opcode::Accept::new(fd.number(), null, null.cast())
                    .flags(libc::SOCK_CLOEXEC)
                    .build();
                let file = Some(fd.clone());
                let operation = Operation::start(&core, file, Held::NewFile, OnDrop::Cancel, entry);
                match operation.await.0 {
                    Ok(raw) => break raw,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                    Err(error) => return Err(error),
                }
            };
            // SAFETY: the kernel made the descriptor for this accept and told nobody else.
            let raw = unsafe { OwnedFd::from_raw_fd(raw.cast_signed()) };
            Ok(Socket::new(&core, raw))
        }
    }
}

impl Socket {
    fn new(core: &Rc<Core>, raw: OwnedFd) -> Self {
        // Answers are whole messages: waiting for more of them only adds delay. A unix socket
        // refuses the option, and needs none.
        let _ = setsockopt(&raw, sockopt::TcpNoDelay, &true);
        Self { core: Rc::clone(core), fd: Fd::new(core, raw) }
    }

    /// Fills a part of `view`, from its start, with what there is, and says how much; 0 is the end
    /// of the stream (or of the view).
    pub fn receive(&self, view: View) -> impl Future<Output = io::Result<usize>> + use<> + 'static {
        let socket = self.clone();
        async move { socket.receive_with(view, 0).await.map(|(received, _)| received) }
    }

    /// Fills `view`. The end of the stream before that is an error.
    pub fn receive_exact(
        &self,
        mut view: View,
    ) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let socket = self.clone();
        async move {
            while !view.is_empty() {
                let (received, back) = socket.receive_with(view, libc::MSG_WAITALL).await?;
                if received == 0 {
                    return Err(ended_early("the connection", back.len()));
                }
                view = back.narrow(received..back.len());
            }
            Ok(())
        }
    }

    async fn receive_with(&self, mut view: View, flags: i32) -> io::Result<(usize, View)> {
        loop {
            let len = u32::try_from(view.len()).unwrap_or(u32::MAX);
            let entry =
                opcode::Recv::new(self.fd.number(), view.as_ptr(), len).flags(flags).build();
            let (received, held) = self.start(Held::View(view), entry).await;
            let Held::View(back) = held else { unreachable!("a receive gives back its view") };
            match received {
                Ok(received) => return Ok((received as usize, back)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => view = back,
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends all of `view`.
    pub fn send(&self, mut view: View) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let socket = self.clone();
        async move {
            while !view.is_empty() {
                let len = u32::try_from(view.len()).unwrap_or(u32::MAX);
                let entry = opcode::Send::new(socket.fd.number(), view.as_ptr(), len)
                    .flags(SEND_FLAGS)
                    .build();
                let (sent, held) = socket.start(Held::View(view), entry).await;
                let Held::View(back) = held else { unreachable!("a send gives back its view") };
                let sent = sent_or_interrupted(sent)?;
                view = back.narrow(sent..back.len());
            }
            Ok(())
        }
    }

    /// Sends all of `pieces`, one after another, gathered into as few operations as the kernel
    /// allows.
    pub fn send_all<I>(&self, pieces: I) -> impl Future<Output = io::Result<()>> + use<I> + 'static
    where
        I: IntoIterator<Item = View> + 'static,
        I::IntoIter: 'static,
    {
        let socket = self.clone();
        async move {
            let mut pieces = pieces.into_iter();
            let mut message = socket.core.take_message();
            let mut ended = Ok(());
            while ended.is_ok() && message.load(&mut pieces) {
                (ended, message) = socket.send_message(message).await;
            }
            socket.core.keep_message(message);
            ended
        }
    }

    async fn send_message(&self, mut message: Message) -> (io::Result<()>, Message) {
        loop {
            let entry = send_entry(self.fd.number(), &mut message, SEND_FLAGS);
            let (sent, held) = self.start(Held::Message(message), entry).await;
            let Held::Message(back) = held else { unreachable!("a send gives back its message") };
            message = back;
            match sent_or_interrupted(sent) {
                Ok(sent) if message.advance(sent) => return (Ok(()), message),
                Ok(_) => (),
                Err(error) => return (Err(error), message),
            }
        }
    }

    /// Asks for room for so many bytes that were sent and not yet received: beyond the system's
    /// bound where the process may, up to it otherwise.
    pub fn set_send_buffer(&self, bytes: usize) {
        // The kernel doubles what is asked for, as what it keeps beside the bytes counts too.
        let forced = setsockopt(&self.fd, sockopt::SndBufForce, &bytes);
        if let Err(error) = forced.or_else(|_| setsockopt(&self.fd, sockopt::SndBuf, &bytes)) {
            tracing::debug!(%error, "a connection keeps its send buffer");
        }
    }

    /// Ends one or both directions of the connection; whoever waits in them is answered.
    pub fn shutdown(
        &self,
        how: Shutdown,
    ) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let socket = self.clone();
        async move {
            let how = match how {
                Shutdown::Read => libc::SHUT_RD,
                Shutdown::Write => libc::SHUT_WR,
                Shutdown::Both => libc::SHUT_RDWR,
            };
            let entry = opcode::Shutdown::new(socket.fd.number(), how).build();
            socket.start(Held::Nothing, entry).await.0.map(drop)
        }
    }

    fn start(&self, held: Held, entry: io_uring::squeue::Entry) -> Operation {
        Operation::start(&self.core, Some(self.fd.clone()), held, OnDrop::Cancel, entry)
    }
}

/// To ask for the address.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// To ask for the peer or to set options.
impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How much a send has sent: nothing where it was interrupted.
fn sent_or_interrupted(sent: io::Result<u32>) -> io::Result<usize> {
    match sent {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        sent => sent.map(|sent| sent as usize),
    }
}

/// A non-blocking socket would answer "not now" where the ring can wait.
pub(super) fn set_blocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    }
    Ok(())
}
