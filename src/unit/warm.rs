//! The warm table as a unit keeps it: what it has acknowledged and not committed, in memory that
//! outlives the process ([`crate::format::warm`]). [`super::adopt`] is what the next start makes of
//! it.
//!
//! ```text
//!   admitted ─(overwrites what is pending: intend)─▶ device write ─▶ record ─▶ acknowledged
//!   committed ─▶ forget the epoch
//! ```
//!
//! # Contracts
//!
//! - **Ordering** ‡: a request is recorded before it is acknowledged, and an epoch forgotten when
//!   its group is durable, before anything of its pairs can change; its oldest entries first, so
//!   that what a kill leaves of it says what was committed.
//! - **In place** ‡: a write over contents that are pending leaves neither version where it is cut
//!   short: all of its bytes are here before it begins, and the next start does it again.
//! - **Unheard** ‡: before a device is flushed the table says so, and until its success was heard:
//!   what a flush has lost that failed when nobody was left to hear it is found by its sums
//!   ([`super::unheard`]).
//! - **Failure**: the first failure of a device or a commit, and a table without room, void the
//!   table: from then on a restart is cold, and says why.
//! - **Groups**: epochs of consistency groups are not kept. Where their target dies they go back to
//!   the last cut, whether the restart is warm or cold.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use smallvec::SmallVec;
use zerocopy::IntoBytes as _;
use zerocopy::little_endian::U64;

use super::Inner;
use super::admission::{Admitted, Outcome};
use super::request::Part;
use super::state::State;
use super::unheard::Flushing;
use super::write::Pieces;
use crate::env::Env;
use crate::env::shared::SharedMemory;
use crate::format::blocks::Location;
use crate::format::ids::{Incarnation, Slot};
use crate::format::record::{Record, pack};
use crate::format::warm::{
    ASIDE_AT, ATTEMPTS_AT, CHUNK, CHUNKS_MAX, Entry, FLUSHING_AT, IDENTITY_BYTES, Identity,
    RUN_BYTES, STARTS_AT, STATE_AT, VALID, chunk_at, chunks_of, directory_at, entry_bytes,
    entry_len, parse_run, run_head, run_word,
};
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::Buf;

/// Memory for the warm table, and what the machine calls its present start.
#[derive(Clone)]
pub struct WarmMemory {
    /// The memory.
    pub memory: Rc<dyn SharedMemory>,
    /// The machine's start, by its own number.
    pub boot: [u8; 16],
}

/// The warm table of a unit.
pub(super) struct Table {
    memory: Rc<dyn SharedMemory>,
    identity: Identity,
    live: RefCell<Option<Live>>,
    /// It is not kept any more in this start.
    failed: Cell<bool>,
    flushing: Rc<Flushing>,
}

/// A request, by its epoch, and all that is recorded of it.
type Late = ((u32, u64), Vec<Record>, Vec<u8>);

/// What is in a table that is kept.
#[derive(Default)]
struct Live {
    sequence: u64,
    taken: Vec<bool>,
    chains: BTreeMap<(u32, u64), Chain>,
    /// For a mutant: the request that was recorded last, and is not there yet.
    late: Option<Late>,
}

/// The runs of an epoch, oldest first, and where the last one goes on.
#[derive(Default)]
struct Chain {
    runs: Vec<Run>,
    filled: u64,
}

/// Chunks that follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    chunk: u32,
    chunks: u32,
}

impl Run {
    fn room(self) -> u64 {
        u64::from(self.chunks) * CHUNK
    }
}

/// What an earlier start has left.
#[derive(Debug)]
pub(super) struct Left {
    /// In the order in which they were recorded.
    pub entries: Vec<Entry>,
    /// The starts that it may follow.
    starts: [Incarnation; 2],
    /// Starts that may have been counted since, this one included.
    attempts: u64,
    /// Nobody heard how a flush has ended.
    pub unheard: bool,
}

impl Left {
    /// Whether the flags that were last changed by that start are those that this belongs to.
    pub fn follows(&self, last: Incarnation) -> bool {
        self.starts.contains(&last)
    }

    /// The same where the server counts the starts, and this is start `own`: no other may have come
    /// between but those that have begun here.
    pub fn precedes(&self, own: Incarnation) -> bool {
        let since = u64::from(own.0.saturating_sub(self.starts[0].0));
        since <= self.attempts
    }
}

impl Table {
    /// The table in some memory, as it is.
    pub fn new(memory: Rc<dyn SharedMemory>, identity: Identity) -> Self {
        let flushing = Rc::new(Flushing::new(Rc::clone(&memory)));
        Self { memory, identity, live: RefCell::default(), failed: Cell::new(false), flushing }
    }

