//! Making and opening the metadata's place on a device: the store, and the volume table behind it.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | the rest | the store's rows ([`super::backend`]) |
//! | then | [`log_len`] | the log before them ([`super::log`]) |
//! | then | [`TABLE_LEN`] | the volume table ([`super::volume_table`]) |
//!
//! A settle is a transaction: without the log each would cost the store's pages and their parents.
//!
//! # Contracts
//!
//! - **Damage**: a store that is damaged anywhere is not used: every page and row is looked at when
//!   it is opened. A new one is made from the volume table; the unit then tells it of all pairs.
//!   Not so where the pool's flags are in the store: nobody else has them.
//! - **Ordering**: a store is given up only for a table that is whole and of the same pool. Cut
//!   short, what there is of the new store is damaged too, and the next opening begins again.

use std::fs::{File, OpenOptions};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use redb::StorageBackend as _;

use super::backend::{Beside, CAPACITY_MIN, FixedBackend, Medium, RegionBackend};
use super::catalog::lines::line_rows;
use super::catalog::{Catalog, PoolSpec, fresh_rows};
use super::examine::StoreFacts;
use super::log::checkpoint::Checkpointer;
use super::log::format::{BLOCK, Identity, LogHeader};
use super::log::place::MediumPlace;
use super::log::{self, LoggedStore};
use super::mirrored::{Agreement, Mirrored, compare, sequence_row};
use super::redb_store::RedbStore;
use super::store::{Changes, Store as _, StoreError};
use super::volume_table::{Kept, TABLE_LEN, VolumeTable, newest};
use crate::env::aside::Aside;
use crate::format::home::Line;
use crate::format::ids::{ExtentId, ExtentRun, Incarnation, PoolId, UnitId};
use crate::format::superblock::{FlagsPlace, Superblock};

/// Bytes of a half of the log: for each extent of the pool, at least, and at most. What is settled
/// within a half is applied at once, and is in memory until then.
const HALF_PER_EXTENT: u64 = 64;
const HALF_MIN: u64 = 512 << 10;
const HALF_MAX: u64 = 8 << 20;

/// Where a pool's metadata lies.
#[derive(Debug)]
pub struct MetadataPlace<M = File> {
    medium: M,
    offset: u64,
    /// Bytes of the store alone: rows and log.
    capacity: u64,
    /// The log's header, as it was made.
    log: LogHeader,
    /// Whether there is a thread to apply the log beside all else.
    applies_beside: bool,
    pool: PoolId,
    spec: PoolSpec,
    /// Whether the store has the only copy of the pairs' lines.
    pub(super) has_lines: bool,
}

/// A store's rows with the log before them.
pub type Logged<M> = LoggedStore<RedbStore, MediumPlace<M>>;

/// A volume table, and what its copies hold.
pub(super) type Table<M> = (VolumeTable<FixedBackend<M>>, [Option<Kept>; 2]);

/// What was opened.
pub struct OpenedMetadata {
    /// The metadata.
    pub catalog: Catalog,
    /// What was wrong with the store, where a new one was made.
    pub rebuilt: Option<String>,
}

impl MetadataPlace {
    /// The place on a pool's first device, which has that superblock.
    pub fn on(path: &Path, superblock: &Superblock) -> Result<Self, StoreError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(MetadataPlace { applies_beside: true, ..Self::within(file, superblock)? })
    }
}

/// The header of the log that a pool has.
fn log_header(pool: PoolId, spec: &PoolSpec) -> LogHeader {
    let extents = spec.devices.iter().map(|run| u64::from(run.count)).sum();
    LogHeader { identity: Identity(pool.0), half: log_half(extents) }
}

/// Bytes of a half of the log of a pool of so many extents.
fn log_half(extents: u64) -> u64 {
    (HALF_PER_EXTENT * extents).clamp(HALF_MIN, HALF_MAX).next_multiple_of(BLOCK as u64)
}

/// The length of the log of a pool of so many extents, in bytes.
pub fn log_len(extents: u64) -> u64 {
    LogHeader { identity: Identity([0; 16]), half: log_half(extents) }.log_len()
}

