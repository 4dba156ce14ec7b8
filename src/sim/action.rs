//! What a client asks of a volume, as data, and the carrying out of it, of which the oracle hears.
//!
//! As a text an action is a letter and what it is about: `w0@8-12f` writes granules 8 to 11 of
//! volume 0 with FUA; `t`, `h` and `n` make zeros (trim, hole, no hole); `r0@8-12` reads; `f0`
//! flushes volume 0, `c` commits, `s` settles, and `p77` pauses for 77 ns.

use std::fmt;
use std::future::pending;
use std::ops::Range;
use std::rc::Rc;
use std::str::FromStr;
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

/// The letters of zeroing.
const ZEROING: [(char, Zeroing); 3] =
    [('t', Zeroing::Trim), ('h', Zeroing::Hole), ('n', Zeroing::NoHole)];

impl Action {
    /// Actions that do the same and less of it.
    pub fn simpler(&self) -> Vec<Action> {
        let parts = |range: &Range<u32>| {
            let middle = range.start + (range.end - range.start) / 2;
            let parts = [range.start..middle, middle..range.end];
            parts.into_iter().filter(|part| !part.is_empty() && part != range).collect::<Vec<_>>()
        };
        match self.clone() {
            Action::Write { volume, range, fua } => {
                let shorter = parts(&range).into_iter();
                let shorter = shorter.map(|range| Action::Write { volume, range, fua });
                let plain = fua.then_some(Action::Write { volume, range, fua: false });
                shorter.chain(plain).collect()
            }
            Action::Zero { volume, range, how, fua } => {
                let shorter = parts(&range).into_iter();
                let shorter = shorter.map(|range| Action::Zero { volume, range, how, fua });
                let plain = fua.then_some(Action::Zero { volume, range, how, fua: false });
                shorter.chain(plain).collect()
            }
            Action::Read { volume, range } => {
                parts(&range).into_iter().map(|range| Action::Read { volume, range }).collect()
            }
            Action::Pause(ns) if ns > 1 => vec![Action::Pause(ns / 10 + 1)],
            Action::Flush(_) | Action::Commit | Action::Settle | Action::Pause(_) => Vec::new(),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, volume, range, fua) = match self {
            Action::Write { volume, range, fua } => ('w', volume, range, *fua),
            Action::Zero { volume, range, how, fua } => {
                let letter = ZEROING.iter().find(|(_, way)| way == how);
                (letter.expect("every way has a letter").0, volume, range, *fua)
            }
            Action::Read { volume, range } => ('r', volume, range, false),
            Action::Flush(volume) => return write!(f, "f{volume}"),
            Action::Commit => return f.write_str("c"),
            Action::Settle => return f.write_str("s"),
            Action::Pause(ns) => return write!(f, "p{ns}"),
        };
        let fua = if fua { "f" } else { "" };
        write!(f, "{kind}{volume}@{}-{}{fua}", range.start, range.end)
    }
}

/// A text that is not an action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an action")]
pub struct NotAnAction(String);

impl FromStr for Action {
    type Err = NotAnAction;

    fn from_str(text: &str) -> Result<Self, NotAnAction> {
        parse(text).ok_or_else(|| NotAnAction(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Action> {
    let kind = text.chars().next()?;
    let rest = text.get(kind.len_utf8()..)?;
    match (kind, rest) {
        ('f', volume) => return volume.parse().ok().map(Action::Flush),
        ('p', ns) => return ns.parse().ok().map(Action::Pause),
        ('c', "") => return Some(Action::Commit),
        ('s', "") => return Some(Action::Settle),
        _ => {}
    }
    let (volume, place) = rest.split_once('@')?;
    let (place, fua) = place.strip_suffix('f').map_or((place, false), |place| (place, true));
    let (start, end) = place.split_once('-')?;
    let volume = volume.parse().ok()?;
    let range: Range<u32> = start.parse().ok()?..end.parse().ok()?;
    let zeroing = ZEROING.iter().find(|(letter, _)| *letter == kind);
    match (kind, zeroing) {
        _ if range.is_empty() => None,
        ('w', _) => Some(Action::Write { volume, range, fua }),
        ('r', _) if !fua => Some(Action::Read { volume, range }),
        (_, Some(&(_, how))) => Some(Action::Zero { volume, range, how, fua }),
        _ => None,
    }
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

    /// What an operation returned, where anybody hears of it: a crash may have struck in the same
    /// turn.
    async fn heard<T>(&self, operation: impl Future<Output = T>) -> T {
        let result = operation.await;
        if self.env.crashed() {
            return pending().await;
        }
        result
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
        let result = self.heard(self.volumes[volume].write(offset, data, fua)).await;
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
        let result = self.heard(self.volumes[volume].zero(offset, len, how, fua)).await;
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
        let read = self.heard(self.volumes[volume].read(self.offset(&range), len)).await;
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
        let result = self.heard(self.volumes[volume].flush()).await;
        if result.is_ok() {
            model.borrow_mut().end_flush(&sent);
        }
        self.env.note("client flush end", volume as u64, u64::from(result.is_ok()));
        result
    }

    async fn commit(&self) -> Outcome<()> {
        let models = &self.models.oracles;
        let sent: Vec<_> = models.iter().map(|model| model.borrow_mut().send_other()).collect();
        let result = self.heard(self.running.commit()).await;
        if result.is_ok() {
            models.iter().zip(&sent).for_each(|(model, sent)| model.borrow_mut().end_flush(sent));
        }
        result
    }
}