    /// What is to be told of the flushes of all devices, from after the look on.
    pub fn flushing(&self) -> Rc<Flushing> {
        Rc::clone(&self.flushing)
    }

    /// What an earlier start has left; the error is why that is nothing.
    pub fn look(&self) -> Result<Left, &'static str> {
        let memory = &self.memory;
        if memory.len() < CHUNK {
            return Err("there is no warm table");
        }
        let mut identity = [0; IDENTITY_BYTES];
        memory.read(0, &mut identity);
        if identity == [0; IDENTITY_BYTES] {
            return Err("there is no warm table");
        }
        if identity != self.identity.bytes() {
            return Err("the warm table is of another start of the machine, or of another pool");
        }
        if self.memory.load(STATE_AT) != VALID {
            return Err("the warm table was given up");
        }
        let mut entries = Vec::new();
        let there = u32::try_from(memory.len() / CHUNK - 1).unwrap_or(u32::MAX).min(CHUNKS_MAX);
        for chunk in 0..there {
            let word = self.memory.load(directory_at(chunk));
            let chunks = chunks_of(word);
            if word == 0 {
                continue;
            }
            if chunks > there - chunk {
                return Err("the warm table is damaged");
            }
            let mut bytes = vec![0; (u64::from(chunks) * CHUNK) as usize];
            memory.read(chunk_at(chunk), &mut bytes);
            let block_size = self.identity.geometry.block_size();
            let found = parse_run(chunk, word, &bytes, block_size);
            entries.extend(found.ok_or("the warm table is damaged")?);
        }
        entries.sort_by_key(|entry| entry.sequence);
        let starts = self.memory.load(STARTS_AT);
        let starts = [starts as u32, (starts >> 32) as u32].map(Incarnation);
        let attempts = self.memory.load(ATTEMPTS_AT) + 1;
        self.memory.store(ATTEMPTS_AT, attempts);
        let unheard = self.memory.load(FLUSHING_AT) != 0 || self.memory.load(ASIDE_AT) != 0;
        self.flushing.keep(unheard);
        Ok(Left { entries, starts, attempts, unheard })
    }

    /// The start `next` is about to change flags that start `last` has changed before.
    pub fn note_start(&self, last: Incarnation, next: Incarnation) {
        self.memory.store(STARTS_AT, u64::from(next.0) << 32 | u64::from(last.0));
    }

    /// Nobody believes what is in it from here on.
    pub fn void(&self) {
        if self.memory.len() >= CHUNK {
            self.memory.store(STATE_AT, 0);
        }
    }

    /// From here on a restart is cold.
    fn fail(&self, reason: &str) {
        self.void();
        if !self.failed.replace(true) {
            tracing::warn!(reason, "a restart would be cold from now on");
        }
        self.live.borrow_mut().take();
    }

    /// Begins anew, with nothing pending, for that start of the unit.
    pub fn begin(&self, start: Incarnation) {
        if self.failed.get() {
            return;
        }
        if let Err(error) = self.memory.grow(CHUNK) {
            tracing::warn!(%error, "no warm table can be kept: a restart would be cold");
            return;
        }
        self.memory.store(STATE_AT, 0);
        for chunk in 0..CHUNKS_MAX {
            if self.memory.load(directory_at(chunk)) != 0 {
                self.memory.store(directory_at(chunk), 0);
            }
        }
        self.memory.write(0, &self.identity.bytes());
        self.note_start(start, start);
        self.memory.store(ATTEMPTS_AT, 0);
        self.flushing.keep(false);
        self.memory.store(STATE_AT, VALID);
        *self.live.borrow_mut() = Some(Live::default());
    }

    fn is_live(&self) -> bool {
        self.live.borrow().is_some()
    }

    /// Puts an entry into a run of its own.
    fn put_alone(
        &self,
        (domain, epoch): (u32, u64),
        records: &[Record],
        data: &[&[u8]],
    ) -> Option<Run> {
        let mut guard = self.live.borrow_mut();
        let live = guard.as_mut()?;
        let records = pack(records);
        let data_bytes: usize = data.iter().map(|piece| piece.len()).sum();
        let len = (RUN_BYTES + entry_len(records.len(), data_bytes)) as u64;
        let taken = self.take(live, len.div_ceil(CHUNK) as u32);
        let Some(run) = taken else {
            drop(guard);
            self.fail("the warm table has no room left");
            return None;
        };
        let head = run_head(domain, epoch);
        self.memory.write(chunk_at(run.chunk), &head);
        live.sequence += 1;
        self.put_entry(run, RUN_BYTES as u64, live.sequence, &records, data);
        self.memory.store(directory_at(run.chunk), run_word(run.chunk, run.chunks, &head));
        Some(run)
    }

    /// Stores an entry at a place of a run; returns where it ends.
    fn put_entry(&self, run: Run, at: u64, sequence: u64, records: &[u8], data: &[&[u8]]) -> u64 {
        let (word, rest) = entry_bytes(sequence, records, data);
        let base = chunk_at(run.chunk);
        let end = at + 8 + rest.len() as u64;
        if end + 8 <= run.room() {
            self.memory.store(base + end, 0);
        }
        self.memory.write(base + at + 8, &rest);
        self.memory.store(base + at, word);
        end
    }

    /// Takes chunks that follow each other.
    fn take(&self, live: &mut Live, chunks: u32) -> Option<Run> {
        let mut start = 0;
        for at in 0..live.taken.len() {
            if live.taken[at] {
                start = at + 1;
            } else if at + 1 - start == chunks as usize {
                break;
            }
        }
        let end = start + chunks as usize;
        if end > CHUNKS_MAX as usize || self.memory.grow(chunk_at(end as u32)).is_err() {
            return None;
        }
        if live.taken.len() < end {
            live.taken.resize(end, false);
        }
        live.taken[start..end].fill(true);
        Some(Run { chunk: start as u32, chunks })
    }

    /// Records a request of an epoch that is about to be acknowledged.
    fn record(&self, of: (u32, u64), records: &[Record], data: &[&[u8]]) {
        if mutated(Mutant::WarmEntryLate) {
            let late = (of, records.to_vec(), data.concat());
            let before = self.live.borrow_mut().as_mut().and_then(|live| live.late.replace(late));
            return before.map_or((), |(of, records, data)| self.store(of, &records, &[&data]));
        }
        self.store(of, records, data);
    }

    fn store(&self, of: (u32, u64), records: &[Record], data: &[&[u8]]) {
        let fits = self.live.borrow_mut().as_mut().is_some_and(|live| {
            let fits = live.has_room(of, records, data);
            if fits {
                self.put(live, of, records, data);
            }
            fits
        });
        if !fits && let Some(run) = self.put_alone(of, records, data) {
            let mut live = self.live.borrow_mut();
            let chain = live.as_mut().expect("it was put there").chains.entry(of).or_default();
            let bytes: usize = data.iter().map(|piece| piece.len()).sum();
            chain.filled = (RUN_BYTES + entry_len(pack(records).len(), bytes)) as u64;
            chain.runs.push(run);
        }
    }

    /// Puts an entry at the end of a chain, which has room for it.
    fn put(&self, live: &mut Live, of: (u32, u64), records: &[Record], data: &[&[u8]]) {
        live.sequence += 1;
        let Some(chain) = live.chains.get_mut(&of) else { return };
        let Some(&run) = chain.runs.last() else { return };
        chain.filled = self.put_entry(run, chain.filled, live.sequence, &pack(records), data);
    }

    /// Gives a run back.
    fn give(&self, live: &mut Live, run: Run) {
        self.memory.store(directory_at(run.chunk), 0);
        let start = run.chunk as usize;
        live.taken[start..start + run.chunks as usize].fill(false);
    }

    /// What was intended has ended.
    pub fn end(&self, run: Run) {
        if let Some(live) = self.live.borrow_mut().as_mut() {
            self.give(live, run);
        }
    }

    /// An epoch of a domain is committed.
    pub fn forget(&self, domain: u32, epoch: u64) {
        if mutated(Mutant::WarmEpochKept) {
            return;
        }
        let mut live = self.live.borrow_mut();
        let Some(live) = live.as_mut() else { return };
        let Some(chain) = live.chains.remove(&(domain, epoch)) else { return };
        chain.runs.into_iter().for_each(|run| self.give(live, run));
    }
}

