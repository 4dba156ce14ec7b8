//! `flipside journal`: what is linked in the journal of a target that runs, or of a pool that
//! nobody serves, and why it still is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::control::ControlArgs;
use super::device;
use super::offline::{Examination, Offline};
use crate::check::metadata;
use crate::format::group::GroupState;
use crate::format::record::Record;
use crate::front::control::Request;
use crate::journal::decide::Shown;
use crate::mds::records::VolumeInfo;
use crate::unit::{LinkedGroup, SETTLES, group_of_domain};

/// Memory for I/O, in bytes.
const BUFFERS_LEN: usize = 16 << 20;

const EXAMPLES: &str = "\
Examples:
  What the only target that runs here keeps in its journal:
    flipside journal
  The transactions whose outcome it does not know yet:
    flipside journal --json | jq '.[] | select(.state == \"prepared\")'
  What a pool that is not served has there, read from its devices; nothing is written:
    flipside journal /dev/sdx
    flipside journal --nvram /mnt/pmem/flags /dev/sdx /dev/sdy";

/// Flags of `flipside journal`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: ControlArgs,
    /// The NVRAM, for a pool that was served with --flags nvram
    #[arg(long, value_name = "PATH", requires = "devices")]
    nvram: Option<PathBuf>,
    /// All devices of a pool that is not served, in any order; none: a target that runs is asked
    #[arg(value_name = "DEVICE", conflicts_with = "control")]
    devices: Vec<PathBuf>,
}

/// A linked group, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the journal's order.
    pub sequence: u64,
    /// Its transaction, by the same name on all units that take part in it.
    pub transaction: String,
    /// `prepared`, `committed`, `done` or `aborted`.
    pub state: String,
    /// For how long it has been linked, in milliseconds; not known of a pool that is not served.
    pub age_ms: Option<u64>,
    /// Whose it is; none of a settle.
    pub of: Option<String>,
    /// Who takes part: `this unit`, or `several units`.
    pub participants: String,
    /// Slots of the journal that it takes.
    pub slots: u64,
    /// Bytes of its records.
    pub bytes: u64,
    /// Why it is still linked.
    pub why: String,
}

impl From<LinkedGroup> for Entry {
    fn from(group: LinkedGroup) -> Self {
        Self {
            sequence: group.sequence.0,
            transaction: group.transaction.to_string(),
            state: name_of(group.state),
            age_ms: Some(group.age.as_millis() as u64),
            of: group.of,
            participants: participants(group.global),
            slots: group.slots as u64,
            bytes: group.bytes as u64,
            why: group.why,
        }
    }
}

fn name_of(state: GroupState) -> String {
    let name = match state {
        GroupState::Prepared => "prepared",
        GroupState::Committed => "committed",
        GroupState::Done => "done",
        GroupState::Aborted => "aborted",
    };
    name.to_owned()
}

fn participants(global: bool) -> String {
    if global { "several units" } else { "this unit" }.to_owned()
}

/// Show what is linked in the journal.
pub fn run(args: &Args) -> Result<()> {
    let entries = if args.devices.is_empty() {
        let answer = args.control.ask(&Request::Journal)?;
        serde_json::from_value(answer).context("the target is of another version")?
    } else {
        offline(args)?
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&entries)?);
    } else {
        print!("{}", text(&entries));
    }
    Ok(())
}

/// What is linked in a pool that nobody serves.
fn offline(args: &Args) -> Result<Vec<Entry>> {
    let (ring, env) = device::environment(BUFFERS_LEN)?;
    let (devices, nvram) = (args.devices.clone(), args.nvram.clone());
    let found = ring.block_on(async move {
        let offline = Offline::claim(&env, &devices, nvram.as_deref()).await?;
        offline.examine(&ProgressBar::hidden()).await
    });
    ring.shutdown();
    entries_of(&found?)
}

fn entries_of(found: &Examination) -> Result<Vec<Entry>> {
    let again = "flipside check tells all that is wrong";
    let Some((_, facts)) = &found.region else {
        match found.findings.first() {
            Some(finding) => bail!("there is no journal to look at: {finding}; {again}"),
            None => bail!("its flags are at the metadata server: it has no journal"),
        }
    };
    let groups = facts.groups.as_ref();
    let groups = groups.map_err(|error| anyhow::anyhow!("the journal: {error}; {again}"))?;
    let volumes = found.metadata.as_ref().and_then(|(_, facts)| metadata::volumes(facts));
    let volumes = volumes.unwrap_or_default();
    let with_records = facts.linked.iter().zip(groups);
    Ok(with_records.map(|(shown, group)| at_rest(shown, &group.records, &volumes)).collect())
}

