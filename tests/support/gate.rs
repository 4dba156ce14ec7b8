//! A way from a target to its metadata server that can keep its votes back.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flipside::format::group::TransactionId;
use flipside::mds::wire::{self, Kind, Operation, PAYLOAD_DEFAULT};
use flipside::txn::Phase;
use flipside::txn::wire::{put_report, reports};

use crate::support::metadata_server::ANY_PORT;

/// A gate, until it is dropped.
pub struct Gate {
    /// Where the way to the server begins.
    pub at: SocketAddr,
    shared: Arc<Shared>,
    passing: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    closed: AtomicBool,
    voted: Mutex<Option<TransactionId>>,
}

impl Gate {
    /// An open one before a server.
    pub fn to(server: SocketAddr) -> Gate {
        let front = UdpSocket::bind(ANY_PORT).unwrap();
        front.set_nonblocking(true).unwrap();
        let at = front.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let seen = Arc::clone(&shared);
        let passing = thread::spawn(move || pass(&front, server, &seen));
        Gate { at, shared, passing: Some(passing) }
    }

    /// From now on the server is told of a part that is prepared that it is sealed; or no more.
    pub fn close(&self, closed: bool) {
        self.shared.closed.store(closed, Ordering::SeqCst);
    }

    /// The last transaction that the target has voted for, whether the server heard it or not.
    pub fn voted(&self) -> Option<TransactionId> {
        *self.shared.voted.lock().unwrap()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let ended = self.passing.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

fn pass(front: &UdpSocket, server: SocketAddr, shared: &Shared) {
    let mut backs: BTreeMap<SocketAddr, UdpSocket> = BTreeMap::new();
    let mut bytes = vec![0; 1 << 16];
    while !shared.ended.load(Ordering::SeqCst) {
        let mut idle = true;
        match front.recv_from(&mut bytes) {
            Ok((len, from)) => {
                idle = false;
                let back = backs.entry(from).or_insert_with(|| {
                    let back = UdpSocket::bind(ANY_PORT).unwrap();
                    back.connect(server).unwrap();
                    back.set_nonblocking(true).unwrap();
                    back
                });
                // What is lost is sent again.
                let _ = back.send(&shared.through(&bytes[..len]));
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        for (to, back) in &backs {
            // A server that is away refuses.
            if let Ok(len) = back.recv(&mut bytes) {
                idle = false;
                let _ = front.send_to(&bytes[..len], to);
            }
        }
        if idle {
            thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Shared {
    /// What the server gets of a datagram.
    fn through(&self, bytes: &[u8]) -> Vec<u8> {
        let unchanged = || bytes.to_vec();
        let Ok(datagram) = wire::parse(bytes) else { return unchanged() };
        let header = datagram.header;
        if (header.kind, header.operation) != (Kind::Request, Operation::Coordinate) {
            return unchanged();
        }
        let Ok(mut said) = reports(datagram.body) else { return unchanged() };
        for report in said.iter_mut().filter(|report| report.phase == Phase::Prepared) {
            *self.voted.lock().unwrap() = report.transaction;
            if self.closed.load(Ordering::SeqCst) {
                report.phase = Phase::Sealed;
            }
        }
        let mut body = Vec::new();
        said.iter().for_each(|report| put_report(report, &mut body));
        wire::encode(&header, &body, PAYLOAD_DEFAULT).remove(0)
    }
}
