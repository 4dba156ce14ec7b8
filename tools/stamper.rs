//! Stamped writes over several connections for `tools/demo.sh`, and the verdict after a kill.
//!
//! The load and the judge are those of `tests/kill.rs`. `stamper write` zeroes a volume, loads it
//! until the target is gone, and keeps in a file what was sent and what was acknowledged, flushes
//! included. `stamper verify` reads the volume back from the target that was started again, and
//! says whether the volume is at a commit point no older than the last acknowledged flush.

#[path = "../tests/support/nbd_client.rs"]
mod nbd_client;
#[path = "../tests/support/workload.rs"]
mod workload;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, Parser};

use nbd_client::{Client, Error};
use workload::{Load, Volume};

/// How much is zeroed by one request, in bytes.
const ZEROED_AT_ONCE: u64 = 1 << 30;

/// Stamped writes over several connections, and the verdict after a kill.
#[derive(Parser)]
enum Command {
    /// Zero the volume, then write until the target is gone
    Write {
        #[command(flatten)]
        place: Place,
        /// What the load follows from, but for its timing [default: by the clock]
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Read the volume back and judge it
    Verify {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Args)]
struct Place {
    /// The target's unix socket
    #[arg(long)]
    socket: PathBuf,
    /// The volume
    #[arg(long, default_value = "vol0")]
    export: String,
    /// The file that keeps what was sent and acknowledged
    #[arg(long)]
    known: PathBuf,
}

impl Place {
    fn connect(&self) -> Result<Client> {
        Client::unix(&self.socket, &self.export)
            .with_context(|| format!("connecting to {}", self.socket.display()))
    }
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Write { place, seed } => write(&place, seed.unwrap_or_else(by_the_clock)),
        Command::Verify { place } => verify(&place),
    }
}

fn by_the_clock() -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970");
    u64::from(clock.subsec_nanos())
}

fn write(place: &Place, seed: u64) -> Result<()> {
    let size = zero(&mut place.connect()?)?;
    let volume = Volume::new(size);
    let load = Load { connections: 4, depth: 16, flushes_percent: 5, seed };
    println!("writing over {} connections, seed {seed}", load.connections);
    let connect = || Client::unix(&place.socket, &place.export);
    volume.load(&connect, load, &AtomicBool::new(false));
    volume.save(&place.known).with_context(|| format!("writing {}", place.known.display()))?;
    let [writes, flushes] =
        [&volume.tally.writes, &volume.tally.flushes].map(|count| count.load(Ordering::Relaxed));
    println!(
        "the target is gone: {writes} writes and trims and {flushes} flushes were acknowledged, {} \
         were under way",
        volume.under_way()
    );
    ensure!(flushes > 0, "nothing was flushed: the target did not live long enough");
    Ok(())
}

/// Zeroes the volume, which the load takes for never written; its size.
fn zero(client: &mut Client) -> Result<u64> {
    let refused = |error: Error| anyhow!("zeroing the volume: {error:?}");
    let size = client.size();
    for offset in (0..size).step_by(ZEROED_AT_ONCE as usize) {
        let length = ZEROED_AT_ONCE.min(size - offset) as u32;
        client.write_zeroes(offset, length, 0).map_err(refused)?;
    }
    client.flush().map_err(refused)?;
    Ok(size)
}

fn verify(place: &Place) -> Result<()> {
    let volume =
        Volume::open(&place.known).with_context(|| format!("reading {}", place.known.display()))?;
    let mut client = place.connect()?;
    let verdict = volume.verify(&mut client);
    verdict.map_err(|violation| anyhow!("the volume is at no commit point: {violation}"))?;
    println!("every block is right: the volume is at a commit point no older than the last flush");
    Ok(())
}
