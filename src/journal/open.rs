//! Making a region, and finding again what an earlier start left in it (design section 5).
//!
//! Recovery walks the list from its root, and scans every slot besides: a whole group that is as
//! new as the end of the list and that no link reaches means that a link was lost, and so does any
//! part of a group that is newer, whole or cut off: groups are written one after another. What
//! follows the last group, a group that was being written at the crash, is durably invalidated
//! before anything else is written, so that it can never come back.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::{Mutex, Notify};

use super::layout::{HEADER_PAGE, PageRuns, RegionLayout};
use super::list::{Linked, List};
use super::pages::{PageStore, read_what_can_be};
use super::payload::{self, DECIDED, Held, slot_crc};
use super::slots::Slots;
use super::sums::is_there;
use super::{AppendWork, Inner, Journal, JournalError, PageWork, append_work_bytes};
use crate::env::{Env, Region};
use crate::format::group::{Group, GroupState, Link, Part, SLOT_BYTES, TransactionId};
use crate::format::header::{HEADER_MAGIC, RegionHeader};
use crate::format::home::{HOME_MAGIC, LINES_PER_PAGE, Line};
use crate::format::ids::{Incarnation, PairId, PoolId, Sequence, UnitId};
use crate::format::record::Record;
use crate::format::status::{ROOT, STATUS_MAGIC, StatusEntry, entries_per_page};
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::{Buf, BufferPool};

/// No list comes so far: a stored sequence beyond is damage, and would overflow.
const SEQUENCE_MAX: u64 = u64::MAX / 2;
/// Bytes of the buffer for pages, and for scanning.
pub(super) const PAGE_WORK: usize = 256 << 10;
/// The same at a start, when much is read, and memory is not needed for anything else yet.
const START_WORK: usize = 1 << 20;

/// A group that recovery found linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its transaction.
    pub transaction: TransactionId,
    /// The commit domain.
    pub domain: u32,
    /// Its state now.
    pub state: GroupState,
    /// What it did.
    pub records: Vec<Record>,
}

/// What a region held.
pub struct Opened<R: Region> {
    /// The journal, ready for appends.
    pub journal: Journal<R>,
    /// The home: a line for each pair, as last checkpointed.
    pub lines: Vec<Line>,
    /// The linked groups, oldest first. Their effects are still to be applied to the lines: but of
    /// those that are prepared only when the coordinator has said so ([`Opened::take_doubts`]).
    pub groups: Vec<RecoveredGroup>,
    /// The blocks whose contents are in the journal alone: those of decided groups, and those of
    /// groups in doubt.
    pub payload: [Payloads; 2],
}

/// Blocks whose contents are in the journal alone, each with its bytes, and zeros up to whole
/// slots.
pub type Payloads = BTreeMap<(PairId, u16), (Held, Vec<u8>)>;

impl<R: Region> Opened<R> {
    /// Takes the groups whose transaction is in doubt out of the others. Nothing else that is
    /// linked and newer names a block of theirs.
    pub fn take_doubts(&mut self) -> Vec<RecoveredGroup> {
        let groups = std::mem::take(&mut self.groups);
        let (doubts, decided) =
            groups.into_iter().partition(|group| group.state == GroupState::Prepared);
        self.groups = decided;
        doubts
    }
}

/// Everything that a region holds; nothing of it is changed by looking.
pub(super) struct Survey {
    pub header: RegionHeader,
    pub lines: Vec<Line>,
    pub groups: Vec<RecoveredGroup>,
    header_page: PageStore,
    layout: RegionLayout,
    status: Vec<Option<StatusEntry>>,
    status_store: PageStore,
    home_store: PageStore,
    list: List,
}

/// What is in all slots.
pub(super) struct Scan {
    parts: BTreeMap<u32, Part>,
    /// The checksum of each slot as payload; none where it cannot be read.
    crcs: Vec<u32>,
}

/// What a new region begins with.
pub(super) struct Beginning<'a> {
    pub unit: UnitId,
    pub pairs: u32,
    /// The unit's starts so far.
    pub incarnation: Incarnation,
    /// The first group's.
    pub sequence: Sequence,
    /// The home; pairs beyond its end never belonged to anything.
    pub lines: &'a [Line],
}

