//! nbdkit's `nbd` plugin as a proxy in front of us, with filters that cut, fail and delay requests:
//! data comes right through it, and errors come as what they are. `make setup` installs it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flipside::front::nbd::Limits;
use support::memory_server::{BAD, FULL, MemoryServer, SIZE};
use support::nbd_client::{BLOCK_STATUS, Client, EIO, ENOSPC, READ, WRITE};
use support::programs::{PATIENCE, run, say, wait_for};

/// A proxy in front of an export; ended when dropped.
struct Proxy {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Proxy {
    /// Starts one in front of `vol0` with the filter and parameters given.
    fn start(server: &MemoryServer, filter: &str, parameters: &[&str]) -> Self {
        let version = run("nbdkit", arguments!["--version"]);
        say(&format!("tested with {} --filter={filter} nbd", version.lines().last().unwrap()));
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("proxy");
        let child = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(&socket)
            .args(["--filter", filter, "nbd", "export=vol0"])
            .arg(format!("socket={}", server.socket().display()))
            .args(parameters)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("nbdkit: {error}; `make setup` installs it"));
        wait_for("nbdkit's socket", PATIENCE, || socket.exists().then_some(()));
        Self { child, socket, _dir: dir }
    }

    fn connect(&self) -> Client {
        // The socket is there before it listens.
        let client = || Client::unix_status(&self.socket, "").ok();
        wait_for("a connection through nbdkit", PATIENCE, client)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that differ wherever they are compared.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|index| ((seed + index * 7) % 251) as u8 | 1).collect()
}

/// Goal: requests that a proxy cuts into small aligned ones arrive whole: what is written through
/// it is read through it and beside it, zeros and trims and their status too, and files as well.
#[test]
fn blocksize() {
    let server = MemoryServer::start(Limits::default());
    let proxy = Proxy::start(&server, "blocksize", &["minblock=512", "maxdata=32k", "maxlen=128k"]);
    let (mut through, mut beside) =
        (proxy.connect(), Client::unix(&server.socket(), "vol0").unwrap());
    for (seed, (offset, length)) in
        [(0, 4096), (777, 100), (100_001, 300_000), (1 << 20, 5 << 20)].into_iter().enumerate()
    {
        let data = pattern(seed, length);
        through.write(offset, &data).unwrap();
        assert!(through.read(offset, length as u32).unwrap() == data, "{length} bytes");
        assert!(beside.read(offset, length as u32).unwrap() == data, "{length} bytes");
    }
    through.write_zeroes(2 << 20, 1 << 20, 0).unwrap();
    through.trim(4 << 20, 1 << 20).unwrap();
    through.flush().unwrap();
    for at in [2 << 20, 4 << 20] {
        assert!(beside.read(at, 1 << 20).unwrap().iter().all(|&byte| byte == 0));
    }
    let mut runs = Vec::new();
    let (mut at, end) = (1 << 20, 6 << 20);
    while at < end {
        for (length, flags) in through.status(0, at, (end - at) as u32).unwrap() {
            at += u64::from(length);
            runs.push((at >> 20, flags));
        }
    }
    runs.dedup_by_key(|run| run.1);
    let flags: Vec<u32> = runs.iter().map(|run| run.1).collect();
    assert_eq!(flags, [0, 3, 0, 3, 0], "{runs:?}");
    copy_through(&server, &proxy);
    assert_eq!(server.status("connections_dropped"), 0);
}

/// A file, copied in through the proxy by nbdcopy, and compared beside it by qemu-img.
fn copy_through(server: &MemoryServer, proxy: &Proxy) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    // The last blocks of the export fail.
    let good = SIZE as usize - 12288;
    fs::write(&file, pattern(9, good)).unwrap();
    let uri =
        |socket: &Path, export: &str| format!("nbd+unix:///{export}?socket={}", socket.display());
    run("nbdcopy", arguments!["--flush", file, uri(&proxy.socket, "")]);
    let image = format!(
        "driver=raw,size={good},file.driver=nbd,file.export=vol0,file.server.type=unix,\
         file.server.path={}",
        server.socket().display()
    );
    let plain = format!("driver=raw,file.driver=file,file.filename={}", file.display());
    run("qemu-img", arguments!["compare", "--image-opts", plain, image]);
}

/// Goal: an error that a proxy makes up harms nothing behind it, and the errors that are ours come
/// through it with their numbers; when they stop, the data is right.
#[test]
fn error() {
    let server = MemoryServer::start(Limits::default());
    let dir = tempfile::tempdir().unwrap();
    let trigger = dir.path().join("trigger");
    let file = format!("error-file={}", trigger.display());
    let proxy = Proxy::start(&server, "error", &["error=ENOSPC", "error-rate=100%", &file]);
    let mut client = proxy.connect();
    let block = [7; 4096];
    for (command, offset, payload, errno) in [
        (READ, BAD.start, &[][..], EIO),
        (WRITE, BAD.start, &block, EIO),
        (WRITE, FULL.start, &block, ENOSPC),
        (BLOCK_STATUS, BAD.start, &[], EIO),
    ] {
        let failed = client.call(command, 0, offset, 4096, payload).unwrap_err();
        assert_eq!(failed.errno(), Some(errno), "command {command}");
    }
    client.write(0, &block).unwrap();
    fs::write(&trigger, "").unwrap();
    for _ in 0..20 {
        assert_eq!(client.read(0, 4096).unwrap_err().errno(), Some(ENOSPC));
        assert_eq!(client.write(0, &[8; 4096]).unwrap_err().errno(), Some(ENOSPC));
        assert_eq!(client.trim(0, 4096).unwrap_err().errno(), Some(ENOSPC));
    }
    fs::remove_file(&trigger).unwrap();
    assert!(client.read(0, 4096).unwrap() == block, "a failed write was carried out");
    client.flush().unwrap();
    assert_eq!(server.status("connections_dropped"), 0);
}

/// Goal: requests that a proxy holds back are answered rightly, many at once and in any order, and
/// nobody is dropped for it.
#[test]
fn delay() {
    let server = MemoryServer::start(Limits::default());
    let proxy = Proxy::start(&server, "delay", &["rdelay=300ms", "wdelay=200ms"]);
    let mut client = proxy.connect();
    let begun = Instant::now();
    let length = 70_000;
    for index in 0..16 {
        let data = pattern(index, length);
        client.send(WRITE, 0, (index * length) as u64, length as u32, &data).unwrap();
    }
    for _ in 0..16 {
        client.receive().unwrap().result.unwrap();
    }
    let mut reads = std::collections::HashMap::new();
    for index in 0..16 {
        let offset = (index * length) as u64;
        reads.insert(client.send(READ, 0, offset, length as u32, &[]).unwrap(), index);
    }
    for _ in 0..16 {
        let reply = client.receive().unwrap();
        let index = reads.remove(&reply.cookie).unwrap();
        assert!(reply.result.unwrap() == pattern(index, length));
    }
    assert!(begun.elapsed() >= Duration::from_millis(500), "the proxy delays");
    client.flush().unwrap();
    assert_eq!(server.status("connections_dropped"), 0);
    server.wait_for("payload_bytes_used", 0);
}
