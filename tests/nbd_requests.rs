//! NBD over an export in memory: every command, alone and many at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;

use flipside::front::control::{self, ControlError, Request};
use flipside::front::nbd::Limits;
use support::memory_server::{BAD, FULL, MemoryServer, SIZE, SLOW};
use support::nbd_client::{
    BLOCK_STATUS, CACHE, Client, DF, EINVAL, EIO, ENOSPC, ENOTSUP, EOVERFLOW, EPERM, FAST_ZERO,
    FLUSH, FUA, NO_HOLE, PAYLOAD_LEN, READ, REQ_ONE, TRIM, WRITE, WRITE_ZEROES,
};

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Goal: what is written is read, for lengths below, at and above each way a payload can take, at
/// offsets without any alignment, with each framing, over both kinds of socket.
#[test]
fn what_is_written_is_read() {
    let server = MemoryServer::start(Limits::default());
    let mut clients = [
        Client::unix(&server.socket(), "vol0").unwrap(),
        Client::unix_simple(&server.socket(), "vol0").unwrap(),
        Client::tcp(server.port, "vol0").unwrap(),
        Client::unix_extended(&server.socket(), "vol0").unwrap(),
    ];
    for (seed, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.size(), SIZE);
        let lengths = [1, 511, 4096, 16_383, 16_384, 16_385, 65_536, 300_000, 5 << 20, 32 << 20];
        for (index, length) in lengths.into_iter().enumerate() {
            let offset = 1000 * index as u64 + 13 * seed as u64;
            let data = pattern(index as u64 * 31 + seed as u64, length);
            client.write(offset, &data).unwrap();
            assert!(client.read(offset, length as u32).unwrap() == data, "{length} bytes");
        }
        client.flush().unwrap();
        client.write_fua(5, b"durable").unwrap();
        client.trim(0, 3).unwrap();
        client.write_zeroes(5, 3, NO_HOLE).unwrap();
        assert_eq!(client.read(5, 7).unwrap(), b"\0\0\0able");
        assert_eq!(client.read(5, 0).unwrap(), b"");
        client.write(5, b"").unwrap();
    }
    clients.into_iter().for_each(|client| client.disconnect().unwrap());
    server.wait_for("connections_open", 0);
    server.wait_for("payload_bytes_used", 0);
    server.wait_for("flushes_done", 8);
}

/// Goal: exports are apart, and the empty name is the first one.
#[test]
fn exports_are_apart() {
    let server = MemoryServer::start(Limits::default());
    let mut vol0 = Client::unix(&server.socket(), "vol0").unwrap();
    let mut vol1 = Client::unix(&server.socket(), "vol1").unwrap();
    vol0.write(0, b"zero").unwrap();
    vol1.write(0, b"one!").unwrap();
    assert_eq!(Client::unix(&server.socket(), "").unwrap().read(0, 4).unwrap(), b"zero");
    assert_eq!(vol1.read(0, 4).unwrap(), b"one!");
    assert!(Client::unix(&server.socket(), "vol2").is_err());
}

/// Goal: a thousand requests of all sizes on the way at once are each answered once, rightly.
#[test]
fn many_requests_at_once() {
    let server = MemoryServer::start(Limits::default());
    let mut client = Client::unix(&server.socket(), "vol0").unwrap();
    let lengths = [4096, 100, 20_000, 512, 70_000, 4096, 4096, 16_384];
    for round in 0..20u64 {
        let mut waiting = HashMap::new();
        let mut offset = 0;
        for index in 0..50 {
            let length = lengths[index as usize % lengths.len()];
            let data = pattern(round * 1000 + index, length);
            let cookie = client.send(WRITE, 0, offset, length as u32, &data).unwrap();
            waiting.insert(cookie, (offset, data));
            offset += length as u64;
        }
        client.send(FLUSH, 0, 0, 0, &[]).unwrap();
        for _ in 0..51 {
            assert!(client.receive().unwrap().result.is_ok());
        }
        let mut reads = HashMap::new();
        for (offset, data) in waiting.into_values() {
            let cookie = client.send(READ, DF, offset, data.len() as u32, &[]).unwrap();
            reads.insert(cookie, data);
        }
        for _ in 0..50 {
            let reply = client.receive().unwrap();
            assert!(reply.result.unwrap() == reads.remove(&reply.cookie).unwrap());
        }
    }
    assert_eq!(server.status("client_bytes_written"), total(&lengths));
}

fn total(lengths: &[usize]) -> u64 {
    20 * (0..50).map(|index| lengths[index % lengths.len()] as u64).sum::<u64>()
}

/// Goal: replies do not wait for each other: a fast request overtakes a slow one.
#[test]
fn fast_overtakes_slow() {
    let server = MemoryServer::start(Limits::default());
    let mut client = Client::unix(&server.socket(), "vol0").unwrap();
    let slow = client.send(READ, 0, SLOW.start, 512, &[]).unwrap();
    let fast = client.send(READ, 0, 0, 512, &[]).unwrap();
    assert_eq!(client.receive().unwrap().cookie, fast);
    assert_eq!(client.receive().unwrap().cookie, slow);
}

