//! Every state that a loss of power could have left on the disk under us, by dm-log-writes.
//!
//! In the machine the target's disk is a log-writes device, and a stamped load runs, in rounds that
//! end with the target's death. The log is judged on the host: each prefix that ends at a flush or
//! a FUA write, and a sample of those between, is a disk that the target must recover, to a cut
//! that has all that was acknowledged as durable by then. What that is, marks in the log say: one
//! for each flush and FUA write, made when its acknowledgement had come.
//!
//! `FLIPSIDE_ROUNDS` sets the number of rounds. A failure keeps what it takes to look at it, and
//! `FLIPSIDE_LOGGED=DIRECTORY` judges a log again that was kept.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flipside::env::sim::rng::Rng;
use flipside::sim::oracle::{Moment, Oracle};
use tempfile::TempDir;

use crate::arguments;
use crate::log::{Deed, Entry, Log};
use crate::machine::{available, passes, sparse};
use crate::support::killing::{choose, number, seed, serve, under_load};
use crate::support::nbd_client::Client;
use crate::support::programs::{directory, run, say};
use crate::support::target::{Service, Target, format};
use crate::support::workload::{Load, Volume};

const VOLUME: u64 = 16 << 20;
/// Little enough for journal space to be short.
const POOL: u64 = 48 << 20;
const LOG: u64 = 8 << 30;
/// What is known of the volume: a line for each round.
const KNOWN: u64 = 1 << 30;
/// Rounds in the machine where nothing else was said.
const ROUNDS: u64 = 1;
/// Flushes and FUA writes that are acknowledged in a round, at least.
const DURABLE: u64 = 14;
/// Of so many entries between flushes one is judged.
const SAMPLED: u64 = 12;
/// What is where a discard was: it may be anything.
const DISCARDED: u8 = 0xd5;
/// The load may take so long to come to its next flush: minutes for all of them are no fault where
/// the host gives the machine a few percent of a processor.
const PATIENCE: Duration = Duration::from_secs(600);

/// Goal: whatever prefix of its writes a disk has kept, the volume is at a cut of what was written,
/// and what was acknowledged as durable is in it; and where the disk has lost a write that it had
/// flushed, this judge says so.
#[test]
fn any_prefix_is_a_cut() {
    if !available() {
        return;
    }
    let evidence = Evidence::new();
    let place = if let Some(kept) = std::env::var_os("FLIPSIDE_LOGGED") {
        PathBuf::from(kept)
    } else {
        record(evidence.path());
        evidence.path().to_owned()
    };
    let log = place.join("log");
    let oracles = oracles(&place.join("known"));
    let began = Instant::now();
    let mut judge = Judge::new(&oracles);
    let mut rng = Rng::new(7);
    let mut judged = [0; 2];
    for entry in Log::open(&log) {
        judge.apply(&entry);
        if judge.place.is_none() || !(entry.is_barrier || rng.below(SAMPLED) == 0) {
            continue;
        }
        let verdict = judge.verdict();
        verdict.unwrap_or_else(|violation| panic!("entry {}: {violation}", judge.entries));
        judged[usize::from(entry.is_barrier)] += 1;
    }
    assert!(judge.ended, "the log goes on to the end: it has room for everything");
    let [between, barriers] = judged;
    say(&format!(
        "dm-log-writes: {} entries, {} marks of acknowledgements in {} rounds; {barriers} prefixes \
         that end at a flush or FUA write and {between} others were recovered and are right, in \
         {:?}",
        judge.entries,
        judge.marks,
        oracles.len(),
        began.elapsed()
    ));
    assert!(barriers >= DURABLE * oracles.len() as u64, "each acknowledgement has its flush");
    lost_writes_are_noticed(&log, &oracles);
}

/// Has the load run in the machine: pool, log and what is known are files in that directory then.
fn record(directory: &Path) {
    let file = |(name, bytes)| sparse(&directory.join(name), bytes);
    let [pool, log, known] = [("pool", POOL), ("log", LOG), ("known", KNOWN)].map(file);
    let options = ["--seconds", "3000", "--disk", &pool, "--disk", &log, "--disk", &known];
    let began = Instant::now();
    passes(&options, "log_writes::inner_a_log_is_recorded");
    say(&format!("dm-log-writes: recorded in {:?}", began.elapsed()));
}

