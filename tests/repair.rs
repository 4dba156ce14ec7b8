//! Repairs that are cut short and begun again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use flipside::check::{mend, metadata};
use flipside::env::sim::calls::Calls;
use flipside::env::sim::rng::Rng;
use flipside::env::sim::{Crash, SimStorage};
use flipside::format::ids::{PoolId, UnitId};
use flipside::format::layout::{DeviceFacts, Geometry, Span, plan};
use flipside::format::superblock::{FlagsPlace, MetadataAt, PoolDevice, Superblock};
use flipside::mds::backend::Medium as _;
use flipside::mds::opening::{MetadataPlace, log_len};
use flipside::mds::volume_table::{PLACE_LEN, TABLE_LEN};
use redb::StorageBackend as _;

#[path = "support/repair.rs"]
mod repair;
#[path = "support/simulated.rs"]
mod simulated;

/// The store region's header: two copies of so many bytes, and the store after them.
const HEADER: u64 = 4096;
const VOLUMES: u32 = 3;

/// Goal: wherever a loss of power meets a repair, and the next one, the one after that leaves
/// nothing to be mended, and everything is there that was.
#[test]
fn cut_short_anywhere() {
    repair::cut_short_anywhere();
}

/// A pool's metadata on a simulated device.
struct Metadata {
    medium: SimStorage,
    superblock: Superblock,
}

impl Metadata {
    /// Of a pool with volumes, and as it was before the last two of them were made.
    fn made() -> (Metadata, Metadata) {
        let layout = plan(Geometry::DEFAULT, &[DeviceFacts { size: 64 << 20, sector: 512 }]);
        let layout = layout.unwrap()[0];
        let superblock = Superblock {
            revision: 1,
            pool: PoolId([3; 16]),
            device_index: 0,
            unit: UnitId(1),
            geometry: Geometry::DEFAULT,
            sector: 512,
            flags: FlagsPlace::Device,
            metadata: MetadataAt::Device,
            created_s: 0,
            layout,
            journal_reserve: 4,
            devices: vec![PoolDevice { id: [1; 16], extents: layout.extents.count }],
        };
        let end = layout.regions.unwrap().store.end();
        let medium = SimStorage::new(end);
        medium.set_len(end).unwrap();
        let now = Metadata { medium, superblock };
        let mut catalog = now.place().create().unwrap();
        let mut before = None;
        for number in 0..VOLUMES {
            catalog.create_volume(&format!("vol{number}"), 1 << 20).unwrap();
            catalog.commit().unwrap();
            before.get_or_insert_with(|| now.fork());
        }
        drop(catalog);
        (now, before.unwrap())
    }

    fn fork(&self) -> Self {
        Metadata { medium: self.medium.fork(), superblock: self.superblock.clone() }
    }

    fn place(&self) -> MetadataPlace<SimStorage> {
        MetadataPlace::within(self.medium.clone(), &self.superblock).unwrap()
    }

    /// Where the store is, its header included, and where the volume table's copies begin.
    fn spans(&self) -> (Span, [u64; 2]) {
        let Span { offset, len } = self.superblock.layout.regions.unwrap().store;
        let table = offset + len - TABLE_LEN;
        (Span { offset, len: len - TABLE_LEN }, [table, table + PLACE_LEN])
    }

    /// Where the store's log begins.
    fn log(&self) -> u64 {
        self.spans().1[0] - log_len(self.superblock.pool_extents().into())
    }

    fn destroy(&self, at: u64, len: usize) {
        self.medium.write_at(&vec![0xa5; len], at).unwrap();
        self.medium.sync().unwrap();
    }

    /// Has a part of its bytes from another one.
    fn copy(&self, from: &Metadata, part: Span) {
        let mut bytes = vec![0; part.len as usize];
        from.medium.read_at(&mut bytes, part.offset).unwrap();
        self.medium.write_at(&bytes, part.offset).unwrap();
        self.medium.sync().unwrap();
    }

    /// What `flipside check --repair` does, until its end or a loss of power at that call; whether
    /// it came to its end.
    fn repair(&self, call: Option<u64>, rng: &mut Rng) -> bool {
        let calls = Calls::new(call);
        self.medium.boot(calls.clone());
        let place = self.place();
        let findings = metadata::judge(&place.examine().unwrap(), "disk");
        assert!(findings.iter().all(|finding| finding.mend.is_some()), "{findings:?}");
        for mend in mend::plan(&findings) {
            mend::metadata(&place, &mend).unwrap();
        }
        drop(place);
        self.medium.crash(Crash::Power, rng);
        self.medium.boot(Calls::new(None));
        !calls.crashed()
    }

    fn is_well(&self) {
        let place = self.place();
        let findings = metadata::judge(&place.examine().unwrap(), "disk");
        assert!(findings.is_empty(), "{findings:?}");
        let opened = place.open().unwrap();
        assert_eq!(opened.rebuilt, None);
        let names = opened.catalog.list_volumes(0, 10).into_iter().map(|of| of.name.clone());
        let expected = (0..VOLUMES).map(|number| format!("vol{number}"));
        assert!(names.eq(expected), "volumes are missing");
    }
}

/// What is destroyed of metadata that were older before.
type Damage = fn(&Metadata, &Metadata);

/// The kinds of damage that can be mended, and some at a time.
const DAMAGES: [(&str, Damage); 10] = [
    ("first header", |of, _| of.destroy(of.spans().0.offset, 64)),
    ("second header", |of, _| of.destroy(of.spans().0.offset + HEADER, 64)),
    ("first header of the log", |of, _| of.destroy(of.log(), 64)),
    ("second headers of both", |of, _| {
        of.destroy(of.spans().0.offset + HEADER, 64);
        of.destroy(of.log() + HEADER, 64);
    }),
    ("first copy of the table", |of, _| of.destroy(of.spans().1[0], 64)),
    ("second copy of the table", |of, _| of.destroy(of.spans().1[1], 64)),
    ("a copy of the table that is out of date", |of, before| {
        of.copy(before, Span { offset: of.spans().1[1], len: HEADER });
    }),
    ("a header and a copy of the table", |of, _| {
        of.destroy(of.spans().0.offset, 64);
        of.destroy(of.spans().1[1], 64);
    }),
    ("the store and a copy of the table", |of, _| {
        of.destroy(of.spans().0.offset + 2 * HEADER, 64 << 10);
        of.destroy(of.spans().1[0], 64);
    }),
    ("a store that went back in time", |of, before| of.copy(before, of.spans().0)),
];

/// Goal: wherever a loss of power meets a repair of the metadata, and the next one, the one after
/// that leaves nothing to be mended, and all volumes are there.
#[test]
fn of_metadata_cut_short_anywhere() {
    let (good, before) = Metadata::made();
    good.is_well();
    for (what, damage) in DAMAGES {
        let damaged = good.fork();
        damage(&damaged, &before);
        let mut cut = 0;
        for call in 1.. {
            let of = damaged.fork();
            let mut rng = Rng::new(call);
            let whole = of.repair(Some(call), &mut rng);
            of.repair(Some(call / 2 + 1), &mut rng);
            assert!(of.repair(None, &mut rng));
            of.is_well();
            if whole {
                break;
            }
            cut += 1;
        }
        eprintln!("{what}: cut short at {cut} calls");
        assert!(cut >= 4, "{what}: only {cut} calls were cut short");
    }
}
