//! Flipside: block volumes on which every flush is an atomic transaction, for the price of writing
//! the data once.
//!
//! The rooms, from the top down; arrows only ever point downward:
//!
//! | room | what is in it |
//! | --- | --- |
//! | [`cli`] | one file a command |
//! | [`client`] | what programs beside a target use: atomic requests |
//! | [`front`] | what clients talk to: NBD, the control socket |
//! | [`check`] | what is damaged in a pool that is not served, and repairs |
//! | [`follow`] | volumes read beside the unit that writes them |
//! | [`unit`] | the storage unit: block states, admission, epochs, settle, recovery |
//! | [`journal`] | the nonlinear journal: groups, links, states, replay |
//! | [`txn`] | global transactions: what coordinator and participants say to each other |
//! | [`mds`] | the metadata server, its protocol, its client and its store |
//! | [`load`] | load made on the ring, to measure what stands beneath the sockets |
//! | [`observe`] | counters, histograms, status |
//! | [`sim`] | proof by simulation: oracle, workload, runs of seeds |
//! | [`mod@format`] | every on-disk struct and its parsing |
//! | [`env`] | what the engine may touch: disk, NVRAM, network, clock, randomness |
//! | [`mutants`] | faults planted on purpose, to prove the proof |
//! | [`uring`] | the ring, the executor, operations and buffers |

pub mod check;
pub mod cli;
pub mod client;
pub mod env;
pub mod follow;
pub mod format;
pub mod front;
pub mod journal;
pub mod load;
pub mod mds;
pub mod mutants;
pub mod observe;
pub mod sim;
pub mod txn;
pub mod unit;
pub mod uring;