/// A directory that stays where the test fails, and is named then.
struct Evidence(TempDir);

impl Evidence {
    fn new() -> Evidence {
        Evidence(directory())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.disable_cleanup(true);
            say(&format!("dm-log-writes: kept in {}", self.path().display()));
        }
    }
}

/// What was known at the end of each round.
fn oracles(known: &Path) -> Vec<Oracle> {
    let lines = BufReader::new(File::open(known).unwrap()).lines().map(Result::unwrap);
    let lines = lines.take_while(|line| !line.starts_with('\0'));
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}

/// The disk as it was at some place of the log, and who judges it. In its directory `image` is that
/// disk, and `device` what a target has made of it, with the target's messages beside.
struct Judge<'a> {
    oracles: &'a [Oracle],
    directory: Evidence,
    image: File,
    /// The round, and what had been acknowledged, at the last mark.
    place: Option<(usize, Moment)>,
    entries: u64,
    marks: u64,
    ended: bool,
}

impl<'a> Judge<'a> {
    fn new(oracles: &'a [Oracle]) -> Self {
        let directory = Evidence::new();
        sparse(&directory.path().join("image"), POOL);
        let image = OpenOptions::new().write(true).open(directory.path().join("image")).unwrap();
        Judge { oracles, directory, image, place: None, entries: 0, marks: 0, ended: false }
    }

    /// The next entry of the log took place.
    fn apply(&mut self, entry: &Entry) {
        self.entries += 1;
        match &entry.deed {
            Deed::Write { offset, data } => self.image.write_all_at(data, *offset).unwrap(),
            Deed::Discard { offset, bytes } => {
                let anything = vec![DISCARDED; *bytes as usize];
                self.image.write_all_at(&anything, *offset).unwrap();
            }
            Deed::Mark(text) if text == END => self.ended = true,
            Deed::Mark(text) => {
                self.marks += 1;
                self.place = Some(parse(text));
            }
        }
    }

    /// Has a copy of the disk recovered, and judges the volume.
    fn verdict(&self) -> Result<(), String> {
        let (round, moment) = self.place.expect("something was acknowledged");
        let device = self.directory.path().join("device");
        std::fs::copy(self.directory.path().join("image"), &device).unwrap();
        let mut service = Service::new(self.directory.path(), &device);
        // What the judge of another prefix has left in memory says nothing of this one.
        service.arguments.push("--cold".to_owned());
        let target = service.start();
        if !target.ready_or_ended() {
            return Err(target.log());
        }
        let mut client = connect(&target).map_err(|error| error.to_string())?;
        let verdict = Volume::known(self.oracles[round].demanding(moment)).verify(&mut client);
        target.kill();
        verdict.map_err(|violation| format!("round {round}, after {moment:?}: {violation}"))
    }
}

/// The mark of the kernel when the device is taken away.
const END: &str = "dm-log-writes-end";

/// A mark's text.
fn text(round: usize, moment: Moment) -> String {
    format!("{round}-{}-{}", moment.clock, moment.flushed)
}

/// What a mark says.
fn parse(mark: &str) -> (usize, Moment) {
    let numbers: Vec<u64> = mark.split('-').map(|number| number.parse().unwrap()).collect();
    let [round, clock, flushed] = numbers[..] else { panic!("{mark}") };
    (round as usize, Moment { clock, flushed })
}

fn connect(target: &Target) -> std::io::Result<Client> {
    Client::unix(target.socket(), "vol0")
}

/// Replays the log without the writes between two marks, among them a commit's.
fn lost_writes_are_noticed(log: &Path, oracles: &[Oracle]) {
    let (mut last_mark, mut commits, mut lost) = (None, false, Vec::new());
    for (entry, number) in Log::open(log).zip(0_u64..) {
        match &entry.deed {
            Deed::Write { data, .. } => commits |= entry.is_barrier && !data.is_empty(),
            Deed::Mark(mark) if mark != END && parse(mark).0 == 0 => {
                if let Some(last) = last_mark.replace(number).filter(|_| commits) {
                    lost.push(last..number);
                }
                commits = false;
            }
            _ => {}
        }
    }
    let tried = lost.len().min(6);
    let noticed = lost[..tried].iter().filter(|lost| is_noticed(log, oracles, lost)).count();
    say(&format!("dm-log-writes: of {tried} disks that had lost writes {noticed} were noticed"));
    assert!(noticed > 0, "a disk that loses what it had flushed passes for a good one");
}

