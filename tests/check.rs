//! `flipside check` finds every planted damage, mends what is kept twice, and is silent about pools
//! that are well.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use flipside::format::blocks::{BlockMap, BlockSet};
use flipside::format::group::{GroupState, Link, SLOT_BYTES};
use flipside::format::header::{HEADER_MAGIC, RegionHeader};
use flipside::format::home::{HOME_MAGIC, HOME_PAGE, LINES_PER_PAGE, Line};
use flipside::format::ids::{
    ExtentId, Generation, Incarnation, LogicalExtent, PairId, Sequence, Slot, VolumeId,
};
use flipside::format::layout::Span;
use flipside::format::page::{CopyState, PageIdentity};
use flipside::format::status::{ROOT, STATUS_MAGIC, StatusEntry};
use flipside::format::superblock::{LEN, Superblock};
use flipside::journal::RegionLayout;
use flipside::journal::layout::PageRuns;
use flipside::mds::backend::{FixedBackend, RegionBackend};
use flipside::mds::opening::{MetadataPlace, log_len};
use flipside::mds::raw::RawPair;
use flipside::mds::records::PairRecord;
use flipside::mds::store::{Changes, Store, Table, key};
use flipside::mds::volume_table::{PLACE_LEN, TABLE_LEN, VolumeTable, newest};
use serde_json::Value;
use support::programs::directory;
use support::target::{Service, format};
use zerocopy::IntoBytes;

const DEVICE: u64 = 48 << 20;
const VOLUME: usize = 12 << 20;
const EXTENT: usize = 512 << 10;
const BINARY: &str = env!("CARGO_BIN_EXE_flipside");

/// Two devices of a pool that nobody serves, to be damaged.
struct Images {
    devices: [PathBuf; 2],
    region: Span,
    store: Span,
    superblock: Superblock,
    layout: RegionLayout,
    /// Two pairs: one with one extent, one with a journal area; and one that is free.
    plain: PairId,
    paired: PairId,
    free: PairId,
}

/// What becomes of a planted damage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Mended,
    Stays,
}
use Fate::{Mended, Stays};

/// A damage: what it is, how it is planted, which code finds it, and whether it can be mended.
type Case = (&'static str, fn(&Images), &'static str, Fate);

impl Images {
    fn of(devices: [PathBuf; 2]) -> Images {
        let file = File::open(&devices[0]).unwrap();
        let mut bytes = [0; LEN];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let superblock = Superblock::parse(&bytes).unwrap();
        let regions = superblock.layout.regions.unwrap();
        let mut page = vec![0; 4096];
        file.read_exact_at(&mut page, regions.unit.offset).unwrap();
        let header = RegionHeader::parse(&page).unwrap();
        let layout = RegionLayout::with_slots(header.pairs, header.sector, header.slots);
        let mut images = Images {
            devices,
            region: regions.unit,
            store: regions.store,
            superblock,
            layout,
            plain: PairId(0),
            paired: PairId(0),
            free: PairId(0),
        };
        for pair in (0..header.pairs).rev().map(PairId) {
            let line = images.line(pair);
            match line.binding.extents {
                [None, None] => images.free = pair,
                [Some(_), Some(_)] => images.paired = pair,
                _ => images.plain = pair,
            }
        }
        images
    }

    fn file(&self, device: usize) -> File {
        File::options().read(true).write(true).open(&self.devices[device]).unwrap()
    }

    fn flip(&self, device: usize, at: u64) {
        let mut byte = [0];
        self.file(device).read_exact_at(&mut byte, at).unwrap();
        self.file(device).write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }

    fn flip_superblock(&self, device: usize, copy: usize) {
        let at = if copy == 0 { 0 } else { DEVICE - LEN as u64 };
        self.flip(device, at + 700);
    }

    /// Where a copy of a page lies on the first device.
    fn page_at(&self, runs: &PageRuns, index: u32, copy: usize) -> u64 {
        self.region.offset + runs.copies[copy] + u64::from(index) * runs.page as u64
    }

    fn flip_page(&self, runs: &PageRuns, copy: usize) {
        self.flip(0, self.page_at(runs, 0, copy) + 45);
    }

