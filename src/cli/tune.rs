//! `flipside tune`: measures a device and a few settings, and says which flags of `serve` suit it.
//!
//! What is measured is what [`bench`](super::bench) measures, for a shorter time; what follows from
//! it is decided by [`advise`], a plain function.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use serde::Serialize;

use super::overview::table;
use super::scratch::{Engine, Scratch, progress};
use super::tuning::default_poll;
use super::values::Period;
use crate::env::os::OsEnv;
use crate::load::case::STANDARD;
use crate::load::figure::Summary;
use crate::load::{Case, Target, run as run_case};
use crate::unit::Config;
use crate::unit::limits::EPOCH_DATA_MAX;
use crate::uring::RingOptions;

/// What is loaded at most, in bytes.
const SIZE_MAX: u64 = 256 << 20;
/// The cases that tell what a device is.
const CASES: [&str; 6] = [
    "sequential-write-qd8",
    "random-write-qd32",
    "random-read-qd32",
    "random-read-qd1",
    "random-write-qd1",
    "write-flush-1",
];
/// The cases that polling is for.
const LONELY: [&str; 2] = ["random-read-qd1", "random-write-qd1"];
/// A setting has to bring that much to be worth a word.
const WORTH: f64 = 1.15;
/// A device that answers later gains little from polling.
const POLL_US_MAX: f64 = 100.0;
/// A flush that takes longer is worth persistent memory.
const SLOW_FLUSH_US: f64 = 100.0;
/// What a flush may have to write out at most: so much of a device's time.
const COMMIT_SECONDS: f64 = 0.5;
const COMMIT_SIZE_MIN: u64 = 16 << 20;

const EXAMPLES: &str = "\
Examples:
  A disk that holds nothing:
    flipside tune /dev/sdx
  A file, to try it out:
    truncate -s 1G pool.img && flipside tune pool.img

The device is formatted: what it holds is lost. It takes about a minute. The engine is measured with
the defaults of `serve`, and with the time of polling that suits the device.";

/// Flags of `flipside tune`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// For how long each case is measured
    #[arg(long, value_name = "TIME", default_value = "3s")]
    time: Period,
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

/// A case that was measured.
#[derive(Clone, Copy, Debug, Serialize)]
struct Measured {
    name: &'static str,
    #[serde(flatten)]
    figure: Summary,
}

/// What was measured, and what follows from it. The names are those of `--json` and stay.
#[derive(Debug, Serialize)]
struct Report {
    /// The device alone.
    alone: Vec<Measured>,
    /// The engine with its defaults.
    engine: Vec<Measured>,
    /// The engine with `poll_us`.
    polling: Vec<Measured>,
    /// For how long it polled, in microseconds.
    poll_us: u32,
    /// Flags that suit the device.
    advice: Vec<Advice>,
}

/// A flag, and when it is of use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Advice {
    flag: String,
    why: String,
}

type Found = Rc<RefCell<Vec<Measured>>>;

/// Measures, and says what follows.
pub fn run(args: &Args) -> Result<()> {
    let scratch = Scratch::new(&args.device, None, SIZE_MAX, args.force)?;
    let progress = progress(args.json, (2 * CASES.len() + LONELY.len()) as u64);
    let phase = |names: &[&'static str]| {
        let cases = STANDARD.into_iter().filter(|case| names.contains(&case.name)).collect();
        let (size, time) = (scratch.size, args.time.0);
        Phase { cases, size, time, progress: progress.clone(), found: Found::default() }
    };
    let alone = phase(&CASES);
    let own = alone.clone();
    scratch.alone(move |env, disk| async move { own.measure(&env, &disk).await })?;
    let engine_with = |names: &[&'static str], options: &RingOptions| {
        let phase = phase(names);
        let own = phase.clone();
        let measure =
            move |engine: Engine| async move { own.measure(&engine.env, &engine.volume).await };
        scratch.engine(options, Config::default(), measure)?;
        anyhow::Ok(phase.found.take())
    };
    let alone = alone.found.take();
    let poll_us = poll_us(&alone);
    let defaults = RingOptions { poll: default_poll(), ..RingOptions::default() };
    let engine = engine_with(&CASES, &defaults)?;
    let poll = Duration::from_micros(poll_us.into());
    let polling = engine_with(&LONELY, &RingOptions { poll, ..defaults })?;
    progress.finish_and_clear();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let advice = advise(&alone, &engine, &polling, poll_us, processors);
    let report = Report { alone, engine, polling, poll_us, advice };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", text(&report));
    }
    Ok(())
}

/// What a phase needs.
#[derive(Clone)]
struct Phase {
    cases: Vec<Case>,
    size: u64,
    time: Duration,
    progress: ProgressBar,
    found: Found,
}

impl Phase {
    async fn measure<T: Target>(&self, env: &OsEnv, target: &T) -> Result<()> {
        for case in &self.cases {
            self.progress.set_message(case.name);
            let figure = run_case(env, target, *case, self.size, self.time, 1).await;
            let figure = figure.with_context(|| case.name)?.summary();
            target.flush().await?;
            self.found.borrow_mut().push(Measured { name: case.name, figure });
            self.progress.inc(1);
        }
        Ok(())
    }
}

/// The figure of a case that was measured.
fn of(measured: &[Measured], name: &str) -> Summary {
    let found = measured.iter().find(|of| of.name == name);
    found.expect("it was measured").figure
}

