//! What reaches the device for each byte that a client writes, by the kernel's own counters.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use flipside::env::sim::rng::Rng;
use support::device::{Counters, Device};
use support::nbd_client::{self as nbd, Client};
use support::programs::{directory, installed, say};
use support::target::{AT_THE_SERVER, IN_NVRAM, ON_THE_DEVICE, Place, Service, Target, format_at};

const VOLUME: u64 = 512 << 20;
/// For how long nothing may be written before the device counts as idle; above the interval at
/// which the target commits by itself.
const IDLE: Duration = Duration::from_secs(3);

/// A volume on a loop device.
struct Bench {
    target: Target,
    device: Device,
    client: Client,
    /// What was counted when the target was ready.
    served: Counters,
    /// What was counted when this was last looked at.
    before: Counters,
}

impl Bench {
    /// Fills a fresh volume; `factor` is the device's size by the volume's.
    fn filled(directory: &Path, factor: u64, place: Place) -> Option<Bench> {
        if !installed(&["losetup"]) {
            return None;
        }
        let device = Device::create_loop(directory, "device", factor * VOLUME)?;
        format_at(place, device.path(), &["--volume", &format!("vol0={VOLUME}")]);
        let mut service = Service::new(directory, device.path());
        service.arguments = ["--commit-interval", "1s"].map(String::from).to_vec();
        service.arguments.extend((place.serve)(directory));
        let target = service.serve();
        let client = target.connect("vol0");
        let served = device.counters();
        let mut bench = Bench { target, device, client, served, before: served };
        bench.sequential(1);
        Some(bench)
    }

    /// Writes the whole volume in order, in requests of 1 MiB, eight of them under way.
    fn sequential(&mut self, seed: u64) {
        let offsets = (0..VOLUME >> 20).map(|number| number << 20);
        self.write(offsets, 1 << 20, 8, u64::MAX, seed);
    }

    /// Writes `length` bytes at each of `offsets`, with a flush after every `flush_every` and at
    /// the end.
    fn write(
        &mut self,
        offsets: impl Iterator<Item = u64>,
        length: u32,
        depth: usize,
        flush_every: u64,
        seed: u64,
    ) {
        let mut rng = Rng::new(seed);
        let words = (0..u64::from(length) / 8).flat_map(|_| rng.bits().to_le_bytes());
        let payload: Vec<u8> = words.collect();
        let mut under_way = 0;
        for (number, offset) in (1..).zip(offsets) {
            if under_way == depth {
                self.receive();
                under_way -= 1;
            }
            self.client.send(nbd::WRITE, 0, offset, length, &payload).expect("the target lives");
            under_way += 1;
            if number % flush_every == 0 {
                (0..under_way).for_each(|_| self.receive());
                under_way = 0;
                self.client.flush().expect("the target flushes");
            }
        }
        (0..under_way).for_each(|_| self.receive());
        self.client.flush().expect("the target flushes");
    }

    fn receive(&mut self) {
        let reply = self.client.receive().expect("the target lives");
        assert!(reply.result.is_ok(), "a write failed: {reply:?}");
    }

    /// Waits until the device is idle; bytes written to it since the last call, by `client_bytes`.
    fn amplification(&mut self, what: &str, client_bytes: u64) -> f64 {
        let after = self.idle();
        let written = after.written - self.before.written;
        let ratio = written as f64 / client_bytes as f64;
        let (writes, flushes) =
            (after.writes - self.before.writes, after.flushes - self.before.flushes);
        say(&format!(
            "write amplification, {what}: {ratio:.4} ({written} bytes in {writes} writes and \
             {flushes} flushes for {client_bytes})"
        ));
        self.before = after;
        ratio
    }

    fn idle(&self) -> Counters {
        let deadline = Instant::now() + Duration::from_secs(60);
        let (mut last, mut since) = (self.device.counters(), Instant::now());
        while since.elapsed() < IDLE {
            assert!(Instant::now() < deadline, "the device does not come to rest: {last:?}");
            thread::sleep(Duration::from_millis(20));
            let now = self.device.counters();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }

    /// The target's own account must agree with the kernel's.
    fn check_status(&self) {
        let status = self.target.status();
        let bytes = status.device_bytes_written;
        say(&format!("by the target's own count: {bytes:?}, {} early", status.early_commits));
        let counted = (self.before.written - self.served.written) as f64;
        let off = (bytes.total() as f64 - counted).abs() / counted;
        assert!(off < 0.02, "the status says {} bytes, the kernel {counted}", bytes.total());
    }
}

/// Goal: to fill a volume and to overwrite all of it costs each byte once (at most 1.02).
#[test]
fn sequential_writes_cost_once() {
    let directory = directory();
    let Some(mut bench) = Bench::filled(directory.path(), 2, ON_THE_DEVICE) else { return };
    let fill = bench.amplification("sequential fill", VOLUME);
    bench.sequential(2);
    let first = bench.amplification("full overwrite", VOLUME);
    bench.sequential(3);
    let second = bench.amplification("second full overwrite", VOLUME);
    bench.check_status();
    assert!(fill <= 1.02 && first <= 1.02 && second <= 1.02, "{fill} {first} {second}");
}

/// Goal: random 4 KiB overwrites with a flush every 32, of a working set that fits the journal
/// space, cost each byte once and a little (at most 1.05).
#[test]
fn random_writes_of_a_set_that_fits_cost_once() {
    let directory = directory();
    let Some(mut bench) = Bench::filled(directory.path(), 2, ON_THE_DEVICE) else { return };
    bench.amplification("sequential fill", VOLUME);
    let (count, set) = (64 << 10, VOLUME / 4);
    let mut rng = Rng::new(4);
    let offsets: Vec<u64> = (0..count).map(|_| rng.below(set >> 12) << 12).collect();
    bench.write(offsets.into_iter(), 4096, 32, 32, 5);
    let ratio = bench.amplification("random 4 KiB, flush every 32", count << 12);
    bench.check_status();
    assert!(ratio <= 1.05, "{ratio}");
}

/// Goal: with flags and journal in NVRAM, nothing but the data is written to the device.
#[test]
fn with_nvram_the_device_gets_the_data_alone() {
    let directory = directory();
    let Some(mut bench) = Bench::filled(directory.path(), 2, IN_NVRAM) else { return };
    let fill = bench.amplification("sequential fill, nvram", VOLUME);
    let (count, set) = (16 << 10, VOLUME / 4);
    let mut rng = Rng::new(5);
    let offsets: Vec<u64> = (0..count).map(|_| rng.below(set >> 12) << 12).collect();
    bench.write(offsets.into_iter(), 4096, 32, 32, 6);
    let random = bench.amplification("random 4 KiB, flush every 32, nvram", count << 12);
    assert!(fill <= 1.01 && random <= 1.01, "{fill} {random}");
}

/// Goal: with the flags at the metadata server, whose store is on the device too, a client's bytes
/// are still written once; what comes on top is the store's, and the status says how much.
#[test]
fn with_the_server_data_is_written_once() {
    let directory = directory();
    let Some(mut bench) = Bench::filled(directory.path(), 2, AT_THE_SERVER) else { return };
    let fill = bench.amplification("sequential fill, mds", VOLUME);
    bench.sequential(2);
    let again = bench.amplification("full overwrite, mds", VOLUME);
    bench.check_status();
    assert!(fill <= 1.05 && again <= 1.05, "{fill} {again}");
}
