//! An NBD server over exports in memory, on a ring in a thread of its own.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use flipside::front::control::{self, Operator, Request, Session};
use flipside::front::listen::Address;
use flipside::front::nbd::{Limits, PAYLOADS_MIN, Server};
use flipside::front::{ErrorKind, Export, ExportError, PAYLOAD_MAX, Placement, Run};
use flipside::observe::{Counters, Gauges, Latencies, Snapshot};
use flipside::uring::buffers::{ARENA_BLOCK, Buf, BufferPool};
use flipside::uring::{Ring, RingOptions};
use serde_json::Value;

/// Size of each export.
pub const SIZE: u64 = 64 << 20;
/// Reads and writes here fail as a device does.
pub const BAD: Range<u64> = SIZE - 8192..SIZE - 4096;
/// Writes here find no space.
pub const FULL: Range<u64> = SIZE - 4096..SIZE;
/// Operations here take a tenth of a second.
pub const SLOW: Range<u64> = SIZE - 12288..SIZE - 8192;

const BLOCK: u64 = 4096;

/// An export in memory that fails where it should.
#[derive(Clone)]
struct Memory {
    name: &'static str,
    bytes: Rc<RefCell<Vec<u8>>>,
    flushes: Rc<Cell<u64>>,
    ring: Ring,
}

/// Fails where the range touches a bad part.
fn check(offset: u64, length: u64, writes: bool) -> Result<(), ExportError> {
    let touches = |range: &Range<u64>| offset < range.end && range.start < offset + length;
    if touches(&BAD) {
        return Err(ExportError::new(ErrorKind::Device, "the device failed"));
    }
    if writes && touches(&FULL) {
        return Err(ExportError::new(ErrorKind::NoSpace, "no space is left"));
    }
    Ok(())
}

impl Memory {
    async fn pause(&self, offset: u64) {
        if SLOW.contains(&offset) {
            self.ring.sleep(Duration::from_millis(100)).await;
        }
    }

    fn fill(&self, offset: u64, length: u64, byte: u8) -> Result<(), ExportError> {
        check(offset, length, true)?;
        let range = offset as usize..(offset + length) as usize;
        self.bytes.borrow_mut()[range].fill(byte);
        Ok(())
    }
}

impl Export for Memory {
    fn name(&self) -> String {
        self.name.into()
    }

    fn size(&self) -> u64 {
        SIZE
    }

    fn block_size(&self) -> u32 {
        BLOCK as u32
    }

    fn payload_max(&self) -> u32 {
        PAYLOAD_MAX
    }

    fn placement(&self, offset: u64, length: u32) -> Placement {
        let lead = offset % BLOCK;
        let total = (lead + u64::from(length)).next_multiple_of(BLOCK);
        Placement { lead: lead as usize, total: total as usize }
    }

    fn read(
        &self,
        offset: u64,
        length: u32,
        mut buffer: Buf,
    ) -> impl Future<Output = Result<Buf, ExportError>> + 'static {
        let this = self.clone();
        async move {
            this.pause(offset).await;
            check(offset, length.into(), false)?;
            let Placement { lead, total } = this.placement(offset, length);
            assert_eq!(buffer.len(), total);
            let range = offset as usize..offset as usize + length as usize;
            let bytes = this.bytes.borrow();
            buffer.as_mut_slice()[lead..lead + length as usize].copy_from_slice(&bytes[range]);
            drop(bytes);
            Ok(buffer)
        }
    }

    fn write(
        &self,
        offset: u64,
        length: u32,
        buffer: Buf,
        _fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let this = self.clone();
        async move {
            this.pause(offset).await;
            check(offset, length.into(), true)?;
            let Placement { lead, total } = this.placement(offset, length);
            assert_eq!(buffer.len(), total);
            let range = offset as usize..offset as usize + length as usize;
            let payload = &buffer.as_slice()[lead..lead + length as usize];
            this.bytes.borrow_mut()[range].copy_from_slice(payload);
            Ok(())
        }
    }

    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + 'static {
        self.flushes.set(self.flushes.get() + 1);
        async { Ok(()) }
    }

    fn trim(
        &self,
        offset: u64,
        length: u64,
        _fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let this = self.clone();
        async move { this.fill(offset, length, 0) }
    }

    fn status(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Run>, ExportError> {
        check(offset, length, false)?;
        let bytes = self.bytes.borrow();
        let (mut runs, mut at): (Vec<Run>, _) = (Vec::new(), offset);
        while at < offset + length {
            let block = at / BLOCK * BLOCK;
            let next = (block + BLOCK).min(offset + length);
            let contents = &bytes[block as usize..(block + BLOCK) as usize];
            let used = contents.iter().any(|&byte| byte != 0);
            if let Some(last) = runs.last_mut()
                && last.used == used
            {
                last.length += next - at;
            } else if runs.len() == max {
                break;
            } else {
                runs.push(Run { length: next - at, used });
            }
            at = next;
        }
        Ok(runs)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        _fua: bool,
        _no_hole: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let this = self.clone();
        async move { this.fill(offset, length, 0) }
    }
}