/// A group of a pool that is not served.
fn at_rest(shown: &Shown, records: &[Record], volumes: &[VolumeInfo]) -> Entry {
    let kept = records.iter().filter_map(|record| match record {
        Record::Place { pair, first, payload: Some(_), .. } => Some((*pair, *first)),
        _ => None,
    });
    let blocks = kept.collect::<BTreeSet<_>>().len();
    let volume = || {
        let known = volumes.iter().find(|volume| volume.id.0 == shown.domain);
        let name = known.map(|volume| volume.name.clone());
        format!("volume {}", name.unwrap_or_else(|| shown.domain.to_string()))
    };
    let of = (shown.domain != SETTLES).then(|| match group_of_domain(shown.domain) {
        Some(group) => format!("group number {}", group.0),
        None => volume(),
    });
    let global = shown.transaction.coordinator == crate::txn::COORDINATOR;
    let why = match shown.state {
        GroupState::Prepared => {
            "the next start asks the metadata server whether it took place".to_owned()
        }
        GroupState::Aborted => "it did not take place; the next start drops it".to_owned(),
        _ if blocks > 0 => {
            format!("the data of {blocks} blocks is not destaged; the next start applies it")
        }
        _ => "the home is older than it; the next start applies it".to_owned(),
    };
    Entry {
        sequence: shown.sequence.0,
        transaction: shown.transaction.to_string(),
        state: name_of(shown.state),
        age_ms: None,
        of,
        participants: participants(global),
        slots: shown.slots as u64,
        bytes: shown.bytes as u64,
        why,
    }
}

fn text(entries: &[Entry]) -> String {
    let mut out = format!("{} groups are linked\n", entries.len());
    for entry in entries {
        let of = entry.of.as_deref().unwrap_or("a settle");
        let age = entry.age_ms.map(|ms| format!(", for {ms} ms")).unwrap_or_default();
        let _ = writeln!(
            out,
            "{}  {}  {} of {of}, {}, {} bytes in {} slots{age}: {}",
            entry.sequence,
            entry.transaction,
            entry.state,
            entry.participants,
            entry.bytes,
            entry.slots,
            entry.why
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blocks::Location;
    use crate::format::group::TransactionId;
    use crate::format::ids::{Generation, Incarnation, PairId, Sequence, Slot, VolumeId};
    use std::time::Duration;

    /// Goal: a group of a pool that is not served has its owner's name, where that is known, and
    /// says what becomes of it.
    #[test]
    fn groups_at_rest() {
        let (coordinator, incarnation) = (crate::txn::COORDINATOR, Incarnation(3));
        let shown = |domain, state| Shown {
            sequence: Sequence(8),
            transaction: TransactionId { coordinator, incarnation, number: 12 },
            domain,
            state,
            slots: 3,
            bytes: 100,
            published: false,
            follows: None,
        };
        let block = |first| Record::kept(PairId(1), Generation(1), first, Location::At(Slot::Zero));
        let (id, name) = (VolumeId(2), "data".to_owned());
        let volumes = [VolumeInfo { id, name, size: 4096, deleting: false }];
        for (domain, state, records, of, why) in [
            (2, GroupState::Committed, vec![], Some("volume data"), "home is older"),
            (3, GroupState::Committed, vec![block(1), block(1)], Some("volume 3"), "of 1 blocks"),
            (1 << 31 | 5, GroupState::Prepared, vec![], Some("group number 5"), "next start asks"),
            (u32::MAX, GroupState::Aborted, vec![], None, "drops it"),
        ] {
            let entry = at_rest(&shown(domain, state), &records, &volumes);
            assert_eq!(entry.of.as_deref(), of);
            assert!(entry.why.contains(why), "{why}: {entry:?}");
            assert!(text(&[entry]).contains("in 3 slots: "));
        }
    }

    /// Goal: a group is shown with all that is known of it.
    #[test]
    fn groups_are_shown() {
        let (coordinator, incarnation) = (crate::txn::COORDINATOR, Incarnation(3));
        let group = LinkedGroup {
            sequence: Sequence(8),
            transaction: TransactionId { coordinator, incarnation, number: 12 },
            state: GroupState::Prepared,
            age: Duration::from_millis(1500),
            of: Some("group pair".to_owned()),
            global: true,
            slots: 2,
            bytes: 4500,
            why: "it waits".to_owned(),
        };
        assert_eq!(
            text(&[group.into()]),
            "1 groups are linked\n8  mds-3-12  prepared of group pair, several units, 4500 bytes \
             in 2 slots, for 1500 ms: it waits\n"
        );
    }
}
