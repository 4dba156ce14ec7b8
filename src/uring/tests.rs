//! The ring at work on the kernel of this machine.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::{join, join_all};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{SockaddrIn, getsockname};
use tokio::sync::oneshot;

use super::buffers::{ARENA_BLOCK, Buf, BufferPool};
use super::{Ring, RingOptions, Socket};
use crate::env::Durability;

const SMALL: RingOptions =
    RingOptions { entries: 4, files: 8, poll: Duration::ZERO, kernel_thread: None };

/// Runs a test on a ring of its own, and takes the ring down.
fn on_ring<F: Future<Output = ()> + 'static>(test: impl FnOnce(Ring) -> F) {
    let ring = Ring::new(&SMALL).unwrap();
    ring.block_on(test(ring.clone()));
    ring.shutdown();
    assert_eq!(ring.in_flight(), 0);
    assert_eq!(Rc::strong_count(ring.core()), 1, "something still holds the ring");
}

fn pool() -> BufferPool {
    BufferPool::new(8 * ARENA_BLOCK, 4 * ARENA_BLOCK).unwrap()
}

fn filled(pool: &BufferPool, len: usize, byte: u8) -> Buf {
    let mut buf = pool.try_acquire(len).unwrap();
    buf.as_mut_slice().fill(byte);
    buf
}

fn temporary() -> File {
    tempfile::tempfile().unwrap()
}

fn poll_once<T>(future: &mut Pin<Box<impl Future<Output = T> + ?Sized>>) -> Poll<T> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn pair(ring: &Ring) -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ring.socket(ours).unwrap(), theirs)
}

/// Goal: many more operations than the queue has entries all end, with the right bytes.
#[test]
fn more_operations_than_entries() {
    on_ring(|ring| async move {
        let pool = pool();
        let file = ring.register_file(temporary());
        let writes = (0..500u64).map(|i| {
            let view = filled(&pool, 4096, i as u8).view_all();
            ring.write_at(&file, i * 4096, view, Durability::Volatile)
        });
        for ended in join_all(writes).await {
            ended.unwrap();
        }
        ring.fsync(&file, true).await.unwrap();
        let reads = (0..500u64).map(|i| {
            let mut buf = filled(&pool, 4096, 0xee);
            let (ring, file) = (ring.clone(), file.clone());
            async move {
                ring.read_at(&file, i * 4096, buf.view_all()).await.unwrap();
                assert!(buf.as_slice().iter().all(|&byte| byte == i as u8));
            }
        });
        join_all(reads).await;
    });
}

/// Goal: more answers at once than the completion queue holds all arrive.
#[test]
fn more_answers_than_the_queue_holds() {
    on_ring(|ring| async move {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        let fd = ring.register_file(event.as_fd().try_clone_to_owned().unwrap());
        let polls = (0..300).map(|_| ring.readable(&fd));
        let ring = ring.clone();
        let trigger = async move {
            ring.sleep(Duration::from_millis(5)).await;
            event.write(1).unwrap();
        };
        let (ended, ()) = join(join_all(polls), trigger).await;
        assert!(ended.into_iter().all(|ended| ended.is_ok()));
    });
}

/// Goal: registered buffers carry the same bytes as others, durable writes among them.
#[test]
fn registered_buffers_work() {
    on_ring(|ring| async move {
        let pool = pool();
        ring.register_buffers(&pool);
        let file = ring.register_file(temporary());
        let mut buf = filled(&pool, 100_000, 9);
        assert_eq!(buf.view_all().registered(), Some(0));
        ring.write_at(&file, 0, buf.view(0..50_000), Durability::Durable).await.unwrap();
        let mut back = filled(&pool, 50_000, 0);
        ring.read_at(&file, 0, back.view_all()).await.unwrap();
        assert!(back.as_slice().iter().all(|&byte| byte == 9));
        drop((buf, back));
        assert_eq!(pool.available(), pool.capacity());
    });
}

/// Goal: the end of the file before the end of the buffer is an error, not stale bytes.
#[test]
fn a_short_file_is_an_error() {
    on_ring(|ring| async move {
        let pool = pool();
        let mut file = temporary();
        file.write_all(&[1; 5000]).unwrap();
        let file = ring.register_file(file);
        let error = ring.read_at(&file, 4096, filled(&pool, 4096, 0).view_all()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains("3192 bytes early"), "{error}");
        ring.read_at(&file, 0, filled(&pool, 5000, 0).view_all()).await.unwrap();
    });
}

