//! `flipside journal`: what is linked in a running target's journal, and why it still is.

use std::fmt::Write as _;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::control::ControlArgs;
use crate::format::group::GroupState;
use crate::front::control::Request;
use crate::unit::LinkedGroup;

const EXAMPLES: &str = "\
Examples:
  What the only target that runs here keeps in its journal:
    flipside journal
  The transactions whose outcome it does not know yet:
    flipside journal --json | jq '.[] | select(.state == \"prepared\")'";

/// Flags of `flipside journal`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: ControlArgs,
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
    /// For how long it has been linked, in milliseconds.
    pub age_ms: u64,
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
            state: match group.state {
                GroupState::Prepared => "prepared",
                GroupState::Committed => "committed",
                GroupState::Done => "done",
                GroupState::Aborted => "aborted",
            }
            .to_owned(),
            age_ms: group.age.as_millis() as u64,
            of: group.of,
            participants: if group.global { "several units" } else { "this unit" }.to_owned(),
            slots: group.slots as u64,
            bytes: group.bytes as u64,
            why: group.why,
        }
    }
}

/// Show what is linked in the journal.
pub fn run(args: &Args) -> Result<()> {
    let answer = args.control.ask(&Request::Journal)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print!("{}", text(&serde_json::from_value::<Vec<Entry>>(answer)?));
    }
    Ok(())
}

fn text(entries: &[Entry]) -> String {
    let mut out = format!("{} groups are linked\n", entries.len());
    for entry in entries {
        let of = entry.of.as_deref().unwrap_or("a settle");
        let _ = writeln!(
            out,
            "{}  {}  {} of {of}, {}, {} bytes in {} slots, for {} ms: {}",
            entry.sequence,
            entry.transaction,
            entry.state,
            entry.participants,
            entry.bytes,
            entry.slots,
            entry.age_ms,
            entry.why
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::group::TransactionId;
    use crate::format::ids::{Incarnation, Sequence};
    use std::time::Duration;

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
