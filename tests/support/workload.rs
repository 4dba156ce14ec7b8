//! Stamped writes over several connections, judged by the simulator's oracle.
//!
//! Every 512 bytes written say which write they belong to and where they belong. Every request is
//! told to the oracle before its first byte is sent and after its reply has arrived, so that
//! "acknowledged before it was sent" is never claimed where it was not so. After a crash the whole
//! volume is read back and the oracle decides whether some cut of the writes explains it.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use flipside::env::sim::rng::Rng;
use flipside::sim::oracle::{Moment, Oracle, Sent};
use flipside::sim::stamp::{self, Stamp};

use super::nbd_client::{self as nbd, Client};

/// The smallest piece that is stamped, in bytes.
pub const GRANULE: usize = 512;
/// The block size of the volumes under test, in granules.
const BLOCK: u32 = 8;
/// The hot part of a volume, in blocks: small enough for writes to overlap all the time.
const HOT_BLOCKS: u32 = 512;
/// The longest request, in blocks: several extents.
const BLOCKS_MAX: u64 = 640;
/// How much is read at once when a whole volume is read back, in bytes.
const PIECE: u64 = 4 << 20;

/// What the connections do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Sessions at the same time.
    pub connections: u64,
    /// Requests under way on each.
    pub depth: usize,
    /// Of a hundred requests, how many are flushes.
    pub flushes_percent: u64,
    /// All else follows from it, but for the order in which the threads run.
    pub seed: u64,
}

/// What was done so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Writes and trims acknowledged.
    pub writes: AtomicU64,
    /// Bytes of acknowledged writes.
    pub bytes: AtomicU64,
    /// Flushes acknowledged.
    pub flushes: AtomicU64,
    /// Reads answered and found right.
    pub reads: AtomicU64,
}

/// A volume and all that is known of it.
pub struct Volume {
    granules: u32,
    oracle: Mutex<Oracle>,
    next_stamp: AtomicU32,
    /// Blocks trimmed in this round: once each, since zeros do not say whose they are.
    trimmed: Mutex<HashSet<u32>>,
    /// Counts over all rounds.
    pub tally: Tally,
    /// Told when a flush or a FUA write was acknowledged, and when that was; the connection waits.
    pub on_durable: Box<dyn Fn(Moment) + Send + Sync>,
}

/// A request under way.
enum Pending {
    Change { stamp: Stamp, bytes: u64, fua: bool },
    Flush(Sent),
    Read { sent: Sent, first: u32 },
}

/// One connection's worker.
struct Worker<'a> {
    volume: &'a Volume,
    client: Client,
    rng: Rng,
    load: Load,
    pending: HashMap<u64, Pending>,
    payload: Vec<u8>,
}

impl Volume {
    /// A volume of `bytes` bytes, never written.
    pub fn new(bytes: u64) -> Volume {
        let granules = u32::try_from(bytes / GRANULE as u64).expect("a small volume");
        assert!(granules > HOT_BLOCKS * BLOCK, "the volume has room for the hot part");
        Volume {
            granules,
            oracle: Mutex::new(Oracle::new(0, GRANULE, granules)),
            next_stamp: AtomicU32::new(1),
            trimmed: Mutex::default(),
            tally: Tally::default(),
            on_durable: Box::new(|_| ()),
        }
    }

