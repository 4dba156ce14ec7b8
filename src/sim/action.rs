//! What a client asks of a volume, as data, and the carrying out of it, of which the oracle hears.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::engine::{Outcome, Running, Volume, Zeroing};
use super::oracle::Violation;
use super::stamp;
use super::workload::Models;
use crate::env::Env;
use crate::env::sim::SimEnv;

/// Something to do. Ranges are of granules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write stamped data.
    Write {
        /// The volume's number.
        volume: usize,
        /// Where to.
        range: Range<u32>,
        /// Whether it is durable once acknowledged.
        fua: bool,
    },
    /// Make zeros.
    Zero {
        /// The volume's number.
        volume: usize,
        /// Where.
        range: Range<u32>,
        /// In which way.
        how: Zeroing,
        /// Whether they are durable once acknowledged.
        fua: bool,
    },
    /// Read, and check what is returned.
    Read {
        /// The volume's number.
        volume: usize,
        /// Where from.
        range: Range<u32>,
    },
    /// Flush the volume of that number.
    Flush(usize),
    /// Commit on every volume.
    Commit,
    /// Take back journal space.
    Settle,
    /// Wait, for nanoseconds.
    Pause(u64),
}

/// Where actions take place: a system that serves, and the models of its volumes.
pub struct Stage<R: Running> {
    /// The world.
    pub env: SimEnv,
    /// The system.
    pub running: R,
    /// Its volumes.
    pub volumes: Vec<R::Volume>,
    /// What the oracle knows.
    pub models: Rc<Models>,
}

impl<R: Running> Stage<R> {
    /// A stage of all volumes of a system.
    pub fn new(env: SimEnv, running: R, models: Rc<Models>) -> Self {
        Self { volumes: running.volumes(), env, running, models }
    }

    /// Carries out one action. `Err` where the system broke a promise.
    pub async fn perform(&self, action: Action) -> Result<Outcome<()>, Violation> {
        match action {
            Action::Write { volume, range, fua } => Ok(self.write(volume, range, fua).await),
            Action::Zero { volume, range, how, fua } => {
                Ok(self.zero(volume, range, how, fua).await)
            }
            Action::Read { volume, range } => self.read(volume, range).await,
            Action::Flush(volume) => Ok(self.flush(volume).await),
            Action::Commit => Ok(self.commit().await),
            Action::Settle => Ok(self.running.settle().await),
            Action::Pause(ns) => {
                self.env.sleep(Duration::from_nanos(ns)).await;
                Ok(Ok(()))
            }
        }
    }

    fn offset(&self, range: &Range<u32>) -> u64 {
        u64::from(range.start) * self.models.granule as u64
    }

    async fn write(&self, volume: usize, range: Range<u32>, fua: bool) -> Outcome<()> {
        let stamp = self.models.next_stamp();
        let granule = self.models.granule;
        let mut data = vec![0; range.len() * granule];
        stamp::fill(&mut data, granule, volume as u8, range.start, stamp);
        let offset = self.offset(&range);
        self.models.touch(volume, offset..offset + data.len() as u64);
        let model = &self.models.oracles[volume];
        self.env.note("client write", offset, data.len() as u64);
        model.borrow_mut().send(stamp, range, false, fua);
        let result = self.volumes[volume].write(offset, data, fua).await;
        model.borrow_mut().end(stamp, result.is_ok());
        self.env.note("client write end", u64::from(stamp), u64::from(result.is_ok()));
        result
    }

    async fn zero(&self, volume: usize, range: Range<u32>, how: Zeroing, fua: bool) -> Outcome<()> {
        let granule = self.models.granule as u64;
        let (offset, len) = (self.offset(&range), range.len() as u64 * granule);
        self.models.touch(volume, offset..offset + len);
        let model = &self.models.oracles[volume];
        self.env.note("client zero", offset, len);
        let mut stamps = Vec::new();
        for piece in self.volumes[volume].zeroed(offset, len, how) {
            let stamp = self.models.next_stamp();
            let granules = (piece.start / granule) as u32..(piece.end / granule) as u32;
            model.borrow_mut().send(stamp, granules, true, fua);
            stamps.push(stamp);
        }
        let result = self.volumes[volume].zero(offset, len, how, fua).await;
        for stamp in stamps {
            model.borrow_mut().end(stamp, result.is_ok());
            self.env.note("client zero end", u64::from(stamp), u64::from(result.is_ok()));
        }
        result
    }

    async fn read(&self, volume: usize, range: Range<u32>) -> Result<Outcome<()>, Violation> {
        let model = &self.models.oracles[volume];
        let sent = model.borrow_mut().send_other();
        let len = range.len() * self.models.granule;
        let read = self.volumes[volume].read(self.offset(&range), len).await;
        match read {
            Ok(bytes) => {
                assert!(bytes.len() == len, "a read of {len} bytes returned {}", bytes.len());
                model.borrow_mut().end_read(&sent, range.start, &bytes)?;
                Ok(Ok(()))
            }
            Err(why) => Ok(Err(why)),
        }
    }

    async fn flush(&self, volume: usize) -> Outcome<()> {
        let model = &self.models.oracles[volume];
        let sent = model.borrow_mut().send_other();
        self.env.note("client flush", volume as u64, 0);
        let result = self.volumes[volume].flush().await;
        if result.is_ok() {
            model.borrow_mut().end_flush(&sent);
        }
        self.env.note("client flush end", volume as u64, u64::from(result.is_ok()));
        result
    }

    async fn commit(&self) -> Outcome<()> {
        let models = &self.models.oracles;
        let sent: Vec<_> = models.iter().map(|model| model.borrow_mut().send_other()).collect();
        let result = self.running.commit().await;
        if result.is_ok() {
            models.iter().zip(&sent).for_each(|(model, sent)| model.borrow_mut().end_flush(sent));
        }
        result
    }
}
