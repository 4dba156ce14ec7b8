//! What is known of all volumes, and of the groups that they are in.
//!
//! Each volume has a model of its own, which promises 1 to 3 and 5 are checked by. The volumes of a
//! group, one behind the other, are one more volume, with a model that hears of all operations on
//! all of them in the order in which they happened: its cut is that of promise 4.
//!
//! An atomic request is one operation over all of its pieces, durable when it is acknowledged. Who
//! has seen a part of it knows that it took place: from then on it counts as acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::sim::oracle::{Oracle, Sent, Violation};
use crate::sim::stamp::{self, Seen, Stamp};

/// A volume of a unit.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub unit: usize,
    /// Which of the unit's volumes.
    pub nth: usize,
    /// Which of the classes.
    pub class: usize,
    pub granules: u32,
}

/// Volumes that recover together: those of a group, or one by itself.
#[derive(Clone, Debug)]
pub(super) struct Class {
    /// In the order of their units.
    pub members: Vec<usize>,
    /// The name of the group.
    pub group: Option<String>,
}

/// A flush under way, by the volume's clock and the group's.
pub(super) struct Flush {
    of_volume: Sent,
    of_group: Option<Sent>,
}

/// Pieces of volumes that are written together.
pub(super) type Pieces = [(usize, Range<u32>)];

/// What became of an atomic request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It took place.
    Applied,
    /// It did not.
    Refused,
    /// Either.
    Unknown,
}

/// The models.
pub(super) struct Ledger {
    pub granule: usize,
    pub places: Vec<Place>,
    pub classes: Vec<Class>,
    volumes: Vec<Oracle>,
    /// One for each class that is a group which serves, and all of whose members are known.
    groups: Vec<Option<Oracle>>,
    last_stamp: Stamp,
    /// The volumes of each atomic request under way of which nobody has seen anything.
    unseen: BTreeMap<Stamp, BTreeSet<usize>>,
}

impl Ledger {
    pub fn new(granule: usize, places: Vec<Place>, classes: Vec<Class>) -> Self {
        let of = |(place, number): (&Place, u8)| Oracle::new(number, granule, place.granules);
        let volumes = places.iter().zip(0..).map(of).collect();
        let groups = classes.iter().map(|_| None).collect();
        let unseen = BTreeMap::new();
        Self { granule, places, classes, volumes, groups, last_stamp: 0, unseen }
    }

    /// The group of a class serves, with nothing on any of its volumes that is not durable.
    pub fn begin_group(&mut self, class: usize, seen: Vec<Stamp>) {
        let mut oracle = Oracle::new(u8::MAX, self.granule, self.start_of(class, usize::MAX));
        oracle.begin_with(seen);
        self.groups[class] = Some(oracle);
    }

    /// The group is about to be no more: nothing is promised for its volumes together.
    pub fn end_group(&mut self, class: usize) {
        self.groups[class] = None;
    }

    pub fn has_group(&self, class: usize) -> bool {
        self.groups[class].is_some()
    }

    /// A write, or what leaves zeros, is sent.
    pub fn send(&mut self, volume: usize, granules: Range<u32>, zeros: bool, fua: bool) -> Stamp {
        self.last_stamp += 1;
        let stamp = self.last_stamp;
        let start = self.start(volume);
        self.volumes[volume].send(stamp, granules.clone(), zeros, fua);
        if let Some(group) = &mut self.groups[self.places[volume].class] {
            group.send(stamp, granules.start + start..granules.end + start, zeros, fua);
        }
        stamp
    }

    /// It has ended.
    pub fn end(&mut self, volume: usize, stamp: Stamp, success: bool) {
        self.volumes[volume].end(stamp, success);
        if let Some(group) = &mut self.groups[self.places[volume].class] {
            group.end(stamp, success);
        }
    }

    /// An atomic request is sent.
    pub fn send_atomic(&mut self, pieces: &Pieces) -> Stamp {
        self.last_stamp += 1;
        let stamp = self.last_stamp;
        let (mut of_volume, mut of_class) = (BTreeMap::new(), BTreeMap::new());
        for (volume, piece) in pieces {
            let (start, class) = (self.start(*volume), self.places[*volume].class);
            let shifted = piece.start + start..piece.end + start;
            of_volume.entry(*volume).or_insert_with(Vec::new).push(piece.clone());
            of_class.entry(class).or_insert_with(Vec::new).push(shifted);
        }
        self.unseen.insert(stamp, of_volume.keys().copied().collect());
        for (volume, pieces) in of_volume {
            self.volumes[volume].send_all(stamp, pieces, false, true);
        }
        for (class, pieces) in of_class {
            if let Some(group) = &mut self.groups[class] {
                group.send_all(stamp, pieces, false, true);
            }
        }
        stamp
    }

    /// It has ended.
    pub fn end_atomic(&mut self, stamp: Stamp, ended: Ended) -> Result<(), Violation> {
        let Some(volumes) = self.unseen.remove(&stamp) else {
            if ended == Ended::Refused {
                let what = format!("atomic request #{stamp} was seen, and then refused");
                return Err(Violation(what));
            }
            return Ok(());
        };
        for oracle in self.models_of(&volumes) {
            match ended {
                Ended::Applied => oracle.end(stamp, true),
                Ended::Unknown => oracle.end(stamp, false),
                Ended::Refused => oracle.withdraw(stamp),
            }
        }
        Ok(())
    }

