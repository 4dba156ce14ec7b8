//! Databases over losses of power: each comes up, passes its own checks, and has every transaction
//! that was acknowledged, with `PostgreSQL` told to leave out what only guards against torn pages.
//!
//! The machine and its disk are those of [`crate::power`]; on the disk is a pool, whose volume is a
//! block device of the kernel with a file system, or for comparison the file system alone. The
//! inner half checks, says what it has found, and goes on with transactions until the power is
//! lost, saying each that was acknowledged; the outer half compares.
//!
//! `FLIPSIDE_ROUNDS` sets the number of losses of power of each; without it `PostgreSQL` is left
//! out, and so is the comparison.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use flipside::env::sim::rng::Rng;

use crate::arguments;
use crate::lossy_disk::LossyDisk;
use crate::machine::{Machine, available};
use crate::support::killing::{number, seed};
use crate::support::programs::{directory, installed, run, say, skip, try_run};
use crate::support::target::{BINARY, Service, Target};

const DISK: u64 = 640 << 20;
const VOLUME: u64 = 400 << 20;
const MOUNT: &str = "/mnt/database";
/// Where the distribution has the programs of `PostgreSQL`, below its version.
const POSTGRESQL: &str = "/usr/lib/postgresql";
/// What it says of itself, in the machine.
const POSTGRESQL_LOG: &str = "/tmp/postgresql.log";
/// Accounts between which transactions move money; together they have none.
const ACCOUNTS: u64 = 400;
/// What makes rows large enough to fill pages.
const PADDING: usize = 300;
/// Transactions between checkpoints, which write pages in their places.
const CHECKPOINT_EVERY: u64 = 20;
/// A loss of power waits so long for something to lose: a checkpoint or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the rounds came to.
struct Outcome {
    losses: u64,
    acknowledged: u64,
    at_stake: usize,
    /// Why they ended early.
    failure: Option<String>,
}

/// Losses of power while the inner half works.
fn rounds(name: &str, inner: &str, count: u64, rng: &mut Rng) -> Outcome {
    let directory = directory();
    let disk = LossyDisk::new(directory.path(), DISK, false, rng.bits());
    let mut outcome = Outcome { losses: count, acknowledged: 0, at_stake: 0, failure: None };
    for round in 0..=count {
        let attached = disk.attach();
        let mut machine = Machine::start(&["--disk", &attached.uri], inner);
        let found = found(&mut machine, round, outcome.acknowledged);
        if found.is_ok() && round < count {
            machine.prints("acknowledged ");
            thread::sleep(Duration::from_millis(rng.between(500, 6000)));
        }
        outcome.at_stake += attached.lose_power(PATIENCE);
        let output = machine.cut_off();
        match found {
            Ok(found) => {
                outcome.acknowledged = last(&output, "acknowledged ").unwrap_or(found);
            }
            Err(failure) => {
                outcome.losses = round;
                outcome.failure = Some(format!("{name}, round {round}: {failure}"));
                break;
            }
        }
    }
    outcome
}

/// What the database is found to have, at the begin of a round.
fn found(machine: &mut Machine, round: u64, acknowledged: u64) -> Result<u64, String> {
    if !machine.prints("found ") {
        return Err(format!("{}{}", machine.output(), machine.errors()));
    }
    let found = last(&machine.output(), "found ").expect("it was printed");
    // One more may have been committed and not acknowledged.
    if round > 0 && !(acknowledged..=acknowledged + 1).contains(&found) {
        return Err(format!("{acknowledged} transactions were acknowledged, {found} are there"));
    }
    Ok(found)
}

/// The number in the last whole line that begins so.
fn last(output: &str, begin: &str) -> Option<u64> {
    let whole = &output[..=output.rfind('\n')?];
    whole.lines().rev().find_map(|line| line.strip_prefix(begin)?.parse().ok())
}

/// All must be right.
fn survives(name: &str, inner: &str, count: u64) {
    let began = Instant::now();
    let mut rng = Rng::new(seed(&format!("loss of power, {name}"), count));
    let outcome = rounds(name, inner, count, &mut rng);
    assert!(outcome.failure.is_none(), "{}", outcome.failure.unwrap_or_default());
    say(&format!(
        "loss of power, {name}: {count} times with {} unflushed writes at stake, {} transactions \
         acknowledged and all there, the database sound, in {:?}",
        outcome.at_stake,
        outcome.acknowledged,
        began.elapsed()
    ));
}

