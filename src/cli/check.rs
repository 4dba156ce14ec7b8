//! `flipside check`: what is damaged in a pool that is not served, and repairs.
//!
//! # Contract
//!
//! Read only without `--repair`. The exit code is 0 where the pool is sound, 1 where it is damaged
//! (after `--repair`: still), 2 where it could not be looked at.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::device;
use super::offline::{Examination, Offline};
use crate::check::finding::{Code, Finding, Mend};
use crate::check::mend;
use crate::mds::examine::{self, HostedFacts};
use crate::mds::hosted::{self, HostedError};
use crate::mds::store::StoreError;

/// Memory for I/O, in bytes.
const BUFFERS_LEN: usize = 16 << 20;
/// The exit code of a pool that could not be looked at, and of a wrong command line.
const COULD_NOT: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  Is everything well? The pool must not be served meanwhile:
    flipside check /dev/sdx
  A pool of two devices with its journal in NVRAM, repaired where that is possible:
    flipside check --repair --nvram /mnt/pmem/flags /dev/sdx /dev/sdy
  The store of a metadata server that is stopped, and a pool of it:
    flipside check --mds-store /var/lib/flipside/mds
    flipside check --mds-store /var/lib/flipside/mds /dev/sdx

What is kept twice is repaired from the good copy: superblocks, pages of the journal's region, the
volumes. The contents of volumes have no checksums and are not checked.

Exit codes:
  0  the pool is sound, or is so after --repair
  1  it is damaged
  2  it could not be checked: the devices are in use or no pool, or the command line is wrong";

/// Flags of `flipside check`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Mend what is redundant, then check again
    #[arg(long)]
    repair: bool,
    /// Print JSON, whose names stay from version to version
    #[arg(long)]
    json: bool,
    /// The NVRAM, for a pool that was served with --flags nvram
    #[arg(long, value_name = "PATH")]
    nvram: Option<PathBuf>,
    /// The store of a metadata server that is stopped: checked by itself, and against the devices
    /// of one of its pools where they are named
    #[arg(long, value_name = "PATH", conflicts_with = "repair")]
    mds_store: Option<PathBuf>,
    /// All devices of the pool, in any order
    #[arg(required_unless_present = "mds_store", value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

/// What is told.
#[derive(Serialize)]
struct Report<'a> {
    sound: bool,
    pool: Option<String>,
    volumes: usize,
    extents: u64,
    extents_used: u64,
    groups: usize,
    /// Groups of which only the metadata server knows whether they count.
    in_doubt: usize,
    /// Blocks whose data is in the journal alone.
    in_journal: usize,
    repaired: Vec<&'a Finding>,
    findings: Vec<&'a Finding>,
}

/// Checks a pool.
pub fn run(args: Args) -> ExitCode {
    let checked = device::environment(BUFFERS_LEN).and_then(|(ring, env)| {
        let checked = ring.block_on(async move {
            let store = args.mds_store.as_deref().map(|path| (path, look(path)));
            let store = match store {
                Some((path, looked)) => match looked? {
                    Ok(facts) => Some(facts),
                    Err(damage) => return tell_store(path, Err(&damage), args.json),
                },
                None => None,
            };
            if let (Some(path), Some(facts), []) = (&args.mds_store, &store, &*args.devices) {
                return tell_store(path, Ok(facts), args.json);
            }
            let mut offline = Offline::claim(&env, &args.devices, args.nvram.as_deref()).await?;
            offline.mds_store = store;
            check(&offline, &args).await
        });
        ring.shutdown();
        checked
    });
    match checked {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("flipside: {error:#}");
            ExitCode::from(COULD_NOT)
        }
    }
}

/// What a metadata server's store holds, or how it is damaged; fails where it cannot be looked at.
fn look(path: &Path) -> Result<Result<HostedFacts, StoreError>> {
    let looked = match hosted::look(path) {
        Ok(store) => examine::hosted(store),
        Err(HostedError::Store(_, error)) => Err(error),
        Err(error) => return Err(error.into()),
    };
    match looked {
        Err(error @ StoreError::Damaged(_)) => Ok(Err(error)),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
        Ok(facts) => Ok(Ok(facts)),
    }
}

/// What is told of a metadata server's store.
#[derive(Serialize)]
struct StoreReport {
    sound: bool,
    pools: usize,
    sessions: u64,
    consistency_groups: u64,
    findings: Vec<Finding>,
}

