//! The control socket: how the commands of the command line reach a target that runs.
//!
//! One request is one line of JSON, one reply is one line of JSON; several may follow each other on
//! a connection. `{"command":"commit","volume":"vol0"}` is answered `{"ok":null}` or
//! `{"error":"why not"}`.
//!
//! # Contracts
//!
//! - **Bound**: a line has at most [`LINE_MAX`] bytes, a target serves [`CLIENTS_MAX`] clients at a
//!   time and turns others away.
//! - **Access**: whoever may open the socket may do everything; its permissions are its guard.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hex::Hex;
use super::listen::Bound;
use crate::uring::buffers::{ARENA_BLOCK, Buf, BufferPool};
use crate::uring::{Ring, Socket};

/// The longest request, in bytes.
pub const LINE_MAX: usize = 16 << 10;
/// Clients at a time.
pub const CLIENTS_MAX: u32 = 32;
const _: () = assert!(CLIENTS_MAX as usize * LINE_MAX <= ARENA_BLOCK);

/// What can be asked of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// The snapshot that `status --json` shows.
    Status,
    /// Make completed writes durable, of one volume or of all; or of a consistency group, as one
    /// cut of all of its volumes.
    Commit {
        /// The volume's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
        /// The group's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
    },
    /// What is linked in the journal.
    Journal,
    /// Take back journal space, of one volume or of all.
    Settle {
        /// The volume's name.
        #[serde(default)]
        volume: Option<String>,
    },
    /// Look at the volumes, or change them.
    Volume(VolumeRequest),
    /// Look at consistency groups, or make and delete them.
    Group(GroupRequest),
    /// A step of an atomic request.
    Txn(TxnRequest),
    /// Make way for a successor: commit, and end, without taking clients' devices away.
    Replace,
}

/// The steps of an atomic request, all on one connection, whose end drops what was not applied:
/// `{"command":"txn","action":"write","volume":"v","offset":0,"hex":"00ff"}`.
///
/// Where several targets have a part in it, each is told all but the last step with the same id, in
/// the order of their pools, and then one of them is told that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase", deny_unknown_fields)]
pub enum TxnRequest {
    /// Begin one. The answer is `{"pool":"...","max":16777216}`: the target's pool, and the most
    /// bytes that it takes.
    Begin {
        /// Its name: a UUID that nobody else draws.
        id: String,
        /// How many targets have a part in it.
        members: u32,
    },
    /// Bytes to be written.
    Write {
        /// The volume's name.
        volume: String,
        /// The first byte.
        offset: u64,
        /// What is written; later ones cover earlier ones.
        hex: Hex,
    },
    /// All writes were told: put them where nobody sees them, and hold their blocks.
    Ready,
    /// Have all of it take place. The answer is `{"transaction":"..."}`, or `{"unknown":"why"}`
    /// where it may have taken place. An error says that nothing has changed.
    Apply,
}

/// What can be asked about consistency groups:
/// `{"command":"group","action":"create","name":"g","volumes":["a","b"]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase", deny_unknown_fields)]
pub enum GroupRequest {
    /// All of the metadata server, with their volumes.
    List,
    /// Make one.
    Create {
        /// Its name.
        name: String,
        /// Its volumes, each as NAME or POOL:NAME.
        volumes: Vec<String>,
    },
    /// Delete one; its volumes stay.
    Delete {
        /// Its name.
        name: String,
        /// Also where targets that do not run do not know what took place last.
        #[serde(default)]
        force: bool,
    },
}

/// What can be asked about volumes:
/// `{"command":"volume","action":"create","name":"v","size":4096}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase", deny_unknown_fields)]
pub enum VolumeRequest {
    /// All of them, with their sizes.
    List,
    /// Make one.
    Create {
        /// Its name.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Change a size.
    Resize {
        /// The volume's name.
        name: String,
        /// Its new size in bytes.
        size: u64,
        /// It may become smaller.
        #[serde(default)]
        shrink: bool,
    },
    /// Give one another name.
    Rename {
        /// The volume's name.
        name: String,
        /// Its new name.
        to: String,
    },
    /// Delete one.
    Delete {
        /// The volume's name.
        name: String,
        /// Also while clients are connected to it.
        #[serde(default)]
        force: bool,
    },
}

/// What a target answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Ok(Value),
    Error(String),
}

/// The target, as the control socket sees it.
pub trait Operator: 'static {
    /// What one client talks to.
    type Session: Session;

    /// For a client that has connected. What it begins is its own, and ends with it.
    fn session(&self) -> Self::Session;
}

/// The target, as one client sees it.
pub trait Session: 'static {
    /// Carries out a request: what there is to say, or why not, for people.
    fn operate(&self, request: Request) -> impl Future<Output = Result<Value, String>> + 'static;
}

/// Why a target was not reached, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody is there.
    #[error("{}: no target answers there ({error}); is it running, with this --control path?",
        path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The connection broke.
    #[error("the target did not answer: {0}")]
    Broken(#[from] io::Error),
    /// What came back makes no sense.
    #[error("the target's answer makes no sense: {0}")]
    Garbled(#[from] serde_json::Error),
    /// The target's own words.
    #[error("{0}")]
    Refused(String),
}

/// A client's end of a control socket.
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects to the target behind the control socket at `path`.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        let unreachable = |error| ControlError::Unreachable { path: path.to_owned(), error };
        UnixStream::connect(path).map(|stream| Self(BufReader::new(stream))).map_err(unreachable)
    }

    /// Asks the target, and waits for its answer.
    pub fn ask(&mut self, request: &Request) -> Result<Value, ControlError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line)?;
        let mut answer = String::new();
        if self.0.read_line(&mut answer)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str(&answer)? {
            Reply::Ok(value) => Ok(value),
            Reply::Error(reason) => Err(ControlError::Refused(reason)),
        }
    }
}

