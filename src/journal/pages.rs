//! Runs of two-copy pages in a region: loading them, and writing changes.
//!
//! # Contracts
//!
//! - **Durability**: [`PageStore::write`] returns when both copies of every page are durable. At a
//!   crash before that, each page is its old or its new version, whole.
//! - **Ordering**: a page's second copy is not touched before its first is durable, and the copy
//!   that goes first is never the only good one.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::time::Duration;

use super::layout::PageRuns;
use crate::env::{Env, Region};
use crate::format::ids::PoolId;
use crate::format::page::{Choice, CopyState, PageIdentity, choose};
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::Buf;

/// The pages of one kind.
pub struct PageStore {
    runs: PageRuns,
    magic: [u8; 4],
    pool: PoolId,
    versions: Vec<u64>,
    /// Pages of which copy 1 must be written first, because copy 0 is the only good one.
    second_first: BTreeSet<u32>,
}

/// A page whose copies are not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnevenPage {
    /// Which page of its kind.
    pub index: u32,
    /// What each copy was found to hold.
    pub copies: [CopyState; 2],
}

impl UnevenPage {
    /// Whether neither copy can be used.
    pub fn is_lost(&self) -> bool {
        choose(self.copies) == Choice::Lost
    }
}

impl PageStore {
    /// Pages none of which was written yet.
    pub fn blank(runs: PageRuns, magic: [u8; 4], pool: PoolId) -> Self {
        let versions = vec![0; runs.count as usize];
        Self { runs, magic, pool, versions, second_first: BTreeSet::new() }
    }

    /// Loads every page, giving each that was ever written to `on_page`; the pages of which the
    /// copies are not the same, and good or blank, are returned. `work` holds both copies of at
    /// least one page.
    pub async fn load<E: Env, R: Region>(
        &mut self,
        env: &E,
        region: &R,
        work: &mut Buf,
        mut on_page: impl FnMut(u32, &[u8]),
    ) -> io::Result<Vec<UnevenPage>> {
        let page = self.runs.page;
        let half = work.len() / 2 / page * page;
        let batch = (half / page) as u32;
        assert!(batch > 0, "a work buffer for pages of {page} bytes");
        let mut uneven = Vec::new();
        let mut first = 0;
        while first < self.runs.count {
            let count = batch.min(self.runs.count - first);
            let bytes = (count as usize * page).next_multiple_of(region.sector() as usize);
            for (copy, start) in self.runs.copies.into_iter().enumerate() {
                let at = start + u64::from(first) * page as u64;
                let place = copy * half..copy * half + bytes;
                read_what_can_be(env, region, at, work, place).await?;
            }
            let bytes = work.as_slice();
            for i in 0..count {
                let at = i as usize * page;
                let copies = [&bytes[at..at + page], &bytes[half + at..half + at + page]];
                uneven.extend(self.take(first + i, copies, &mut on_page));
            }
            first += count;
        }
        Ok(uneven)
    }

    fn take(
        &mut self,
        index: u32,
        copies: [&[u8]; 2],
        on_page: &mut impl FnMut(u32, &[u8]),
    ) -> Option<UnevenPage> {
        let identity = self.identity(index);
        let states: [CopyState; 2] = copies.map(|copy| identity.verify(copy));
        match choose(states) {
            Choice::Use { copy, version, alone } => {
                self.versions[index as usize] = version;
                if alone && copy == 0 {
                    self.second_first.insert(index);
                }
                on_page(index, copies[copy]);
            }
            // Found by the simulator (seed 1633): the other copy had rotted before the page's first
            // change, which a loss of power then cut off in the copy that was blank.
            Choice::Blank { copy: 0 } => {
                self.second_first.insert(index);
            }
            Choice::Blank { .. } | Choice::Lost => {}
        }
        let even = states[0] == states[1] && states[0] != CopyState::Damaged;
        (!even).then_some(UnevenPage { index, copies: states })
    }

