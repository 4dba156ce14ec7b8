//! Atomic requests of clients (design section 6), as [`crate::client`] makes them: each unit stages
//! its part, in the order of the pools, and one of them is asked to apply.
//!
//! What is said to a unit is a task on its machine; between two of them the client thinks, and
//! units come and go. A client that finds a unit gone, or that its volumes went back, gives up, and
//! what it had staged elsewhere is dropped, as when a connection ends.
//!
//! | it ends with | so that |
//! | --- | --- |
//! | a transaction | all of it is there, with what was acknowledged before, after any crash |
//! | an unknown outcome, or the unit is gone that was asked | all of it, or nothing |
//! | any other error, or nobody was asked to apply it | nothing is there, at any time |

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::Run;
use super::clients::{Busy, Event, Shared};
use super::ledger::{Ended, Pieces};
use crate::env::Env as _;
use crate::env::sim::SimEnv;
use crate::env::sim::rng::{Rng, mix};
use crate::sim::engine::Refusal;
use crate::sim::flipside::{Served, Serving};
use crate::sim::oracle::Violation;
use crate::sim::stamp::Stamp;
use crate::txn::{Atomic, AtomicId};
use crate::unit::{AtomicError, AtomicWrite, Ready};

/// An atomic request, as its client has it.
pub(super) struct Draft {
    stamp: Stamp,
    atomic: Atomic,
    /// What each unit is to write, by its number, which is the order of the pools.
    parts: BTreeMap<usize, Part>,
    /// Those that have yet to stage their part, the next one last.
    to_stage: Vec<usize>,
    /// What the others hold.
    held: BTreeMap<usize, Ready<SimEnv>>,
    /// Whom it is to be applied by; nobody: the client leaves when all is staged.
    applies: Option<usize>,
    /// That one was asked.
    asked: bool,
    /// Whether its volumes commit together.
    together: bool,
    /// Whether it was begun when nothing failed any more.
    bounded: bool,
}

/// What a unit has to do with it.
#[derive(Clone)]
struct Part {
    env: SimEnv,
    serving: Serving,
    volumes: Vec<usize>,
    handles: Vec<Served>,
    writes: Vec<AtomicWrite>,
}

/// What clients tend to do with atomic requests; drawn apart from all else.
pub(super) struct Habits {
    rng: Rng,
    /// How often a request is an atomic one.
    ppm: u32,
    /// How often each other volume of the group has a part in it, and one that is not of the group.
    more_ppm: u32,
    apart_ppm: u32,
    /// How often its client leaves before it is applied.
    leaves_ppm: u32,
    /// The longest piece, in granules, and how much of a volume they are drawn from.
    longest: u64,
    hot: u64,
    /// How long the client thinks between two steps at most, in nanoseconds.
    pause_ns: u64,
}

impl Habits {
    /// Of a seed; without any such requests where that is said.
    pub fn draw(seed: u64, some: bool) -> Self {
        let mut rng = Rng::new(mix(seed ^ 0xa70_331c));
        Self {
            ppm: if some { rng.pick(&[0, 20_000, 100_000, 400_000]) } else { 0 },
            more_ppm: rng.pick(&[300_000, 800_000]),
            apart_ppm: rng.pick(&[0, 50_000]),
            leaves_ppm: rng.pick(&[0, 0, 100_000]),
            longest: rng.pick(&[1, 8, 32]),
            hot: rng.pick(&[8, 64, 1 << 20]),
            pause_ns: rng.pick(&[1_000, 1_000_000, 100_000_000, 20_000_000_000]),
            rng,
        }
    }

    /// Whether the next request is one.
    pub fn is_next(&mut self) -> bool {
        self.rng.chance(self.ppm)
    }

    /// One to three ranges of a volume of so many granules, that do not meet.
    fn pieces(
        &mut self,
        volume: usize,
        granules: u32,
        pieces: &mut Vec<(usize, std::ops::Range<u32>)>,
    ) {
        let total = u64::from(granules);
        let first = pieces.len();
        for _ in 0..self.rng.between(1, 3) {
            let len = self.rng.log_between(1, self.longest.min(total));
            let from = self.rng.below(total.min(self.hot));
            let piece = from as u32..(from + len).min(total) as u32;
            let meets = |(_, other): &(usize, std::ops::Range<u32>)| {
                other.start < piece.end && piece.start < other.end
            };
            if !pieces[first..].iter().any(meets) {
                pieces.push((volume, piece));
            }
        }
    }
}