/// A snapshot, and how much of the payloads' pool is in use; commits stop the server.
#[derive(Clone)]
struct Control {
    server: Server<Memory>,
    counters: Rc<Counters>,
    latencies: Rc<Latencies>,
    payloads: BufferPool,
    flushes: Rc<Cell<u64>>,
    stop: Rc<tokio::sync::Notify>,
}

impl Operator for Control {
    type Session = Self;

    fn session(&self) -> Self {
        self.clone()
    }
}

impl Session for Control {
    fn operate(&self, request: Request) -> impl Future<Output = Result<Value, String>> + 'static {
        let this = self.clone();
        async move {
            match request {
                Request::Status => {
                    let connections_open = this.server.connections_open();
                    let gauges = Gauges { connections_open, ..Gauges::default() };
                    let snapshot = Snapshot::take(&this.counters, &this.latencies, gauges);
                    let mut value = serde_json::to_value(snapshot).map_err(|e| e.to_string())?;
                    value["payload_bytes_used"] =
                        (this.payloads.capacity() - this.payloads.available()).into();
                    value["flushes_done"] = this.flushes.get().into();
                    Ok(value)
                }
                Request::Commit { .. } => {
                    this.stop.notify_one();
                    Ok(Value::Null)
                }
                Request::Journal => Err("there is no journal in memory".into()),
                Request::Settle { .. } => Err("nothing settles in memory".into()),
                Request::Volume(_) | Request::Group(_) | Request::Txn(_) | Request::Replace => {
                    Err("the volumes in memory do not change".into())
                }
            }
        }
    }
}

/// A server that runs until this is dropped.
pub struct MemoryServer {
    dir: tempfile::TempDir,
    /// Its TCP port.
    pub port: u16,
    thread: Option<JoinHandle<()>>,
}

impl MemoryServer {
    /// Starts one with exports `vol0` and `vol1`.
    pub fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let ring = Ring::new(&RingOptions::default()).unwrap();
            let inner = ring.clone();
            ring.block_on(async move { run(&inner, path, limits, sender).await });
            ring.shutdown();
        });
        let port = receiver.recv().unwrap();
        Self { dir, port, thread: Some(thread) }
    }

    /// The NBD socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd")
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// The URI of an export behind the unix socket.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// A number of the status.
    pub fn status(&self, name: &str) -> u64 {
        control::call(&self.control(), &Request::Status).unwrap()[name].as_u64().unwrap()
    }

    /// Waits until a number of the status is as wanted.
    pub fn wait_for(&self, name: &str, wanted: u64) {
        for _ in 0..500 {
            if self.status(name) == wanted {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{name} is {} and never became {wanted}", self.status(name));
    }

    /// Asks it to drain and end, and does not wait.
    pub fn stop(&self) {
        let _ = control::call(&self.control(), &Request::Commit { volume: None, group: None });
    }
}

impl Drop for MemoryServer {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("the server ends in good order");
            }
        }
    }
}

async fn run(ring: &Ring, dir: PathBuf, limits: Limits, started: mpsc::Sender<u16>) {
    flipside::front::listen::raise_file_limit().unwrap();
    let payloads = BufferPool::new(PAYLOADS_MIN.next_multiple_of(ARENA_BLOCK), 32 << 20).unwrap();
    ring.register_buffers(&payloads);
    let (counters, latencies) = (Rc::new(Counters::default()), Rc::new(Latencies::default()));
    let server =
        Server::new(ring, &payloads, limits, Rc::clone(&counters), Rc::clone(&latencies)).unwrap();
    let flushes = Rc::new(Cell::new(0));
    for name in ["vol0", "vol1"] {
        let bytes = Rc::new(RefCell::new(vec![0; SIZE as usize]));
        let flushes = Rc::clone(&flushes);
        server.add_export(Memory { name, bytes, flushes, ring: ring.clone() });
    }
    server.listen(Address::Unix(dir.join("nbd")).bind(0o600).unwrap()).unwrap();
    let tcp = Address::Tcp { host: None, port: 0 }.bind(0).unwrap();
    let uri = tcp.uri("");
    let port = uri.trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap();
    server.listen(tcp).unwrap();
    let stop = Rc::new(tokio::sync::Notify::new());
    let operator = Control {
        server: server.clone(),
        counters,
        latencies,
        payloads,
        flushes,
        stop: Rc::clone(&stop),
    };
    let bound = Address::Unix(dir.join("control")).bind(0o600).unwrap();
    control::serve(ring, bound, operator).unwrap();
    started.send(port).unwrap();
    stop.notified().await;
    server.drain().await;
}
