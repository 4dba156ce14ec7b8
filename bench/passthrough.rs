//! The price of the socket: the same front end, ring and buffers as `flipside serve`, and below
//! them the bare device instead of the engine. What it reaches is what the engine is measured by.
//!
//! It serves one device, or file, as the NBD export `disk` until it is told to stop, and prints
//! `ready URI` once it can be used. It promises no more than the device does, and takes whole
//! sectors alone.

use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use flipside::env::os::{OsDisk, OsEnv, Signals};
use flipside::env::{Disk as _, Durability, Env as _};
use flipside::front::listen::{Address, SOCKET_MODE_DEFAULT};
use flipside::front::nbd::{Limits, Server};
use flipside::front::{ErrorKind, Export, ExportError, PAYLOAD_MAX, Placement, Run};
use flipside::observe::{Counters, Latencies};
use flipside::uring::buffers::{Buf, BufferPool, View};
use flipside::uring::{Ring, RingOptions};

/// Memory for all I/O, and what of it is registered, in bytes: as `flipside serve` has it.
const BUFFERS_LEN: usize = 512 << 20;
const ARENA_LEN: usize = 64 << 20;
/// How long it looks out for answers before a sleep: as `flipside serve`, too.
const POLL: Duration = Duration::from_micros(50);
const NAME: &str = "disk";

/// Serves a device over NBD as it is: no journal, nothing is atomic
#[derive(Parser)]
struct Args {
    /// Where to listen for NBD clients: unix:PATH or tcp:[HOST:]PORT
    #[arg(long, value_name = "ADDRESS")]
    listen: Address,
    /// The disk, partition, loop device or file
    device: PathBuf,
}

/// A device as an export.
#[derive(Clone)]
struct Bare(OsDisk);

impl Bare {
    fn check(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let sector = u64::from(self.0.sector());
        if offset.is_multiple_of(sector) && length.is_multiple_of(sector) {
            return Ok(());
        }
        Err(ExportError::new(ErrorKind::Invalid, "these are not whole sectors"))
    }

    async fn put(self, offset: u64, view: View, fua: bool) -> Result<(), ExportError> {
        self.check(offset, view.len() as u64)?;
        let durability = if fua { Durability::Durable } else { Durability::Volatile };
        self.0.write(offset, view, durability).await.map_err(failed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is mapped over")]
fn failed(error: std::io::Error) -> ExportError {
    ExportError::new(ErrorKind::Device, error.to_string())
}

impl Export for Bare {
    fn name(&self) -> String {
        NAME.into()
    }

    fn size(&self) -> u64 {
        self.0.len()
    }

    fn block_size(&self) -> u32 {
        self.0.sector()
    }

    fn payload_max(&self) -> u32 {
        PAYLOAD_MAX
    }

    fn placement(&self, _offset: u64, length: u32) -> Placement {
        Placement { lead: 0, total: length as usize }
    }

    fn read(
        &self,
        offset: u64,
        length: u32,
        mut buffer: Buf,
    ) -> impl Future<Output = Result<Buf, ExportError>> + 'static {
        let this = self.clone();
        async move {
            this.check(offset, length.into())?;
            let view = buffer.view(0..length as usize);
            this.0.read(offset, view).await.map_err(failed)?;
            Ok(buffer)
        }
    }

    fn write(
        &self,
        offset: u64,
        length: u32,
        mut buffer: Buf,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        self.clone().put(offset, buffer.view(0..length as usize), fua)
    }

    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let flush = self.0.flush();
        async move { flush.await.map_err(failed) }
    }

    fn trim(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let this = self.clone();
        async move {
            this.check(offset, length)?;
            this.0.discard(offset, length).await.map_err(failed)?;
            if fua { this.0.flush().await.map_err(failed) } else { Ok(()) }
        }
    }

    fn status(&self, _: u64, length: u64, _: usize) -> Result<Vec<Run>, ExportError> {
        Ok(vec![Run { length, used: true }])
    }

    fn write_zeroes(
        &self,
        _: u64,
        _: u64,
        _: bool,
        _: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let refused = ExportError::new(ErrorKind::Invalid, "write zeroes as data here");
        std::future::ready(Err(refused))
    }
}

async fn serve(env: OsEnv, signals: Signals, args: Args) -> Result<()> {
    let disk = OsDisk::open(env.ring(), &args.device).await?;
    let (counters, latencies) = (Rc::new(Counters::default()), Rc::new(Latencies::default()));
    let server = Server::new(env.ring(), env.buffers(), Limits::default(), counters, latencies)?;
    server.add_export(Bare(disk));
    let bound = args.listen.bind(SOCKET_MODE_DEFAULT)?;
    let uri = bound.uris()(NAME);
    server.listen(bound)?;
    println!("ready {uri}");
    signals.next().await?;
    server.drain().await;
    Ok(())
}

fn main() -> Result<()> {
    let args = Args::parse();
    let ring = Ring::new(&RingOptions { poll: POLL, ..RingOptions::default() })?;
    let buffers = BufferPool::new(BUFFERS_LEN, ARENA_LEN).context("no memory for buffers")?;
    let env = OsEnv::new(ring.clone(), buffers);
    let signals = Signals::new(&ring)?;
    let served = ring.block_on(serve(env, signals, args));
    ring.shutdown();
    served
}
