//! A machine's disk whose cache a loss of power takes away: an NBD server over the simulator's
//! medium, for qemu.
//!
//! # Contracts
//!
//! - A write that was acknowledged is in the cache until a flush that came after it is answered.
//! - [`Attached::lose_power`] lets each sector keep any version of it since the last durable one;
//!   the medium's own documentation says more. What is asked for afterwards is not answered.
//! - A disk that *lies* acknowledges flushes and does nothing.

use std::cell::Cell;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use flipside::env::Durability;
use flipside::env::sim::faults::Faults;
use flipside::env::sim::medium::{Crash, Medium};
use flipside::env::sim::rng::Rng;
use flipside::front::listen::Address;
use flipside::front::nbd::{Limits, PAYLOADS_MIN, Server};
use flipside::front::{ErrorKind, Export, ExportError, PAYLOAD_MAX, Placement, Run};
use flipside::observe::{Counters, Latencies};
use flipside::uring::buffers::{ARENA_BLOCK, Buf, BufferPool};
use flipside::uring::{Ring, RingOptions};

const SECTOR_BITS: u64 = 9;
const SECTOR: u32 = 1 << SECTOR_BITS;
/// Room for payloads of requests under way.
const PAYLOADS_MAX: usize = 64 << 20;

/// A disk; what is in it outlives the machines.
pub struct LossyDisk {
    directory: PathBuf,
    contents: Arc<Mutex<Contents>>,
    lies: bool,
}

/// What is in it, and whether it has power.
struct Contents {
    medium: Medium,
    is_on: bool,
    /// Bytes written since the last flush.
    unflushed: u64,
    /// The power goes as soon as so many are.
    trap: Option<u64>,
    /// Writes that were in the cache when the power went.
    at_stake: usize,
    rng: Rng,
}

impl Contents {
    /// The power goes, if it has not.
    fn lose_power(&mut self) {
        if std::mem::take(&mut self.is_on) {
            (_, self.at_stake) = self.medium.volatile_writes();
            self.medium.crash(Crash::Power, &Faults::none(), &mut self.rng);
        }
    }

    /// Something was written and not flushed.
    fn cache(&mut self, bytes: u64) {
        self.unflushed += bytes;
        if self.trap.is_some_and(|trap| self.unflushed >= trap) {
            self.lose_power();
        }
    }
}

/// A disk that a machine can reach, until this is dropped.
pub struct Attached {
    /// Where it is.
    pub uri: String,
    contents: Arc<Mutex<Contents>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

impl LossyDisk {
    /// A disk of garbage, with its socket in that directory.
    pub fn new(directory: &Path, bytes: u64, lies: bool, seed: u64) -> LossyDisk {
        let medium = Medium::new(bytes, SECTOR, true, Some(seed));
        let (is_on, unflushed, trap, at_stake) = (false, 0, None, 0);
        let rng = Rng::new(seed);
        let contents = Contents { medium, is_on, unflushed, trap, at_stake, rng };
        let contents = Arc::new(Mutex::new(contents));
        LossyDisk { directory: directory.to_owned(), contents, lies }
    }

    /// Gives it power, and serves it.
    pub fn attach(&self) -> Attached {
        let socket = self.directory.join("disk.sock");
        let contents = Arc::clone(&self.contents);
        {
            let mut contents = lock(&contents);
            (contents.is_on, contents.unflushed, contents.trap) = (true, 0, None);
        }
        let (held, lies) = (Arc::clone(&contents), self.lies);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (started, ready) = mpsc::channel();
        let path = socket.clone();
        let serving = thread::spawn(move || {
            let ring = Ring::new(&RingOptions::default()).unwrap();
            let inner = ring.clone();
            ring.block_on(async move {
                let disk = Disk { contents: held, lies, unplugged: Rc::default() };
                serve(&inner, disk, &path, &started, stopped).await;
            });
            ring.shutdown();
        });
        ready.recv().expect("the disk is served");
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        Attached { uri, contents, stop: Some(stop), serving: Some(serving) }
    }
}

fn lock(contents: &Mutex<Contents>) -> MutexGuard<'_, Contents> {
    contents.lock().expect("nobody panics over a disk")
}

