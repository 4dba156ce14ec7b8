//! How many instructions a request takes in the engine, counted by callgrind: the same number
//! whatever else the machine does, so that what was gained is not lost unseen.
//!
//! The engine runs in the simulator, on one thread; counted is what its requests themselves
//! execute, not the simulated machine. Test binaries are optimised less than a release, so these
//! numbers are not those of a release; they move with them. Who makes a path longer on purpose
//! raises its bound here, and says why in the commit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::Future;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};

use flipside::env::Env as _;
use flipside::env::sim::rng::Rng;
use flipside::env::sim::{Limit, SimEnv};
use flipside::format::layout::Geometry;
use flipside::sim::flipside::Flipside;
use flipside::unit::{Config, Volume};
use simulated::{formatted, started};

#[path = "support/simulated.rs"]
mod simulated;

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 50_000_000 };
const BLOCK: u64 = 4096;
const EXTENT: u64 = 64 * BLOCK;
const VOLUME: u64 = 16 * EXTENT;
/// Requests that are counted, after as many that are not.
const COUNTED: u64 = 500;
/// Which requests the process under callgrind makes.
const KIND: &str = "FLIPSIDE_INSTRUCTIONS_OF";
/// Above what was counted when a bound was set, a tenth is allowed.
const ALLOWED: f64 = 1.1;
/// Instructions a request, as counted last.
const BOUNDS: [(&str, f64); 3] = [("write", 11_331.0), ("read", 6048.0), ("overwrite", 13_848.0)];

/// A request whose polls are counted.
struct Counted<F>(Pin<Box<F>>);

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        counted_poll(self.0.as_mut(), cx)
    }
}

/// What callgrind is told to count: it goes by this name.
#[inline(never)]
fn counted_poll<F: Future>(request: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    request.poll(cx)
}

async fn request(env: &SimEnv, volume: &Volume<SimEnv>, kind: &str, at: u64, counted: bool) {
    let buf = env.buffers().acquire(BLOCK as usize).await;
    if kind == "read" {
        let read = volume.read(at, BLOCK, buf);
        let read = if counted { Counted(Box::pin(read)).await } else { read.await };
        drop(read.unwrap());
        return;
    }
    let write = volume.write(at, BLOCK, buf, false);
    let write = if counted { Counted(Box::pin(write)).await } else { write.await };
    write.unwrap();
}

/// Goal: requests that the other test can count, under callgrind.
#[test]
#[ignore = "the other test runs it under callgrind"]
fn requests() {
    let kind = std::env::var(KIND).expect("the other test says which requests");
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).unwrap();
    let config = Config { commit_interval: None, ..Config::default() };
    let engine = Flipside::plain(geometry, 48, 16, VOLUME, config);
    let mut machine = formatted(&engine, 1, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let volume = serving.unit().volumes().remove(0);
    let (world, mut rng) = (env.clone(), Rng::new(1));
    let work = async move {
        for number in 0..2 * COUNTED {
            // An overwrite goes to the block that the one before went to, all others go anywhere.
            let block = if kind == "overwrite" { 7 } else { rng.below(VOLUME / BLOCK) };
            request(&world, &volume, &kind, block * BLOCK, number >= COUNTED).await;
        }
    };
    env.run(LIMIT, work).expect("the requests end");
}

/// Instructions a request of that kind.
fn count(kind: &str) -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("callgrind.out");
    let run = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg("--toggle-collect=*counted_poll*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "requests", "--ignored", "--test-threads=1"])
        .env(KIND, kind)
        .output()
        .expect("valgrind (tools/setup.sh installs it)");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    let report = std::fs::read_to_string(&out).unwrap();
    let total = report.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: f64 = total.expect("callgrind says what it counted").trim().parse().unwrap();
    total / COUNTED as f64
}

/// Goal: no request takes more than a tenth more instructions than when its bound was set, and the
/// counting counts.
#[test]
fn requests_stay_short() {
    for (kind, bound) in BOUNDS {
        let counted = count(kind);
        eprintln!("{kind}: {counted:.0} instructions, {:.0} are allowed", bound * ALLOWED);
        assert!(counted > bound / 4.0, "{kind}: not everything was counted");
        assert!(
            counted <= bound * ALLOWED,
            "{kind}: {counted:.0} instructions a request, {:.0} are allowed: see the module",
            bound * ALLOWED
        );
    }
}
