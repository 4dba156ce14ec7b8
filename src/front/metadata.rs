//! The metadata server's port: datagrams of targets in, in turns, and the answers out.
//!
//! # Contracts
//!
//! - **Turns**: all that has arrived is one turn, of at most [`TURN_DATAGRAMS_MAX`] datagrams: what
//!   waits together shares one durable transaction. While a turn is worked on the kernel keeps what
//!   arrives.
//! - **Strangers**: with a key, what does not carry the proof is dropped and counted before
//!   anything looks at it, and costs two hashes of its bytes. Without one, what carries a proof is:
//!   its sender would take no answer for this server's, but its request would be executed.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::env::os::Seal as _;
use crate::mds::auth::{Key, is_sealed};
use crate::mds::wire::PAYLOAD_UDP_MAX;
use crate::uring::{DatagramOptions, Datagrams, Ring};

/// The most datagrams of one turn.
pub const TURN_DATAGRAMS_MAX: usize = 4096;
/// How many datagrams the ring takes while a turn is worked on; the socket keeps some more.
const BUFFERS: u16 = 512;

/// How long a port may be in use by a server that was killed, and how often it is looked at.
const IN_USE_TIME_MAX: Duration = Duration::from_secs(3);
const IN_USE_PAUSE: Duration = Duration::from_millis(10);

/// A datagram with the address that it came from or goes to.
pub type Addressed = (SocketAddr, Vec<u8>);

/// The port.
pub struct Port {
    datagrams: Datagrams,
    at: SocketAddr,
    key: Option<Key>,
    unauthenticated: Cell<u64>,
}

impl Port {
    /// Binds the address; port 0 is any that is free. Waits for a while where it is in use: the
    /// kernel takes a killed server's ring down, and closes its socket, after its end.
    pub fn bind(ring: &Ring, address: SocketAddr, key: Option<Key>) -> io::Result<Self> {
        let mut waited = Duration::ZERO;
        let socket = loop {
            match UdpSocket::bind(address) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && waited < IN_USE_TIME_MAX =>
                {
                    std::thread::sleep(IN_USE_PAUSE);
                    waited += IN_USE_PAUSE;
                }
                bound => break bound?,
            }
        };
        let at = socket.local_addr()?;
        let options = DatagramOptions { payload_max: PAYLOAD_UDP_MAX, buffers: BUFFERS };
        let datagrams = ring.datagrams(socket, options)?;
        Ok(Port { datagrams, at, key, unauthenticated: Cell::new(0) })
    }

    /// Where it is bound.
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// What has arrived: waits until there is something.
    pub async fn turn(&self) -> io::Result<Vec<Addressed>> {
        let mut turn = Vec::new();
        while turn.is_empty() {
            let first = self.datagrams.receive().await?;
            let others = std::iter::from_fn(|| self.datagrams.try_receive());
            let arrived = std::iter::once(first).chain(others).take(TURN_DATAGRAMS_MAX);
            let known = arrived.filter(|arrived| self.is_known(&arrived.bytes));
            turn.extend(known.map(|arrived| (arrived.from, arrived.bytes)));
        }
        Ok(turn)
    }

    /// Sends the answers.
    pub fn answer(&self, answers: impl IntoIterator<Item = Addressed>) {
        for (to, mut bytes) in answers {
            if let Some(key) = &self.key {
                key.seal(&mut bytes);
            }
            self.datagrams.send(Some(to), bytes);
        }
    }

    /// How many datagrams were dropped because they did not carry the proof.
    pub fn unauthenticated(&self) -> u64 {
        self.unauthenticated.get()
    }

    fn is_known(&self, bytes: &[u8]) -> bool {
        let known = match &self.key {
            Some(key) => key.opens(bytes),
            None => !is_sealed(bytes),
        };
        self.unauthenticated.set(self.unauthenticated.get() + u64::from(!known));
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Link as _;
    use crate::env::os::OsLink;
    use crate::mds::wire::{self, Header, Kind, Operation};
    use crate::uring::RingOptions;

    fn datagram(sequence: u64) -> Vec<u8> {
        let header = Header {
            kind: Kind::Request,
            operation: Operation::Renew,
            session: 5,
            sequence,
            detail: 0,
        };
        wire::encode(&header, &[], wire::PAYLOAD_MIN).remove(0)
    }

    /// Goal: who has the key is heard and can read the answers; others, garbage among them, are
    /// dropped, counted, and get nothing.
    #[test]
    fn strangers_are_dropped() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let key = |byte: u8| Key::parse(&[byte; 32]).unwrap();
        let port = Port::bind(&ring, "127.0.0.1:0".parse().unwrap(), Some(key(1))).unwrap();
        let link = |seal: Option<Key>| {
            let seal = seal.map(|key| Box::new(key) as _);
            OsLink::udp(&ring, port.at(), wire::PAYLOAD_DEFAULT, seal).unwrap()
        };
        let (own, other, none) = (link(Some(key(1))), link(Some(key(2))), link(None));
        ring.block_on(async move {
            for (sequence, garbage) in
                [vec![], vec![0; 10], vec![0xff; 100]].into_iter().enumerate()
            {
                none.send(garbage);
                other.send(datagram(10));
                none.send(datagram(20));
                own.send(datagram(sequence as u64));
                let [(from, bytes)] = &port.turn().await.unwrap()[..] else {
                    panic!("one of five")
                };
                assert_eq!(wire::parse(bytes).unwrap().header.sequence, sequence as u64);
                port.answer([(*from, datagram(sequence as u64 + 100))]);
                let answer = own.receive().await;
                assert_eq!(wire::parse(&answer).unwrap().header.sequence, sequence as u64 + 100);
            }
            assert_eq!(port.unauthenticated(), 9);
        });
        ring.shutdown();
    }

    /// Goal: a server without a key drops and counts what was sealed with any, and hears the rest.
    #[test]
    fn sealed_datagrams_are_no_business_of_a_server_without_a_key() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let port = Port::bind(&ring, "127.0.0.1:0".parse().unwrap(), None).unwrap();
        let link = |seal: Option<Key>| {
            let seal = seal.map(|key| Box::new(key) as _);
            OsLink::udp(&ring, port.at(), wire::PAYLOAD_DEFAULT, seal).unwrap()
        };
        let (sealed, open) = (link(Some(Key::parse(&[1; 32]).unwrap())), link(None));
        ring.block_on(async move {
            sealed.send(datagram(1));
            open.send(datagram(2));
            let [(_, bytes)] = &port.turn().await.unwrap()[..] else { panic!("one of two") };
            assert_eq!(wire::parse(bytes).unwrap().header.sequence, 2);
            assert_eq!(port.unauthenticated(), 1);
        });
        ring.shutdown();
    }
}