/// How long to poll where a device answers as fast as this one: most of its answers.
fn poll_us(alone: &[Measured]) -> u32 {
    let slowest = LONELY.map(|name| of(alone, name).p50_us).into_iter().fold(0.0, f64::max);
    micros((slowest * 1.5).clamp(10.0, POLL_US_MAX))
}

/// Whole microseconds.
fn micros(us: f64) -> u32 {
    Duration::from_secs_f64(us / 1e6).as_micros() as u32
}

/// The flags that suit a device that was measured so.
fn advise(
    alone: &[Measured],
    engine: &[Measured],
    polling: &[Measured],
    poll_us: u32,
    processors: usize,
) -> Vec<Advice> {
    let mut advice = Vec::new();
    let gain = |name| of(polling, name).iops / of(engine, name).iops;
    let least = LONELY.map(gain).into_iter().fold(f64::INFINITY, f64::min);
    if least >= WORTH && processors > 1 {
        advice.push(Advice {
            flag: format!("--poll-us {poll_us}"),
            why: format!(
                "one request at a time is answered {least:.1} times as often; costs up to a \
                 processor while requests come"
            ),
        });
    }
    let flush_us = of(alone, "write-flush-1").p50_us - of(alone, "random-write-qd1").p50_us;
    if flush_us >= SLOW_FLUSH_US {
        advice.push(Advice {
            flag: "--flags nvram --nvram PATH".to_owned(),
            why: format!(
                "a flush of this device takes {flush_us:.0} us, of persistent memory none, if \
                 there is any"
            ),
        });
    }
    let bytes_s = of(alone, "sequential-write-qd8").mib_s * f64::from(1 << 20);
    // The power of two that is no larger.
    let suits = [256, 128, 64, 32, 16].into_iter().map(|mib| mib << 20);
    let suits = suits.filter(|size| *size <= EPOCH_DATA_MAX);
    let fits = |size: &u64| *size as f64 <= bytes_s * COMMIT_SECONDS;
    let suits = suits.clone().find(fits).unwrap_or(COMMIT_SIZE_MIN);
    if suits < EPOCH_DATA_MAX {
        advice.push(Advice {
            flag: format!("--commit-size {}M", suits >> 20),
            why: format!("a flush then never has more left to write than {COMMIT_SECONDS} s of it"),
        });
    }
    advice
}

fn text(report: &Report) -> String {
    let Report { alone, engine, polling, poll_us, advice } = report;
    let rows = alone.iter().map(|measured| {
        let name = measured.name;
        let show = |of: Option<&Measured>| {
            let figure = of.map(|of| of.figure);
            figure.map_or([String::new(), String::new()], |figure| {
                [format!("{:.0}/s", figure.iops), format!("{:.0}", figure.p50_us)]
            })
        };
        let find = |all: &'_ [Measured]| all.iter().find(|of| of.name == name).copied();
        let [one, one_us] = show(Some(measured));
        let [two, two_us] = show(find(engine).as_ref());
        let [three, three_us] = show(find(polling).as_ref());
        [name.to_owned(), one, one_us, two, two_us, three, three_us]
    });
    let polled = format!("--poll-us {poll_us}");
    let head = ["case", "alone", "p50 us", "engine", "p50 us", polled.as_str(), "p50 us"];
    let mut out = table(head, rows, 1..7);
    if advice.is_empty() {
        out += "\n\nThe defaults of flipside serve suit this device.";
    }
    for Advice { flag, why } in advice {
        write!(out, "\n\n{flag}\n  {why}").expect("a string takes all");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &'static str, iops: f64, p50_us: f64, mib_s: f64) -> Measured {
        let figure = Summary {
            iops,
            mib_s,
            p50_us,
            p99_us: p50_us,
            p999_us: p50_us,
            user_us: 1.0,
            system_us: 1.0,
        };
        Measured { name, figure }
    }

    /// A device whose flush takes so long and that writes so fast.
    fn device(flush_us: f64, mib_s: f64) -> Vec<Measured> {
        CASES
            .map(|name| match name {
                "write-flush-1" => measured(name, 1000.0, 20.0 + flush_us, 1.0),
                "sequential-write-qd8" => measured(name, 1000.0, 20.0, mib_s),
                _ => measured(name, 1000.0, 20.0, 1.0),
            })
            .to_vec()
    }

    /// Goal: each flag is recommended where it brings something, and only there.
    #[test]
    fn advice_follows_from_figures() {
        let flags = |alone: &[Measured], gain: f64, processors| -> Vec<String> {
            let engine = device(5.0, 1.0);
            let polling = LONELY.map(|name| measured(name, 1000.0 * gain, 10.0, 1.0));
            let advice = advise(alone, &engine, &polling, poll_us(alone), processors);
            advice.into_iter().map(|advice| advice.flag).collect()
        };
        let fast = device(5.0, 4000.0);
        assert_eq!(flags(&fast, 1.0, 4), [""; 0]);
        assert_eq!(flags(&fast, 1.5, 4), ["--poll-us 30"]);
        assert_eq!(flags(&fast, 1.5, 1), [""; 0]);
        let slow = device(5000.0, 100.0);
        assert_eq!(flags(&slow, 1.0, 4), ["--flags nvram --nvram PATH", "--commit-size 32M"]);
    }
}
