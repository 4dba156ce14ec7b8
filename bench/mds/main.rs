//! The metadata server's durable primitives a second, and what bounds them.
//!
//! ```text
//! cargo bench --bench mds -- [--dir DIR] [--seconds N] [--rate N] [--json]
//! ```
//!
//! Who is asked, all with their files in one folder, and so on one device, which is named:
//!
//! | who | what |
//! | --- | --- |
//! | server | `flipside mds`, a process of its own, over UDP on the loopback, by targets' clients |
//! | log | the server's store alone, our log before redb: one transaction a batch, one thread |
//! | redb | the store below it alone, in the same way |
//! | device | 4 KiB at a time, each write durable and past the page cache: no primitives at all |
//! | clock | a thread that is to be woken each millisecond: how late it is, which all pay |
//!
//! A primitive is a swap of a pair; the pairs have all been made before. The server is asked in two
//! ways, by one session with its window and by 64 sessions:
//!
//! - *closed*: each session has its window full; an answer is followed by the next request at once.
//!   What the server can do at most; latency is then the window over the throughput.
//! - *paced*: requests are due at a fixed rate, whether the server is ready or not, and latency
//!   counts from when a request was due: one that waits behind a stall counts all of it.
//!
//! A turn of the server is one transaction, of what many sessions ask: see `per commit`.

mod outcome;
#[path = "../support/process.rs"]
mod process;
mod server;
mod stores;
mod work;
#[path = "../support/writes.rs"]
mod writes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use flipside::mds::wire::{PAYLOAD_DEFAULT, WINDOW};

use self::outcome::{Outcome, show, show_head};
use self::server::{Case, Load};

/// The metadata server's durable primitives a second.
#[derive(Parser)]
struct Options {
    /// Where the stores are put; a folder of the build by default
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench-mds"))]
    dir: PathBuf,
    /// For how long each case is measured
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Primitives a second that the paced cases offer
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    /// Primitives of a request
    #[arg(long, value_delimiter = ',', default_value = "1,16,100")]
    batches: Vec<u32>,
    /// Sessions
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    sessions: Vec<u32>,
    /// Pairs of all sessions
    #[arg(long, default_value_t = 64 << 10)]
    pairs: u32,
    /// The largest datagram, in bytes
    #[arg(long, default_value_t = PAYLOAD_DEFAULT)]
    datagram: usize,
    /// Only who has this name: server, log, redb, device or clock
    #[arg(long)]
    only: Option<String>,
    /// Only this load of the server: closed or paced
    #[arg(long)]
    load: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// The device under a folder, as findmnt names it.
fn device_of(dir: &Path) -> String {
    let mut command = Command::new("findmnt");
    match command.args(["-nro", "SOURCE,FSTYPE,OPTIONS", "--target"]).arg(dir).output() {
        // The last one, where several are mounted over each other.
        Ok(output) => {
            let all = String::from_utf8_lossy(&output.stdout);
            all.lines().next_back().unwrap_or("unknown").to_owned()
        }
        Err(_) => "unknown".to_owned(),
    }
}

fn measure(options: &Options, mut tell: impl FnMut(Outcome)) {
    let length = Duration::from_secs(options.seconds);
    let folder = options.dir.join("bench");
    let asked = |who: &str| options.only.as_deref().is_none_or(|only| only == who);
    if asked("clock") {
        tell(stores::clock(length));
    }
    if asked("device") {
        tell(stores::device(&options.dir, length));
    }
    for (logged, who) in [(false, "redb"), (true, "log")] {
        for batch in options.batches.iter().filter(|_| asked(who)) {
            tell(stores::store(&folder, logged, options.pairs, *batch, length));
        }
    }
    for (load, name) in [(Load::Closed, "closed"), (Load::Paced(options.rate), "paced")] {
        if !asked("server") || options.load.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        for sessions in options.sessions.iter().copied() {
            for batch in options.batches.iter().copied() {
                let (pairs, datagram) = (options.pairs, options.datagram);
                let case = Case { load, sessions, window: WINDOW, batch, pairs, datagram, length };
                tell(server::server(&folder, case));
            }
        }
    }
}

fn main() {
    let options = Options::parse();
    fs::create_dir_all(&options.dir).expect("a folder for the stores");
    let device = device_of(&options.dir);
    if !options.json {
        println!("device: {device}; paced at {} a second; times in us", options.rate);
        show_head();
    }
    let mut outcomes = Vec::new();
    measure(&options, |outcome| {
        if !options.json {
            show(&outcome);
        }
        outcomes.push(outcome);
    });
    if options.json {
        let all = serde_json::json!({ "device": device, "rate": options.rate,
            "datagram": options.datagram, "pairs": options.pairs, "outcomes": outcomes });
        println!("{all:#}");
    }
}