/// Goal: a hole reads as zeros; the kernel's refusals arrive as errors.
#[test]
fn holes_and_refusals() {
    on_ring(|ring| async move {
        let pool = pool();
        let path = tempfile::NamedTempFile::new().unwrap();
        let file = OpenOptions::new().read(true).write(true).open(path.path()).unwrap();
        let file = ring.register_file(file);
        let mut buf = filled(&pool, 8192, 5);
        ring.write_at(&file, 0, buf.view_all(), Durability::Volatile).await.unwrap();
        ring.punch_hole(&file, 4096, 4096).await.unwrap();
        ring.read_at(&file, 0, buf.view_all()).await.unwrap();
        assert!(buf.as_slice()[..4096].iter().all(|&byte| byte == 5));
        assert!(buf.as_slice()[4096..].iter().all(|&byte| byte == 0));
        assert!(ring.discard_blocks(&file, 0, 4096).await.is_err());
        let read_only = ring.register_file(File::open(path.path()).unwrap());
        let view = buf.view_all();
        let error = ring.write_at(&read_only, 0, view, Durability::Volatile).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EBADF));
    });
}

/// Goal: memory of a dropped write stays out of use until the kernel has answered.
#[test]
fn a_dropped_write_keeps_its_memory() {
    on_ring(|ring| async move {
        let pool = pool();
        let file = ring.register_file(temporary());
        let mut buf = filled(&pool, 4096, 3);
        let mut write = Box::pin(ring.write_at(&file, 0, buf.view_all(), Durability::Volatile));
        assert!(poll_once(&mut write).is_pending());
        drop(write);
        assert!(!buf.is_idle());
        while ring.in_flight() > 0 {
            ring.sleep(Duration::from_millis(1)).await;
        }
        assert!(buf.is_idle());
    });
}

/// Goal: dropped operations that would wait for ever are cancelled and give up all they held.
#[test]
fn dropped_waits_are_cancelled() {
    on_ring(|ring| async move {
        let pool = pool();
        let directory = tempfile::tempdir().unwrap();
        let listener = ring.listen_unix(&directory.path().join("socket")).unwrap();
        let (socket, mut theirs) = pair(&ring);
        let view = filled(&pool, 4096, 0).view_all();
        let mut waits: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
        waits.push(Box::pin(async move { drop(listener.accept().await) }));
        let receiver = socket.clone();
        waits.push(Box::pin(async move { drop(receiver.receive(view).await) }));
        let views: Vec<_> = (0..1000).map(|_| filled(&pool, 8192, 1).view_all()).collect();
        waits.push(Box::pin(async move { drop(socket.send_all(views).await) }));
        for wait in &mut waits {
            assert!(poll_once(wait).is_pending());
        }
        ring.sleep(Duration::from_millis(5)).await;
        drop(waits);
        while ring.in_flight() > 0 {
            ring.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(pool.available(), pool.capacity());
        // The connection was closed with its last operation: its peer reads to an end.
        theirs.read_to_end(&mut Vec::new()).unwrap();
    });
}

/// Goal: a connection that came just before its accept was dropped is closed, not leaked.
#[test]
fn a_connection_that_nobody_takes_is_closed() {
    on_ring(|ring| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = ring.listen_unix(&path).unwrap();
        let mut accept = Box::pin(listener.accept());
        assert!(poll_once(&mut accept).is_pending());
        let mut client = UnixStream::connect(&path).unwrap();
        while ring.in_flight() > 0 {
            ring.sleep(Duration::from_millis(1)).await;
        }
        drop(accept);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    });
}

/// Goal: a wake from another thread ends the ring's sleep.
#[test]
fn another_thread_wakes_a_sleeping_ring() {
    on_ring(|_| async move {
        for _ in 0..3 {
            let (sender, receiver) = oneshot::channel();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                sender.send(5).unwrap();
            });
            assert_eq!(receiver.await, Ok(5));
            thread.join().unwrap();
        }
    });
}

/// Goal: timers fire in order of their deadlines, not early, and dropped ones not at all.
#[test]
fn timers_fire_in_order() {
    on_ring(|ring| async move {
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut waits = Vec::new();
        for ms in [30u64, 10, 20, 10, 0] {
            let (sleep, order) = (ring.sleep(Duration::from_millis(ms)), Rc::clone(&order));
            waits.push(async move {
                sleep.await;
                order.borrow_mut().push(ms);
            });
        }
        let mut dropped = Box::pin(ring.sleep(Duration::from_secs(3600)));
        assert!(poll_once(&mut dropped).is_pending());
        drop(dropped);
        let start = ring.now_ns();
        join_all(waits).await;
        assert!(ring.now_ns() - start >= 29_000_000);
        assert_eq!(*order.borrow(), [0, 10, 10, 20, 30]);
        assert_eq!(ring.core().timers.borrow().first_due_in(), None);
    });
}