impl Attached {
    /// What was not flushed is lost, as chance has it: with the write by which that is more than
    /// some random number of bytes, or where none comes to that, after so long a time. How many
    /// writes were at stake.
    pub fn lose_power(&self, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        let mut contents = lock(&self.contents);
        let wanted = contents.rng.between(SECTOR_BITS, SECTOR_BITS + 9);
        contents.trap = Some(1 << wanted);
        while contents.is_on && Instant::now() < deadline {
            drop(contents);
            thread::sleep(Duration::from_millis(1));
            contents = lock(&self.contents);
        }
        contents.lose_power();
        contents.at_stake
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let ended = self.serving.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

async fn serve(
    ring: &Ring,
    disk: Disk,
    socket: &Path,
    started: &mpsc::Sender<()>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let room = PAYLOADS_MAX.max(PAYLOADS_MIN).next_multiple_of(ARENA_BLOCK);
    let payloads = BufferPool::new(room, PAYLOAD_MAX as usize).unwrap();
    ring.register_buffers(&payloads);
    let (counters, latencies) = (Rc::new(Counters::default()), Rc::new(Latencies::default()));
    let server = Server::new(ring, &payloads, Limits::default(), counters, latencies).unwrap();
    server.add_export(disk.clone());
    server.listen(Address::Unix(socket.to_owned()).bind(0o600).unwrap()).unwrap();
    started.send(()).unwrap();
    // Whoever is gone without a word wants it to stop, too.
    let _ = stopped.await;
    disk.unplugged.set();
    server.drain().await;
}

/// Something that happens once.
#[derive(Default)]
struct Event {
    is_past: Cell<bool>,
    waiters: tokio::sync::Notify,
}

impl Event {
    fn set(&self) {
        self.is_past.set(true);
        self.waiters.notify_waiters();
    }

    async fn wait(&self) {
        if !self.is_past.get() {
            self.waiters.notified().await;
        }
    }
}

/// The medium as an export.
#[derive(Clone)]
struct Disk {
    contents: Arc<Mutex<Contents>>,
    lies: bool,
    /// Nobody waits for answers any more.
    unplugged: Rc<Event>,
}

impl Disk {
    /// Does something with the contents, if there is power.
    async fn with<T>(self, act: impl FnOnce(&mut Contents) -> T) -> Result<T, ExportError> {
        {
            let mut contents = lock(&self.contents);
            if contents.is_on {
                return Ok(act(&mut contents));
            }
        }
        self.unplugged.wait().await;
        Err(ExportError::new(ErrorKind::Device, "there is no power"))
    }

    /// Writes what a function makes of the medium.
    async fn put(
        self,
        range: (u64, u64),
        fua: bool,
        make: impl FnOnce(&mut Medium) -> Arc<[u8]>,
    ) -> Result<(), ExportError> {
        let sector = u64::from(SECTOR);
        if !(range.0.is_multiple_of(sector) && range.1.is_multiple_of(sector)) {
            return Err(ExportError::new(ErrorKind::Invalid, "these are not whole sectors"));
        }
        let is_durable = fua && !self.lies;
        let durability = if is_durable { Durability::Durable } else { Durability::Volatile };
        self.with(|contents| {
            let data = make(&mut contents.medium);
            let id = contents.medium.begin(range.0, data, durability);
            contents.medium.complete(id);
            if !is_durable {
                contents.cache(range.1);
            }
        })
        .await
    }
}

impl Export for Disk {
    fn name(&self) -> String {
        "disk".into()
    }

    fn size(&self) -> u64 {
        lock(&self.contents).medium.size()
    }

    fn block_size(&self) -> u32 {
        SECTOR
    }

    fn payload_max(&self) -> u32 {
        PAYLOAD_MAX
    }

    fn placement(&self, offset: u64, length: u32) -> Placement {
        let lead = offset % u64::from(SECTOR);
        let total = (lead + u64::from(length)).next_multiple_of(u64::from(SECTOR));
        Placement { lead: lead as usize, total: total as usize }
    }

    fn read(
        &self,
        offset: u64,
        length: u32,
        mut buffer: Buf,
    ) -> impl Future<Output = Result<Buf, ExportError>> + 'static {
        let Placement { lead, total } = self.placement(offset, length);
        assert_eq!((lead, total), (0, length as usize), "a disk is read in whole sectors");
        let this = self.clone();
        async move {
            // Nothing is under way in this medium, so chance has no part in what is read.
            let mut no_chance = Rng::new(0);
            let read = |contents: &mut Contents| {
                contents
                    .medium
                    .read(offset, buffer.as_mut_slice(), &mut no_chance)
                    .expect("no sector fails");
                buffer
            };
            this.with(read).await
        }
    }

    fn write(
        &self,
        offset: u64,
        length: u32,
        buffer: Buf,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        self.clone().put((offset, length.into()), fua, move |_| buffer.as_slice().into())
    }

    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let lies = self.lies;
        self.clone().with(move |contents| {
            let mark = contents.medium.mark();
            if !lies {
                contents.medium.flushed(mark);
                contents.unflushed = 0;
            }
        })
    }

    fn trim(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let anything = move |medium: &mut Medium| medium.discarded(length as usize);
        self.clone().put((offset, length), fua, anything)
    }

    fn status(&self, _: u64, length: u64, _: usize) -> Result<Vec<Run>, ExportError> {
        Ok(vec![Run { length, used: true }])
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
        _no_hole: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        self.clone().put((offset, length), fua, move |_| vec![0; length as usize].into())
    }
}