/// Says how a metadata server's store is; whether it is sound.
fn tell_store(path: &Path, facts: Result<&HostedFacts, &StoreError>, json: bool) -> Result<bool> {
    let place = path.display();
    let damaged = |error: &StoreError| Finding::lasting(Code::StoreDamaged, &place, error);
    let report = StoreReport {
        sound: facts.is_ok(),
        pools: facts.map_or(0, |facts| facts.pools.len()),
        sessions: facts.map_or(0, |facts| facts.sessions),
        consistency_groups: facts.map_or(0, |facts| facts.groups),
        findings: facts.err().map(damaged).into_iter().collect(),
    };
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
        return Ok(report.sound);
    }
    for finding in &report.findings {
        writeln!(out, "{finding}: bring it back from where it was copied to")?;
    }
    if let Ok(facts) = facts {
        writeln!(out, "{place}: {} pools, {} sessions", facts.pools.len(), facts.sessions)?;
        for (pool, of) in &facts.pools {
            let (volumes, pairs) = (of.volumes.len(), of.pairs.len());
            writeln!(out, "pool {pool}: {volumes} volumes, {pairs} pairs")?;
        }
        if facts.groups > 0 {
            let (groups, decisions) = (facts.groups, facts.decisions);
            writeln!(
                out,
                "{groups} consistency groups, {decisions} whose last commit may not be done \
                 everywhere"
            )?;
        }
        writeln!(out, "the metadata store is sound")?;
    }
    Ok(report.sound)
}

/// Whether the pool is sound in the end.
async fn check(offline: &Offline, args: &Args) -> Result<bool> {
    let progress = progress(args);
    let mut found = offline.examine(&progress).await?;
    let mut before = Vec::new();
    if args.repair && found.findings.iter().any(|finding| finding.repairable) {
        repair(offline, &found).await?;
        progress.reset();
        let again = offline.examine(&progress).await?;
        before = std::mem::replace(&mut found, again).findings;
    }
    progress.finish_and_clear();
    let repaired = before.iter().filter(|finding| !found.findings.contains(finding)).collect();
    tell(&found, repaired, args.json)?;
    Ok(found.findings.is_empty())
}

fn progress(args: &Args) -> ProgressBar {
    if args.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let progress = ProgressBar::new(0).with_message("checking");
    progress.set_style(
        ProgressStyle::with_template("{msg} {bar:30} {bytes} of {total_bytes}")
            .expect("the template is a constant"),
    );
    progress
}

/// Carries out every repair.
async fn repair(offline: &Offline, found: &Examination) -> Result<()> {
    let env = &offline.env;
    for mend in mend::plan(&found.findings) {
        let done = match mend {
            Mend::Superblock(index) => {
                let of = offline.claimed.get(index).zip(found.devices.get(index));
                let (claimed, facts) = of.expect("a finding is of a device that was given");
                mend::superblock(env, &claimed.disk, facts).await.map_err(Into::into)
            }
            Mend::Identity => {
                let nvram = offline.nvram().expect("its identity was looked at");
                mend::identity(env, nvram).await.map_err(Into::into)
            }
            Mend::Page(..) => {
                let (region, facts) = found.region.as_ref().expect("its pages were looked at");
                mend::page(env, region, facts, &mend).await.map_err(Into::into)
            }
            Mend::StoreHeader | Mend::VolumeTable | Mend::NewStore => {
                let (place, _) = found.metadata.as_ref().expect("it was looked at");
                mend::metadata(place, &mend)
            }
        };
        done.with_context(|| format!("the repair stopped at {mend:?}"))?;
    }
    Ok(())
}

fn tell(found: &Examination, repaired: Vec<&Finding>, json: bool) -> Result<()> {
    let used = found.home.as_ref().map_or(0, |home| {
        home.lines.iter().flat_map(|line| line.binding.extents).flatten().count() as u64
    });
    let report = Report {
        sound: found.findings.is_empty(),
        pool: found.pool.as_ref().map(|pool| pool.superblock.pool.to_string()),
        volumes: found.volumes,
        extents: found.pool.as_ref().map_or(0, |pool| pool.superblock.pool_extents().into()),
        extents_used: used,
        groups: found.home.as_ref().map_or(0, |home| home.groups),
        in_doubt: found.home.as_ref().map_or(0, |home| home.in_doubt),
        in_journal: found.home.as_ref().map_or(0, |home| home.in_journal),
        repaired,
        findings: found.findings.iter().collect(),
    };
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        return Ok(writeln!(out)?);
    }
    for finding in &report.repaired {
        writeln!(out, "repaired: {}: {}", finding.place, finding.what)?;
    }
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    let pool = report.pool.as_deref().unwrap_or("unknown");
    writeln!(
        out,
        "pool {pool}: {} of {} extents in use by {} volumes, {} groups in the journal",
        report.extents_used, report.extents, report.volumes, report.groups
    )?;
    if report.in_doubt > 0 {
        let count = report.in_doubt;
        writeln!(out, "{count} groups are in doubt: the metadata server says at the next start")?;
    }
    if report.in_journal > 0 {
        writeln!(out, "the data of {} blocks is in the journal alone", report.in_journal)?;
    }
    let again = report.findings.iter().filter(|finding| finding.repairable).count();
    if found.store_elsewhere {
        writeln!(out, "its metadata server's store was not looked at: --mds-store does that")?;
    }
    match (report.findings.len(), again) {
        (0, _) => writeln!(out, "the pool is sound")?,
        (all, again) => writeln!(out, "{all} damages, of which --repair can mend {again}")?,
    }
    Ok(())
}