/// How the disk alone does; that it loses nothing is not ours to promise. Where a loss of power has
/// harmed the database, another one begins.
fn compares(name: &str, inner: &str, count: u64) {
    let mut rng = Rng::new(seed(&format!("loss of power, {name}"), count));
    let (mut losses, mut acknowledged, mut at_stake, mut harms) = (0, 0, 0, Vec::new());
    while losses < count {
        let outcome = rounds(name, inner, count - losses, &mut rng);
        losses += outcome.losses.max(1);
        acknowledged += outcome.acknowledged;
        at_stake += outcome.at_stake;
        harms.extend(outcome.failure.as_deref().map(reason));
    }
    say(&format!(
        "loss of power, {name}: {losses} times with {at_stake} unflushed writes at stake, \
         {acknowledged} transactions acknowledged; {} of them harmed it{}",
        harms.len(),
        harms.concat()
    ));
}

/// What a database says of its end, among all that was printed.
fn reason(failure: &str) -> String {
    let telling = ["PANIC:", "FATAL:", "ERROR:", "transactions", "assertion", "malformed"];
    let tells = |line: &&str| telling.iter().any(|word| line.contains(word));
    let lines: Vec<&str> = failure.lines().filter(tells).take(6).collect();
    let all = if lines.is_empty() { failure } else { &lines.join("\n  ") };
    format!("\n  {all}")
}

/// Goal: `SQLite` on ext4 on a volume is sound after losses of power and has every transaction.
#[test]
fn sqlite() {
    if available() && installed(&["sqlite3"]) {
        survives("SQLite", "databases::inner_sqlite", number("FLIPSIDE_ROUNDS").unwrap_or(1));
    }
}

/// Goal: what became of `SQLite` on the disk alone is said.
#[test]
fn sqlite_on_the_plain_disk() {
    let Some(count) = number("FLIPSIDE_ROUNDS") else { return };
    if available() && installed(&["sqlite3"]) {
        compares("SQLite on the plain disk", "databases::inner_sqlite_plain", count);
    }
}

/// Goal: `PostgreSQL` without full-page writes on xfs with blocks of a page is sound after losses
/// of power and has every transaction.
#[test]
fn postgresql() {
    let Some(count) = number("FLIPSIDE_ROUNDS") else { return };
    if available() && postgresql_installed() {
        survives("PostgreSQL", "databases::inner_postgresql", count);
    }
}

/// Goal: what became of `PostgreSQL` without full-page writes on the disk alone is said.
#[test]
fn postgresql_on_the_plain_disk() {
    let Some(count) = number("FLIPSIDE_ROUNDS") else { return };
    if available() && postgresql_installed() {
        compares("PostgreSQL on the plain disk", "databases::inner_postgresql_plain", count);
    }
}

fn postgresql_installed() -> bool {
    let is_installed = Path::new(POSTGRESQL).is_dir();
    if !is_installed {
        skip("PostgreSQL is not installed");
    }
    is_installed
}

/// Goal: the inner half of `sqlite`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_sqlite() {
    let target = on_the_volume(&["mkfs.ext4", "-q"]);
    work_on_sqlite();
    drop(target);
}

/// Goal: the inner half of `sqlite_on_the_plain_disk`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_sqlite_plain() {
    mount("/dev/vda", &["mkfs.ext4", "-q"]);
    work_on_sqlite();
}

/// Goal: the inner half of `postgresql`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_postgresql() {
    let target = on_the_volume(&["mkfs.xfs", "-q", "-b", "size=8192"]);
    work_on_postgresql();
    drop(target);
}

/// Goal: the inner half of `postgresql_on_the_plain_disk`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_postgresql_plain() {
    mount("/dev/vda", &["mkfs.xfs", "-q", "-b", "size=8192"]);
    work_on_postgresql();
}

/// Serves the machine's disk as a block device, and mounts what is on it.
fn on_the_volume(make: &[&str]) -> Target {
    run("modprobe", arguments!["ublk_drv"]);
    let disk = Path::new("/dev/vda");
    // Refused where there is a pool already.
    let size = format!("vol0={VOLUME}");
    let _ = try_run(BINARY, arguments!["format", "--volume", size, disk]);
    let mut service = Service::new(Path::new("/tmp"), disk);
    service.arguments = ["--listen", "ublk:0"].map(String::from).to_vec();
    let target = service.start();
    target.wait_ready_at("/dev/ublkb0");
    mount("/dev/ublkb0", make);
    target
}

/// Mounts a device; it is given a file system if it has none.
fn mount(device: &str, make: &[&str]) {
    if try_run("blkid", arguments!["-p", device]).is_err() {
        let words: Vec<&OsStr> =
            make[1..].iter().copied().chain([device]).map(OsStr::new).collect();
        run(make[0], &words);
    }
    fs::create_dir_all(MOUNT).unwrap();
    run("mount", arguments![device, MOUNT]);
}

/// A client program of a database, which answers each line with lines.
struct Shell {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn start(words: &[&str]) -> Shell {
        let mut command = Command::new("stdbuf");
        command.arg("-oL").args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Shell { _child: child, input, output }
    }