impl Beginning<'_> {
    /// Lays out a region that reads as zeros. The header comes last: where it is, all else is.
    pub async fn write<R: Region>(
        &self,
        region: &R,
        pool: PoolId,
        buffers: &BufferPool,
    ) -> Result<(), JournalError> {
        let Self { unit, pairs, incarnation, sequence, lines } = *self;
        let (len, sector) = (region.len(), region.sector());
        let layout = RegionLayout::compute(len, pairs, sector)
            .map_err(|needed| JournalError::TooSmall { len, needed })?;
        let header = RegionHeader { unit, incarnation, slots: layout.slots, pairs, sector };
        let mut work = buffers.acquire(PAGE_WORK).await;
        let mut home = PageStore::blank(layout.home, HOME_MAGIC, pool);
        let pages: Vec<&[Line]> = lines.chunks(LINES_PER_PAGE).collect();
        let used = |page: &u32| pages[*page as usize].iter().any(|line| *line != Line::FREE);
        let used: Vec<u32> = (0..pages.len() as u32).filter(used).collect();
        let fill = |page: u32, out: &mut [u8]| {
            for (i, line) in pages[page as usize].iter().enumerate() {
                line.store(out, i);
            }
        };
        home.write(region, &mut work, &used, fill).await.map_err(failed)?;
        let mut status = PageStore::blank(layout.status, STATUS_MAGIC, pool);
        let root =
            StatusEntry { of: ROOT, state: GroupState::Done, link: Link { slot: 0, sequence } };
        let fill = |_, page: &mut [u8]| root.store(page, 0);
        status.write(region, &mut work, &[0], fill).await.map_err(failed)?;
        let mut page = PageStore::blank(layout.header, HEADER_MAGIC, pool);
        page.write(region, &mut work, &[0], |_, page| header.store(page)).await.map_err(failed)
    }
}

impl Survey {
    /// Looks at the whole region. Everything that can be read must be durable already
    /// ([`Region::flush`]).
    pub async fn read<E: Env, R: Region>(
        env: &E,
        region: &R,
        pool: PoolId,
        unit: UnitId,
        pairs: u32,
        work: &mut Buf,
    ) -> Result<Self, JournalError> {
        let (header_page, header) = load_header(env, region, pool, work).await?;
        if header.unit != unit || header.pairs != pairs {
            let found = format!("it is unit {}'s of {} pairs", header.unit, header.pairs);
            return Err(JournalError::Foreign(found));
        }
        if region.sector() > header.sector {
            return Err(JournalError::Foreign(format!(
                "it was formatted in sectors of {} bytes, and the device writes {}",
                header.sector,
                region.sector()
            )));
        }
        let layout = RegionLayout::with_slots(pairs, header.sector, header.slots);
        if layout.end() > region.len() {
            return Err(JournalError::TooSmall { len: region.len(), needed: layout.end() });
        }
        let mut status_store = PageStore::blank(layout.status, STATUS_MAGIC, pool);
        let status = load_status(env, region, &layout, &mut status_store, work).await?;
        let mut home_store = PageStore::blank(layout.home, HOME_MAGIC, pool);
        let lines = load_home(env, region, &layout, &mut home_store, work).await?;
        let scan = scan_slots(env, region, &layout, pool, work).await?;
        let (list, groups) = scan.list(env, region, &status, work).await?;
        Ok(Self {
            header,
            lines,
            groups,
            header_page,
            layout,
            status,
            status_store,
            home_store,
            list,
        })
    }

    /// Reads the blocks whose contents are in the journal alone, of groups in one of these states.
    pub async fn payload<E: Env, R: Region>(
        &self,
        env: &E,
        region: &R,
        work: &mut Buf,
        of: &[GroupState],
    ) -> Result<Payloads, JournalError> {
        let mut payload = Payloads::new();
        for (block, held) in payload::held(&self.groups, of) {
            let bytes = payload::load(env, region, &self.layout, &held, work).await?;
            payload.insert(block, (held, bytes));
        }
        Ok(payload)
    }

    /// The sequence of the next group.
    pub fn next_sequence(&self) -> Sequence {
        self.list.tail().sequence
    }
}

impl<R: Region> Journal<R> {
    /// Makes an empty journal and home in a region that reads as zeros, for so many pairs.
    pub async fn format(
        region: &R,
        pool: PoolId,
        unit: UnitId,
        pairs: u32,
        buffers: &BufferPool,
    ) -> Result<(), JournalError> {
        let (incarnation, sequence) = (Incarnation(0), Sequence(1));
        let beginning = Beginning { unit, pairs, incarnation, sequence, lines: &[] };
        beginning.write(region, pool, buffers).await
    }