impl Live {
    fn has_room(&self, of: (u32, u64), records: &[Record], data: &[&[u8]]) -> bool {
        let Some(chain) = self.chains.get(&of) else { return false };
        let Some(run) = chain.runs.last() else { return false };
        let record_bytes = records.iter().map(Record::stored_len).sum();
        let data_bytes = data.iter().map(|piece| piece.len()).sum();
        chain.filled + entry_len(record_bytes, data_bytes) as u64 <= run.room()
    }
}

/// The records of what a part has written, each block by itself where its bytes come with it.
fn records_of(state: &State, part: &Part, kept: bool, out: &mut Vec<Record>) {
    let pair = part.pair.expect("an admitted part has a pair");
    let binding = state.pairs.binding(pair);
    let generation = binding.generation;
    if binding != state.pairs.line(pair).binding {
        out.push(Record::Binding { pair, binding });
    }
    if kept {
        out.extend(part.write.iter().map(|block| {
            let on_one = part.targets[Slot::One.index()].contains(block);
            let slot = if on_one { Slot::One } else { Slot::Zero };
            Record::kept(pair, generation, block, Location::At(slot))
        }));
    } else {
        for slot in Slot::BOTH {
            let runs = part.targets[slot.index()].runs();
            out.extend(runs.map(|run| Record::placed(pair, generation, &run, Location::At(slot))));
        }
    }
    let zeros = part.zero.runs();
    out.extend(zeros.map(|run| Record::placed(pair, generation, &run, Location::Unused)));
}