impl<M: Medium> MetadataPlace<M> {
    /// The same, on what is open, with everything done in turn.
    pub fn within(medium: M, superblock: &Superblock) -> Result<Self, StoreError> {
        let span = superblock.layout.regions.expect("the first device has the regions").store;
        let spec = pool_spec(superblock);
        let log = log_header(superblock.pool, &spec);
        if span.len < CAPACITY_MIN + log.log_len() + TABLE_LEN {
            return Err(StoreError::Failed(format!("{} bytes are too few for it", span.len)));
        }
        Ok(MetadataPlace {
            medium,
            offset: span.offset,
            capacity: span.len - TABLE_LEN,
            log,
            applies_beside: false,
            pool: superblock.pool,
            spec,
            has_lines: superblock.flags == FlagsPlace::Mds,
        })
    }

    /// The same, on a device where others cache writes, too.
    pub fn beside(self, aside: Arc<Aside>) -> MetadataPlace<Beside<M>> {
        let Self { medium, offset, capacity, log, applies_beside, pool, spec, has_lines } = self;
        let medium = Beside::new(medium, aside);
        MetadataPlace { medium, offset, capacity, log, applies_beside, pool, spec, has_lines }
    }

    /// Makes the metadata of a new pool; what was there is gone.
    pub fn create(&self) -> Result<Catalog, StoreError> {
        let (table, _) = self.table()?;
        Catalog::create(Box::new(Mirrored::create(self.new_store()?, table)), &self.spec)
    }

    /// Opens the metadata, with a new store where the old one is damaged: see the module.
    pub fn open(&self) -> Result<OpenedMetadata, StoreError> {
        let (_, copies) = self.table()?;
        let damage = match self.open_store(&copies) {
            Ok(catalog) => return Ok(OpenedMetadata { catalog, rebuilt: None }),
            Err(StoreError::Damaged(damage)) => damage,
            // What its log has does not fit: a new one begins with less.
            Err(StoreError::Full(why)) if !self.has_lines => why,
            Err(error) => return Err(error),
        };
        let Some(kept) = newest(&copies) else {
            let text = format!("{damage}; and both copies of its volume table are damaged");
            return Err(StoreError::Damaged(text));
        };
        if self.has_lines {
            let text = format!("{damage}; and the pool's flags are in it alone: restore a dump");
            return Err(StoreError::Damaged(text));
        }
        self.rebuild(kept, Changes::new())?;
        let catalog = self.open_store(&copies)?;
        Ok(OpenedMetadata { catalog, rebuilt: Some(damage) })
    }

    /// Makes a new store that holds what the table keeps, and some rows more.
    fn rebuild(&self, kept: &Kept, more: Changes) -> Result<(), StoreError> {
        // What cannot be a pool's must not cost the old store.
        let mut rows = fresh_rows(&self.spec, &kept.rows)?;
        rows.extend([sequence_row(kept.sequence)]);
        rows.extend(more);
        self.new_store()?.commit(&rows)
    }

    /// An empty store; what was there is gone. Until its rows know of the log it is no store.
    fn new_store(&self) -> Result<Logged<M>, StoreError> {
        let (medium, offset, capacity) = self.rows_span()?;
        let region = RegionBackend::create(medium, offset, capacity);
        let copies = [self.log.encode(), self.log.encode()].concat();
        self.log_place()?.clear(&copies).map_err(|error| failed(&error))?;
        let mut rows = RedbStore::open(region.map_err(|error| failed(&error))?)?;
        log::adopt(&mut rows, self.log.identity)?;
        self.with_log(rows)
    }

    /// The store alone, every page of which is looked at. It may be of another pool, or older than
    /// the volume table.
    pub fn store(&self) -> Result<Logged<M>, StoreError> {
        let (medium, offset, capacity) = self.rows_span()?;
        let region = RegionBackend::open(medium, offset, capacity);
        let mut rows = RedbStore::open(region.map_err(|error| failed(&error))?)?;
        rows.verify()?;
        self.with_log(rows)
    }