impl Run {
    /// A client begins an atomic request with a part for that volume.
    pub(super) fn begin_atomic(&mut self, client: usize, volume: usize) {
        let volumes = self.draw_volumes(volume);
        let mut pieces = Vec::new();
        for &volume in &volumes {
            let granules = self.shared.ledger.borrow().places[volume].granules;
            self.atomics.pieces(volume, granules, &mut pieces);
        }
        let stamp = self.shared.ledger.borrow_mut().send_atomic(&pieces);
        let parts = self.parts(&pieces, stamp);
        let units: Vec<usize> = parts.keys().copied().collect();
        let leaves = !self.shared.bounded.get() && self.atomics.rng.chance(self.atomics.leaves_ppm);
        let applies = (!leaves).then(|| self.atomics.rng.pick(&units));
        let id = AtomicId(u128::from(stamp));
        let class = |volume: &usize| self.shared.ledger.borrow().places[*volume].class;
        let classes: BTreeSet<usize> = volumes.iter().map(class).collect();
        let draft = Draft {
            stamp,
            atomic: Atomic { id, members: units.len() as u32 },
            parts,
            to_stage: units.into_iter().rev().collect(),
            held: BTreeMap::new(),
            applies,
            asked: false,
            together: classes.len() == 1,
            bounded: self.shared.bounded.get(),
        };
        self.shared.drafts.borrow_mut()[client] = Some(draft);
        self.shared.busy.borrow_mut()[client] = Some(Busy { unit: None, volumes });
        self.go_on_with_atomic(client);
    }

    /// The volumes of one: those that clients reach, most often of one group.
    fn draw_volumes(&mut self, volume: usize) -> Vec<usize> {
        let places = self.shared.ledger.borrow().places.clone();
        let mut volumes = vec![volume];
        for (other, place) in places.iter().enumerate().filter(|(other, _)| *other != volume) {
            let same = place.class == places[volume].class;
            let ppm = if same { self.atomics.more_ppm } else { self.atomics.apart_ppm };
            if self.atomics.rng.chance(ppm)
                && self.handle(other).is_some()
                && !self.is_broken(other)
            {
                volumes.push(other);
            }
        }
        volumes
    }

    /// What each unit has to do with some pieces.
    fn parts(&self, pieces: &Pieces, stamp: Stamp) -> BTreeMap<usize, Part> {
        let ledger = self.shared.ledger.borrow();
        let mut parts: BTreeMap<usize, Part> = BTreeMap::new();
        for (volume, piece) in pieces {
            let place = &ledger.places[*volume];
            let (env, serving) = self.units[place.unit].serving().expect("clients reach it");
            let part = parts.entry(place.unit).or_insert_with(|| Part {
                env,
                serving,
                volumes: Vec::new(),
                handles: Vec::new(),
                writes: Vec::new(),
            });
            if !part.volumes.contains(volume) {
                part.volumes.push(*volume);
                part.handles.extend(self.handles[*volume].clone());
            }
            part.writes.push(AtomicWrite {
                volume: format!("vol{}", place.nth),
                offset: u64::from(piece.start) * ledger.granule as u64,
                bytes: ledger.bytes(*volume, piece, stamp),
            });
        }
        parts
    }

