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

use super::layout::PageRuns;
use crate::env::Region;
use crate::format::ids::PoolId;
use crate::format::page::{Choice, CopyState, PageIdentity, choose};
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

/// A page could not be loaded: neither copy is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostPage(pub u32);

impl PageStore {
    /// Pages none of which was written yet.
    pub fn blank(runs: PageRuns, magic: [u8; 4], pool: PoolId) -> Self {
        let versions = vec![0; runs.count as usize];
        Self { runs, magic, pool, versions, second_first: BTreeSet::new() }
    }

    /// Loads every page, giving each that was ever written to `on_page`; the pages of which neither
    /// copy is good are returned. `work` holds both copies of at least one page.
    pub async fn load<R: Region>(
        &mut self,
        region: &R,
        work: &mut Buf,
        mut on_page: impl FnMut(u32, &[u8]),
    ) -> Vec<LostPage> {
        let page = self.runs.page;
        let half = work.len() / 2 / page * page;
        let batch = (half / page) as u32;
        assert!(batch > 0, "a work buffer for pages of {page} bytes");
        let mut lost = Vec::new();
        let mut first = 0;
        while first < self.runs.count {
            let count = batch.min(self.runs.count - first);
            let bytes = (count as usize * page).next_multiple_of(region.sector() as usize);
            for (copy, start) in self.runs.copies.into_iter().enumerate() {
                let at = start + u64::from(first) * page as u64;
                read_what_can_be(region, at, work, copy * half..copy * half + bytes).await;
            }
            let bytes = work.as_slice();
            for i in 0..count {
                let at = i as usize * page;
                let copies = [&bytes[at..at + page], &bytes[half + at..half + at + page]];
                self.take(first + i, copies, &mut on_page, &mut lost);
            }
            first += count;
        }
        lost
    }

    fn take(
        &mut self,
        index: u32,
        copies: [&[u8]; 2],
        on_page: &mut impl FnMut(u32, &[u8]),
        lost: &mut Vec<LostPage>,
    ) {
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
            Choice::Blank => {}
            Choice::Lost => lost.push(LostPage(index)),
        }
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
            for turn in 0..2 {
                let pieces = self.pieces(work, batch, turn);
                region.persist(pieces).await?;
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
            let copy = turn ^ usize::from(self.second_first.contains(&index));
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

/// Fills a range of `buf` from the region. What cannot be read is filled with ones, which no
/// checksum of ours accepts: a sector that was being written at a crash may be unreadable, and then
/// its contents do not count.
pub async fn read_what_can_be<R: Region>(
    region: &R,
    at: u64,
    buf: &mut Buf,
    range: std::ops::Range<usize>,
) {
    if region.read(at, buf.view(range.clone())).await.is_ok() {
        return;
    }
    let sector = region.sector() as usize;
    for from in range.clone().step_by(sector) {
        let piece = from..(from + sector).min(range.end);
        let offset = at + (from - range.start) as u64;
        if region.read(offset, buf.view(piece.clone())).await.is_err() {
            buf.as_mut_slice()[piece].fill(0xff);
        }
    }
}
