//! What the metadata server asks of a store: ordered tables of bytes, changed in transactions.
//!
//! # Contracts
//!
//! - **Whole**: [`Store::commit`] applies all of its changes or none.
//! - **Durability**: they are durable when it returns.
//! - **Failure**: after a failed commit or read the caller asks nothing more of the store: whether
//!   a failed commit was applied is known only when the store is opened again.

use std::collections::BTreeMap;

use thiserror::Error;

/// The tables. Keys are big-endian numbers, so that their order is that of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// One row: format version, pool, the next volume's number.
    Pool,
    /// Volume → name and size.
    Volumes,
    /// Unit → incarnation, session, quota.
    Units,
    /// Start of a free run → its count.
    Free,
    /// Unit, start of a granted run → its count.
    Grants,
    /// Unit, pair → the pair, released ones included.
    Pairs,
    /// Volume, logical extent, unit, pair → nothing. Live pairs only.
    Layout,
    /// Session → what it has executed.
    Sessions,
    /// One row: which state of the volume table this is ([`super::mirrored`]).
    Mirror,
    /// Pool → its number and what it is made of, where there are many ([`super::pools`]).
    Pools,
    /// One row: how far the log is applied ([`super::log`]).
    Log,
    /// Unit, pair → the pair's line, where a pool's flags are kept here.
    Lines,
    /// One row: how often the store was opened and then changed.
    Starts,
    /// Consistency group → its volumes; of the whole server ([`super::groups`]).
    Groups,
    /// Consistency group → the transaction of it that took place and is not done everywhere.
    Decisions,
}

impl Table {
    /// All of them.
    pub const ALL: [Table; 15] = [
        Table::Pool,
        Table::Volumes,
        Table::Units,
        Table::Free,
        Table::Grants,
        Table::Pairs,
        Table::Layout,
        Table::Sessions,
        Table::Mirror,
        Table::Pools,
        Table::Log,
        Table::Lines,
        Table::Starts,
        Table::Groups,
        Table::Decisions,
    ];

    /// Whether its rows are of the server, and of no pool.
    pub fn is_of_server(self) -> bool {
        matches!(self, Table::Pools | Table::Log | Table::Groups | Table::Decisions)
    }

    /// Its name in the store.
    pub fn name(self) -> &'static str {
        match self {
            Table::Pool => "pool",
            Table::Volumes => "volumes",
            Table::Units => "units",
            Table::Free => "free",
            Table::Grants => "grants",
            Table::Pairs => "pairs",
            Table::Layout => "layout",
            Table::Sessions => "sessions",
            Table::Mirror => "mirror",
            Table::Pools => "pools",
            Table::Log => "log",
            Table::Lines => "lines",
            Table::Starts => "starts",
            Table::Groups => "groups",
            Table::Decisions => "decisions",
        }
    }
}

/// A row: its key and its value.
pub type Row = (Vec<u8>, Vec<u8>);
/// The net changes of a transaction: each row's new value, or `None` where it goes.
pub type Changes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// A store that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// Its space is used up.
    #[error("the metadata store is full: {0}")]
    Full(String),
    /// Its device failed.
    #[error("the metadata store failed: {0}")]
    Failed(String),
    /// What it holds cannot be.
    #[error("the metadata store is damaged: {0}")]
    Damaged(String),
}

/// A transactional store.
pub trait Store: Send {
    /// The committed value of a row.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Up to `limit` committed rows from `from` on, in order.
    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError>;

    /// Applies the changes as one durable transaction.
    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError>;

    /// Bytes written to the device so far.
    fn bytes_written(&self) -> u64;
}

/// A key of big-endian numbers.
pub fn key(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// The numbers of a key of `N` of them.
pub fn numbers<const N: usize>(key: &[u8]) -> Result<[u32; N], StoreError> {
    let damaged = || StoreError::Damaged(format!("a key of {} bytes", key.len()));
    if key.len() != N * 4 {
        return Err(damaged());
    }
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(key.chunks_exact(4)) {
        *number = u32::from_be_bytes(bytes.try_into().map_err(|_| damaged())?);
    }
    Ok(numbers)
}
