//! `flipside bench`: the engine on a device beside the device alone, without a socket.
//!
//! Both are loaded by the same code on the same ring ([`load`](crate::load)), in turns, round by
//! round, so that whatever else the machine does meets both. What is compared are medians.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::builder::RangedI64ValueParser;
use indicatif::ProgressBar;
use serde::Serialize;

use super::nvram::Place;
use super::overview::table;
use super::scratch::{Engine, Flags, Scratch, progress};
use super::values::{Period, Size};
use crate::env::os::{OsDisk, OsEnv};
use crate::load::case::STANDARD;
use crate::load::figure::Summary;
use crate::load::target::Alone;
use crate::load::{Case, Direction, Figure, Target, run as run_case};
use crate::unit::{Config, Unit};
use crate::uring::RingOptions;

/// The most that is measured on, unless told otherwise, in bytes.
const SIZE_MAX: u64 = 1 << 30;

const EXAMPLES: &str = "\
Examples:
  All cases on a disk that holds nothing:
    flipside bench /dev/sdx
  Commits alone, flags in memory that is believed to survive, as JSON:
    flipside bench --case 'write-flush-*' --nvram /dev/shm/flags --json /dev/sdx
  On a file, to try it out:
    truncate -s 4G pool.img && flipside bench pool.img

The device is formatted: what it holds is lost. Each round measures it alone, through the same ring,
and then under a pool with a volume that is filled on both sides. Shown are medians over the rounds;
device alone is 1.00. Times are those of one request, with its flush in write-flush cases. Written
are bytes to the device for each byte of the client: data and copies, and metadata apart (those of
the journal; the store's are few).";

/// Flags of `flipside bench`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only cases whose name is this, or begins with what stands before a '*'; may be repeated
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// For how long each case is measured in a round
    #[arg(long, value_name = "TIME", default_value = "3s")]
    time: Period,
    /// How often all is measured
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = at_least_one())]
    rounds: u32,
    /// How much of the device is loaded, by default two fifths of it, and 1G at most
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// Where flags and journal are kept: on the device, in --nvram, or at the pool's own metadata
    /// server [default: in --nvram where that is given, otherwise on the device]
    #[arg(long, value_enum, requires_if("nvram", "nvram"))]
    flags: Option<Place>,
    /// Keep flags and journal in this file in memory, believed to survive; it is made for each
    /// round and removed
    #[arg(long, value_name = "PATH")]
    nvram: Option<PathBuf>,
    /// With --nvram: the largest write whose data goes to the journal too; 0: none
    #[arg(long, value_name = "SIZE", default_value = "0", requires = "nvram")]
    nvram_write_max: Size,
    /// Use a device that holds something: that is lost
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The disk, partition, loop device or file
    #[arg(value_name = "DEVICE")]
    device: PathBuf,
}

/// Bytes to the device, for each byte of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Written {
    /// What clients wrote.
    data: f64,
    /// What settling copied.
    copies: f64,
    /// Groups and pages.
    metadata: f64,
}

/// A case in all rounds.
#[derive(Clone, Debug, Default)]
struct Rounds {
    alone: Vec<Summary>,
    engine: Vec<Summary>,
    written: Vec<Written>,
}

/// A case as `--json` shows it. The names stay.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    /// Engine to device alone: requests a second.
    ratio: f64,
    /// Engine to device alone: the median of the requests' times.
    p50_ratio: f64,
    alone: Summary,
    engine: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<Written>,
}

/// All of it as `--json` shows it. The names stay.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    device: String,
    size: u64,
    flags: String,
    rounds: u32,
    seconds: f64,
    cases: Vec<Row>,
}

/// What was found of each case.
type Found = Rc<RefCell<Vec<Rounds>>>;

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let cases: Vec<Case> = STANDARD.into_iter().filter(|case| args.wants(case.name)).collect();
    ensure!(
        !cases.is_empty(),
        "no case is named so; there are {}",
        STANDARD.map(|case| case.name).join(", ")
    );
    let mut scratch =
        Scratch::new(&args.device, args.size.map(|size| size.0), SIZE_MAX, args.force)?;
    scratch.flags = args.flags()?;
    let progress = progress(args.json, 2 * u64::from(args.rounds) * cases.len() as u64);
    let found = Rc::new(RefCell::new(vec![Rounds::default(); cases.len()]));
    let (size, time) = (scratch.size, args.time.0);
    for round in 0..args.rounds {
        let (cases, progress, found) = (cases.clone(), progress.clone(), Rc::clone(&found));
        let phase = Phase { cases, size, time, round, progress, found };
        let other = phase.clone();
        scratch.alone(move |env, disk| phase.alone(env, disk))?;
        scratch.engine(&RingOptions::default(), Config::default(), move |engine| {
            other.engine(engine)
        })?;
    }
    progress.finish_and_clear();
    let report = report(args, &scratch, &cases, &found.borrow());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", text(&report));
    }
    Ok(())
}

/// A number that is not zero.
fn at_least_one() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        let matches = |wanted: &String| match wanted.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == wanted,
        };
        self.cases.is_empty() || self.cases.iter().any(matches)
    }

    fn flags(&self) -> Result<Flags> {
        Ok(match (self.flags, &self.nvram) {
            (None | Some(Place::Nvram), Some(path)) => {
                ensure!(
                    path.symlink_metadata().is_err(),
                    "{} is there already, and what is measured makes its NVRAM anew and removes it \
                     at the end: name a file that is not there",
                    path.display()
                );
                Flags::Memory(path.clone(), self.nvram_write_max.0)
            }
            (Some(_), Some(_)) => bail!("--nvram is of use with --flags nvram only"),
            (Some(Place::Mds), None) => Flags::Server,
            (_, None) => Flags::Device,
        })
    }
}