    /// The next step of a client's atomic request.
    pub(super) fn go_on_with_atomic(&mut self, client: usize) {
        let pause = self.atomics.rng.log_between(1, self.atomics.pause_ns);
        let pause = if self.shared.bounded.get() { pause.min(1_000_000) } else { pause };
        let think = self.habits.think(&mut self.rng);
        let mut drafts = self.shared.drafts.borrow_mut();
        let draft = drafts[client].as_mut().expect("one is under way");
        let next = draft.to_stage.pop().or(draft.applies);
        let part = next.and_then(|unit| draft.parts.get(&unit).map(|part| (unit, part.clone())));
        let Some((unit, part)) = part else {
            drop(drafts);
            return self.shared.leave(client, self.now + think);
        };
        let (stamp, atomic) = (draft.stamp, draft.atomic);
        let held = draft.held.remove(&unit);
        drop(drafts);
        if let Some(busy) = &mut self.shared.busy.borrow_mut()[client] {
            busy.unit = Some(unit);
        }
        let shared = Rc::clone(&self.shared);
        let env = part.env.clone();
        part.env.clone().spawn(async move {
            env.sleep(Duration::from_nanos(pause)).await;
            env.note("atomic", u64::from(stamp), client as u64);
            if !part.handles.iter().all(Served::is_current) {
                let volumes = &part.volumes;
                volumes.iter().for_each(|volume| shared.lost.borrow_mut()[*volume] = true);
                return shared.leave(client, env.lived() + think);
            }
            let Some(ready) = held else {
                let staged = part.serving.unit().stage(atomic, &part.writes).await;
                return shared.staged(client, unit, &part, staged, think);
            };
            if let Some(draft) = &mut shared.drafts.borrow_mut()[client] {
                draft.asked = true;
            }
            let applied = ready.apply().await.map(drop);
            drop(ready);
            shared.applied(client, &part, applied, think);
        });
    }
}

impl Shared {
    /// A unit is gone: it holds nothing for anybody, and who comes to it next gives up.
    pub fn drop_parts(&self, unit: usize) {
        for draft in self.drafts.borrow_mut().iter_mut().flatten() {
            draft.held.remove(&unit);
            draft.parts.remove(&unit);
        }
    }

    /// A unit has staged its part, or refused to.
    fn staged(
        &self,
        client: usize,
        unit: usize,
        part: &Part,
        staged: Result<Ready<SimEnv>, AtomicError>,
        think: u64,
    ) {
        let now = part.env.lived();
        match staged {
            Ok(ready) => {
                if let Some(draft) = &mut self.drafts.borrow_mut()[client] {
                    draft.held.insert(unit, ready);
                }
                if let Some(busy) = &mut self.busy.borrow_mut()[client] {
                    busy.unit = None;
                }
                self.plan(now, Event::Step(client));
            }
            Err(why) => self.applied(client, part, Err(why), think),
        }
    }

    /// An atomic request has ended.
    fn applied(&self, client: usize, part: &Part, applied: Result<(), AtomicError>, think: u64) {
        let draft = self.drafts.borrow_mut()[client].take().expect("it is under way");
        let what = format!("atomic request #{} at unit {:?}", draft.stamp, draft.applies);
        let ended = match &applied {
            Ok(()) => Ended::Applied,
            Err(AtomicError::OutcomeUnknown(_)) => Ended::Unknown,
            Err(_) => Ended::Refused,
        };
        part.env.note("atomic end", u64::from(draft.stamp), u64::from(applied.is_ok()));
        self.finish(&draft, ended);
        self.last_atomic.set(part.env.lived());
        match applied {
            Ok(()) if !draft.together => {
                self.fail(format!("{what} was applied to volumes that do not commit together"));
            }
            Ok(()) | Err(AtomicError::TooLarge { .. } | AtomicError::Scattered) => {}
            Err(AtomicError::Apart | AtomicError::Aborted(_)) if !draft.together => {}
            Err(AtomicError::Late(_) | AtomicError::Aborted(_) | AtomicError::Apart)
                if !draft.bounded => {}
            Err(why) => {
                let why = Refusal::Failed(why.to_string());
                self.judge(&part.volumes, part.env.lived(), &what, why);
            }
        }
        drop(draft);
        self.ended.set(self.ended.get() + 1);
        self.go_free(client, part.env.lived() + think);
    }

    /// A client waits no longer: what it had staged is dropped.
    pub fn leave(&self, client: usize, next: u64) {
        let draft = self.drafts.borrow_mut()[client].take();
        if let Some(draft) = draft {
            self.finish(&draft, if draft.asked { Ended::Unknown } else { Ended::Refused });
        }
        self.go_free(client, next);
    }

    fn finish(&self, draft: &Draft, ended: Ended) {
        let mut seen = self.seen.get();
        seen.count_atomic(ended);
        self.seen.set(seen);
        let result = self.ledger.borrow_mut().end_atomic(draft.stamp, ended);
        if let Err(Violation(what)) = result {
            self.fail(what);
        }
    }

    fn go_free(&self, client: usize, next: u64) {
        self.busy.borrow_mut()[client] = None;
        self.plan(next, Event::Step(client));
    }
}
