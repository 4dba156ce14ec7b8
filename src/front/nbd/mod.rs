//! The NBD front end, after the public protocol document.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`wire`] | the messages as they are on the wire |
//! | [`handshake`], [`meta`], [`request`], [`reply`], [`progress`] | decisions, without any I/O |
//! | `server` | exports, listeners, connections, shared memory |
//! | `connection`, `receive`, `perform`, `outbox`, `inbox` | one connection's tasks |

mod connection;
pub mod handshake;
mod inbox;
pub mod meta;
mod outbox;
mod perform;
pub mod progress;
mod receive;
pub mod reply;
pub mod request;
mod server;
pub mod wire;

pub use server::{Limits, PAYLOADS_MIN, Server};
