//! A target's part in an atomic request, as a client of its control socket brings it: `begin`, any
//! number of `write`s, `ready`, and at one of the targets `apply`.
//!
//! # Contract
//!
//! **Ownership**: what a client has begun is its connection's: when that ends before the request
//! has joined a commit, it is dropped, and nothing has changed.

use std::cell::RefCell;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::env::os::OsEnv;
use crate::front::control::TxnRequest;
use crate::front::hex::Hex;
use crate::txn::{Atomic, AtomicId};
use crate::unit::{AtomicError, AtomicWrite, Ready, Unit};

/// What a connection has of a request.
#[derive(Default)]
pub struct Draft(RefCell<State>);

#[derive(Default)]
enum State {
    #[default]
    None,
    Begun {
        atomic: Atomic,
        writes: Vec<AtomicWrite>,
    },
    Ready(Ready<OsEnv>),
}

const NOT_BEGUN: &str = "no atomic request was begun on this connection";

impl Draft {
    /// Carries out a request: what there is to say, or why not, for people. Where it fails the
    /// atomic request is over.
    pub async fn carry_out(
        &self,
        unit: &Unit<OsEnv>,
        pool: &str,
        request: TxnRequest,
    ) -> Result<Value, String> {
        let state = self.0.take();
        let (next, answer) = match (request, state) {
            (TxnRequest::Begin { id, members }, State::None) => {
                let id = Uuid::parse_str(&id).map_err(|error| format!("the id {id}: {error}"))?;
                let atomic = Atomic { id: AtomicId(id.as_u128()), members };
                let next = State::Begun { atomic, writes: Vec::new() };
                (next, json!({ "pool": pool, "max": unit.txn_max() }))
            }
            (TxnRequest::Begin { .. }, _) => {
                return Err("an atomic request was begun on this connection already".to_owned());
            }
            (TxnRequest::Write { volume, offset, hex: Hex(bytes) }, begun) => {
                let State::Begun { atomic, mut writes } = begun else {
                    return Err(NOT_BEGUN.to_owned());
                };
                add(&mut writes, AtomicWrite { volume, offset, bytes });
                let bytes = writes.iter().map(|write| write.bytes.len() as u64).sum();
                let max = unit.txn_max();
                if bytes > max {
                    return Err(AtomicError::TooLarge { bytes, max }.to_string());
                }
                (State::Begun { atomic, writes }, Value::Null)
            }
            (TxnRequest::Ready, State::Begun { atomic, writes }) => {
                let ready = unit.stage(atomic, &writes).await;
                (State::Ready(ready.map_err(|error| error.to_string())?), Value::Null)
            }
            (TxnRequest::Apply, State::Ready(ready)) => match ready.apply().await {
                Ok(transaction) => (State::None, json!({ "transaction": transaction.to_string() })),
                Err(error @ AtomicError::OutcomeUnknown(_)) => {
                    (State::None, json!({ "unknown": error.to_string() }))
                }
                Err(error) => return Err(error.to_string()),
            },
            (TxnRequest::Ready | TxnRequest::Apply, _) => return Err(NOT_BEGUN.to_owned()),
        };
        self.0.replace(next);
        Ok(answer)
    }
}

/// Adds a write; a piece that continues the one before becomes a part of it.
fn add(writes: &mut Vec<AtomicWrite>, write: AtomicWrite) {
    if let Some(last) = writes.last_mut()
        && last.volume == write.volume
        && last.offset.checked_add(last.bytes.len() as u64) == Some(write.offset)
    {
        last.bytes.extend(write.bytes);
    } else {
        writes.push(write);
    }
}
