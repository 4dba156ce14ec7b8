//! Checking a pool that nobody serves: what is damaged, and mending what is redundant.
//!
//! Gathering is apart from judging. What reads ([`devices::look`], [`crate::journal::inspect`],
//! [`crate::mds::examine`]) gives facts; what judges is plain functions from facts to findings.
//!
//! | file | what it is about |
//! | --- | --- |
//! | [`finding`] | what is said of a damage |
//! | [`devices`] | superblocks, and whether all devices of one pool are there |
//! | [`identity`] | NVRAM against the one that the superblocks name |
//! | [`region`] | the unit's region: pages, list of groups, replay |
//! | [`lines`](mod@lines) | the pairs among themselves and against the volumes |
//! | [`metadata`] | the store, the volume table, and both against the home |
//! | [`mend`] | repairs |
//! | [`dump`] | all metadata as a document, and back |
//!
//! # Contracts
//!
//! - **Read only**: nothing is written but by [`mend`].
//! - **No false alarm**: what a crash at any moment can leave is no finding.
//! - **Never worse**: a repair overwrites only what is damaged, with what is known to be good. A
//!   store is made anew only where all that it would be told by the home is whole.
//!
//! Out of scope: the contents of blocks, which have no checksums, and rot in the newest group
//! alone, which cannot be told from an append that never finished.

pub mod devices;
pub mod dump;
pub mod finding;
pub mod identity;
pub mod lines;
pub mod mend;
pub mod metadata;
pub mod region;