    /// The rows, and what the log has besides.
    pub(super) fn with_log(&self, rows: RedbStore) -> Result<Logged<M>, StoreError> {
        let place = self.log_place()?;
        if log::header_at(&place)?.is_some_and(|header| header != self.log) {
            return Err(StoreError::Damaged("its log is not that of the superblock".to_owned()));
        }
        let applier = if self.applies_beside {
            Checkpointer::on_thread(rows.clone()).map_err(|error| failed(&error))?
        } else {
            Checkpointer::Inline(rows.clone())
        };
        LoggedStore::open(rows, place, applier)
    }

    pub(super) fn table(&self) -> Result<Table<M>, StoreError> {
        let medium = self.medium.handle().map_err(|error| failed(&error))?;
        let storage = FixedBackend::new(medium, self.offset + self.capacity, TABLE_LEN);
        Ok(VolumeTable::open(storage, self.pool))
    }

    fn open_store(&self, copies: &[Option<Kept>; 2]) -> Result<Catalog, StoreError> {
        let open = || {
            let store = self.store()?;
            let (table, _) = self.table()?;
            let catalog = Catalog::open(Box::new(Mirrored::open(store, table, copies)?))?;
            self.check_pool(&catalog)?;
            Ok(catalog)
        };
        catching(open)
    }

    /// Makes a new store from what the old one keeps, or else the table: for a store that is whole
    /// and contradicts the unit's home. The table is whole before the old store is given up.
    pub fn renew(&self) -> Result<(), StoreError> {
        assert!(!self.has_lines, "nobody else has the lines of this pool");
        drop(self.open()?);
        let (_, copies) = self.table()?;
        let kept = newest(&copies).expect("opening has written it");
        self.rebuild(kept, Changes::new())
    }

    /// Writes the headers of rows and log again, into the place of the older or damaged copy.
    pub fn mend_headers(&self) -> Result<(), StoreError> {
        let (medium, offset, capacity) = self.rows_span()?;
        let region = RegionBackend::open(medium, offset, capacity);
        let region = region.map_err(|error| failed(&error))?;
        let mended = region.len().and_then(|len| region.set_len(len));
        mended.map_err(|error| failed(&error))?;
        log::mend_header(&mut self.log_place()?)
    }

    /// Writes the volume table again, as the store has it. A store that is damaged or older stays
    /// as it is: then the better copy of the table is written over the other one.
    pub fn mend_table(&self) -> Result<(), StoreError> {
        let facts = self.examine()?;
        let agrees = |store: &StoreFacts| compare(&store.kept, &facts.table);
        if facts.store.as_ref().is_ok_and(|store| agrees(store) != Agreement::StoreBehind) {
            return self.open().map(drop);
        }
        let Some(kept) = newest(&facts.table) else { return Ok(()) };
        let (mut table, _) = self.table()?;
        table.write(kept).map_err(|error| failed(&error))
    }

    /// Puts these rows, and nothing else, into store and table; what they held is gone. The lines
    /// of the unit after so many starts go into the store where they are kept there.
    pub fn restore(
        &self,
        kept: &Kept,
        (unit, incarnation): (UnitId, Incarnation),
        lines: &[Line],
    ) -> Result<(), StoreError> {
        fresh_rows(&self.spec, &kept.rows)?;
        let (mut table, _) = self.table()?;
        table.write(kept).map_err(|error| failed(&error))?;
        let lines = self.has_lines.then(|| line_rows(unit, incarnation, lines));
        self.rebuild(kept, lines.unwrap_or_default())
    }

    /// Which copies of a header are damaged: that of the rows, or that of the log.
    pub(super) fn headers_damaged(&self) -> Result<[bool; 2], StoreError> {
        let (medium, offset, capacity) = self.rows_span()?;
        let rows = RegionBackend::headers_damaged(&medium, offset, capacity);
        let [first, second] = rows.map_err(|error| failed(&error))?;
        let log = log::header_copies(&self.log_place()?)?;
        Ok([first || log[0].is_none(), second || log[1].is_none()])
    }

