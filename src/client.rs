//! Atomic requests, for programs beside a target: writes to several volumes, of one target or of
//! several, that become visible and durable together, or not at all.
//!
//! ```no_run
//! use flipside::client::Transaction;
//!
//! let mut both = Transaction::new();
//! both.write("/run/flipside/one.control", "accounts", 0, b"-100".as_slice());
//! both.write("/run/flipside/two.control", "accounts", 0, b"+100".as_slice());
//! println!("applied in transaction {}", both.apply()?);
//! # Ok::<(), flipside::client::ApplyError>(())
//! ```
//!
//! The volumes must be one volume, or be in one consistency group (`flipside group create`).
//! Offsets and lengths may be any; of writes to the same bytes the later one counts.
//!
//! # Contracts
//!
//! - **All or nothing**: when [`Transaction::apply`] returns a transaction, everything is visible
//!   on all targets, and durable, together with all that was acknowledged on those volumes before
//!   it was called. When it returns [`ApplyError::Refused`] or [`ApplyError::Unreachable`], nothing
//!   has changed, nor will it.
//! - **Doubt**: after [`ApplyError::OutcomeUnknown`] all of it took place or nothing did. Apply it
//!   again when the targets are well: the writes are the same.
//! - **Isolation**: nobody sees a part of it. Writes of others to the same blocks come before it
//!   or after it.
//! - **Order**: targets are locked in the order of their pools, so that two programs never wait for
//!   each other in a ring.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use uuid::Uuid;

use crate::front::control::{Connection, ControlError, Request, TxnRequest};
use crate::front::hex::Hex;

/// The bytes of a write that go into one line of the control socket.
const PIECE: usize = 4 << 10;

/// Writes that take place together.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    targets: BTreeMap<PathBuf, Vec<Write>>,
}

#[derive(Clone, Debug)]
struct Write {
    volume: String,
    offset: u64,
    bytes: Vec<u8>,
}

/// Why a transaction was not applied, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A target could not be asked. Nothing has changed.
    #[error("{}: {error}; nothing was written", target.display())]
    Unreachable {
        /// Its control socket.
        target: PathBuf,
        /// Why.
        error: ControlError,
    },
    /// A target has a reason against it. Nothing has changed.
    #[error("{}: {reason}", target.display())]
    Refused {
        /// Its control socket.
        target: PathBuf,
        /// Its words.
        reason: String,
    },
    /// All of it took place, or nothing.
    #[error("{}: {reason}", target.display())]
    OutcomeUnknown {
        /// The control socket of the target that was asked to apply it.
        target: PathBuf,
        /// Why it is not known.
        reason: String,
    },
}

/// A target that has its part.
struct Part<'a> {
    target: &'a Path,
    writes: &'a [Write],
    pool: String,
    connection: Connection,
}

impl Transaction {
    /// A transaction without any writes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a write to a volume of the target with that control socket, from byte `offset` on.
    pub fn write(
        &mut self,
        target: impl Into<PathBuf>,
        volume: &str,
        offset: u64,
        bytes: impl Into<Vec<u8>>,
    ) -> &mut Self {
        let write = Write { volume: volume.to_owned(), offset, bytes: bytes.into() };
        self.targets.entry(target.into()).or_default().push(write);
        self
    }

    /// Applies all of it; gives the transaction that it took place in, as `flipside commit --group`
    /// does. May be called again, which applies it again.
    pub fn apply(&self) -> Result<String, ApplyError> {
        let (id, members) = (Uuid::new_v4().to_string(), self.targets.len() as u32);
        let mut parts = Vec::new();
        for (target, writes) in &self.targets {
            let begin = TxnRequest::Begin { id: id.clone(), members };
            parts.push(Part::begin(target, writes, begin)?);
        }
        parts.sort_by(|a, b| a.pool.cmp(&b.pool));
        for part in &mut parts {
            part.send()?;
        }
        for part in &mut parts {
            part.ask(TxnRequest::Ready)?;
        }
        let Some(part) = parts.first_mut() else { return Ok(String::new()) };
        part.apply()
    }
}

impl<'a> Part<'a> {
    /// Connects to a target and tells it what is begun.
    fn begin(
        target: &'a Path,
        writes: &'a [Write],
        request: TxnRequest,
    ) -> Result<Self, ApplyError> {
        let opened = Connection::open(target);
        let mut connection = opened.map_err(|error| failed(target, error))?;
        let begun = connection.ask(&Request::Txn(request));
        let begun = begun.map_err(|error| failed(target, error))?;
        let pool = begun["pool"].as_str().unwrap_or_default().to_owned();
        Ok(Part { target, writes, pool, connection })
    }

    fn ask(&mut self, request: TxnRequest) -> Result<Value, ApplyError> {
        let asked = self.connection.ask(&Request::Txn(request));
        asked.map_err(|error| failed(self.target, error))
    }

    /// Sends the target what it is to write.
    fn send(&mut self) -> Result<(), ApplyError> {
        for Write { volume, offset, bytes } in self.writes {
            for (piece, at) in bytes.chunks(PIECE).zip((*offset..).step_by(PIECE)) {
                let (volume, hex) = (volume.clone(), Hex(piece.to_vec()));
                self.ask(TxnRequest::Write { volume, offset: at, hex })?;
            }
        }
        Ok(())
    }

    /// Has all of it take place.
    fn apply(&mut self) -> Result<String, ApplyError> {
        let unknown =
            |reason: String| ApplyError::OutcomeUnknown { target: self.target.to_owned(), reason };
        let answer = match self.connection.ask(&Request::Txn(TxnRequest::Apply)) {
            Ok(answer) => answer,
            Err(error @ ControlError::Refused(_)) => return Err(failed(self.target, error)),
            Err(error) => {
                let again = "it is not known whether the transaction took place; apply it again";
                return Err(unknown(format!("{error}: {again}")));
            }
        };
        let transaction = answer["transaction"].as_str().map(str::to_owned);
        transaction.ok_or_else(|| unknown(answer["unknown"].as_str().unwrap_or("").to_owned()))
    }
}

/// A target's answer before anything was applied.
fn failed(target: &Path, error: ControlError) -> ApplyError {
    let target = target.to_owned();
    match error {
        ControlError::Refused(reason) => ApplyError::Refused { target, reason },
        error => ApplyError::Unreachable { target, error },
    }
}
