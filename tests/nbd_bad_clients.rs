//! Clients that send garbage, stop half-way, vanish, do not read, or come by the thousand: each
//! harms itself only, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use flipside::front::nbd::Limits;
use flipside::front::nbd::progress::Patience;
use support::device::Device;
use support::memory_server::{MemoryServer, SLOW};
use support::nbd_client::{
    BLOCK_STATUS, Client, ESHUTDOWN, FUA, PAYLOAD_LEN, READ, Stream, TRIM, WRITE, extended_header,
    header, option, option_reply,
};
use support::programs::{PATIENCE, directory, wait_for};
use support::target::{Service, format};

/// Little patience, so that the tests end soon.
fn impatient() -> Limits {
    let patience = Patience {
        handshake: Duration::from_secs(3),
        request: Duration::from_secs(2),
        contended: Duration::from_millis(500),
        replies: Duration::from_secs(4),
        replies_contended: Duration::from_secs(1),
    };
    Limits { patience, ..Limits::default() }
}

fn connect(server: &MemoryServer) -> UnixStream {
    let stream = UnixStream::connect(server.socket()).expect("the server listens");
    Stream::timeout(&stream, Duration::from_secs(20));
    stream
}

/// Whether the server ends the connection, and after how long.
fn ended_after(stream: &mut (impl Read + ?Sized)) -> Duration {
    let begun = Instant::now();
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return begun.elapsed(),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                return begun.elapsed();
            }
            Err(error) => panic!("the server keeps the connection: {error}"),
        }
    }
}

fn assert_all_is_left_behind(server: &MemoryServer) {
    server.wait_for("connections_open", 0);
    server.wait_for("payload_bytes_used", 0);
}

/// Goal: garbage in place of flags, options and requests ends that connection at once.
#[test]
fn garbage() {
    let server = MemoryServer::start(Limits::default());
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 100], b"\0\0\0\x03garbage!garbage!"]
    {
        let mut stream = connect(&server);
        stream.write_all(garbage).unwrap();
        assert!(ended_after(&mut stream) < Duration::from_secs(1));
    }
    let mut client = Client::unix(&server.socket(), "vol0").unwrap();
    client.raw().write_all(&[7; 500]).unwrap();
    assert!(ended_after(client.raw()) < Duration::from_secs(1));
    drop(client);
    for connect in [Client::unix, Client::unix_extended] {
        let mut client = connect(&server.socket(), "vol0").unwrap();
        let extended = client.flags() & 1 << 12 != 0;
        let others = if extended {
            header(READ, 0, 1, 0, 1).into_iter().chain([0; 4]).collect()
        } else {
            extended_header(READ, 0, 1, 0, 1)
        };
        client.raw().write_all(&others).unwrap();
        assert!(ended_after(client.raw()) < Duration::from_secs(1), "the other kind of header");
    }
    assert_all_is_left_behind(&server);
    assert_eq!(server.status("connections_dropped"), 6);
}

/// Goal: a payload beyond all reason ends the connection instead of being waited for.
#[test]
fn absurd_length() {
    let server = MemoryServer::start(Limits::default());
    let mut client = Client::unix(&server.socket(), "vol0").unwrap();
    client.raw().write_all(&header(WRITE, 0, 1, 0, u32::MAX)).unwrap();
    assert!(ended_after(client.raw()) < Duration::from_secs(1));
    for command in [WRITE, TRIM, BLOCK_STATUS] {
        for length in [(32 << 20) + 1, 1 << 32, u64::MAX] {
            let mut client = Client::unix_extended(&server.socket(), "vol0").unwrap();
            let header = extended_header(command, PAYLOAD_LEN, 1, 0, length);
            client.raw().write_all(&header).unwrap();
            assert!(ended_after(client.raw()) < Duration::from_secs(1), "{command}, {length}");
        }
    }
    assert_all_is_left_behind(&server);
}

/// Goal: who agreed on extended headers and takes an export in the old way, which has no reply to
/// say so, is left.
#[test]
fn the_old_way_with_extended_headers() {
    let server = MemoryServer::start(Limits::default());
    let mut stream = connect(&server);
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    option(&mut stream, 11, &[]).unwrap();
    assert_eq!(option_reply(&mut stream).unwrap().0, 1);
    option(&mut stream, 1, b"vol0").unwrap();
    assert!(ended_after(&mut stream) < Duration::from_secs(1));
    assert_all_is_left_behind(&server);
}