    /// Writes what is known of the volume to `path`, for [`Volume::open`].
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        serde_json::to_writer(&mut file, &*self.oracle())?;
        file.flush()
    }

    /// A volume of which [`Volume::save`] wrote what is known: to be verified, not to be loaded.
    pub fn open(path: &Path) -> io::Result<Volume> {
        Ok(Volume::known(serde_json::from_reader(BufReader::new(File::open(path)?))?))
    }

    /// A volume of which that is known: to be verified, not to be loaded.
    pub fn known(oracle: Oracle) -> Volume {
        let volume = Volume::new(u64::from(oracle.granules()) * GRANULE as u64);
        *volume.oracle() = oracle;
        volume
    }

    /// What is known of it now.
    pub fn knowledge(&self) -> Oracle {
        self.oracle().clone()
    }

    /// How many requests were sent that change the volume, and neither acknowledged nor refused.
    pub fn under_way(&self) -> usize {
        self.oracle().pending().count()
    }

    /// Loads the volume until `stop` is set or the target is gone.
    ///
    /// # Panics
    /// If a request is refused, or a read returns what it should not.
    pub fn load(
        &self,
        connect: &(impl Fn() -> io::Result<Client> + Sync),
        load: Load,
        stop: &AtomicBool,
    ) {
        thread::scope(|scope| {
            for number in 0..load.connections {
                scope.spawn(move || {
                    // A target that is gone already ends the load like one that goes later.
                    let Ok(client) = connect() else { return };
                    let rng = Rng::new(load.seed.wrapping_add(number));
                    let (pending, payload) = (HashMap::new(), Vec::new());
                    Worker { volume: self, client, rng, load, pending, payload }.run(stop);
                });
            }
        });
    }

    /// Reads the whole volume and has the oracle judge it; it is the base of the next round.
    pub fn verify(&self, client: &mut Client) -> Result<(), String> {
        let size = u64::from(self.granules) * GRANULE as u64;
        assert_eq!(client.size(), size, "the volume's size");
        let mut image = Vec::with_capacity(size as usize);
        while (image.len() as u64) < size {
            let at = image.len() as u64;
            let piece = client.read(at, PIECE.min(size - at) as u32);
            image.extend(piece.map_err(|error| format!("reading at {at}: {error:?}"))?);
        }
        self.trimmed.lock().expect("no worker has panicked").clear();
        self.oracle().recovered(&image).map_err(|violation| violation.0)
    }

    /// The target was asked to stop: all that was acknowledged must be there afterwards.
    pub fn settled(&self) {
        self.oracle().settled();
    }

    fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().expect("no worker has panicked")
    }
}

