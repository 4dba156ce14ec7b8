//! What waits, and for what: counted while it lasts, and told in sentences.
//!
//! # Contracts
//!
//! - **Cancellation**: a wait that is dropped is counted no more.

use std::cell::Cell;

use serde::{Deserialize, Serialize};

use super::snapshot::VolumeGauges;

/// What a request waits for before it is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Held back for a moment, since free extents run low.
    Throttled,
    /// Blocks that another request, a commit or a settle holds.
    Blocks,
    /// Room in the open epoch.
    Epoch,
    /// Free extents.
    Extents,
    /// The end of a commit.
    Commit,
}

/// How many requests wait for each cause.
#[derive(Debug, Default)]
pub struct Waiters([Cell<u64>; 5]);

/// A wait that lasts.
#[derive(Debug)]
pub struct Wait<'a>(&'a Cell<u64>);

impl Waiters {
    /// Counts a wait until what is returned is dropped.
    pub fn enter(&self, cause: Cause) -> Wait<'_> {
        let count = &self.0[cause as usize];
        count.set(count.get() + 1);
        Wait(count)
    }

    /// How many wait for it.
    pub fn count(&self, cause: Cause) -> u64 {
        self.0[cause as usize].get()
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// How far a commit has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommitStep {
    /// It waits for the writes that belong to it.
    #[default]
    Draining,
    /// The devices are being flushed.
    Flushing,
    /// The group is being made durable in the journal.
    Hardening,
}

/// A commit under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitGauges {
    /// How far it has come.
    pub step: CommitStep,
    /// How long it has been under way, in milliseconds.
    pub since_ms: u64,
    /// Requests of it that are still being written.
    pub in_flight: u64,
}

/// How far a settle has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SettleStep {
    /// Blocks are being copied.
    #[default]
    Copying,
    /// The copies are being made durable, and the journal told.
    Hardening,
    /// The metadata server is being told, and extents are being freed.
    Freeing,
}

/// A settle under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleGauges {
    /// How far it has come.
    pub step: SettleStep,
    /// The areas that it began with.
    pub areas: u64,
    /// How long it has been under way, in milliseconds.
    pub since_ms: u64,
}

/// What waits, and what is under way that it may wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitGauges {
    /// Requests held back for a moment, since free extents run low.
    pub throttled: u64,
    /// Requests that wait for blocks that others hold.
    pub blocks: u64,
    /// Requests that wait for room in an epoch.
    pub epoch: u64,
    /// Requests that wait for free extents.
    pub extents: u64,
    /// Flushes, and whatever else waits for a commit to end.
    pub commit: u64,
    /// Requests of the target that the metadata server has not answered.
    pub metadata_server: u64,
    /// How long the metadata server has been silent, in milliseconds, where it is.
    pub metadata_server_silent_ms: Option<u64>,
    /// Whether the metadata server is asked for the extents that are waited for.
    pub extents_asked_for: bool,
    /// The settle under way.
    pub settle: Option<SettleGauges>,
    /// How long a checkpoint of the journal has been under way, in milliseconds.
    pub checkpoint_ms: Option<u64>,
}

impl WaitGauges {
    /// What waits and why, and what is under way, a sentence each; none where nothing is.
    pub fn sentences(&self, volumes: &[VolumeGauges]) -> Vec<String> {
        let mut said = Vec::new();
        let mut wait = |count: u64, what: (&str, &str), why: &str| match count {
            0 => {}
            1 => said.push(format!("1 {} waits {why}", what.0)),
            _ => said.push(format!("{count} {} wait {why}", what.1)),
        };
        let request = ("request", "requests");
        let extents = if self.extents_asked_for {
            "for extents: the metadata server is asked for more of them".to_owned()
        } else {
            format!("for journal space: {}", self.settle_text())
        };
        wait(self.extents, request, &extents);
        wait(self.throttled, request, "a few milliseconds each: free extents run low");
        wait(self.epoch, request, "for room: the open epoch is full and must be committed first");
        wait(self.blocks, request, "for blocks that a request, a commit or a settle holds");
        wait(self.commit, ("flush", "flushes"), "for a commit");
        let silent = self.metadata_server_silent_ms;
        let answer = silent.map_or("for its answer".to_owned(), |ms| {
            format!("for its answer: it has been silent for {}", time(ms))
        });
        let asked = ("question to the metadata server", "questions to the metadata server");
        wait(self.metadata_server, asked, &answer);
        for volume in volumes.iter().filter(|volume| volume.latched.is_none()) {
            said.extend(volume.commit.map(|commit| commit.sentence(&volume.name)));
        }
        if (self.extents == 0 || self.extents_asked_for) && self.settle.is_some() {
            said.push(self.settle_text());
        }
        said.extend(self.checkpoint_ms.map(|ms| format!("a checkpoint, for {} so far", time(ms))));
        said
    }