/// Goal: a client that vanishes at any byte of a request leaves nothing behind, and a half write
/// is never carried out.
#[test]
fn vanishing() {
    let server = MemoryServer::start(Limits::default());
    for length in [1000, 100_000, 1 << 20, 3 << 20] {
        let compact = (header(WRITE, 0, 1, 0, length), false);
        let extended = (extended_header(WRITE, PAYLOAD_LEN, 1, 0, length.into()), true);
        for (mut message, extended) in [compact, extended] {
            let connect = if extended { Client::unix_extended } else { Client::unix };
            message.resize(message.len() + length as usize, 0xee);
            for sent in [1, 27, 28, 31, 32, 33, 600, message.len() / 2, message.len() - 1] {
                let mut client = connect(&server.socket(), "vol0").unwrap();
                client.raw().write_all(&message[..sent]).unwrap();
            }
        }
    }
    let mut status = extended_header(BLOCK_STATUS, PAYLOAD_LEN, 1, 0, 12);
    status.extend_from_slice(&[0; 11]);
    for sent in [32, 33, 43] {
        let mut client = Client::unix_extended(&server.socket(), "vol0").unwrap();
        client.raw().write_all(&status[..sent]).unwrap();
    }
    for _ in 0..20 {
        let mut client = Client::unix(&server.socket(), "vol0").unwrap();
        client.send(READ, 0, SLOW.start, 4096, &[]).unwrap();
        client.send(READ, 0, 0, 8 << 20, &[]).unwrap();
    }
    assert_all_is_left_behind(&server);
    let mut client = Client::unix(&server.socket(), "vol0").unwrap();
    assert!(client.read(0, 3 << 20).unwrap().iter().all(|&byte| byte == 0));
}

/// Goal: on the real target, a client that has sent half of a write keeps nobody's commit waiting,
/// and its write is whole once it has arrived; clients that vanish in the middle of one change
/// nothing, and the target stops in good order.
#[test]
fn half_a_write_keeps_no_commit_waiting() {
    let dir = directory();
    let device = Device::create(dir.path(), "disk", 256 << 20);
    format(device.path(), &["--volume", "vol0=64M"]);
    let target = Service::new(dir.path(), device.path()).serve();
    let mut good = target.connect("vol0");
    good.write(0, &vec![1; 2 << 20]).unwrap();
    let mut half = target.connect("vol0");
    let mut message = header(WRITE, FUA, 1, 0, 1 << 20);
    message.resize(message.len() + (1 << 20), 2);
    let (first, rest) = message.split_at(message.len() / 2);
    half.raw().write_all(first).unwrap();
    good.write(1 << 20, &[3; 4096]).unwrap();
    good.flush().unwrap();
    assert!(good.read(0, 1 << 20).unwrap() == vec![1; 1 << 20], "half of it was written");
    half.raw().write_all(rest).unwrap();
    half.receive().unwrap().result.unwrap();
    assert!(good.read(0, 1 << 20).unwrap() == vec![2; 1 << 20]);
    message[28..].fill(4);
    for round in 1..=20 {
        let mut vanishing = target.connect("vol0");
        vanishing.raw().write_all(&message[..round * message.len() / 21]).unwrap();
        drop(vanishing);
        good.write_fua(1 << 20, &[5; 4096]).unwrap();
    }
    assert!(good.read(0, 1 << 20).unwrap() == vec![2; 1 << 20], "a half write was carried out");
    drop(half);
    wait_for("the end of the others", PATIENCE, || {
        (target.status().connections_open == 1).then_some(())
    });
    assert!(target.stop().success());
}

/// Goal: who stops in the middle of something is dropped after its time; who idles between two
/// requests is not.
#[test]
fn standing_still() {
    let server = MemoryServer::start(impatient());
    let mut idle = Client::unix(&server.socket(), "vol0").unwrap();
    let mut silent = connect(&server);
    let mut half_option = connect(&server);
    half_option.write_all(b"\0\0\0\x03IHAVEOPT").unwrap();
    let mut half_header = Client::unix(&server.socket(), "vol0").unwrap();
    half_header.raw().write_all(&header(WRITE, 0, 1, 0, 10)[..20]).unwrap();
    let mut half_payload = Client::unix(&server.socket(), "vol0").unwrap();
    half_payload.raw().write_all(&header(WRITE, 0, 1, 0, 1 << 20)).unwrap();
    let mut half_filter = Client::unix_extended(&server.socket(), "vol0").unwrap();
    let filter = extended_header(BLOCK_STATUS, PAYLOAD_LEN, 1, 0, 12);
    half_filter.raw().write_all(&filter).unwrap();
    let begun = Instant::now();
    ended_after(half_header.raw());
    ended_after(half_filter.raw());
    ended_after(half_payload.raw());
    ended_after(&mut half_option);
    assert!(begun.elapsed() > Duration::from_millis(1500), "they had their time");
    assert!(begun.elapsed() < Duration::from_secs(5), "and no more than that");
    ended_after(&mut silent);
    idle.write(0, b"still here").unwrap();
    assert_eq!(server.status("connections_dropped"), 5);
    idle.disconnect().unwrap();
    drop((half_header, half_payload, half_filter));
    assert_all_is_left_behind(&server);
}