    /// Changes a page in both copies, with checksums made good.
    fn edit_page(&self, runs: &PageRuns, magic: [u8; 4], index: u32, edit: impl Fn(&mut [u8])) {
        let identity = PageIdentity { magic, pool: self.superblock.pool, index };
        for copy in 0..2 {
            let at = self.page_at(runs, index, copy);
            let mut page = vec![0; runs.page];
            self.file(0).read_exact_at(&mut page, at).unwrap();
            let version = match identity.verify(&page) {
                CopyState::Good(version) => version,
                _ => 1,
            };
            edit(&mut page);
            identity.seal(&mut page, version);
            self.file(0).write_all_at(&page, at).unwrap();
        }
    }

    fn home(pair: PairId) -> (u32, usize) {
        (pair.0 / LINES_PER_PAGE as u32, pair.0 as usize % LINES_PER_PAGE)
    }

    fn line(&self, pair: PairId) -> Line {
        let (index, within) = Images::home(pair);
        let mut page = vec![0; HOME_PAGE];
        let at = self.page_at(&self.layout.home, index, 0);
        self.file(0).read_exact_at(&mut page, at).unwrap();
        if page.iter().all(|&byte| byte == 0) {
            return Line::FREE;
        }
        Line::parse(&page, within).unwrap()
    }

    fn edit_line(&self, pair: PairId, edit: impl Fn(&mut Line)) {
        let (index, within) = Images::home(pair);
        let mut line = self.line(pair);
        edit(&mut line);
        self.edit_page(&self.layout.home, HOME_MAGIC, index, |page| line.store(page, within));
    }

    fn change_store(&self, changes: &Changes) {
        let place = MetadataPlace::within(self.file(0), &self.superblock).unwrap();
        place.store().unwrap().commit(changes).unwrap();
    }

    /// Where the store's log begins.
    fn log(&self) -> u64 {
        self.table() - log_len(self.superblock.pool_extents().into())
    }

    /// Puts a pair into the store, as the server would.
    fn store_pair(&self, record: &PairRecord) {
        let pair = key(&[self.superblock.unit.0, record.pair.0]);
        let layout =
            key(&[record.volume.0, record.logical.0, self.superblock.unit.0, record.pair.0]);
        let row = RawPair::from(record).as_bytes().to_vec();
        self.change_store(&Changes::from([
            ((Table::Pairs, pair), Some(row)),
            ((Table::Layout, layout), Some(Vec::new())),
        ]));
    }

    fn record(&self, pair: PairId) -> PairRecord {
        let binding = self.line(pair).binding;
        let (volume, logical) = binding.owner.unwrap();
        let (generation, slots) = (binding.generation, binding.extents);
        PairRecord { volume, logical, pair, generation, slots, data_slot: binding.data_slot }
    }

    /// A free pair with an extent that nothing has, as a store that lost a release has it.
    fn leak(&self, volume: VolumeId) {
        let generation = self.line(self.free).binding.generation;
        let last = ExtentId(self.superblock.pool_extents() - 1);
        self.store_pair(&PairRecord {
            volume,
            logical: LogicalExtent(3),
            pair: self.free,
            generation,
            slots: [Some(last), None],
            data_slot: Slot::Zero,
        });
    }

    fn table(&self) -> u64 {
        self.store.end() - TABLE_LEN
    }

    fn fill(&self, at: u64, len: u64, byte: u8) {
        self.file(0).write_all_at(&vec![byte; len as usize], at).unwrap();
    }

    /// Slots with a group's head, by its sequence.
    fn groups(&self) -> Vec<(u64, u32)> {
        let mut found = Vec::new();
        for slot in 0..self.layout.slots {
            let mut bytes = vec![0; SLOT_BYTES];
            let at = self.region.offset + self.layout.slot_at(slot);
            self.file(0).read_exact_at(&mut bytes, at).unwrap();
            let part = flipside::format::group::Part::parse(&bytes, self.superblock.pool);
            found.extend(
                part.filter(flipside::format::group::Part::is_head)
                    .map(|part| (part.sequence.0, slot)),
            );
        }
        found.sort_unstable();
        found
    }

    fn flip_group(&self, from_last: usize) {
        let groups = self.groups();
        let (_, slot) = groups[groups.len() - 1 - from_last];
        self.flip(0, self.region.offset + self.layout.slot_at(slot) + 60);
    }
}

