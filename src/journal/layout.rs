//! Where things lie in a unit's region.
//!
//! ```text
//!   header ×2 │ status pages ×2 │ home pages ×2 │ journal slots …
//! ```
//!
//! The copies of a two-copy page lie in two separate runs, so that pages that are written together
//! and are neighbours make one write.

use crate::format::group::SLOT_BYTES;
use crate::format::header::{SLOTS_MAX, SLOTS_MIN};
use crate::format::home::{HOME_PAGE, LINES_PER_PAGE};
use crate::format::status::entries_per_page;

/// Bytes of the region's header page.
pub const HEADER_PAGE: usize = 4096;

/// Two runs of the same number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRuns {
    /// Bytes of a page.
    pub page: usize,
    /// How many pages there are of each copy.
    pub count: u32,
    /// Byte offsets of the first page of each copy.
    pub copies: [u64; 2],
}

impl PageRuns {
    fn new(start: u64, page: usize, count: u32) -> Self {
        let run = run_bytes(page, count);
        Self { page, count, copies: [start, start + run] }
    }

    fn end(&self) -> u64 {
        self.copies[1] + run_bytes(self.page, self.count)
    }
}

fn run_bytes(page: usize, count: u32) -> u64 {
    (page as u64 * u64::from(count)).next_multiple_of(SLOT_BYTES as u64)
}

/// The places of everything in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// The header page.
    pub header: PageRuns,
    /// The status pages, of one sector each.
    pub status: PageRuns,
    /// The home pages.
    pub home: PageRuns,
    /// Byte offset of journal slot 0.
    pub slots_at: u64,
    /// How many journal slots there are.
    pub slots: u32,
    /// How many pairs the home describes.
    pub pairs: u32,
}

impl RegionLayout {
    /// The layout of a region of `len` bytes for so many pairs, written in sectors of `sector`
    /// bytes; or, when it is too small, the bytes that it would need.
    pub fn compute(len: u64, pairs: u32, sector: u32) -> Result<RegionLayout, u64> {
        let needed = Self::with_slots(pairs, sector, SLOTS_MIN).end();
        if len < needed {
            return Err(needed);
        }
        let room = (len - needed) / SLOT_BYTES as u64;
        let mut slots =
            SLOTS_MIN + u32::try_from(room).unwrap_or(u32::MAX).min(SLOTS_MAX - SLOTS_MIN);
        // The status pages of the slots take room too: step back until all of it fits.
        loop {
            let layout = Self::with_slots(pairs, sector, slots);
            if layout.end() <= len {
                return Ok(layout);
            }
            slots -= 1;
        }
    }

    /// The layout with exactly so many slots.
    pub fn with_slots(pairs: u32, sector: u32, slots: u32) -> RegionLayout {
        let header = PageRuns::new(0, HEADER_PAGE, 1);
        let entries = entries_per_page(sector as usize) as u32;
        let status = PageRuns::new(header.end(), sector as usize, (slots + 1).div_ceil(entries));
        let home_pages = pairs.div_ceil(LINES_PER_PAGE as u32);
        let home = PageRuns::new(status.end(), HOME_PAGE, home_pages);
        RegionLayout { header, status, home, slots_at: home.end(), slots, pairs }
    }

    /// Bytes used in all.
    pub fn end(&self) -> u64 {
        self.slot_at(self.slots)
    }

    /// Byte offset of a journal slot.
    pub fn slot_at(&self, slot: u32) -> u64 {
        self.slots_at + u64::from(slot) * SLOT_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Goal: whatever the size, the parts are in order, disjoint, inside, and use what there
        /// is.
        #[test]
        fn parts_fit(
            len in 0_u64..1 << 31,
            pairs in 1_u32..1 << 20,
            sector in prop::sample::select(vec![512_u32, 4096]),
        ) {
            match RegionLayout::compute(len, pairs, sector) {
                Err(needed) => {
                    prop_assert!(needed > len);
                    prop_assert!(RegionLayout::compute(needed, pairs, sector).is_ok());
                }
                Ok(layout) => {
                    prop_assert!(layout.end() <= len);
                    let unused = len - layout.end();
                    prop_assert!(layout.slots == SLOTS_MAX || unused < 4 * SLOT_BYTES as u64);
                    prop_assert!(layout.header.end() <= layout.status.copies[0]);
                    prop_assert!(layout.status.end() <= layout.home.copies[0]);
                    prop_assert!(layout.home.end() <= layout.slots_at);
                    prop_assert!(layout.home.count as usize * LINES_PER_PAGE >= pairs as usize);
                }
            }
        }
    }
}