    /// Where the rows are: offset and length.
    pub(super) fn rows_span(&self) -> Result<(M, u64, u64), StoreError> {
        let medium = self.medium.handle().map_err(|error| failed(&error))?;
        Ok((medium, self.offset, self.capacity - self.log.log_len()))
    }

    fn log_place(&self) -> Result<MediumPlace<M>, StoreError> {
        let medium = self.medium.handle().map_err(|error| failed(&error))?;
        let len = self.log.log_len();
        Ok(MediumPlace::new(medium, self.offset + self.capacity - len, len))
    }

    pub(super) fn check_pool(&self, catalog: &Catalog) -> Result<(), StoreError> {
        if catalog.is_of(&self.spec) {
            return Ok(());
        }
        Err(StoreError::Damaged("its pool is not that of the superblock".to_owned()))
    }
}

/// What a pool of that superblock is made of.
pub fn pool_spec(superblock: &Superblock) -> PoolSpec {
    let mut next = 0;
    let run = |count| {
        let start = ExtentId(next);
        next += count;
        ExtentRun { start, count }
    };
    PoolSpec {
        extent_size: superblock.geometry.extent_size(),
        devices: superblock.devices.iter().map(|device| device.extents).map(run).collect(),
        reserve: superblock.journal_reserve,
    }
}

/// Damaged bytes may lead the store's library into a panic: that is damage like any other.
pub fn catching<T>(open: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| {
        Err(StoreError::Damaged("what it holds led to a panic of its library".to_owned()))
    })
}