/// Goal: a stream carries all bytes in order whatever the sizes of its pieces, and then ends.
#[test]
fn a_stream_arrives_whole() {
    on_ring(|ring| async move {
        let pool = pool();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, receiver) = (ring.socket(ours).unwrap(), ring.socket(theirs).unwrap());
        let mut sent = filled(&pool, ARENA_BLOCK, 0);
        for (i, byte) in sent.as_mut_slice().iter_mut().enumerate() {
            *byte = (i * 7 / 5) as u8;
        }
        let pieces: Vec<_> = (0..2048).map(|i| sent.view(i * 1000..(i + 1) * 1000)).collect();
        let tail = sent.view(2_048_000..ARENA_BLOCK);
        let send = async move {
            sender.send_all(pieces).await.unwrap();
            sender.send(tail).await.unwrap();
            sender.shutdown(Shutdown::Write).await.unwrap();
        };
        let mut received = filled(&pool, ARENA_BLOCK, 0);
        let (head, rest) = (received.view(0..28), received.view(28..ARENA_BLOCK));
        let end = filled(&pool, 1, 0).view_all();
        let receive = async move {
            receiver.receive_exact(head).await.unwrap();
            receiver.receive_exact(rest).await.unwrap();
            assert_eq!(receiver.receive(end).await.unwrap(), 0);
        };
        join(send, receive).await;
        assert!(sent.as_slice() == received.as_slice());
    });
}

/// Goal: connections over TCP and unix sockets come about, and report what became of the peer.
#[test]
fn connections_come_and_go() {
    on_ring(|ring| async move {
        let pool = pool();
        let listener = ring.listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address: SockaddrIn =
            getsockname(std::os::fd::AsRawFd::as_raw_fd(&listener.as_fd())).unwrap();
        let address = std::net::SocketAddrV4::from(address).into();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let unix = ring.listen_unix(&path).unwrap();
        let (a, b) = join(listener.accept(), ring.connect_tcp(address)).await;
        let (c, d) = join(unix.accept(), ring.connect_unix(&path)).await;
        for (server, client) in [(a.unwrap(), b.unwrap()), (c.unwrap(), d.unwrap())] {
            client.send(filled(&pool, 10, 4).view_all()).await.unwrap();
            drop(client);
            let mut buf = filled(&pool, 20, 0);
            assert_eq!(server.receive(buf.view(5..20)).await.unwrap(), 10);
            assert_eq!(buf.as_slice()[4..16], [0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 0]);
            let error = server.receive_exact(buf.view_all()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        }
        let error = ring.connect_unix(&directory.path().join("none")).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
}

/// Goal: a peer that is gone is an error of the send, not a signal or a stall.
#[test]
fn a_send_to_nobody_fails() {
    on_ring(|ring| async move {
        let pool = pool();
        let (socket, theirs) = pair(&ring);
        drop(theirs);
        let error = socket.send(filled(&pool, 10, 0).view_all()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        let error = socket.send_all(vec![filled(&pool, 10, 0).view_all()]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    });
}

/// Goal: files beyond the table of registered ones work like the others.
#[test]
fn the_table_of_files_may_be_full() {
    on_ring(|ring| async move {
        let pool = pool();
        for _round in 0..2 {
            let files: Vec<_> = (0..12).map(|_| ring.register_file(temporary())).collect();
            for (i, file) in files.iter().enumerate() {
                let mut buf = filled(&pool, 4096, i as u8);
                ring.write_at(file, 0, buf.view_all(), Durability::Volatile).await.unwrap();
                ring.read_at(file, 0, buf.view_all()).await.unwrap();
                assert_eq!(buf.as_slice()[0], i as u8);
            }
        }
    });
}

/// Goal: tasks that never end do not keep a ring from being taken down.
#[test]
fn shutdown_ends_tasks_that_own_the_ring() {
    let ring = Ring::new(&SMALL).unwrap();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let socket = ring.socket(ours).unwrap();
    let pool = pool();
    let view = filled(&pool, 4096, 0).view_all();
    let handle = ring.clone();
    ring.spawn(async move {
        let _ = socket.receive(view).await;
        handle.sleep(Duration::from_secs(3600)).await;
    });
    let handle = ring.clone();
    ring.block_on(async move { handle.sleep(Duration::from_millis(1)).await });
    assert_eq!(ring.in_flight(), 1);
    ring.shutdown();
    assert_eq!((ring.in_flight(), Rc::strong_count(ring.core())), (0, 1));
    assert_eq!(pool.available(), pool.capacity());
}