impl Worker<'_> {
    /// Ends when `stop` is set and everything is answered, or when the target is gone.
    fn run(mut self, stop: &AtomicBool) {
        loop {
            while self.pending.len() < self.load.depth && !stop.load(Ordering::Relaxed) {
                if self.send().is_err() {
                    return;
                }
            }
            if self.pending.is_empty() || self.receive().is_err() {
                return;
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let flushes = self.load.flushes_percent;
        let dice = self.rng.below(100);
        if dice < flushes {
            let sent = self.volume.oracle().send_other();
            let cookie = self.client.send(nbd::FLUSH, 0, 0, 0, &[])?;
            self.pending.insert(cookie, Pending::Flush(sent));
            return Ok(());
        }
        match self.rng.below(100) {
            0..8 => self.send_read(),
            8..14 => self.send_zeroes(),
            14..30 => {
                let length = self.rng.between(1, 24) as u32;
                self.send_write(length, 1)
            }
            30..32 => {
                let length = self.rng.between(64, BLOCKS_MAX) as u32 * BLOCK;
                self.send_write(length, BLOCK)
            }
            _ => {
                let length = self.rng.between(1, 8) as u32 * BLOCK;
                self.send_write(length, BLOCK)
            }
        }
    }

    /// A place for `length` granules, half of the time in the hot part.
    fn place(&mut self, length: u32, align: u32) -> Range<u32> {
        let hot = self.rng.below(2) == 0 && length < HOT_BLOCKS * BLOCK;
        let end = if hot { HOT_BLOCKS * BLOCK } else { self.volume.granules };
        let first = self.rng.below(u64::from((end - length) / align + 1)) as u32 * align;
        first..first + length
    }

    fn send_write(&mut self, length: u32, align: u32) -> io::Result<()> {
        let granules = self.place(length, align);
        let fua = self.rng.below(32) == 0;
        let stamp = self.volume.next_stamp.fetch_add(1, Ordering::Relaxed);
        self.payload.resize(length as usize * GRANULE, 0);
        stamp::fill(&mut self.payload, GRANULE, 0, granules.start, stamp);
        let payload = std::mem::take(&mut self.payload);
        let flags = if fua { nbd::FUA } else { 0 };
        let result = self.send_change(stamp, &granules, nbd::WRITE, flags, &payload);
        self.payload = payload;
        result
    }

    fn send_zeroes(&mut self) -> io::Result<()> {
        let blocks = self.rng.between(1, 300) as u32;
        let granules = self.place(blocks * BLOCK, BLOCK);
        let covered = granules.start / BLOCK..granules.end / BLOCK;
        {
            let mut trimmed = self.volume.trimmed.lock().expect("no worker has panicked");
            if covered.clone().any(|block| trimmed.contains(&block)) {
                return Ok(());
            }
            trimmed.extend(covered);
        }
        let (command, flags) = match self.rng.below(4) {
            0 | 1 => (nbd::TRIM, 0),
            2 => (nbd::WRITE_ZEROES, 0),
            _ => (nbd::WRITE_ZEROES, nbd::NO_HOLE),
        };
        let stamp = self.volume.next_stamp.fetch_add(1, Ordering::Relaxed);
        self.send_change(stamp, &granules, command, flags, &[])
    }

    fn send_change(
        &mut self,
        stamp: Stamp,
        granules: &Range<u32>,
        command: u16,
        flags: u16,
        payload: &[u8],
    ) -> io::Result<()> {
        let zeros = command != nbd::WRITE;
        let fua = flags & nbd::FUA != 0;
        self.volume.oracle().send(stamp, granules.clone(), zeros, fua);
        let (offset, length) = bytes(granules);
        let cookie = self.client.send(command, flags, offset, length, payload)?;
        let bytes = payload.len() as u64;
        self.pending.insert(cookie, Pending::Change { stamp, bytes, fua });
        Ok(())
    }

    fn send_read(&mut self) -> io::Result<()> {
        let length = self.rng.between(1, 64) as u32;
        let granules = self.place(length, 1);
        let sent = self.volume.oracle().send_other();
        let (offset, length) = bytes(&granules);
        let cookie = self.client.send(nbd::READ, 0, offset, length, &[])?;
        self.pending.insert(cookie, Pending::Read { sent, first: granules.start });
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let reply = self.client.receive()?;
        let pending = self.pending.remove(&reply.cookie).expect("an answer to what was asked");
        let data = match reply.result {
            Ok(data) => data,
            // The target may say that it is stopping, and then must not have done it.
            Err(nbd::ESHUTDOWN) => return self.refused(&pending),
            Err(error) => panic!("the target answered error {error}"),
        };
        let (mut oracle, tally) = (self.volume.oracle(), &self.volume.tally);
        let is_durable = matches!(&pending, Pending::Flush(_) | Pending::Change { fua: true, .. });
        match pending {
            Pending::Change { stamp, bytes, .. } => {
                oracle.end(stamp, true);
                tally.writes.fetch_add(1, Ordering::Relaxed);
                tally.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Pending::Flush(sent) => {
                oracle.end_flush(&sent);
                tally.flushes.fetch_add(1, Ordering::Relaxed);
            }
            Pending::Read { sent, first } => {
                let right = oracle.end_read(&sent, first, &data);
                right.unwrap_or_else(|violation| panic!("{}", violation.0));
                tally.reads.fetch_add(1, Ordering::Relaxed);
            }
        }
        let moment = oracle.moment();
        drop(oracle);
        if is_durable {
            (self.volume.on_durable)(moment);
        }
        Ok(())
    }

    fn refused(&mut self, pending: &Pending) -> io::Result<()> {
        if let Pending::Change { stamp, .. } = pending {
            self.volume.oracle().end(*stamp, false);
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }
}

/// Offset and length of `granules` in bytes.
fn bytes(granules: &Range<u32>) -> (u64, u32) {
    let length = granules.len() * GRANULE;
    (u64::from(granules.start) * GRANULE as u64, u32::try_from(length).expect("a short request"))
}
