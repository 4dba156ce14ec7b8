//! The metadata server: volumes, extent maps, free extents and associations (design section 8).
//!
//! | part | what it is |
//! | --- | --- |
//! | [`records`] | what is spoken of: pairs, primitives, volumes, grants |
//! | [`wire`] | the datagram: header, parts, the door from bytes to verified types |
//! | [`auth`] | the proof that a datagram's sender has the key |
//! | [`raw`] | the packed records of bodies and of the store's rows |
//! | [`assembly`] | messages put together again from their parts, in bounded memory |
//! | [`store`], [`redb_store`], [`backend`] | where the rows lie, in transactions |
//! | [`log`] | a log before a store, for commits by the thousand |
//! | [`volume_table`], [`mirrored`] | a second copy of the volumes, outside of the store |
//! | [`opening`] | making and opening all of it, and a new store where the old one is damaged |
//! | [`hosted`] | the directory of a server of its own |
//! | [`examine`], [`overlay`] | looking at it without changing it |
//! | [`pools`], [`shared_store`] | the pools of a server: one, or many in one store |
//! | [`ownership`] | who may attach to a pool |
//! | [`groups`] | consistency groups over pools, and their transactions |
//! | [`overview`] | what a server tells of itself without a session |
//! | [`client`], [`rtt`] | asking at least once, in a window, with adaptive timeouts |
//!
//! # Contracts
//!
//! - **Once**: a mutation is executed once however often its datagrams arrive: it has a sequence
//!   number, the mutations of a session are executed in that order, and the answer is kept, in the
//!   same durable transaction, until the client has said that it has it.
//! - **Whole**: a mutation, however many datagrams it takes, is in one store transaction, and is
//!   refused as a whole.
//! - **Durable**: an answer to a mutation leaves after its transaction is durable.
//! - **Absolute**: a pair is told as it shall be, with a generation; an older generation than the
//!   stored one is not applied (and is no error).
//! - **Determinism**: server, client and store touch no clock, thread or random number but through
//!   [`crate::env::Env`]; the same datagrams in the same order give the same answers.

pub mod assembly;
pub mod auth;
pub mod backend;
pub mod catalog;
pub mod client;
pub mod embedded;
pub mod error;
pub mod examine;
pub mod groups;
pub mod hosted;
pub mod log;
pub mod mirrored;
pub mod opening;
pub mod overlay;
pub mod overview;
pub mod ownership;
pub mod pools;
pub mod raw;
pub mod records;
pub mod redb_store;
pub mod rtt;
pub mod runs;
pub mod server;
pub mod session;
pub mod shared_store;
pub mod store;
#[cfg(test)]
mod testing;
pub mod volume_table;
pub mod wire;
