//! The network between a client and the server: what becomes of a datagram.

use std::rc::Rc;

use super::faults::{Fault, LATE_NS};
use super::link::Peer;
use super::world::{Event, World};

/// The direction of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// From a client to the server.
    Server,
    /// From the server to a client.
    Client,
}

/// A datagram that was sent, and could be replayed.
#[derive(Clone)]
struct Recorded {
    towards: Towards,
    peer: Peer,
    datagram: Rc<[u8]>,
}

/// What the network knows.
#[derive(Clone, Default)]
pub struct Network {
    /// Datagrams of earlier operating periods.
    past: Vec<Recorded>,
    /// A sample of those of this one.
    present: Vec<Recorded>,
    /// When the partition of a direction ends: towards the server, towards the client.
    cut_until: [u64; 2],
}

/// How many datagrams are remembered of each operating period, and of all.
const PRESENT_MAX: usize = 16;
const PAST_MAX: usize = 64;

impl Network {
    /// The network after this operating period.
    #[must_use]
    pub fn next_period(mut self) -> Self {
        self.past.append(&mut self.present);
        let surplus = self.past.len().saturating_sub(PAST_MAX);
        self.past.drain(..surplus);
        Self { cut_until: [0; 2], ..self }
    }

    /// Nothing is carried any more, or all is.
    pub fn cut(&mut self, cut: bool) {
        self.cut_until = [if cut { u64::MAX } else { 0 }; 2];
    }
}

impl World {
    /// Sends a datagram, as the network lets it.
    pub fn send(&mut self, towards: Towards, peer: Peer, datagram: &Rc<[u8]>) {
        self.record(towards, peer, datagram);
        if self.strikes(Fault::Partition) {
            let longest = self.faults.partition_ns.max(1);
            self.network.cut_until[towards as usize] = self.now + self.rng.between(1, longest);
        }
        if self.strikes(Fault::DatagramReplayed) && !self.network.past.is_empty() {
            let nth = self.rng.below(self.network.past.len() as u64);
            let Recorded { towards, peer, datagram } = self.network.past[nth as usize].clone();
            self.carry(towards, peer, datagram);
        }
        let copies = 1 + u32::from(self.strikes(Fault::DatagramRepeated));
        for _ in 0..copies {
            let cut = self.now < self.network.cut_until[towards as usize];
            if !cut && !self.strikes(Fault::DatagramLost) {
                let datagram = self.spoil(datagram);
                self.carry(towards, peer, datagram);
            }
        }
    }

    /// The datagram arrives, after a while.
    fn carry(&mut self, towards: Towards, peer: Peer, datagram: Rc<[u8]>) {
        let (low, high) = self.faults.datagram_ns;
        let late = if self.strikes(Fault::DatagramLate) { self.rng.below(LATE_NS) } else { 0 };
        let delay = self.rng.log_between(low, high) + late;
        self.schedule(delay, Event::Arrival(towards, peer, datagram));
    }

    /// What is left of a datagram on the way.
    fn spoil(&mut self, datagram: &Rc<[u8]>) -> Rc<[u8]> {
        let mut left = Rc::clone(datagram);
        if self.strikes(Fault::DatagramTruncated) {
            let len = self.rng.below(left.len() as u64 + 1) as usize;
            left = left[..len].into();
        }
        if self.strikes(Fault::DatagramCorrupted) && !left.is_empty() {
            let mut bytes = left.to_vec();
            for _ in 0..self.rng.between(1, 3) {
                let bit = self.rng.below(bytes.len() as u64 * 8);
                bytes[bit as usize / 8] ^= 1 << (bit % 8);
            }
            left = bytes.into();
        }
        left
    }

    /// Remembers some of the datagrams of this period.
    fn record(&mut self, towards: Towards, peer: Peer, datagram: &Rc<[u8]>) {
        let recorded = Recorded { towards, peer, datagram: Rc::clone(datagram) };
        let present = &mut self.network.present;
        if present.len() < PRESENT_MAX {
            present.push(recorded);
        } else {
            let nth = self.rng.below(4 * PRESENT_MAX as u64) as usize;
            if let Some(old) = present.get_mut(nth) {
                *old = recorded;
            }
        }
    }
}
