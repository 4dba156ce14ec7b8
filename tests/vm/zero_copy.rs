//! Reads of a block device that are not copied, where the machine's kernel lends us the memory of
//! who reads (Linux 6.16): what is read is what was written, whatever a request is like, and
//! whatever becomes of the target meanwhile.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use flipside::env::sim::rng::Rng;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::O_DIRECT;

use crate::machine::{available, passes};
use crate::support::programs::{directory, say, skip};
use crate::ublk::{BLOCK_DEVICE, pool, serve, with_queues};

const SECTOR: u64 = 512;
const PAGE: usize = 4096;
/// What is written and read, in bytes, and behind it as much that is only read.
const REGION: u64 = 16 << 20;
/// The longest read, in bytes: several requests.
const READ_MAX: u64 = 1 << 20;
/// The longest write, in bytes.
const WRITE_MAX: u64 = 256 << 10;
/// What the part that is only read is full of.
const SETTLED: u8 = 7;
const STEPS: u64 = 250;
const KILLS: u64 = 2;

/// Goal: random reads past the page cache find what was written, with holes, parts of blocks and
/// memory at any sector of a page, over kills of the target that another reader sees as pauses;
/// some are not copied, some are, and with `--ublk-copy` all are.
#[test]
fn reads_without_a_copy() {
    if available() {
        passes(&[], "zero_copy::inner_reads_without_a_copy");
    }
}

/// Memory for requests past the page cache, which begins at a sector of a page.
struct Memory {
    bytes: Vec<u8>,
    at: usize,
    len: usize,
}

impl Memory {
    fn new(len: u64, sector: u64) -> Memory {
        let len = usize::try_from(len).unwrap();
        let bytes = vec![0xEE; len + 2 * PAGE];
        let at = bytes.as_ptr().align_offset(PAGE) + usize::try_from(sector * SECTOR).unwrap();
        Memory { bytes, at, len }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.at..self.at + self.len]
    }
}

fn open() -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(O_DIRECT).open(BLOCK_DEVICE).unwrap()
}

/// A range of whole sectors of the region; often of whole blocks.
fn range(rng: &mut Rng, max: u64) -> (u64, u64) {
    let unit = if rng.below(4) == 0 { SECTOR } else { PAGE as u64 };
    let len = rng.between(1, max / unit) * unit;
    (rng.between(0, (REGION - len) / unit) * unit, len)
}

/// What ought to be in the region.
struct Model(Vec<u8>);

impl Model {
    fn of(&mut self, at: u64, len: u64) -> &mut [u8] {
        &mut self.0[usize::try_from(at).unwrap()..][..usize::try_from(len).unwrap()]
    }

    fn step(&mut self, file: &File, rng: &mut Rng) {
        match rng.below(16) {
            0..6 => {
                let (at, len) = range(rng, WRITE_MAX);
                let mut memory = Memory::new(len, rng.below(8));
                let byte = rng.bits().to_le_bytes();
                memory.get().chunks_mut(8).for_each(|word| word.copy_from_slice(&byte));
                self.of(at, len).copy_from_slice(memory.get());
                file.write_all_at(memory.get(), at).unwrap();
            }
            6 => {
                let (at, len) = range(rng, WRITE_MAX);
                let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
                let flags = hole | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(file, flags, at.cast_signed(), len.cast_signed()).unwrap();
                self.of(at, len).fill(0);
            }
            7 => file.sync_all().unwrap(),
            _ => {
                let (at, len) = range(rng, READ_MAX);
                self.check(file, at, len, rng.below(8));
            }
        }
    }

    fn check(&mut self, file: &File, at: u64, len: u64, sector: u64) {
        let mut memory = Memory::new(len, sector);
        file.read_exact_at(memory.get(), at).unwrap();
        assert!(memory.get() == self.of(at, len), "{len} bytes at {at} to sector {sector}");
    }

    fn check_all(&mut self, file: &File) {
        (0..REGION / READ_MAX).for_each(|piece| self.check(file, piece * READ_MAX, READ_MAX, 0));
    }
}

/// Reads the half that nobody writes any more, over and over, until told to stop; how often.
fn keep_reading(stop: &AtomicBool) -> u64 {
    let file = open();
    let mut rng = Rng::new(11);
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        let (at, len) = range(&mut rng, READ_MAX);
        let mut memory = Memory::new(len, rng.below(8));
        file.read_exact_at(memory.get(), REGION + at).unwrap();
        assert!(memory.get().iter().all(|&found| found == SETTLED), "{len} bytes at {at}");
        reads += 1;
    }
    reads
}

/// Goal: the inner half of `reads_without_a_copy`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_reads_without_a_copy() {
    let directory = directory();
    let (_device, service) = pool(directory.path());
    let mut service = with_queues(service);
    let mut target = serve(&service);
    if !target.log().contains("lends=true") {
        let how = "with FLIPSIDE_VM_SUITE=trixie-backports a newer one is fetched";
        skip(&format!("reads without a copy: this kernel's ublk_drv lends no memory; {how}"));
        assert!(target.stop().success());
        return;
    }
    let mut model = Model(vec![0; usize::try_from(REGION).unwrap()]);
    let mut rng = Rng::new(5);
    let mut all = Memory::new(REGION, 0);
    all.get().fill(SETTLED);
    open().write_all_at(all.get(), REGION).unwrap();
    let stop = AtomicBool::new(false);
    let (reads, target) = thread::scope(|scope| {
        let reading = scope.spawn(|| keep_reading(&stop));
        for round in 0..=KILLS {
            let file = open();
            (0..STEPS).for_each(|_| model.step(&file, &mut rng));
            model.check_all(&file);
            let status = target.status();
            let (straight, all) = (status.client_bytes_read_straight, status.client_bytes_read);
            assert!(0 < straight && straight < all, "{straight} bytes of {all} were not copied");
            say(&format!("{straight} bytes of {all} were read without a copy"));
            if round < KILLS {
                target.kill();
                target = serve(&service);
                model.check_all(&file);
            }
        }
        stop.store(true, Ordering::Relaxed);
        (reading.join().unwrap(), target)
    });
    assert!(target.log().matches(", warm: ").count() as u64 == KILLS, "{}", target.log());
    assert!(target.stop().success());
    service.arguments.push("--ublk-copy".to_owned());
    let target = serve(&service);
    model.check_all(&open());
    let status = target.status();
    assert!(status.client_bytes_read >= REGION && status.client_bytes_read_straight == 0);
    assert!(target.stop().success());
    say(&format!("{reads} reads beside {} steps and {KILLS} kills", STEPS * (KILLS + 1)));
}