/// The sums of the blocks that a part has written, from those in the order of blocks to those in
/// the order of its records.
fn sums_of(part: &Part, sums: &mut impl Iterator<Item = u64>, out: &mut Vec<U64>) {
    let sums: SmallVec<[u64; 4]> = sums.take(part.write.len()).collect();
    for slot in Slot::BOTH {
        let on_it = |(block, _): &(usize, &u64)| part.targets[slot.index()].contains(*block);
        let placed = part.write.iter().zip(&sums).filter(on_it);
        out.extend(placed.map(|(_, sum)| U64::from(*sum)));
    }
}

impl<E: Env> Inner<E> {
    /// The table, and the name there of the epoch of a request, where that is to be kept.
    fn warm_epoch(
        &self,
        state: &State,
        admitted: &Admitted<'_, E>,
    ) -> Option<(&Table, (u32, u64))> {
        let table = self.warm.as_ref().filter(|table| table.is_live())?;
        let domain = &state.domains[admitted.at.domain];
        if domain.group.is_some() {
            return None;
        }
        let sealed = domain.sealed.as_ref().filter(|of| admitted.at.epoch <= of.number);
        let epoch = sealed.map_or(domain.open.number, |sealed| sealed.number);
        Some((table, (domain.number, epoch)))
    }

    /// Whether the table is kept.
    pub(super) fn keeps_warm(&self) -> bool {
        self.warm.as_ref().is_some_and(Table::is_live)
    }

    /// Before an admitted request writes to the devices: keeps all of its bytes where any of them
    /// goes over what is pending.
    pub(super) fn warm_intend(&self, admitted: &Admitted<'_, E>, buf: &Buf, pieces: &Pieces) {
        let state = self.state.borrow();
        let Some((table, of)) = self.warm_epoch(&state, admitted) else { return };
        let over = |part: &Part| {
            let work = part.pair.and_then(|pair| state.pairs.work(pair));
            work.is_some_and(|work| part.write.meets(work.open.blocks() | work.sealed.blocks()))
        };
        if !admitted.parts.iter().any(over) || mutated(Mutant::WarmNotIntended) {
            return;
        }
        let mut records = Vec::new();
        admitted.parts.iter().for_each(|part| records_of(&state, part, true, &mut records));
        let bytes = buf.as_slice();
        let data: Vec<&[u8]> = pieces.iter().map(|piece| &bytes[piece.range.clone()]).collect();
        admitted.intent.set(table.put_alone(of, &records, &data));
    }

    /// Records how a request has ended, before anybody hears of it.
    pub(super) fn warm_record(
        &self,
        state: &State,
        admitted: &Admitted<'_, E>,
        outcome: Outcome<'_>,
    ) {
        let Some((table, of)) = self.warm_epoch(state, admitted) else { return };
        let kept: Option<&[u8]> = match outcome {
            Outcome::Kept(bytes) => Some(bytes),
            Outcome::Written => None,
            // What is torn may be whole again when it was done again; what is staged is of no
            // epoch yet.
            Outcome::Torn(_) | Outcome::Staged(_) | Outcome::Nothing => return,
        };
        let (mut records, mut sums) = (Vec::new(), Vec::new());
        let mut known = admitted.sums.take().into_iter();
        for part in &admitted.parts {
            records_of(state, part, kept.is_some(), &mut records);
            sums_of(part, &mut known, &mut sums);
        }
        if !records.is_empty() {
            table.record(of, &records, &[kept.unwrap_or_else(|| sums.as_bytes())]);
        }
        if let Some(run) = admitted.intent.take() {
            table.end(run);
        }
    }

    /// From here on a restart is cold, where there is a warm table.
    pub(super) fn warm_void(&self, reason: &str) {
        if let Some(table) = &self.warm {
            table.fail(reason);
        }
    }
}