    /// The models of some volumes, and of their groups.
    fn models_of(&mut self, volumes: &BTreeSet<usize>) -> impl Iterator<Item = &mut Oracle> {
        let classes: BTreeSet<usize> =
            volumes.iter().map(|volume| self.places[*volume].class).collect();
        let own = self.volumes.iter_mut().enumerate();
        let own = own.filter(|(volume, _)| volumes.contains(volume)).map(|(_, model)| model);
        let groups = self.groups.iter_mut().enumerate();
        let groups = groups.filter(move |(class, _)| classes.contains(class));
        own.chain(groups.filter_map(|(_, group)| group.as_mut()))
    }

    /// Somebody has read that: what is seen of an atomic request has taken place.
    fn note_sight(&mut self, volume: usize, first: u32, bytes: &[u8]) {
        if self.unseen.is_empty() {
            return;
        }
        let granules = bytes.chunks_exact(self.granule).zip(first..);
        let stamps = granules.filter_map(|(of, at)| match stamp::read(of, volume as u8, at) {
            Seen::Write(stamp) => Some(stamp),
            Seen::Misplaced { .. } | Seen::Fabricated => None,
        });
        let stamps: BTreeSet<Stamp> = stamps.collect();
        for stamp in stamps {
            if let Some(volumes) = self.unseen.remove(&stamp) {
                self.models_of(&volumes).for_each(|oracle| oracle.end(stamp, true));
            }
        }
    }

    /// The bytes of a write.
    pub fn bytes(&self, volume: usize, granules: &Range<u32>, stamp: Stamp) -> Vec<u8> {
        let mut bytes = vec![0; granules.len() * self.granule];
        stamp::fill(&mut bytes, self.granule, volume as u8, granules.start, stamp);
        bytes
    }

    pub fn send_read(&mut self, volume: usize) -> Sent {
        self.volumes[volume].send_other()
    }

    pub fn end_read(
        &mut self,
        volume: usize,
        read: &Sent,
        first: u32,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        self.volumes[volume].end_read(read, first, bytes)?;
        self.note_sight(volume, first, bytes);
        Ok(())
    }

    pub fn send_flush(&mut self, volume: usize) -> Flush {
        let group = self.groups[self.places[volume].class].as_mut();
        let of_group = group.map(Oracle::send_other);
        Flush { of_volume: self.volumes[volume].send_other(), of_group }
    }

    /// The flush is acknowledged: all members are durable, on all units.
    pub fn end_flush(&mut self, volume: usize, flush: &Flush) {
        self.volumes[volume].end_flush(&flush.of_volume);
        let group = self.groups[self.places[volume].class].as_mut();
        if let (Some(group), Some(sent)) = (group, &flush.of_group) {
            group.end_flush(sent);
        }
    }

    /// The volumes of a class were read after a recovery: checks all, and gives who wrote what.
    pub fn recovered(&mut self, class: usize, images: &[Vec<u8>]) -> Result<Vec<Stamp>, Violation> {
        let mut all = Vec::new();
        for (member, image) in self.classes[class].members.iter().zip(images) {
            all.push(self.volumes[*member].stamps(image)?);
        }
        let together = all.concat();
        if let Some(group) = &mut self.groups[class] {
            group.recovered_as(together.clone())?;
        }
        let members = self.classes[class].members.clone();
        // Their clients have gone.
        self.unseen.retain(|_, volumes| !members.iter().any(|member| volumes.contains(member)));
        for (member, seen) in members.into_iter().zip(all) {
            self.volumes[member].recovered_as(seen)?;
        }
        Ok(together)
    }

    /// Nothing is under way on any volume of a unit, and all is durable there; what came to other
    /// units meanwhile may not be.
    pub fn settled(&mut self, unit: usize) {
        for volume in 0..self.places.len() {
            if self.places[volume].unit != unit {
                continue;
            }
            let Flush { of_volume, of_group } = self.send_flush(volume);
            self.volumes[volume].end_flush(&of_volume);
            let start = self.start(volume);
            let part = start..start + self.places[volume].granules;
            let group = self.groups[self.places[volume].class].as_mut();
            if let (Some(group), Some(sent)) = (group, &of_group) {
                group.end_flush_of(sent, &part);
            }
        }
    }

    pub fn unexplained(&self) -> u64 {
        let all = self.volumes.iter().chain(self.groups.iter().flatten());
        all.map(Oracle::unexplained).sum()
    }

    /// What is under way, for the report of a run that hangs.
    pub fn pending(&self) -> Vec<String> {
        let of = |(oracle, volume): (&Oracle, usize)| -> Vec<String> {
            oracle.pending().map(|op| format!("under way on volume {volume}: {op}")).collect()
        };
        self.volumes.iter().zip(0..).flat_map(of).collect()
    }

    /// Where a volume begins in its class.
    fn start(&self, volume: usize) -> u32 {
        self.start_of(self.places[volume].class, volume)
    }

    fn start_of(&self, class: usize, volume: usize) -> u32 {
        let before = self.classes[class].members.iter().take_while(|member| **member != volume);
        before.map(|member| self.places[*member].granules).sum()
    }
}