/// Goal: clients that hold all memory for large payloads and stand still keep small requests of
/// others from nothing, and large ones only for a short time.
#[test]
fn hoarding_buffers() {
    let server = MemoryServer::start(impatient());
    let mut good = Client::unix(&server.socket(), "vol0").unwrap();
    let mut hoarders: Vec<Client> = (0..3)
        .map(|_| {
            let mut client = Client::unix(&server.socket(), "vol0").unwrap();
            client.raw().write_all(&header(WRITE, 0, 1, 512, 32 << 20)).unwrap();
            client
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    for _ in 0..50 {
        good.write(0, &[1; 4096]).unwrap();
        good.read(0, 4096).unwrap();
    }
    assert!(begun.elapsed() < Duration::from_millis(400), "small requests wait for nobody");
    good.write(0, &vec![2; 8 << 20]).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "large ones wait for a second");
    for hoarder in &mut hoarders {
        ended_after(hoarder.raw());
    }
    drop((good, hoarders));
    assert_all_is_left_behind(&server);
}

/// Goal: a client that sends requests and takes no replies is not read from beyond its places, and
/// is dropped after its time; others are served meanwhile.
#[test]
fn not_reading() {
    let server = MemoryServer::start(impatient());
    let mut deaf = Client::unix(&server.socket(), "vol0").unwrap();
    let requests: Vec<u8> =
        (0..100_000).flat_map(|cookie| header(READ, 0, cookie, 0, 16_384)).collect();
    deaf.raw().timeout(Duration::from_millis(500));
    assert!(deaf.raw().write_all(&requests).is_err(), "all requests were taken");
    let mut good = Client::unix(&server.socket(), "vol0").unwrap();
    for _ in 0..50 {
        good.write(0, &[1; 4096]).unwrap();
    }
    assert!(server.status("payload_bytes_used") <= 200 * 16_384, "replies pile up");
    server.wait_for("connections_open", 1);
    assert_eq!(server.status("connections_dropped"), 1);
    good.disconnect().unwrap();
    assert_all_is_left_behind(&server);
}

/// Goal: a thousand connections at once, all of them used.
#[test]
fn a_thousand_connections() {
    let server = MemoryServer::start(Limits::default());
    let mut clients: Vec<Client> =
        (0..1000).map(|_| Client::unix(&server.socket(), "vol0").unwrap()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(WRITE, 0, index as u64 * 4096, 4096, &[index as u8; 4096]).unwrap();
    }
    for client in &mut clients {
        client.receive().unwrap().result.unwrap();
    }
    for (index, client) in clients.iter_mut().rev().enumerate() {
        let owner = 999 - index;
        let data = client.read(owner as u64 * 4096, 4096).unwrap();
        assert!(data == [owner as u8; 4096]);
    }
    assert_eq!(server.status("connections_open"), 1000);
    drop(clients);
    assert_all_is_left_behind(&server);
}

/// Goal: more connections than the limit are turned away, and there is room again when one leaves.
#[test]
fn too_many_connections() {
    let server = MemoryServer::start(Limits { connections: 3, ..Limits::default() });
    let connect = || Client::unix(&server.socket(), "vol0");
    let mut clients: Vec<Client> = (0..3).map(|_| connect().unwrap()).collect();
    assert!(connect().is_err());
    clients.pop().unwrap().disconnect().unwrap();
    server.wait_for("connections_open", 2);
    connect().unwrap().read(0, 10).unwrap();
}

/// Goal: a shutdown answers what has arrived, ends all connections, and does not wait for those who
/// stand still.
#[test]
fn shutdown() {
    let server = MemoryServer::start(Limits::default());
    let mut busy = Client::unix(&server.socket(), "vol0").unwrap();
    let mut half = Client::unix(&server.socket(), "vol0").unwrap();
    let _silent = connect(&server);
    half.raw().write_all(&header(WRITE, 0, 1, 0, 1 << 20)).unwrap();
    busy.send(READ, 0, SLOW.start, 4096, &[]).unwrap();
    server.wait_for("connections_open", 3);
    let begun = Instant::now();
    server.stop();
    let reply = busy.receive().unwrap();
    assert!(matches!(reply.result, Ok(_) | Err(ESHUTDOWN)));
    ended_after(busy.raw());
    ended_after(half.raw());
    drop(server);
    assert!(begun.elapsed() < Duration::from_secs(2));
}
