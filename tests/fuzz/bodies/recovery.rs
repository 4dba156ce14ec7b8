//! A whole region as a start finds it: pages and parts each with good checksums, and contents that
//! contradict each other in any way.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use flipside::env::Region;
use flipside::env::sim::{DiskShape, Faults, Limit, Machine, Shape};
use flipside::format::header::{HEADER_MAGIC, RegionHeader, SLOTS_MIN};
use flipside::format::home::{HOME_MAGIC, HOME_PAGE, LINES_PER_PAGE, Line};
use flipside::format::ids::{Incarnation, UnitId};
use flipside::format::page::{PAGE_HEADER, VERSION_MAX};
use flipside::format::status::STATUS_MAGIC;
use flipside::journal::layout::{PageRuns, RegionLayout};
use flipside::journal::{Journal, JournalError, Opened};
use flipside::uring::buffers::{ARENA_BLOCK, View};

use super::cursor::Cursor;
use super::journal::{POOL, seal_part, sealed};

const SECTOR: u32 = 512;
/// The pairs of the region: one page of them.
pub const PAIRS: u32 = 46;
const UNIT: UnitId = UnitId(1);

/// A region in memory.
#[derive(Clone)]
struct Memory(Rc<RefCell<Vec<u8>>>);

impl Region for Memory {
    fn len(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    fn sector(&self) -> u32 {
        SECTOR
    }

    fn read(&self, offset: u64, mut view: View) -> impl Future<Output = io::Result<()>> + 'static {
        let (memory, from) = (self.0.borrow(), offset as usize);
        view.with_mut(|out| out.copy_from_slice(&memory[from..from + out.len()]));
        std::future::ready(Ok(()))
    }

    fn persist(&self, pieces: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static {
        let mut memory = self.0.borrow_mut();
        for (offset, view) in pieces {
            let from = offset as usize;
            view.with(|bytes| memory[from..from + bytes.len()].copy_from_slice(bytes));
        }
        std::future::ready(Ok(()))
    }

    fn whole(&self) -> Option<Self> {
        Some(self.clone())
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::ready(Ok(()))
    }
}

/// Opens a region twice. What could be opened once can be again, and holds the same.
///
/// The input: the version of all pages; a piece each for the contents of the header (a valid one
/// where it is empty), of the first status page and of the home page (what it does not reach is
/// free); then slots, each a number and a piece.
pub fn recovery(data: &[u8]) -> bool {
    let mut cursor = Cursor(data);
    let layout = RegionLayout::with_slots(PAIRS, SECTOR, SLOTS_MIN);
    let mut bytes = vec![0; layout.end() as usize];
    let version = cursor.number(8) % VERSION_MAX;
    let header = match cursor.piece() {
        [] => valid_header(),
        other => other.to_vec(),
    };
    put_page(&mut bytes, &layout.header, HEADER_MAGIC, &header, version);
    put_page(&mut bytes, &layout.status, STATUS_MAGIC, cursor.piece(), version);
    let home = free_lines_under(cursor.piece());
    put_page(&mut bytes, &layout.home, HOME_MAGIC, &home, version);
    while !cursor.is_empty() {
        let at = layout.slot_at(cursor.number(1) as u32 % SLOTS_MIN) as usize;
        let mut part = cursor.piece().to_vec();
        part.truncate(flipside::format::group::SLOT_BYTES);
        seal_part(&mut part);
        bytes[at..at + part.len()].copy_from_slice(&part);
    }
    let region = Memory(Rc::new(RefCell::new(bytes)));
    let first = match open(&region) {
        Ok(first) => first,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let incarnation = first.journal.incarnation();
    let (lines, groups) = (first.lines, first.groups);
    assert_eq!(first.journal.linked(), groups.len());
    drop(first.journal);
    // A header at its very last start may be opened once and not again.
    let Ok(second) = open(&region) else {
        assert_eq!(incarnation, Incarnation(u32::MAX), "what was opened cannot be opened again");
        return true;
    };
    assert_eq!((second.lines, second.groups), (lines, groups));
    assert!(second.journal.incarnation() > incarnation);
    true
}

fn valid_header() -> Vec<u8> {
    let incarnation = Incarnation(2);
    let header =
        RegionHeader { unit: UNIT, incarnation, slots: SLOTS_MIN, pairs: PAIRS, sector: SECTOR };
    let mut page = vec![0; 512];
    header.store(&mut page);
    page.split_off(PAGE_HEADER)
}

/// A home page's contents: `given`, and free lines where it ends.
fn free_lines_under(given: &[u8]) -> Vec<u8> {
    let mut page = vec![0; HOME_PAGE];
    (0..LINES_PER_PAGE).for_each(|index| Line::FREE.store(&mut page, index));
    let mut contents = page.split_off(PAGE_HEADER);
    let taken = given.len().min(contents.len());
    contents[..taken].copy_from_slice(&given[..taken]);
    contents
}

/// Both copies of the first page of its kind.
fn put_page(bytes: &mut [u8], runs: &PageRuns, magic: [u8; 4], contents: &[u8], version: u64) {
    let page = sealed(magic, runs.page, contents, version);
    for copy in runs.copies {
        bytes[copy as usize..copy as usize + page.len()].copy_from_slice(&page);
    }
}

fn open(region: &Memory) -> Result<Opened<Memory>, JournalError> {
    const LIMIT: Limit = Limit { time_ns: 1_000_000_000, steps: 100_000 };
    let disk = DiskShape { len: 4096, sector: SECTOR, volatile_cache: false };
    let buffers_max = 2 * ARENA_BLOCK;
    let parts = Vec::new();
    let shape = Shape { disks: vec![disk], nvram: None, parts, storage_max: 0, buffers_max };
    let env = Machine::new(0, &shape).boot(Faults::none());
    let (handle, region) = (env.clone(), region.clone());
    let opening = async move {
        let last = Journal::last_start(&handle, &region, POOL).await?;
        let start = (UNIT, Incarnation(last.0 + 1));
        Journal::open(&handle, region, POOL, start, PAIRS).await
    };
    env.run(LIMIT, opening).expect("opening comes to an end")
}
