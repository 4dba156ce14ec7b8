//! The metadata server as a process of its own: over UDP, with a key, killed, and as what it
//! refuses.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

#[allow(dead_code, reason = "it is a program of its own, with its own tests")]
#[path = "../tools/lossy.rs"]
mod lossy;
mod support;

use std::fs::{self, Permissions};
use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flipside::env::os::{OsEnv, OsLink, Seal};
use flipside::format::ids::{ExtentId, ExtentRun, Incarnation, PoolId, UnitId};
use flipside::mds::auth::Key;
use flipside::mds::catalog::PoolSpec;
use flipside::mds::client::Client;
use flipside::mds::client::pools::{overview, register};
use flipside::mds::records::Claim;
use flipside::mds::wire::PAYLOAD_DEFAULT;
use flipside::uring::buffers::{ARENA_BLOCK, BufferPool};
use flipside::uring::{Ring, RingOptions};
use lossy::{Proxy, Weather};
use nix::sys::signal::Signal;
use support::metadata_server::{Server, command};
use support::programs::directory;

const POOL: PoolId = PoolId([5; 16]);
const KEY: [u8; 32] = [0xab; 32];

/// Runs what a client does, on a ring of its own.
fn as_client<T: 'static, F: Future<Output = T> + 'static>(body: impl FnOnce(OsEnv) -> F) -> T {
    let ring = Ring::new(&RingOptions::default()).unwrap();
    let buffers = BufferPool::new(ARENA_BLOCK, ARENA_BLOCK).unwrap();
    let done = ring.block_on(body(OsEnv::new(ring.clone(), buffers)));
    ring.shutdown();
    done
}

fn link(env: &OsEnv, at: SocketAddr, key: Option<[u8; 32]>) -> OsLink {
    let seal = key.map(|key| Box::new(Key::parse(&key).unwrap()) as Box<dyn Seal>);
    OsLink::udp(env.ring(), at, PAYLOAD_DEFAULT, seal).unwrap()
}

fn refused(output: &Output, text: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(text), "{told}");
}

/// Goal: targets with the key register a pool, attach and change it, over UDP, and their session
/// goes on over a kill of the server, with everything that was answered; strangers get nothing and
/// are counted; SIGTERM ends the server with 0.
#[test]
fn a_server_over_udp() {
    let directory = directory();
    let key_file = directory.path().join("key");
    fs::write(&key_file, KEY).unwrap();
    fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
    let key_file = key_file.to_str().unwrap().to_owned();
    let server =
        Server::start(directory.path(), &["--listen", "127.0.0.1:0", "--key-file", &key_file]);
    let at = server.at;
    let path = directory.path().to_owned();
    let server = as_client(move |env| async move {
        let run = ExtentRun { start: ExtentId(0), count: 1000 };
        let spec = PoolSpec { extent_size: 1 << 20, devices: vec![run], reserve: 10 };
        register(&env, link(&env, at, Some(KEY)), POOL, &spec).await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.send_to(&[0xff; 100], at).unwrap();
        let claim = Claim::of(POOL, UnitId(0), Incarnation(1));
        let client = Client::attach(env.clone(), link(&env, at, Some(KEY)), claim).await.unwrap();
        let volume = client.create_volume("vol0", 1 << 30).await.unwrap();
        assert_eq!(server.signal(Signal::SIGKILL), None);
        let address = at.to_string();
        let server = Server::start(&path, &["--listen", &address, "--key-file", &key_file]);
        // Names that fill several datagrams.
        for number in 0..40 {
            let name = format!("{number:0>100}");
            client.create_volume(&name, 1 << 20).await.unwrap();
        }
        let volumes = client.volumes().await.unwrap();
        assert_eq!((volumes.len(), &volumes[0]), (41, &volume));
        stranger.send_to(&[], at).unwrap();
        stranger.send_to(b"FSmd", at).unwrap();
        client.renew().await.unwrap();
        let seen = overview(&env, link(&env, at, Some(KEY))).await.unwrap();
        assert_eq!((seen.pools.len(), seen.sessions.len()), (1, 1));
        assert_eq!((seen.pools[0].pool, seen.pools[0].volumes), (POOL, 41));
        assert_eq!(seen.counters.unauthenticated, 2);
        client.detach().await.unwrap();
        server
    });
    assert_eq!(server.signal(Signal::SIGTERM), Some(0));
}

/// Goal: over a network that loses, repeats, reorders and delays much, everything is done, once,
/// requests of several datagrams included.
#[test]
fn a_bad_network() {
    let directory = directory();
    let server = Server::start(directory.path(), &["--listen", "127.0.0.1:0"]);
    let delay = Duration::ZERO..=Duration::from_millis(5);
    let weather = Weather { loss: 0.1, repeat: 0.1, reorder: 0.1, delay };
    let mut proxy = Proxy::new("127.0.0.1:0", &server.at.to_string(), weather, 7).unwrap();
    let at = proxy.front.local_addr().unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&ended);
    let passing = std::thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            if !proxy.step().unwrap() {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    });
    as_client(move |env| async move {
        // The body of a pool of so many devices is several datagrams.
        let run = |device: u32| ExtentRun { start: ExtentId(device * 100), count: 100 };
        let spec =
            PoolSpec { extent_size: 1 << 20, devices: (0..60).map(run).collect(), reserve: 10 };
        register(&env, link(&env, at, None), POOL, &spec).await.unwrap();
        let claim = Claim::of(POOL, UnitId(0), Incarnation(1));
        let client = Client::attach(env.clone(), link(&env, at, None), claim).await.unwrap();
        let mut granted = 0;
        for number in 0..50 {
            client.create_volume(&format!("vol{number}"), 1 << 20).await.unwrap();
            let given = client.allocate_journal_space(10).await.unwrap();
            granted += given.runs.iter().map(|run| run.count).sum::<u32>();
        }
        assert_eq!((granted, client.volumes().await.unwrap().len()), (500, 50));
        assert!(client.status().repeated > 0, "nothing was lost");
        let seen = overview(&env, link(&env, at, None)).await.unwrap();
        assert_eq!((seen.pools[0].granted, seen.pools[0].volumes), (500, 50));
        client.detach().await.unwrap();
    });
    ended.store(true, Ordering::Relaxed);
    passing.join().unwrap();
    assert_eq!(server.signal(Signal::SIGTERM), Some(0));
}

/// Goal: what is not safe or not ours is refused, and one is told why and what to do: an open port
/// without a key, a store in use, a directory of others, a key that others can read.
#[test]
fn refusals_say_why() {
    let directory = directory();
    let path = directory.path();
    let local = ["--listen", "127.0.0.1:0"];
    let output = command(path, &["--listen", "0.0.0.0:0"]).output().unwrap();
    refused(&output, "--allow-open");
    let open = Server::start(path, &["--listen", "0.0.0.0:0", "--allow-open"]);
    refused(&command(path, &local).output().unwrap(), "in use by another process");
    assert_eq!(open.signal(Signal::SIGINT), Some(0));

    let key = path.join("key");
    fs::write(&key, [7; 32]).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o604)).unwrap();
    let with_key = [local.as_slice(), &["--key-file", key.to_str().unwrap()]].concat();
    refused(&command(path, &with_key).output().unwrap(), "mode is 604");

    let foreign = path.join("foreign");
    fs::create_dir_all(foreign.join("store")).unwrap();
    fs::write(foreign.join("store/letter"), "to a friend").unwrap();
    refused(&command(&foreign, &local).output().unwrap(), "holds no metadata store");
    assert_eq!(fs::read_dir(foreign.join("store")).unwrap().count(), 1);
}