/// Damages to a pool that was stopped.
const CASES: &[Case] = &[
    ("first superblock", |of| of.flip_superblock(0, 0), "superblock-copy", Mended),
    ("second superblock", |of| of.flip_superblock(0, 1), "superblock-copy", Mended),
    ("first superblock of another", |of| of.flip_superblock(1, 0), "superblock-copy", Mended),
    (
        "both superblocks",
        |of| [0, 1].iter().for_each(|c| of.flip_superblock(0, *c)),
        "superblock-lost",
        Stays,
    ),
    (
        "both superblocks of another",
        |of| [0, 1].iter().for_each(|c| of.flip_superblock(1, *c)),
        "superblock-lost",
        Stays,
    ),
    ("a device is cut", |of| of.file(1).set_len(DEVICE - 4096).unwrap(), "device-changed", Stays),
    ("header, first copy", |of| of.flip_page(&of.layout.header, 0), "header-copy", Mended),
    ("header, second copy", |of| of.flip_page(&of.layout.header, 1), "header-copy", Mended),
    (
        "header, both",
        |of| [0, 1].iter().for_each(|c| of.flip_page(&of.layout.header, *c)),
        "header-lost",
        Stays,
    ),
    ("status page, first copy", |of| of.flip_page(&of.layout.status, 0), "status-copy", Mended),
    ("status page, second copy", |of| of.flip_page(&of.layout.status, 1), "status-copy", Mended),
    (
        "status page, both",
        |of| [0, 1].iter().for_each(|c| of.flip_page(&of.layout.status, *c)),
        "status-lost",
        Stays,
    ),
    ("home page, first copy", |of| of.flip_page(&of.layout.home, 0), "home-copy", Mended),
    ("home page, second copy", |of| of.flip_page(&of.layout.home, 1), "home-copy", Mended),
    (
        "home page, both",
        |of| [0, 1].iter().for_each(|c| of.flip_page(&of.layout.home, *c)),
        "home-lost",
        Stays,
    ),
    (
        "an older region",
        |of| {
            of.edit_page(&of.layout.header, HEADER_MAGIC, 0, |page| {
                let header = RegionHeader::parse(page).unwrap();
                RegionHeader { incarnation: Incarnation(0), ..header }.store(page);
            });
        },
        "incarnation-behind",
        Stays,
    ),
    (
        "another's region",
        |of| {
            of.edit_page(&of.layout.header, HEADER_MAGIC, 0, |page| {
                let header = RegionHeader::parse(page).unwrap();
                RegionHeader { pairs: header.pairs - 1, ..header }.store(page);
            });
        },
        "region-foreign",
        Stays,
    ),
    (
        "an extent in two places",
        |of| {
            let taken = of.line(of.plain).binding.extents;
            of.edit_line(of.free, |line| {
                line.binding.owner = Some((VolumeId(0), LogicalExtent(20)));
                line.binding.extents = taken;
                line.binding.data_slot = if taken[0].is_some() { Slot::Zero } else { Slot::One };
            });
        },
        "extent-twice",
        Stays,
    ),
    (
        "an extent beyond the pool",
        |of| {
            of.edit_line(of.plain, |line| {
                line.binding.extents[line.binding.data_slot.index()] = Some(ExtentId(5000));
            });
        },
        "extent-beyond",
        Stays,
    ),
    (
        "a dirty bit without a journal area",
        |of| {
            of.edit_line(of.plain, |line| {
                let mut sides = [BlockSet::EMPTY; 2];
                sides[line.binding.data_slot.other().index()] = BlockSet::one(3);
                line.map = BlockMap::new(sides).unwrap();
            });
        },
        "line-unsound",
        Stays,
    ),
    (
        "a bit beyond the extent",
        |of| {
            of.edit_line(of.plain, |line| {
                let mut sides = [BlockSet::EMPTY; 2];
                sides[line.binding.data_slot.index()] = BlockSet::one(200);
                line.map = BlockMap::new(sides).unwrap();
            });
        },
        "block-beyond",
        Stays,
    ),
    (
        "a line that is none",
        |of| {
            let (index, within) = Images::home(of.plain);
            of.edit_page(&of.layout.home, HOME_MAGIC, index, |page| {
                page[32 + within * 88 + 20] = 9;
            });
        },
        "line-unreadable",
        Stays,
    ),
    (
        "an unknown volume",
        |of| {
            of.edit_line(of.plain, |line| {
                line.binding.owner = Some((VolumeId(99), LogicalExtent(0)));
            });
        },
        "volume-unknown",
        Stays,
    ),
    (
        "beyond the volume's end",
        |of| {
            of.edit_line(of.plain, |line| {
                line.binding.owner = Some((VolumeId(0), LogicalExtent(500)));
            });
        },
        "logical-beyond",
        Stays,
    ),
    (
        "two pairs of one extent",
        |of| {
            let owner = of.line(of.paired).binding.owner;
            of.edit_line(of.plain, |line| line.binding.owner = owner);
        },
        "logical-twice",
        Stays,
    ),
    ("store, one header", |of| of.flip(0, of.store.offset + 20), "store-header", Mended),
    ("store, both headers", |of| of.fill(of.store.offset, 8192, 0), "store-damaged", Mended),
    ("store's log, one header", |of| of.flip(0, of.log() + 4096 + 20), "store-header", Mended),
    ("store's log, both headers", |of| of.fill(of.log(), 8192, 0), "store-damaged", Mended),
    (
        "store, zeroed",
        |of| of.fill(of.store.offset, of.store.len - TABLE_LEN, 0),
        "store-damaged",
        Mended,
    ),
    (
        "store, pages",
        |of| of.fill(of.store.offset + 12288, 64 << 10, 0x5A),
        "store-damaged",
        Mended,
    ),
    (
        "store, a row",
        |of| {
            let len = of.log() - of.store.offset;
            let region = RegionBackend::open(of.file(0), of.store.offset, len).unwrap();
            let database = redb::Database::builder().create_with_backend(region).unwrap();
            let transaction = database.begin_write().unwrap();
            let volumes = redb::TableDefinition::<&[u8], &[u8]>::new("volumes");
            let row: &[u8] = &[1; 148];
            transaction.open_table(volumes).unwrap().insert(&key(&[0])[..], row).unwrap();
            transaction.commit().unwrap();
        },
        "store-damaged",
        Mended,
    ),
    ("volume table, first copy", |of| of.flip(0, of.table() + 60), "volume-table-copy", Mended),
    (
        "volume table, second copy",
        |of| of.flip(0, of.table() + PLACE_LEN + 60),
        "volume-table-copy",
        Mended,
    ),
    (
        "volume table, both",
        |of| [0, PLACE_LEN].iter().for_each(|c| of.flip(0, of.table() + c)),
        "volume-table-copy",
        Mended,
    ),
    (
        "store and volume table",
        |of| of.fill(of.store.offset, of.store.len, 0xFF),
        "volumes-lost",
        Stays,
    ),
    (
        "a store that went back",
        |of| {
            let storage = FixedBackend::new(of.file(0), of.table(), TABLE_LEN);
            let (mut table, copies) = VolumeTable::open(storage, of.superblock.pool);
            let mut kept = newest(&copies).unwrap().clone();
            kept.sequence += 1;
            table.write(&kept).unwrap();
        },
        "store-older",
        Mended,
    ),
    (
        "a home that went back",
        |of| {
            let record = of.record(of.plain);
            of.store_pair(&PairRecord {
                generation: Generation(record.generation.0 + 5),
                ..record
            });
        },
        "store-newer",
        Stays,
    ),
    (
        "store against home",
        |of| {
            let record = of.record(of.plain);
            let last = ExtentId(of.superblock.pool_extents() - 1);
            let mut slots = [None; 2];
            slots[record.data_slot.index()] = Some(last);
            of.store_pair(&PairRecord { slots, ..record });
        },
        "store-contradicts",
        Mended,
    ),
    ("a leaked extent", |of| of.leak(VolumeId(0)), "extent-leaked", Mended),
    ("an extent of no volume", |of| of.leak(VolumeId(77)), "extent-leaked", Mended),
];