/// What every phase needs.
#[derive(Clone)]
struct Phase {
    cases: Vec<Case>,
    size: u64,
    time: Duration,
    round: u32,
    progress: ProgressBar,
    found: Found,
}

impl Phase {
    /// Measures one case.
    async fn one<T: Target>(&self, env: &OsEnv, target: &T, case: Case) -> Result<Figure> {
        self.progress.set_message(case.name);
        let figure = run_case(env, target, case, self.size, self.time, self.round.into()).await;
        self.progress.inc(1);
        figure.with_context(|| case.name)
    }

    async fn alone(self, env: OsEnv, disk: Alone<OsDisk>) -> Result<()> {
        for (index, case) in self.cases.iter().enumerate() {
            let figure = self.one(&env, &disk, *case).await?;
            disk.flush().await?;
            self.found.borrow_mut()[index].alone.push(figure.summary());
        }
        Ok(())
    }

    async fn engine(self, engine: Engine) -> Result<()> {
        let Engine { env, volume, unit } = engine;
        for (index, case) in self.cases.iter().enumerate() {
            let before = bytes(&unit);
            let figure = self.one(&env, &volume, *case).await?;
            Target::flush(&volume).await?;
            let mut found = self.found.borrow_mut();
            found[index].engine.push(figure.summary());
            if case.direction == Direction::Write {
                let client = (figure.requests() * u64::from(case.block)) as f64;
                let [data, copies, metadata] = bytes(&unit);
                let share = |after: u64, before: u64| (after - before) as f64 / client;
                found[index].written.push(Written {
                    data: share(data, before[0]),
                    copies: share(copies, before[1]),
                    metadata: share(metadata, before[2]),
                });
            }
        }
        Ok(())
    }
}

/// What a pool has written so far: data, copies, and metadata but for the metadata store's.
fn bytes(unit: &Unit<OsEnv>) -> [u64; 3] {
    let counters = unit.counters();
    [
        counters.device_bytes_data.get() + counters.device_bytes_destaged.get(),
        counters.device_bytes_copies.get(),
        unit.metadata_bytes(),
    ]
}

/// The middle one of some figures by `key`: of an even number, the lower of the two.
fn middle<F: Copy>(figures: &[F], key: impl Fn(&F) -> f64) -> F {
    let mut sorted = figures.to_vec();
    sorted.sort_by(|one, other| key(one).total_cmp(&key(other)));
    sorted[(sorted.len() - 1) / 2]
}

fn report(args: &Args, scratch: &Scratch, cases: &[Case], found: &[Rounds]) -> Report {
    let rows = cases.iter().zip(found).map(|(case, rounds)| {
        let alone = middle(&rounds.alone, |figure| figure.iops);
        let engine = middle(&rounds.engine, |figure| figure.iops);
        let all = |written: &Written| written.data + written.copies + written.metadata;
        Row {
            name: case.name,
            ratio: engine.iops / alone.iops,
            p50_ratio: engine.p50_us / alone.p50_us,
            alone,
            engine,
            written: (!rounds.written.is_empty()).then(|| middle(&rounds.written, all)),
        }
    });
    Report {
        version: env!("CARGO_PKG_VERSION"),
        device: scratch.path.display().to_string(),
        size: scratch.size,
        flags: match &scratch.flags {
            Flags::Device => "device".to_owned(),
            Flags::Memory(path, most) => {
                format!("nvram {}, data up to {}", path.display(), Size(*most))
            }
            Flags::Server => "mds".to_owned(),
        },
        rounds: args.rounds,
        seconds: args.time.0.as_secs_f64(),
        cases: rows.collect(),
    }
}

/// The report for people.
fn text(report: &Report) -> String {
    let rows = report.cases.iter().map(|row| {
        let Row { alone, engine, .. } = row;
        let both = |one: f64, other: f64| format!("{one:.0} / {other:.0}");
        let cpu = |of: &Summary| of.user_us + of.system_us;
        let written = |of: Written| format!("{:.2} + {:.3}", of.data + of.copies, of.metadata);
        [
            row.name.to_owned(),
            format!("{:.0}/s", alone.iops),
            format!("{:.0}/s", engine.iops),
            format!("{:.2}", row.ratio),
            both(alone.p50_us, engine.p50_us),
            both(alone.p99_us, engine.p99_us),
            format!("{:.1} / {:.1}", cpu(alone), cpu(engine)),
            row.written.map(written).unwrap_or_default(),
        ]
    });
    let head = ["case", "alone", "engine", "ratio", "p50 us", "p99 us", "cpu us", "written"];
    let table = table(head, rows, 1..8);
    let Report { device, size, flags, rounds, seconds, .. } = report;
    format!(
        "{device}, {} of it, flags: {flags}; {rounds} rounds of {seconds} s a case\n{table}",
        Size(*size)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the middle one is in the middle, whatever the order, and is one that was measured.
    #[test]
    fn medians_are_measured_ones() {
        let middle_of = |values: &[f64]| middle(values, |value| *value);
        assert!((middle_of(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((middle_of(&[4.0, 1.0, 3.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((middle_of(&[5.0]) - 5.0).abs() < f64::EPSILON);
    }
}