/// Whether the judge sees, at the mark that ends them or at one of the next two, that the writes of
/// these entries are not there: later, others may stand in their places.
fn is_noticed(log: &Path, oracles: &[Oracle], lost: &Range<u64>) -> bool {
    let mut judge = Judge::new(oracles);
    let mut patience = 3;
    for (entry, number) in Log::open(log).zip(0..) {
        if lost.contains(&number) && matches!(entry.deed, Deed::Write { .. }) {
            continue;
        }
        judge.apply(&entry);
        if number >= lost.end && matches!(entry.deed, Deed::Mark(_)) {
            patience -= 1;
            if judge.verdict().is_err() {
                return true;
            }
        }
        if patience == 0 {
            break;
        }
    }
    false
}

/// Goal: the inner half of `any_prefix_is_a_cut`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_a_log_is_recorded() {
    run("modprobe", arguments!["dm-log-writes"]);
    let table = format!("0 {} log-writes /dev/vda /dev/vdb", POOL / 512);
    run("dmsetup", arguments!["create", "logged", "--noudevsync", "--table", table]);
    let device = Path::new("/dev/dm-0");
    format(device, &["--volume", &format!("vol0={VOLUME}")]);
    let rounds = number("FLIPSIDE_ROUNDS").unwrap_or(ROUNDS);
    let mut rng = Rng::new(seed("dm-log-writes", rounds));
    let directory = directory();
    let mut service = Service::new(directory.path(), device);
    let mut known = OpenOptions::new().write(true).open("/dev/vdc").unwrap();
    let durable = Arc::new(AtomicU64::new(0));
    let round = Arc::new(AtomicU64::new(0));
    let mut volume = Volume::new(VOLUME);
    let (counted, current) = (Arc::clone(&durable), Arc::clone(&round));
    volume.on_durable = Box::new(move |moment| {
        mark(&text(current.load(Ordering::SeqCst) as usize, moment));
        counted.fetch_add(1, Ordering::SeqCst);
    });
    for number in 0..rounds {
        service.arguments = choose(&mut rng);
        if rng.below(2) == 0 {
            service.arguments.push("--discard".to_owned());
        }
        let target = serve(&service, &mut rng);
        let mut client = target.connect("vol0");
        volume.verify(&mut client).unwrap();
        client.flush().unwrap();
        drop(client);
        round.store(number, Ordering::SeqCst);
        mark(&text(number as usize, volume.knowledge().moment()));
        durable.store(0, Ordering::SeqCst);
        load(&volume, target, &mut rng, &durable);
        serde_json::to_writer(&mut known, &volume.knowledge()).unwrap();
        known.write_all(b"\n").unwrap();
    }
    let target = service.serve();
    volume.verify(&mut target.connect("vol0")).unwrap();
    assert!(target.stop().success());
    run("dmsetup", arguments!["remove", "--noudevsync", "--retry", "logged"]);
    known.sync_all().unwrap();
    File::open("/dev/vdb").unwrap().sync_all().unwrap();
}

/// Says something in the log.
fn mark(text: &str) {
    run("dmsetup", arguments!["message", "logged", "0", "mark", text]);
}

/// Loads the volume until enough was acknowledged as durable; then the target is killed, or told to
/// stop.
fn load(volume: &Volume, target: Target, rng: &mut Rng, durable: &AtomicU64) {
    let load = Load {
        connections: rng.between(1, 3),
        depth: rng.between(1, 8) as usize,
        flushes_percent: rng.pick(&[3, 10, 25]),
        seed: rng.bits(),
    };
    under_load(volume, target, load, |target, is_loading| {
        let (mut last, mut since) = (0, Instant::now());
        while last < DURABLE {
            assert!(is_loading(), "the target is gone: {}", target.log());
            assert!(since.elapsed() < PATIENCE, "{load:?}: {:?}", volume.tally);
            thread::sleep(Duration::from_millis(20));
            let now = durable.load(Ordering::SeqCst);
            if now > last {
                (last, since) = (now, Instant::now());
            }
        }
        rng.below(4) == 0
    });
}
