//! Looking at a region without changing it: for `flipside check` and `flipside metadata dump`.
//!
//! # Contract
//!
//! Nothing is written but by [`mend_page`], which writes the copy of a page that is not good, and
//! only with what the other copy holds.

use std::io;

use super::JournalError;
use super::decide::Shown;
use super::layout::{HEADER_PAGE, PageRuns, RegionLayout};
use super::open::{PAGE_WORK, RecoveredGroup, failed, scan_slots};
pub use super::pages::UnevenPage;
use super::pages::{PageStore, read_what_can_be};
use crate::env::{Env, Region};
use crate::format::header::{HEADER_MAGIC, RegionHeader};
use crate::format::home::{HOME_MAGIC, LINES_PER_PAGE, Line};
use crate::format::ids::PoolId;
use crate::format::page::{Choice, choose};
use crate::format::status::{STATUS_MAGIC, StatusEntry, entries_per_page};
use crate::mutants::{Mutant, mutated};

/// A kind of two-copy page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageKind {
    /// The region's header.
    Header,
    /// State and links of groups.
    Status,
    /// Lines of pairs.
    Home,
}

/// What a region was found to hold.
#[derive(Debug)]
pub struct RegionFacts {
    /// The header, and where it says that everything is; without it nothing else was looked at.
    pub header: Option<(RegionHeader, RegionLayout)>,
    /// The pages whose copies are not the same.
    pub uneven: Vec<(PageKind, UnevenPage)>,
    /// The line of each pair as last checkpointed, sound or not; `None` where it cannot be read.
    pub lines: Vec<Option<Line>>,
    /// The linked groups, oldest first; or what is wrong with their list.
    pub groups: Result<Vec<RecoveredGroup>, JournalError>,
    /// The same as a running unit would show them.
    pub linked: Vec<Shown>,
}

/// Where the pages of a kind lie.
pub fn runs(kind: PageKind, layout: Option<&RegionLayout>) -> PageRuns {
    match (kind, layout) {
        (PageKind::Status, Some(layout)) => layout.status,
        (PageKind::Home, Some(layout)) => layout.home,
        _ => PageRuns { page: HEADER_PAGE, count: 1, copies: [0, HEADER_PAGE as u64] },
    }
}

/// Reads a whole region of a pool. Fails only where the region cannot be read at all.
pub async fn inspect<E: Env, R: Region>(
    env: &E,
    region: &R,
    pool: PoolId,
) -> Result<RegionFacts, JournalError> {
    let mut work = env.buffers().acquire(PAGE_WORK).await;
    let mut uneven = Vec::new();
    let mut note = |kind, pages: Vec<UnevenPage>| {
        uneven.extend(pages.into_iter().map(|page| (kind, page)));
    };
    let mut header = None;
    let mut store = PageStore::blank(runs(PageKind::Header, None), HEADER_MAGIC, pool);
    let found = store.load(env, region, &mut work, |_, page| header = RegionHeader::parse(page));
    note(PageKind::Header, found.await.map_err(failed)?);
    let header = header.and_then(|header| {
        let layout = RegionLayout::with_slots(header.pairs, header.sector, header.slots);
        let fits = layout.end() <= region.len() && region.sector() <= header.sector;
        fits.then_some((header, layout))
    });
    let Some((_, layout)) = header else {
        let text = "it has no header that can be used".to_owned();
        let groups = Err(JournalError::Foreign(text));
        let (lines, linked) = (Vec::new(), Vec::new());
        return Ok(RegionFacts { header: None, uneven, lines, groups, linked });
    };
    let mut status = vec![None; layout.slots as usize + 1];
    let entries = entries_per_page(layout.status.page);
    let mut store = PageStore::blank(layout.status, STATUS_MAGIC, pool);
    let found = store.load(env, region, &mut work, |page, bytes| {
        let first = page as usize * entries;
        for (i, entry) in status.iter_mut().skip(first).take(entries).enumerate() {
            *entry = StatusEntry::parse(bytes, i);
        }
    });
    note(PageKind::Status, found.await.map_err(failed)?);
    let mut lines = vec![Some(Line::FREE); layout.pairs as usize];
    let mut store = PageStore::blank(layout.home, HOME_MAGIC, pool);
    let found = store.load(env, region, &mut work, |page, bytes| {
        let first = page as usize * LINES_PER_PAGE;
        for (i, line) in lines.iter_mut().skip(first).take(LINES_PER_PAGE).enumerate() {
            *line = Line::parse_unsound(bytes, i);
        }
    });
    let found = found.await.map_err(failed)?;
    for page in found.iter().filter(|page| page.is_lost()) {
        let first = page.index as usize * LINES_PER_PAGE;
        lines.iter_mut().skip(first).take(LINES_PER_PAGE).for_each(|line| *line = None);
    }
    note(PageKind::Home, found);
    let scan = scan_slots(env, region, &layout, pool, &mut work).await?;
    let (linked, groups) = match scan.list(env, region, &status, &mut work).await {
        Ok((list, groups)) => (list.show(), Ok(groups)),
        Err(error) => (Vec::new(), Err(error)),
    };
    Ok(RegionFacts { header, uneven, lines, groups, linked })
}

/// Writes the copy of a page that is not as good as the other one, durably; `false` where neither
/// is good.
pub async fn mend_page<E: Env, R: Region>(
    env: &E,
    region: &R,
    runs: &PageRuns,
    page: &UnevenPage,
) -> io::Result<bool> {
    let mut work = env.buffers().acquire(runs.page).await;
    let place = |copy: usize| runs.copies[copy] + u64::from(page.index) * runs.page as u64;
    let targets = match choose(page.copies) {
        Choice::Use { copy, .. } => {
            read_what_can_be(env, region, place(copy), &mut work, 0..runs.page).await?;
            if mutated(Mutant::GoodCopyMended) { vec![copy, 1 - copy] } else { vec![1 - copy] }
        }
        Choice::Blank { copy } => {
            work.as_mut_slice().fill(0);
            vec![1 - copy, copy]
        }
        Choice::Lost => return Ok(false),
    };
    for copy in targets {
        region.persist(vec![(place(copy), work.view(0..runs.page))]).await?;
    }
    Ok(true)
}
