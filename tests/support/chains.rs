//! Chains of writes over several volumes: each write is sent when the one before it, on another
//! volume, was acknowledged. What a crash leaves of a chain is at one cut exactly if it is what
//! some number of its writes made, and nothing of those after them.

use std::ops::Range;

use flipside::env::sim::rng::Rng;
use flipside::sim::stamp::{self, Seen, Stamp, ZEROS};

use crate::support::nbd_client::{Client, Error};

/// How many volumes a chain goes over, in turn.
pub const VOLUMES: usize = 3;
/// The unit of stamps, in bytes.
const GRANULE: usize = 512;
/// Granules of a block.
const BLOCK: u32 = 8;
/// Blocks that a chain has for itself on every volume; no multiple of an extent.
const BLOCKS: u32 = 160;
/// Bytes of that.
pub const SHARE: usize = (BLOCKS * BLOCK) as usize * GRANULE;

/// The stamp of each granule of a chain's share, on each volume.
pub type Image = [Vec<Stamp>; VOLUMES];

/// A write of a chain.
#[derive(Clone, Debug)]
pub struct Write {
    /// Which it is, counted from one.
    pub stamp: Stamp,
    /// Which volume it goes to.
    pub volume: usize,
    /// The granules of the chain's share of it.
    pub granules: Range<u32>,
    /// Where that share begins.
    first: u32,
}

/// A chain, and what is known of its writes.
pub struct Chain {
    /// The first granule of its share on each volume.
    first: u32,
    /// What was there before the writes.
    base: Image,
    /// What was sent since then.
    writes: Vec<Write>,
    /// So many of them are acknowledged; one more may be under way.
    acknowledged: usize,
    /// So many of them must survive.
    durable: usize,
    next: Stamp,
}

/// Volumes that were never written.
pub fn blank() -> Image {
    [(); VOLUMES].map(|()| vec![ZEROS; (BLOCKS * BLOCK) as usize])
}

impl Write {
    /// Where it begins, in bytes.
    pub fn offset(&self) -> u64 {
        u64::from(self.first + self.granules.start) * GRANULE as u64
    }

    /// What it writes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.granules.len() * GRANULE];
        let first = self.first + self.granules.start;
        stamp::fill(&mut bytes, GRANULE, self.volume as u8, first, self.stamp);
        bytes
    }

    /// Its effect.
    pub fn apply(&self, image: &mut Image) {
        let place = self.granules.start as usize..self.granules.end as usize;
        image[self.volume][place].fill(self.stamp);
    }
}

impl Chain {
    /// The chain of that number, on volumes that were never written.
    pub fn new(number: u32) -> Self {
        let first = number * BLOCKS * BLOCK;
        Self { first, base: blank(), writes: Vec::new(), acknowledged: 0, durable: 0, next: 1 }
    }

    /// Draws the next write, of more than one block, which is to be sent now.
    pub fn send(&mut self, rng: &mut Rng) -> Write {
        assert_eq!(self.acknowledged, self.writes.len(), "one write after another");
        let blocks =
            if rng.below(16) == 0 { rng.between(16, 80) } else { rng.between(2, 4) } as u32;
        // Most are of whole blocks, which may be kept in the journal.
        let ragged = if rng.below(8) == 0 { rng.between(1, 7) as u32 } else { 0 };
        let place = rng.below(u64::from(BLOCKS - blocks)) as u32 * BLOCK + ragged;
        let granules = place..place + blocks * BLOCK;
        let volume = (self.next as usize - 1) % VOLUMES;
        let write = Write { stamp: self.next, volume, granules, first: self.first };
        self.writes.push(write.clone());
        self.next += 1;
        write
    }

    /// The write that was sent last is acknowledged.
    pub fn acknowledge(&mut self) {
        self.acknowledged = self.writes.len();
    }

    /// How many writes are acknowledged since the last verdict.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// So many writes must survive from now on.
    pub fn harden(&mut self, count: usize) {
        self.durable = self.durable.max(count);
    }

    /// Which cut this is: so many of the writes since the last verdict; or what is wrong.
    pub fn cut(&self, found: &Image) -> Result<usize, String> {
        let mut expected = self.base.clone();
        for count in 0..=self.writes.len() {
            if let Some(write) = count.checked_sub(1).map(|last| &self.writes[last]) {
                write.apply(&mut expected);
            }
            if count >= self.durable && *found == expected {
                return Ok(count);
            }
        }
        let newest = found.each_ref().map(|stamps| stamps.iter().max().copied());
        let sent = self.writes.iter().map(|write| write.stamp);
        Err(format!(
            "no cut of the chain explains what was found: the newest writes there are {newest:?}; \
             sent were {:?} to {:?}, of which {} are acknowledged and {} must be there",
            sent.clone().min(),
            sent.max(),
            self.acknowledged,
            self.durable
        ))
    }

    /// Goes on from a cut.
    pub fn go_on(&mut self, cut: usize) {
        self.writes[..cut].iter().for_each(|write| write.apply(&mut self.base));
        self.writes.clear();
        (self.acknowledged, self.durable) = (0, 0);
    }

    /// Reads its share of all volumes.
    ///
    /// # Panics
    /// If something is there that was never written to that place.
    pub fn read(&self, clients: &mut [Client; VOLUMES]) -> Result<Image, Error> {
        let mut image = [(); VOLUMES].map(|()| Vec::new());
        for (volume, client) in clients.iter_mut().enumerate() {
            let at = u64::from(self.first) * GRANULE as u64;
            let bytes = client.read(at, SHARE as u32)?;
            let granules = bytes.chunks_exact(GRANULE).zip(self.first..);
            let stamps = granules.map(|(bytes, at)| match stamp::read(bytes, volume as u8, at) {
                Seen::Write(stamp) => stamp,
                other => panic!("granule {at} of volume {volume} holds {other:?}"),
            });
            image[volume] = stamps.collect();
        }
        Ok(image)
    }
}