    /// Writes new contents of some pages, in ascending order; `fill` writes a page's contents after
    /// its header into zeroed bytes. As many go at a time as `work` holds.
    pub async fn write<R: Region>(
        &mut self,
        region: &R,
        work: &mut Buf,
        pages: &[u32],
        mut fill: impl FnMut(u32, &mut [u8]),
    ) -> io::Result<()> {
        assert!(pages.is_sorted(), "pages are written in order");
        let page = self.runs.page;
        for batch in pages.chunks(work.len() / page) {
            let bytes = work.as_mut_slice();
            for (i, &index) in batch.iter().enumerate() {
                let out = &mut bytes[i * page..(i + 1) * page];
                out.fill(0);
                fill(index, out);
                self.identity(index).seal(out, self.versions[index as usize] + 1);
            }
            if mutated(Mutant::SecondCopyAtOnce) {
                let mut both = self.pieces(work, batch, 0);
                both.extend(self.pieces(work, batch, 1));
                region.persist(both).await?;
            } else {
                for turn in 0..2 {
                    let pieces = self.pieces(work, batch, turn);
                    region.persist(pieces).await?;
                }
            }
            for index in batch {
                self.versions[*index as usize] += 1;
                self.second_first.remove(index);
            }
        }
        Ok(())
    }

    /// The writes of one copy of each page of a batch, neighbours joined.
    fn pieces(
        &self,
        work: &mut Buf,
        batch: &[u32],
        turn: usize,
    ) -> Vec<(u64, crate::uring::buffers::View)> {
        let page = self.runs.page;
        let place = |index: u32| {
            let second_first = self.second_first.contains(&index);
            let copy = turn ^ usize::from(second_first != mutated(Mutant::OnlyGoodCopyFirst));
            self.runs.copies[copy] + u64::from(index) * page as u64
        };
        let mut pieces = Vec::new();
        let mut from = 0;
        while from < batch.len() {
            let start = place(batch[from]);
            let mut to = from + 1;
            while to < batch.len() && place(batch[to]) == start + ((to - from) * page) as u64 {
                to += 1;
            }
            pieces.push((start, work.view(from * page..to * page)));
            from = to;
        }
        pieces
    }

    fn identity(&self, index: u32) -> PageIdentity {
        PageIdentity { magic: self.magic, pool: self.pool, index }
    }
}

/// How often a sector that cannot be read is tried again at recovery, and how long after.
const READ_AGAIN: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// Fills a range of `buf` from the region. What the medium cannot give is filled with ones, which
/// no checksum of ours accepts: a sector that was being written at a crash may be unreadable, and
/// then its contents do not count.
///
/// That must not be said lightly, because what does not count is invalidated. So a sector is tried
/// again for a while, and where not the medium fails but the way to it, that is an error.
pub async fn read_what_can_be<E: Env, R: Region>(
    env: &E,
    region: &R,
    at: u64,
    buf: &mut Buf,
    range: Range<usize>,
) -> io::Result<()> {
    if region.read(at, buf.view(range.clone())).await.is_ok() {
        return Ok(());
    }
    let sector = region.sector() as usize;
    for from in range.clone().step_by(sector) {
        let piece = from..(from + sector).min(range.end);
        let offset = at + (from - range.start) as u64;
        if let Err(error) = read_sector(env, region, offset, buf, piece.clone()).await {
            if !is_of_the_medium(&error) {
                return Err(error);
            }
            buf.as_mut_slice()[piece].fill(0xff);
        }
    }
    Ok(())
}

/// Fills a range of `buf` from the region, if all of it can be read; what cannot be at once is
/// tried again as [`read_what_can_be`] does.
pub async fn is_readable<E: Env, R: Region>(
    env: &E,
    region: &R,
    at: u64,
    buf: &mut Buf,
    range: Range<usize>,
) -> io::Result<bool> {
    match read_sector(env, region, at, buf, range).await {
        Err(error) if is_of_the_medium(&error) => Ok(false),
        done => done.map(|()| true),
    }
}

async fn read_sector<E: Env, R: Region>(
    env: &E,
    region: &R,
    offset: u64,
    buf: &mut Buf,
    piece: Range<usize>,
) -> io::Result<()> {
    let mut last = region.read(offset, buf.view(piece.clone())).await;
    for pause in READ_AGAIN {
        if last.is_ok() || mutated(Mutant::UnreadableGivenUp) {
            break;
        }
        env.sleep(pause).await;
        last = region.read(offset, buf.view(piece.clone())).await;
    }
    last
}

/// Whether an error says that the sector cannot be read, and not that the device cannot be reached.
fn is_of_the_medium(error: &io::Error) -> bool {
    /// Linux: EIO, ENODATA (a medium error), EILSEQ (a failed integrity check).
    const MEDIUM: [i32; 3] = [5, 61, 84];
    error.raw_os_error().is_none_or(|code| MEDIUM.contains(&code))
}