/// Goal: every kind of failure reaches the client as its number, and the connection goes on.
#[test]
fn failures_have_numbers() {
    let server = MemoryServer::start(Limits::default());
    for connect in [Client::unix, Client::unix_simple, Client::unix_extended] {
        let mut client = connect(&server.socket(), "vol0").unwrap();
        let mut errno = |command, flags, offset, length, payload: &[u8]| {
            client.call(command, flags, offset, length, payload).unwrap_err().errno()
        };
        let block = [7; 4096];
        assert_eq!(errno(READ, 0, BAD.start, 10, &[]), Some(EIO));
        assert_eq!(errno(WRITE, 0, BAD.start, 4096, &block), Some(EIO));
        assert_eq!(errno(WRITE, 0, FULL.start, 4096, &block), Some(ENOSPC));
        assert_eq!(errno(READ, 0, SIZE, 1, &[]), Some(EINVAL));
        assert_eq!(errno(READ, 0, u64::MAX, 4096, &[]), Some(EINVAL));
        assert_eq!(errno(READ, 0, 0, (32 << 20) + 1, &[]), Some(EOVERFLOW));
        assert_eq!(errno(WRITE, 0, SIZE - 4095, 4096, &block), Some(ENOSPC));
        assert_eq!(errno(TRIM, 0, SIZE, 1, &[]), Some(EINVAL));
        assert_eq!(errno(WRITE, NO_HOLE, 0, 4096, &block), Some(EINVAL));
        assert_eq!(errno(42, 0, 0, 0, &[]), Some(EINVAL));
        assert!(client.read(0, 512).unwrap().iter().all(|&byte| byte == 0));
    }
    for connect in [Client::unix, Client::unix_simple] {
        let mut client = connect(&server.socket(), "vol0").unwrap();
        let long = vec![0; (32 << 20) + 1];
        let refused = client.call(WRITE, FUA, 0, long.len() as u32, &long).unwrap_err();
        assert_eq!(refused.errno(), Some(EINVAL));
        client.read(0, 512).unwrap();
    }
    assert_eq!(server.status("connections_dropped"), 0);
    server.wait_for("payload_bytes_used", 0);
}

/// Goal: the status of a range is said in runs from its first byte to its last, or in one where
/// one is wanted, and no reply is longer than its bound; only who asked for it gets it.
#[test]
fn block_status() {
    let server = MemoryServer::start(Limits::default());
    let mut client = Client::unix_status(&server.socket(), "vol0").unwrap();
    let good = SIZE as u32 - 12288;
    assert_eq!(client.status(0, 0, good).unwrap(), [(good, 3)]);
    client.write(8192, &[1; 5000]).unwrap();
    assert_eq!(client.status(0, 100, 20_000).unwrap(), [(8092, 3), (8192, 0), (3716, 3)]);
    assert_eq!(client.status(REQ_ONE, 100, 20_000).unwrap(), [(8092, 3)]);
    assert_eq!(client.status(REQ_ONE, 9000, 1).unwrap(), [(1, 0)]);
    for block in 0..600 {
        client.write((1 << 20) + block * 8192, b"x").unwrap();
    }
    let many = client.status(0, 1 << 20, 600 * 8192).unwrap();
    assert_eq!(many.len(), 511);
    assert!(many.iter().all(|run| run.0 == 4096));
    let errno = |result: Result<_, support::nbd_client::Error>| result.unwrap_err().errno();
    assert_eq!(errno(client.status(0, 0, 0)), Some(EINVAL));
    assert_eq!(errno(client.status(0, SIZE, 1)), Some(EINVAL));
    assert_eq!(errno(client.status(0, BAD.start, 1)), Some(EIO));
    for connect in [Client::unix, Client::unix_simple] {
        let mut other = connect(&server.socket(), "vol0").unwrap();
        let refused = other.call(BLOCK_STATUS, 0, 0, 4096, &[]).unwrap_err();
        assert_eq!(refused.errno(), Some(EINVAL));
        other.read(0, 1).unwrap();
    }
    drop(client);
    server.wait_for("payload_bytes_used", 0);
}