/// Damages to a pool that was killed, with groups in its journal.
const KILLED: &[Case] = &[
    ("a group in the middle", |of| of.flip_group(1), "group-list", Stays),
    ("the oldest group", |of| of.flip_group(2), "group-list", Stays),
    (
        "a link to nowhere",
        |of| {
            of.edit_page(&of.layout.status, STATUS_MAGIC, 0, |page| {
                let link = Link { slot: of.layout.slots - 1, sequence: Sequence(1) };
                StatusEntry { of: ROOT, state: GroupState::Done, link }.store(page, 0);
            });
        },
        "group-list",
        Stays,
    ),
    ("first superblock", |of| of.flip_superblock(0, 0), "superblock-copy", Mended),
    ("home page, first copy", |of| of.flip_page(&of.layout.home, 0), "home-copy", Mended),
    (
        "store, zeroed",
        |of| of.fill(of.store.offset, of.store.len - TABLE_LEN, 0),
        "store-damaged",
        Mended,
    ),
];

/// What `flipside check --json` exits with and says.
fn check(arguments: &[&str], devices: &[&Path]) -> (i32, Value) {
    let output = Command::new(BINARY)
        .args(["check", "--json"])
        .args(arguments)
        .args(devices)
        .output()
        .unwrap();
    let code = output.status.code().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    (code, serde_json::from_str(&said).unwrap_or_else(|_| Value::String(errors.into_owned())))
}