impl Connection {
    /// Waits until the target has ended.
    pub fn await_end(mut self) {
        let mut rest = String::new();
        // Whatever it still says, and however the connection ends, that is its end.
        while self.0.read_line(&mut rest).is_ok_and(|len| len > 0) {
            rest.clear();
        }
    }
}

/// Asks the target behind the control socket at `path` one thing, and waits for its answer.
pub fn call(path: &Path, request: &Request) -> Result<Value, ControlError> {
    Connection::open(path)?.ask(request)
}

/// Serves the control socket until the ring ends.
pub fn serve(ring: &Ring, bound: Bound, operator: impl Operator) -> io::Result<()> {
    let listener = ring.listener(bound.as_fd().try_clone_to_owned()?)?;
    let pool = BufferPool::new(ARENA_BLOCK, ARENA_BLOCK)?;
    let clients = Rc::new(Cell::new(0));
    let spawner = ring.clone();
    ring.spawn(async move {
        loop {
            let socket = match listener.accept().await {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::warn!("{bound}: a client could not be accepted: {error}");
                    spawner.sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let buf = (clients.get() < CLIENTS_MAX).then(|| pool.try_acquire(LINE_MAX)).flatten();
            let Some(buf) = buf else {
                tracing::warn!("{bound}: a client is turned away: {CLIENTS_MAX} are connected");
                continue;
            };
            clients.set(clients.get() + 1);
            let (session, clients) = (operator.session(), Rc::clone(&clients));
            spawner.spawn(async move {
                if let Err(error) = converse(socket, buf, session).await {
                    tracing::debug!("a control client has left: {error}");
                }
                clients.set(clients.get() - 1);
            });
        }
    });
    Ok(())
}

/// Answers one client's lines until it leaves.
async fn converse(socket: Socket, mut buf: Buf, session: impl Session) -> io::Result<()> {
    let mut filled = 0;
    loop {
        let line_end = buf.as_slice()[..filled].iter().position(|&byte| byte == b'\n');
        let Some(end) = line_end else {
            if filled == buf.len() {
                let reply = Reply::Error(format!("a request has at most {LINE_MAX} bytes"));
                return answer(&socket, &mut buf, &reply).await;
            }
            let free = filled..buf.len();
            match socket.receive(buf.view(free)).await? {
                0 => return Ok(()),
                received => filled += received,
            }
            continue;
        };
        let request = serde_json::from_slice(&buf.as_slice()[..end]);
        let rest = buf.as_slice()[end + 1..filled].to_vec();
        let reply = match request {
            Ok(request) => match session.operate(request).await {
                Ok(value) => Reply::Ok(value),
                Err(reason) => Reply::Error(reason),
            },
            Err(error) => Reply::Error(format!("the request makes no sense: {error}")),
        };
        answer(&socket, &mut buf, &reply).await?;
        buf.as_mut_slice()[..rest.len()].copy_from_slice(&rest);
        filled = rest.len();
    }
}

async fn answer(socket: &Socket, buf: &mut Buf, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    for piece in line.chunks(LINE_MAX) {
        buf.as_mut_slice()[..piece.len()].copy_from_slice(piece);
        socket.send(buf.view(0..piece.len())).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: requests look on the wire as documented.
    #[test]
    fn requests_are_plain_json() {
        let commit = Request::Commit { volume: Some("vol0".into()), group: None };
        let text = serde_json::to_string(&commit).unwrap();
        assert_eq!(text, r#"{"command":"commit","volume":"vol0"}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), commit);
        let settle: Request = serde_json::from_str(r#"{"command":"settle"}"#).unwrap();
        assert_eq!(settle, Request::Settle { volume: None });
        assert!(serde_json::from_str::<Request>(r#"{"command":"format"}"#).is_err());
        let create = VolumeRequest::Create { name: "v".into(), size: 4096 };
        let text = serde_json::to_string(&Request::Volume(create.clone())).unwrap();
        assert_eq!(text, r#"{"command":"volume","action":"create","name":"v","size":4096}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), Request::Volume(create));
        let delete: Request =
            serde_json::from_str(r#"{"command":"volume","action":"delete","name":"v"}"#).unwrap();
        let wanted = VolumeRequest::Delete { name: "v".into(), force: false };
        assert_eq!(delete, Request::Volume(wanted));
        for wrong in [
            r#"{"command":"volume","action":"delete","name":"v","now":true}"#,
            r#"{"command":"volume","action":"explode"}"#,
            r#"{"command":"volume"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(wrong).is_err(), "{wrong}");
        }
        let write = TxnRequest::Write { volume: "v".into(), offset: 7, hex: Hex(vec![0, 255]) };
        let text = serde_json::to_string(&Request::Txn(write)).unwrap();
        let wanted = r#"{"command":"txn","action":"write","volume":"v","offset":7,"hex":"00ff"}"#;
        assert_eq!(text, wanted);
        let done = serde_json::to_string(&Reply::Ok(Value::Null)).unwrap();
        assert_eq!(done, r#"{"ok":null}"#);
    }
}