    /// Has statements executed; the answer, which is one line.
    fn ask(&mut self, statements: &str) -> String {
        self.input.write_all(format!("{statements}\n").as_bytes()).unwrap();
        self.output.next().expect("an answer").unwrap()
    }

    /// Makes the tables if there are none, checks what is in them, says how many transactions there
    /// are, and goes on with more.
    fn work(&mut self, checkpoint: &str) {
        let accounts = format!(
            "CREATE TABLE IF NOT EXISTS account(id BIGINT PRIMARY KEY, money BIGINT, pad TEXT);
             CREATE TABLE IF NOT EXISTS done(n BIGINT PRIMARY KEY, pad TEXT);
             WITH RECURSIVE ids(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM ids
                 WHERE id < {ACCOUNTS} - 1)
             INSERT INTO account SELECT id, 0, '{}' FROM ids
                 WHERE NOT EXISTS (SELECT 1 FROM account);
             SELECT count(*) || ' ' || coalesce(max(n), 0) || ' ' ||
                 (SELECT sum(money) || ' ' || count(*) FROM account) FROM done;",
            "x".repeat(PADDING)
        );
        let answer = self.ask(&accounts);
        let found: Vec<u64> = answer.split(' ').map(|number| number.parse().unwrap()).collect();
        let last = found[1];
        assert_eq!(found, [last, last, 0, ACCOUNTS], "transactions are missing or half there");
        println!("\nfound {last}");
        let mut rng = Rng::new(last);
        for number in last + 1.. {
            let (from, to) = (rng.below(ACCOUNTS), rng.below(ACCOUNTS));
            let padding = "y".repeat(rng.below(PADDING as u64) as usize);
            let transaction = format!(
                "BEGIN; UPDATE account SET money = money - 1, pad = '{padding}' WHERE id = {from};
                 UPDATE account SET money = money + 1 WHERE id = {to};
                 INSERT INTO done VALUES({number}, '{padding}'); COMMIT; SELECT {number};"
            );
            assert_eq!(self.ask(&transaction), number.to_string());
            println!("acknowledged {number}");
            if number.is_multiple_of(CHECKPOINT_EVERY) {
                self.ask(checkpoint);
            }
        }
    }
}

fn work_on_sqlite() {
    let file = format!("{MOUNT}/database");
    let mut shell = Shell::start(&["sqlite3", "-batch", &file]);
    assert_eq!(shell.ask("PRAGMA integrity_check;"), "ok");
    let mode = Rng::new(seed("SQLite in the machine", 1)).pick(&["delete", "wal"]);
    assert_eq!(shell.ask(&format!("PRAGMA journal_mode = {mode};")), mode);
    // Where a transaction ends by the removal of a file, FULL does not wait for that to be durable.
    shell.ask("PRAGMA synchronous = EXTRA; SELECT 'set';");
    shell.work("SELECT 'nothing to do';");
}

fn work_on_postgresql() {
    let version = fs::read_dir(POSTGRESQL).unwrap().next().unwrap().unwrap();
    let program = |name: &str| version.path().join("bin").join(name).display().to_string();
    let cluster = format!("{MOUNT}/cluster");
    let as_user = |words: &[&str]| {
        let all = [&["-u", "postgres", "--"], words].concat();
        let done = try_run("runuser", &all.iter().map(OsStr::new).collect::<Vec<_>>());
        let log = || fs::read_to_string(POSTGRESQL_LOG).unwrap_or_default();
        done.unwrap_or_else(|error| panic!("{error}\n{}", log()));
    };
    run("chown", arguments!["postgres", MOUNT]);
    let is_new = !Path::new(&cluster).join("global/pg_control").exists();
    if is_new {
        let options = ["-A", "trust", "--data-checksums", "--wal-segsize=1", "--locale=C"];
        as_user(&[[&*program("initdb"), "-D", &cluster].as_slice(), &options].concat());
    }
    let options = "-c full_page_writes=off -c listen_addresses= -c unix_socket_directories=/tmp \
                   -c shared_buffers=4MB -c min_wal_size=2MB -c max_wal_size=8MB";
    let log = ["-l", POSTGRESQL_LOG, "-w", "-t", "200", "-o", options, "start"];
    as_user(&[[&*program("pg_ctl"), "-D", &cluster].as_slice(), &log].concat());
    if !is_new {
        let checks = ["-h", "/tmp", "--install-missing", "--heapallindexed", "--parent-check"];
        as_user(&[[&*program("pg_amcheck")].as_slice(), &checks, &["postgres"]].concat());
    }
    let psql = program("psql");
    let mut shell = Shell::start(&[&psql, "-XAtq", "-h", "/tmp", "-U", "postgres"]);
    shell.work("CHECKPOINT; SELECT 'done';");
}