fn codes(report: &Value) -> Vec<(String, bool)> {
    let findings = report["findings"].as_array().unwrap_or_else(|| panic!("{report}")).iter();
    let told =
        |of: &Value| (of["code"].as_str().unwrap().to_owned(), of["repairable"].as_bool().unwrap());
    findings.map(told).collect()
}

/// Writes round `round` of a pool's contents, through the model too.
fn write_round(service: &Service, model: &mut [u8], round: u8, kill: bool) {
    let target = service.serve();
    let mut client = target.connect("data");
    for extent in 0..VOLUME / EXTENT {
        // The first round fills every other extent, later ones overwrite a part of some.
        if (round == 1 && extent % 2 == 0) || (round > 1 && extent % 8 == 0) {
            let at = extent * EXTENT + usize::from(round - 1) * 8192;
            let end = at + 64 * 1024;
            model[at..end].fill(round);
            client.write(at as u64, &model[at..end]).unwrap();
            client.flush().unwrap();
        }
    }
    drop(client);
    if kill {
        target.kill();
    } else {
        assert!(target.stop().success());
    }
}

fn verify(service: &Service, model: &[u8], name: &str) {
    let target = service.serve();
    let mut client = target.connect("data");
    for at in (0..VOLUME).step_by(1 << 20) {
        let read = client.read(at as u64, 1 << 20).unwrap();
        assert!(read == model[at..at + (1 << 20)], "{name}: at {at}");
    }
    assert_eq!(target.connect("other").read(0, 512).unwrap(), [0; 512], "{name}");
    drop(client);
    assert!(target.stop().success());
}

fn copies(directory: &Path, names: [&str; 2]) -> [PathBuf; 2] {
    names.map(|name| directory.join(name))
}

fn copy(from: &[PathBuf; 2], to: &[PathBuf; 2]) {
    for (from, to) in from.iter().zip(to) {
        fs::copy(from, to).unwrap();
    }
}

fn paths(devices: &[PathBuf; 2]) -> Vec<&Path> {
    devices.iter().map(PathBuf::as_path).collect()
}

/// Plants each damage into a copy of the pool, and checks what becomes of it.
fn plant_all(cases: &[Case], directory: &Path, good: &[PathBuf; 2], model: &[u8]) {
    let devices = copies(directory, ["bad0", "bad1"]);
    for (name, plant, code, fate) in cases {
        copy(good, &devices);
        plant(&Images::of(devices.clone()));
        let planted = devices.each_ref().map(|path| fs::read(path).unwrap());
        let (exit, report) = check(&[], &paths(&devices));
        let found = codes(&report);
        assert_eq!(exit, 1, "{name}: {report}");
        let expected = ((*code).to_owned(), *fate == Mended);
        assert!(found.contains(&expected), "{name}: {report}");
        let now = devices.each_ref().map(|path| fs::read(path).unwrap());
        assert!(now == planted, "{name}: check alone changed something");
        let (exit, report) = check(&["--repair"], &paths(&devices));
        match fate {
            Mended => {
                assert_eq!((exit, codes(&report)), (0, vec![]), "{name}: {report}");
                assert_eq!(report["repaired"].as_array().unwrap().len(), found.len(), "{name}");
                assert_eq!(check(&[], &paths(&devices)).0, 0, "{name}");
                let mut service = Service::new(directory, &devices[0]);
                service.devices = devices.to_vec();
                verify(&service, model, name);
                assert_eq!(check(&[], &paths(&devices)).0, 0, "{name}: after serving");
            }
            Stays => {
                assert_eq!(exit, 1, "{name}: {report}");
                assert_eq!(codes(&report), found, "{name}");
                let now = devices.each_ref().map(|path| fs::read(path).unwrap());
                assert!(now == planted, "{name}: it cannot be repaired, and was changed");
            }
        }
    }
}