    /// Makes an empty journal in a region that reads as zeros, with these lines as its home, for a
    /// unit that has had so many starts.
    pub async fn restore(
        region: &R,
        pool: PoolId,
        (unit, incarnation): (UnitId, Incarnation),
        lines: &[Line],
        buffers: &BufferPool,
    ) -> Result<(), JournalError> {
        let (pairs, sequence) = (lines.len() as u32, Sequence(1));
        let beginning = Beginning { unit, pairs, incarnation, sequence, lines };
        beginning.write(region, pool, buffers).await
    }

    /// The last start of a unit, as the header in its region has it. Writes nothing.
    pub async fn last_start<E: Env>(
        env: &E,
        region: &R,
        pool: PoolId,
    ) -> Result<Incarnation, JournalError> {
        let mut work = env.buffers().acquire(PAGE_WORK).await;
        let (_, header) = load_header(env, region, pool, &mut work).await?;
        Ok(header.incarnation)
    }

    /// Opens the journal that is in a region, as a start after all of the unit: see the module.
    /// Everything that can be read must be durable already ([`Region::flush`]).
    pub async fn open<E: Env>(
        env: &E,
        region: R,
        pool: PoolId,
        (unit, start): (UnitId, Incarnation),
        pairs: u32,
    ) -> Result<Opened<R>, JournalError> {
        let buffers = env.buffers();
        let mut work = buffers.acquire(START_WORK).await;
        let survey = Survey::read(env, &region, pool, unit, pairs, &mut work).await?;
        let payload = [
            survey.payload(env, &region, &mut work, &DECIDED).await?,
            survey.payload(env, &region, &mut work, &[GroupState::Prepared]).await?,
        ];
        drop(work);
        let mut work = buffers.acquire(PAGE_WORK).await;
        let Survey { header, layout, list, lines, groups, status, .. } = survey;
        if header.incarnation >= start {
            let found =
                format!("start {} was counted there before start {start}", header.incarnation);
            return Err(JournalError::Foreign(found));
        }
        if !mutated(Mutant::InvalidationSkipped) {
            invalidate(&region, &layout, list.tail().slot, &mut work).await?;
        }
        let kept = mutated(Mutant::IncarnationKept);
        let incarnation = if kept { header.incarnation } else { start };
        let next = RegionHeader { incarnation, ..header };
        let mut header_page = survey.header_page;
        header_page
            .write(&region, &mut work, &[0], |_, page| next.store(page))
            .await
            .map_err(failed)?;
        let mut slots = Slots::new(layout.slots);
        let taken = list.iter().flat_map(|(_, linked)| linked.slots.iter().chain(&linked.payload));
        taken.for_each(|slot| slots.take_one(*slot));
        slots.take_one(list.tail().slot);
        let append_work = AppendWork {
            parts: buffers.acquire(append_work_bytes(layout.slots)).await,
            payload: buffers.acquire(payload::PAYLOAD_WORK).await,
        };
        let page_work =
            PageWork { buf: work, status: survey.status_store, home: survey.home_store };
        let inner = Inner { list, slots, status, failed: None, transactions: 0 };
        let journal = Journal {
            region,
            layout,
            pool,
            unit,
            incarnation,
            inner: RefCell::new(inner),
            append_work: Mutex::new(append_work),
            page_work: Mutex::new(page_work),
            room: Notify::new(),
            crowded: Notify::new(),
            bytes_written: Cell::new(0),
        };
        // What others are told from here on follows it.
        journal.vouch().await?;
        Ok(Opened { journal, lines, groups, payload })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn failed(error: std::io::Error) -> JournalError {
    JournalError::Failed(error.to_string().into())
}

async fn load_header<E: Env, R: Region>(
    env: &E,
    region: &R,
    pool: PoolId,
    work: &mut Buf,
) -> Result<(PageStore, RegionHeader), JournalError> {
    let runs = PageRuns { page: HEADER_PAGE, count: 1, copies: [0, HEADER_PAGE as u64] };
    let mut store = PageStore::blank(runs, HEADER_MAGIC, pool);
    let mut header = None;
    let uneven = store.load(env, region, work, |_, page| header = RegionHeader::parse(page)).await;
    let uneven = uneven.map_err(failed)?;
    match header {
        Some(header) => Ok((store, header)),
        None if uneven.is_empty() => Err(JournalError::Foreign("it was never formatted".into())),
        None => Err(JournalError::Foreign("neither copy of its header can be read".into())),
    }
}

async fn load_status<E: Env, R: Region>(
    env: &E,
    region: &R,
    layout: &RegionLayout,
    store: &mut PageStore,
    work: &mut Buf,
) -> Result<Vec<Option<StatusEntry>>, JournalError> {
    let entries = entries_per_page(layout.status.page);
    let mut status = vec![None; layout.slots as usize + 1];
    let uneven = store
        .load(env, region, work, |page, bytes| {
            let first = page as usize * entries;
            for (i, entry) in status.iter_mut().skip(first).take(entries).enumerate() {
                *entry = StatusEntry::parse(bytes, i);
            }
        })
        .await
        .map_err(failed)?;
    match uneven.iter().find(|page| page.is_lost()) {
        Some(page) => Err(JournalError::Damaged(format!("status page {} is lost", page.index))),
        None => Ok(status),
    }
}

async fn load_home<E: Env, R: Region>(
    env: &E,
    region: &R,
    layout: &RegionLayout,
    store: &mut PageStore,
    work: &mut Buf,
) -> Result<Vec<Line>, JournalError> {
    let mut lines = vec![Line::FREE; layout.pairs as usize];
    let mut unsound = None;
    let uneven = store
        .load(env, region, work, |page, bytes| {
            let first = page as usize * LINES_PER_PAGE;
            for (i, line) in lines.iter_mut().skip(first).take(LINES_PER_PAGE).enumerate() {
                match Line::parse(bytes, i) {
                    Some(parsed) => *line = parsed,
                    None => unsound = Some(first + i),
                }
            }
        })
        .await
        .map_err(failed)?;
    if let Some(page) = uneven.iter().find(|page| page.is_lost()) {
        let text = format!("home page {} is lost in both copies", page.index);
        return Err(JournalError::Damaged(text));
    }
    match unsound {
        Some(pair) => Err(JournalError::Damaged(format!("the home of pair {pair} cannot be"))),
        None => Ok(lines),
    }
}

pub(super) async fn scan_slots<E: Env, R: Region>(
    env: &E,
    region: &R,
    layout: &RegionLayout,
    pool: PoolId,
    work: &mut Buf,
) -> Result<Scan, JournalError> {
    let batch = (work.len() / SLOT_BYTES) as u32;
    let mut parts = BTreeMap::new();
    let mut crcs = Vec::with_capacity(layout.slots as usize);
    for first in (0..layout.slots).step_by(batch as usize) {
        let count = batch.min(layout.slots - first);
        let bytes = count as usize * SLOT_BYTES;
        read_what_can_be(env, region, layout.slot_at(first), work, 0..bytes)
            .await
            .map_err(failed)?;
        for (i, slot) in work.as_slice()[..bytes].chunks(SLOT_BYTES).enumerate() {
            if let Some(part) = Part::parse(slot, pool) {
                parts.insert(first + i as u32, part);
            }
            crcs.push(slot_crc(slot));
        }
    }
    Ok(Scan { parts, crcs })
}

impl Scan {
    fn group_at(&self, slot: u32) -> Option<(Group, Vec<u32>)> {
        let (group, slots) = Group::assemble(slot, |slot| self.parts.get(&slot))?;
        let arrived = |slot: u32, crc| {
            self.crcs.get(slot as usize) == Some(&crc) || mutated(Mutant::PayloadCrcIgnored)
        };
        let whole = group.payload().all(|payload| arrived(payload.slot, payload.crc));
        whole.then_some((group, slots))
    }

    /// The list, without its newest group where the data is missing that this sums up.
    pub(super) async fn list<E: Env, R: Region>(
        mut self,
        env: &E,
        region: &R,
        status: &[Option<StatusEntry>],
        work: &mut Buf,
    ) -> Result<(List, Vec<RecoveredGroup>), JournalError> {
        let (list, groups) = self.walk(status)?;
        let Some(newest) = (match list.newest() {
            _ if mutated(Mutant::OlderGroupDoubted) => groups.first(),
            newest => groups.last().filter(|_| newest.is_some()),
        }) else {
            return Ok((list, groups));
        };
        let head = list.head_slot(newest.sequence);
        let entry = status.get(head as usize + 1).copied().flatten();
        let vouched = entry.is_some_and(|entry| entry.of == newest.sequence);
        if vouched || is_there(env, region, newest, work).await.map_err(failed)? {
            return Ok((list, groups));
        }
        tracing::warn!(group = %newest.sequence, "the newest commit was cut off before its data");
        self.parts.remove(&head);
        self.walk(status)
    }

    /// Follows the links from the root; see the module.
    fn walk(
        &self,
        status: &[Option<StatusEntry>],
    ) -> Result<(List, Vec<RecoveredGroup>), JournalError> {
        let damaged = |what: String| Err(JournalError::Damaged(what));
        let root = status.first().copied().flatten().filter(|entry| entry.of == ROOT);
        let Some(root) = root else { return damaged("the root of the list is lost".into()) };
        let mut at = root.link;
        let mut linked = BTreeMap::new();
        let mut taken = BTreeSet::new();
        let mut groups = Vec::new();
        while let Some((group, slots)) = self.group_at(at.slot) {
            let unchecked =
                mutated(Mutant::SequenceUnchecked) && !linked.contains_key(&group.sequence);
            if group.sequence != at.sequence && !unchecked {
                break;
            }
            let entry = status.get(at.slot as usize + 1).copied().flatten();
            let entry = entry.filter(|entry| entry.of == group.sequence);
            let state = entry.map_or(group.state, |entry| entry.state);
            let link = entry.map_or(group.link, |entry| entry.link);
            let mut pairs: Vec<_> = group.records.iter().filter_map(Record::pair).collect();
            pairs.sort_unstable();
            pairs.dedup();
            if link.sequence <= group.sequence {
                return damaged(format!("group {} links backward", group.sequence));
            }
            let payload: Vec<u32> = group.payload().map(|payload| payload.slot).collect();
            let number = group.sequence;
            if let Some(slot) = slots.iter().chain(&payload).find(|slot| !taken.insert(**slot)) {
                return damaged(format!("group {number} is in slot {slot}, which is taken"));
            }
            let Group { transaction, domain, records, .. } = group;
            let bytes = records.iter().map(Record::stored_len).sum();
            let summed = records.iter().any(|record| matches!(record, Record::Sum(_)));
            let published = false;
            let found = Linked {
                slots,
                payload,
                link,
                transaction,
                domain,
                bytes,
                summed,
                state,
                pairs,
                published,
            };
            linked.insert(number, found);
            let sequence = at.sequence;
            groups.push(RecoveredGroup { sequence, transaction, domain, state, records });
            at = link;
        }
        self.check_tail(at, status.len() - 1, &taken)?;
        Ok((List::found(root.link, linked), groups))
    }

    /// Whether the next of so many slots can be the list's tail, where these are taken.
    fn check_tail(
        &self,
        tail: Link,
        slots: usize,
        taken: &BTreeSet<u32>,
    ) -> Result<(), JournalError> {
        let damaged = |what: String| Err(JournalError::Damaged(what));
        // Groups are written one after the other: any part of a later one, whole or cut off, says
        // that the group was durable which should be here.
        let newer = self.parts.iter().find(|(slot, part)| {
            let is_later =
                part.sequence > tail.sequence && !mutated(Mutant::CutOffSuccessorIgnored);
            let is_whole = || part.is_head() && self.group_at(**slot).is_some();
            is_later || part.sequence >= tail.sequence && is_whole()
        });
        if let Some((slot, part)) = newer.filter(|_| !mutated(Mutant::NewerGroupsIgnored)) {
            return damaged(format!(
                "the list ends before group {}, and group {} in slot {slot} is newer",
                tail.sequence, part.sequence
            ));
        }
        if tail.slot as usize >= slots {
            return damaged(format!("the list ends in slot {}, which there is not", tail.slot));
        }
        // The next group goes there, and what lies there is wiped before: never a linked one.
        if taken.contains(&tail.slot) {
            return damaged(format!("the list ends in slot {}, which a group is in", tail.slot));
        }
        if tail.sequence.0 > SEQUENCE_MAX {
            return damaged(format!("the list ends before group {}", tail.sequence));
        }
        Ok(())
    }
}

/// Makes sure that nothing of a group whose writing was cut off can be taken for a group later.
async fn invalidate<R: Region>(
    region: &R,
    layout: &RegionLayout,
    slot: u32,
    work: &mut Buf,
) -> Result<(), JournalError> {
    let sector = region.sector() as usize;
    work.as_mut_slice()[..sector].fill(0);
    region.persist(vec![(layout.slot_at(slot), work.view(0..sector))]).await.map_err(failed)
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