/// Goal: with extended headers a status comes in the long form, of the range in the header or in
/// a payload that names the one context; a payload that is anything else is taken and refused, and
/// so is the payload of a command that has none. A write needs no flag to have one.
#[test]
fn extended_payloads() {
    let server = MemoryServer::start(Limits::default());
    let mut client = Client::unix_extended(&server.socket(), "vol0").unwrap();
    assert_eq!(client.flags() & 1 << 12, 1 << 12);
    client.write(8192, &[1; 5000]).unwrap();
    let runs = [(8092, 3), (8192, 0), (3716, 3)];
    assert_eq!(client.status_long(0, 100, 20_000, None).unwrap(), runs);
    let filter = |length: u64, contexts: &[u32]| {
        let contexts = contexts.iter().flat_map(|context| context.to_be_bytes());
        length.to_be_bytes().into_iter().chain(contexts).collect::<Vec<u8>>()
    };
    let good = filter(20_000, &[1]);
    assert_eq!(client.status_long(0, 100, 0, Some(&good)).unwrap(), runs);
    assert_eq!(client.status_long(REQ_ONE, 100, 0, Some(&good)).unwrap(), runs[..1]);
    let bad = [
        filter(20_000, &[]),
        filter(20_000, &[2]),
        filter(20_000, &[1, 1]),
        filter(0, &[1]),
        filter(u64::MAX, &[1]),
        filter(SIZE, &[1]),
        vec![1],
        vec![0; 40_000],
    ];
    for filter in bad {
        let refused = client.status_long(0, 100, 0, Some(&filter)).unwrap_err();
        assert_eq!(refused.errno(), Some(EINVAL), "{} bytes", filter.len());
    }
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, 99] {
        let refused = client.call_long(command, PAYLOAD_LEN, 0, 5000, &[7; 5000]).unwrap_err();
        assert_eq!(refused.errno(), Some(EINVAL), "command {command}");
    }
    client.call_long(WRITE, 0, 0, 4096, &[5; 4096]).unwrap();
    assert_eq!(client.read(4095, 2).unwrap(), [5, 0], "QEMU's writes have no flag");
    for (command, offset, length, errno) in [
        (TRIM, 0, 1 << 40, EINVAL),
        (WRITE_ZEROES, 0, u64::MAX, ENOSPC),
        (WRITE_ZEROES, u64::MAX, u64::MAX, ENOSPC),
        (CACHE, 1, SIZE, EINVAL),
        (BLOCK_STATUS, 4096, 1 << 33, EINVAL),
        (READ, 0, 1 << 32, EOVERFLOW),
    ] {
        let refused = client.call_long(command, 0, offset, length, &[]).unwrap_err();
        assert_eq!(refused.errno(), Some(errno), "command {command}");
    }
    client.call(CACHE, 0, 0, 8192, &[]).unwrap();
    assert_eq!(client.read(8192, 5000).unwrap(), [1; 5000]);
    client.disconnect().unwrap();
    assert_eq!(server.status("connections_dropped"), 0);
    server.wait_for("payload_bytes_used", 0);
}

/// Goal: fast zeros are fast or refused, and a range to cache is looked at.
#[test]
fn fast_zeroes_and_caching() {
    let server = MemoryServer::start(Limits::default());
    let mut client = Client::unix(&server.socket(), "vol0").unwrap();
    client.write(0, &[1; 8192]).unwrap();
    client.write_zeroes(4096, 4096, FAST_ZERO).unwrap();
    assert_eq!(client.read(4095, 2).unwrap(), [1, 0]);
    let mut errno = |flags, length| client.write_zeroes(0, length, flags).unwrap_err().errno();
    assert_eq!(errno(FAST_ZERO, 4095), Some(ENOTSUP));
    assert_eq!(errno(FAST_ZERO | NO_HOLE, 4096), Some(ENOTSUP));
    assert_eq!(client.read(0, 1).unwrap(), [1]);
    client.call(CACHE, 0, 0, 8192, &[]).unwrap();
    let beyond = client.call(CACHE, 0, SIZE, 1, &[]).unwrap_err();
    assert_eq!(beyond.errno(), Some(EINVAL));
}

/// Goal: nobody writes to read-only exports, and connections survive the attempt.
#[test]
fn read_only() {
    let server = MemoryServer::start(Limits { read_only: true, ..Limits::default() });
    for connect in [Client::unix, Client::unix_simple] {
        let mut client = connect(&server.socket(), "vol1").unwrap();
        assert_eq!(client.flags() & 2, 2);
        for (command, payload) in [(WRITE, &[1; 4096][..]), (TRIM, &[]), (WRITE_ZEROES, &[])] {
            let refused = client.call(command, 0, 0, 4096, payload).unwrap_err();
            assert_eq!(refused.errno(), Some(EPERM));
        }
        assert!(client.read(0, 4096).unwrap().iter().all(|&byte| byte == 0));
        client.flush().unwrap();
    }
}

/// Goal: the control socket answers in its own words and survives nonsense.
#[test]
fn control_socket() {
    let server = MemoryServer::start(Limits::default());
    let refused = control::call(&server.control(), &Request::Settle { volume: None });
    assert!(matches!(refused, Err(ControlError::Refused(why)) if why.contains("memory")));
    let missing = control::call(&server.control().with_extension("no"), &Request::Status);
    assert!(matches!(missing, Err(ControlError::Unreachable { .. })));
    for nonsense in [&b"\n"[..], b"{\n", b"\xff\xfe\n", &vec![b'x'; 40_000]] {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(server.control()).unwrap();
        let _ = stream.write_all(nonsense);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"{\"error\":"));
    }
    assert_eq!(server.status("connections"), 0);
}