/// Goal: a pool is found sound when new, when stopped and when killed, in any order of its devices;
/// each planted damage is found under its code; what is redundant is mended, with all data there,
/// and what is not is left as it was.
#[test]
fn planted_damages() {
    let directory = directory();
    let good = copies(directory.path(), ["good0", "good1"]);
    good.iter().for_each(|path| File::create(path).unwrap().set_len(DEVICE).unwrap());
    let mut arguments = vec!["--extent-size", "512K", "--volume", "data=12M"];
    arguments.extend(["--volume", "other=1M", good[0].to_str().unwrap()]);
    format(&good[1], &arguments);
    // `format` names the last device last: the pool's first one is the file named first.
    let sound = |devices: &[&Path], when: &str| {
        let (exit, report) = check(&[], devices);
        assert_eq!((exit, codes(&report)), (0, vec![]), "{when}: {report}");
        report
    };
    sound(&paths(&good), "new");
    let mut service = Service::new(directory.path(), &good[0]);
    service.devices = good.to_vec();
    let mut model = vec![0; VOLUME];
    write_round(&service, &mut model, 1, false);
    write_round(&service, &mut model, 2, false);
    let report = sound(&paths(&good), "stopped");
    assert_eq!((&report["groups"], &report["volumes"]), (&0.into(), &2.into()));
    sound(&[&good[1], &good[0]], "in another order");
    plant_all(CASES, directory.path(), &good, &model);
    assert_eq!(codes(&check(&[], &[&good[0]]).1), [("device-missing".to_owned(), false)]);
    let twin = directory.path().join("twin");
    fs::copy(&good[1], &twin).unwrap();
    let report = check(&[], &[&good[0], &good[1], &twin]).1;
    assert_eq!(codes(&report), [("device-twice".to_owned(), false)]);

    write_round(&service, &mut model, 3, true);
    let report = sound(&paths(&good), "killed");
    assert_eq!(report["groups"], 3, "{report}");
    plant_all(KILLED, directory.path(), &good, &model);
    assert!(CASES.len() + KILLED.len() >= 25);
}

/// Goal: what cannot be looked at is told from what is damaged: the exit code is 2.
#[test]
fn what_cannot_be_checked() {
    let directory = directory();
    let path = directory.path().join("device");
    assert_eq!(check(&[], &[&path]).0, 2, "there is none");
    File::create(&path).unwrap().set_len(DEVICE).unwrap();
    assert_eq!(check(&[], &[&path]).0, 2, "there is no pool");
    format(&path, &["--volume", "vol0=10M"]);
    assert_eq!(check(&[], &[&path]).0, 0);
    assert_eq!(check(&["--sideways"], &[&path]).0, 2, "wrong usage");
    let service = Service::new(directory.path(), &path);
    let target = service.serve();
    let (exit, said) = check(&[], &[&path]);
    assert_eq!(exit, 2, "it is served: {said}");
    assert!(target.stop().success());
    assert_eq!(check(&[], &[&path]).0, 0);
}

/// Goal: a pool with its flags in NVRAM is checked there; one damaged copy of the identity is
/// mended; another NVRAM, and none, are refused; no identity at all is told.
#[test]
fn flags_in_nvram() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    for name in ["device", "other"] {
        File::create(path(name)).unwrap().set_len(DEVICE).unwrap();
        format(&path(name), &["--volume", "vol0=10M"]);
        let mut service = Service::new(directory.path(), &path(name));
        let nvram = path(&format!("{name}.nvram"));
        let arguments = ["--flags", "nvram", "--nvram", nvram.to_str().unwrap()];
        service.arguments.extend(arguments.map(String::from));
        let target = service.serve();
        let mut client = target.connect("vol0");
        client.write(0, &[7; 8192]).unwrap();
        client.flush().unwrap();
        target.kill();
    }
    let device = path("device");
    let (ours, others) = (path("device.nvram"), path("other.nvram"));
    let checked = |options: &[&str], nvram: &Path| {
        let arguments = [options, &["--nvram", nvram.to_str().unwrap()]].concat();
        check(&arguments, &[&device])
    };
    assert_eq!(checked(&[], &ours).0, 0);
    assert_eq!(checked(&[], &others).0, 2);
    assert_eq!(check(&[], &[&device]).0, 2);
    let file = File::options().write(true).open(&ours).unwrap();
    for copy in [0, 1] {
        file.write_all_at(&[0xEE; 16], copy * 4096 + 20).unwrap();
        let (exit, report) = checked(&[], &ours);
        assert_eq!((exit, codes(&report)), (1, vec![("nvram-identity-copy".to_owned(), true)]));
        assert_eq!(checked(&["--repair"], &ours).0, 0);
        assert_eq!(checked(&[], &ours).0, 0);
    }
    file.write_all_at(&[0; 8192], 0).unwrap();
    let (exit, report) = checked(&["--repair"], &ours);
    assert_eq!((exit, codes(&report)), (1, vec![("nvram-identity-lost".to_owned(), false)]));
}