    fn settle_text(&self) -> String {
        let Some(SettleGauges { step, areas, since_ms }) = self.settle else {
            return "a settle is about to begin".to_owned();
        };
        let areas = if areas == 1 { "1 area".to_owned() } else { format!("{areas} areas") };
        let does = match step {
            SettleStep::Copying => format!("copies {areas}"),
            SettleStep::Hardening => format!("makes {areas} durable"),
            SettleStep::Freeing => format!("has the metadata server free {areas}"),
        };
        format!("a settle {does}, for {} so far", time(since_ms))
    }
}

impl CommitGauges {
    fn sentence(self, volume: &str) -> String {
        let does = match self.step {
            CommitStep::Draining => format!("waits for {} writes to end", self.in_flight),
            CommitStep::Flushing => "flushes the devices".to_owned(),
            CommitStep::Hardening => "writes its group to the journal".to_owned(),
        };
        format!("a commit of {volume} {does}, for {} so far", time(self.since_ms))
    }
}

/// A time for people.
fn time(ms: u64) -> String {
    if ms < 1000 { format!("{ms} ms") } else { format!("{}.{} s", ms / 1000, ms % 1000 / 100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a wait is counted for its own cause as long as it lasts, and no longer.
    #[test]
    fn waits_are_counted_while_they_last() {
        let waiters = Waiters::default();
        let all = [Cause::Throttled, Cause::Blocks, Cause::Epoch, Cause::Extents, Cause::Commit];
        for cause in all {
            let first = waiters.enter(cause);
            let second = waiters.enter(cause);
            for other in all {
                assert_eq!(waiters.count(other), if other == cause { 2 } else { 0 });
            }
            drop(first);
            assert_eq!(waiters.count(cause), 1);
            drop(second);
            assert_eq!(waiters.count(cause), 0);
        }
    }

    /// Goal: each gauge alone gives its own sentence, with its number and its reason.
    #[test]
    fn each_wait_has_its_sentence() {
        let none = WaitGauges::default();
        let settle = |step| Some(SettleGauges { step, areas: 12, since_ms: 1234 });
        let cases = [
            (none, ""),
            (
                WaitGauges { extents: 3, settle: settle(SettleStep::Copying), ..none },
                "3 requests wait for journal space: a settle copies 12 areas, for 1.2 s so far",
            ),
            (
                WaitGauges { extents: 1, ..none },
                "1 request waits for journal space: a settle is about to begin",
            ),
            (
                WaitGauges { extents: 2, extents_asked_for: true, ..none },
                "2 requests wait for extents: the metadata server is asked for more of them",
            ),
            (
                WaitGauges { settle: settle(SettleStep::Hardening), ..none },
                "a settle makes 12 areas durable, for 1.2 s so far",
            ),
            (
                WaitGauges { settle: settle(SettleStep::Freeing), ..none },
                "a settle has the metadata server free 12 areas, for 1.2 s so far",
            ),
            (
                WaitGauges { throttled: 2, ..none },
                "2 requests wait a few milliseconds each: free extents run low",
            ),
            (
                WaitGauges { epoch: 1, ..none },
                "1 request waits for room: the open epoch is full and must be committed first",
            ),
            (
                WaitGauges { blocks: 9, ..none },
                "9 requests wait for blocks that a request, a commit or a settle holds",
            ),
            (WaitGauges { commit: 2, ..none }, "2 flushes wait for a commit"),
            (
                WaitGauges { metadata_server: 1, metadata_server_silent_ms: Some(20_000), ..none },
                "1 question to the metadata server waits for its answer: it has been silent for \
                 20.0 s",
            ),
            (
                WaitGauges { metadata_server: 2, ..none },
                "2 questions to the metadata server wait for its answer",
            ),
            (WaitGauges { checkpoint_ms: Some(7), ..none }, "a checkpoint, for 7 ms so far"),
        ];
        for (gauges, sentence) in cases {
            assert_eq!(gauges.sentences(&[]).join("; "), sentence, "{gauges:?}");
        }
    }

    /// Goal: a commit under way is told step by step; of a volume that has stopped none is.
    #[test]
    fn commits_are_told() {
        let steps = [
            (CommitStep::Draining, "a commit of v waits for 4 writes to end, for 60 ms so far"),
            (CommitStep::Flushing, "a commit of v flushes the devices, for 60 ms so far"),
            (
                CommitStep::Hardening,
                "a commit of v writes its group to the journal, for 60 ms so far",
            ),
        ];
        for (step, sentence) in steps {
            let commit = Some(CommitGauges { step, since_ms: 60, in_flight: 4 });
            let mut volume = VolumeGauges { name: "v".into(), commit, ..VolumeGauges::default() };
            let said = |volume: &VolumeGauges| {
                WaitGauges::default().sentences(std::slice::from_ref(volume))
            };
            assert_eq!(said(&volume), [sentence]);
            volume.latched = Some("a flush failed".into());
            assert!(said(&volume).is_empty());
        }
    }
}