pub(super) fn failed(error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::InvalidData => StoreError::Damaged(error.to_string()),
        _ => StoreError::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::env::sim::Crash;
    use crate::env::sim::calls::Calls;
    use crate::env::sim::rng::Rng;
    use crate::env::sim::storage::SimStorage;
    use crate::format::layout::store_len;
    use crate::mds::catalog::space::Use;
    use crate::mds::log::format::HALVES_OFFSET;
    use crate::mds::records::Primitive;
    use crate::mds::testing::{EXTENT_SIZE, pair};
    use crate::mds::volume_table::PLACE_LEN;

    const EXTENTS: u32 = 50;
    const OFFSET: u64 = 1 << 20;

    fn place<M: Medium>(medium: M) -> MetadataPlace<M> {
        let pool = PoolId([3; 16]);
        let spec = PoolSpec {
            extent_size: EXTENT_SIZE,
            devices: vec![ExtentRun { start: ExtentId(0), count: EXTENTS }],
            reserve: 5,
        };
        MetadataPlace {
            medium,
            offset: OFFSET,
            capacity: store_len(u64::from(EXTENTS)) - TABLE_LEN,
            log: log_header(pool, &spec),
            applies_beside: false,
            pool,
            spec,
            has_lines: false,
        }
    }

    /// A pool of two volumes, of which one was made after all else, and with pairs.
    fn made() -> (File, MetadataPlace) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(OFFSET + store_len(u64::from(EXTENTS))).unwrap();
        let beside = place(file.try_clone().unwrap());
        let place = MetadataPlace { applies_beside: true, ..beside };
        let mut catalog = place.create().unwrap();
        catalog.create_volume("one", 40 << 20).unwrap();
        catalog.allocate(crate::format::ids::UnitId(0), Use::Data, 20);
        catalog.commit().unwrap();
        for line in 0..10 {
            let record = pair(line, 1, [Some(line), None], crate::format::ids::Slot::Zero);
            catalog
                .transact(crate::format::ids::UnitId(0), &[Primitive::BindData(record)])
                .unwrap();
            catalog.commit().unwrap();
        }
        catalog.create_volume("two", 7 << 20).unwrap();
        catalog.commit().unwrap();
        (file, place)
    }

    fn volumes(catalog: &Catalog) -> Vec<(u32, String, u64)> {
        let listed = catalog.list_volumes(0, 10).into_iter();
        listed.map(|volume| (volume.id.0, volume.name.clone(), volume.size)).collect()
    }

    fn expected() -> Vec<(u32, String, u64)> {
        vec![(0, "one".to_owned(), 40 << 20), (1, "two".to_owned(), 7 << 20)]
    }

    /// Goal: whatever becomes of the store's bytes, the volumes are there, numbers are not used
    /// again, and what was made anew is whole at the next opening; the library's panics and wrong
    /// turns included.
    #[test]
    fn volumes_outlive_their_store() {
        let (file, place) = made();
        let log = place.capacity - place.log.log_len();
        let mut good = vec![0; (OFFSET + store_len(u64::from(EXTENTS))) as usize];
        file.read_exact_at(&mut good, 0).unwrap();
        let opened = place.open().unwrap();
        assert_eq!((volumes(&opened.catalog), opened.rebuilt), (expected(), None));
        drop(opened.catalog);
        let mut rng = Rng::new(1);
        let mut rebuilt = 0;
        for round in 0..60 {
            let mut bad = good.clone();
            let store = &mut bad[OFFSET as usize..(OFFSET + place.capacity) as usize];
            match round {
                0 => store.fill(0),
                1 => store.fill(0xFF),
                2 => store[..8192].fill(0),
                3 => store[8192..12288].fill(0),
                4 => store[log as usize..][..8192].fill(0),
                // Two records of many: a hole.
                5 => store[(log + HALVES_OFFSET) as usize..][..16384].fill(0x11),
                6 => store[(log + HALVES_OFFSET + place.log.half) as usize..][..16384].fill(0x11),
                _ => {
                    // The library's own header and the pages that are in use come first.
                    let end = if round % 2 == 0 { 16 << 10 } else { 600 << 10 };
                    for _ in 0..(1 << (round % 12)) {
                        let bit = rng.below(end * 8) as usize;
                        store[bit / 8] ^= 1 << (bit % 8);
                    }
                }
            }
            file.write_all_at(&bad, 0).unwrap();
            let mut opened = place.open().unwrap();
            assert_eq!(volumes(&opened.catalog), expected(), "round {round}");
            rebuilt += u32::from(opened.rebuilt.is_some());
            assert_eq!(opened.catalog.create_volume("three", 1 << 20).unwrap().id.0, 2);
            opened.catalog.commit().unwrap();
            drop(opened.catalog);
            let again = place.open().unwrap();
            assert_eq!((volumes(&again.catalog).len(), again.rebuilt), (3, None), "round {round}");
        }
        assert!(rebuilt > 20, "{rebuilt} of 60 damages were found");
    }

    /// Goal: whenever power is lost, in the log's appends and while a half is applied, and again in
    /// the next opening, every pair that was acknowledged is there, and at most one more; nothing
    /// is made anew.
    #[test]
    fn power_is_lost_at_any_call() {
        let unit = crate::format::ids::UnitId(0);
        let bound = |catalog: &Catalog| catalog.facts().unwrap().pairs.len() as u32;
        // A half is full after some commits.
        let small = |medium: &SimStorage| {
            let place = place(medium.clone());
            MetadataPlace { log: LogHeader { half: 8 * BLOCK as u64, ..place.log }, ..place }
        };
        let end = OFFSET + store_len(u64::from(EXTENTS));
        let storage = SimStorage::new(end);
        storage.set_len(end).unwrap();
        let mut catalog = small(&storage).create().unwrap();
        catalog.create_volume("one", u64::from(EXTENTS) * u64::from(EXTENT_SIZE)).unwrap();
        catalog.allocate(unit, Use::Data, EXTENTS - 5);
        catalog.commit().unwrap();
        drop(catalog);
        let (mut cut, mut applied) = (0, 0);
        for crash_at in (1..230).step_by(3) {
            let storage = storage.fork();
            let mut rng = Rng::new(crash_at);
            let mut acknowledged = 0;
            for at in [Some(crash_at), Some(1 + rng.below(60)), None] {
                let calls = Calls::new(at);
                storage.boot(calls.clone());
                let mut opened = small(&storage).open().unwrap();
                if !calls.crashed() {
                    assert_eq!(opened.rebuilt, None, "crash at {crash_at}");
                    let found = bound(&opened.catalog);
                    let fits = (acknowledged..=acknowledged + 1).contains(&found);
                    assert!(fits, "crash at {crash_at}: {found} pairs, not {acknowledged}");
                    acknowledged = found;
                }
                while !calls.crashed() && acknowledged < 40 {
                    let line = acknowledged;
                    let record = pair(line, 1, [Some(line), None], crate::format::ids::Slot::Zero);
                    opened.catalog.transact(unit, &[Primitive::BindData(record)]).unwrap();
                    let committed = opened.catalog.commit();
                    acknowledged += u32::from(committed.is_ok() && !calls.crashed());
                }
                cut += u32::from(calls.crashed());
                applied += u32::from(!calls.crashed() && acknowledged == 40);
                drop(opened);
                storage.crash(Crash::Power, &mut rng);
            }
        }
        assert!(cut > 80 && applied > 70, "{cut} cut short, {applied} to the end");
    }

    /// Goal: one damaged copy of the table is written again; both and the store are refused, and
    /// nothing is made anew.
    #[test]
    fn damage_to_the_table() {
        let (file, place) = made();
        let table = OFFSET + place.capacity;
        for copy in [0, 1] {
            file.write_all_at(&[0xEE; 64], table + copy * PLACE_LEN).unwrap();
            assert_eq!(place.open().unwrap().rebuilt, None);
            assert!(place.table().unwrap().1.iter().all(Option::is_some), "copy {copy}");
        }
        file.write_all_at(&[0xEE; 64], table).unwrap();
        file.write_all_at(&[0xEE; 8192], OFFSET).unwrap();
        let opened = place.open().unwrap();
        assert!(opened.rebuilt.is_some() && volumes(&opened.catalog) == expected());
        drop(opened.catalog);
        for at in [OFFSET, OFFSET + 4096, table, table + PLACE_LEN] {
            file.write_all_at(&[0xEE; 64], at).unwrap();
        }
        let refused = place.open().map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("both copies of its volume table"), "{refused}");
        let other = PoolSpec { reserve: 6, ..place.spec.clone() };
        assert!(fresh_rows(&other, &Kept::default().rows).is_err());
    }

    /// Goal: mending the table leaves a store alone that is damaged or older: it may be a witness.
    #[test]
    fn mending_the_table_spares_the_store() {
        let (file, place) = made();
        let store = || {
            let mut bytes = vec![0; place.capacity as usize];
            file.read_exact_at(&mut bytes, OFFSET).unwrap();
            bytes
        };
        let older = store();
        let mut opened = place.open().unwrap();
        opened.catalog.create_volume("three", 1 << 20).unwrap();
        opened.catalog.commit().unwrap();
        drop(opened);
        let damaged = vec![0xEE; older.len()];
        for (bytes, copy) in [(&older, 0), (&damaged, 1)] {
            file.write_all_at(bytes, OFFSET).unwrap();
            file.write_all_at(&[0xEE; 64], OFFSET + place.capacity + copy * PLACE_LEN).unwrap();
            place.mend_table().unwrap();
            assert!(store() == *bytes, "the store was written");
            let (_, copies) = place.table().unwrap();
            assert!(copies[0].is_some() && copies[0] == copies[1], "copy {copy}");
        }
        assert_eq!(volumes(&place.open().unwrap().catalog).len(), 3);
    }

    /// Goal: a store that went back in time is not believed.
    #[test]
    fn an_older_store_is_damaged() {
        let (file, place) = made();
        let mut store = vec![0; place.capacity as usize];
        file.read_exact_at(&mut store, OFFSET).unwrap();
        let mut opened = place.open().unwrap();
        opened.catalog.create_volume("three", 1 << 20).unwrap();
        opened.catalog.commit().unwrap();
        drop(opened);
        file.write_all_at(&store, OFFSET).unwrap();
        let opened = place.open().unwrap();
        assert!(opened.rebuilt.unwrap().contains("older"));
        assert_eq!(volumes(&opened.catalog).len(), 3);
    }
}
