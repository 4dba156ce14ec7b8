//! Volumes: made, listed, renamed, resized, deleted.
//!
//! A volume is deleted in two steps, since its extents are the unit's to give back:
//!
//! ```text
//!   live ──delete_volume──▶ deleting (no name, pairs are released) ──remove_volume──▶ nothing
//! ```
//!
//! Both are durable before they are answered, so a crash in between leaves a volume that nobody can
//! use and whose deletion the unit goes on with.

use super::rows;
use super::{Catalog, Fault, refused};
use crate::format::ids::{LogicalExtent, VolumeId};
use crate::mds::error::Refusal;
use crate::mds::raw::RawVolume;
use crate::mds::records::{NAME_BYTES_MAX, VolumeInfo};
use crate::mds::store::{self, Table};

/// The most volumes of a pool.
pub const VOLUMES_MAX: usize = 4096;

impl Catalog {
    /// Makes a thin volume. Its number was never used before.
    pub fn create_volume(&mut self, name: &str, size: u64) -> Result<VolumeInfo, Fault> {
        self.check_name(name)?;
        if self.volumes.len() >= VOLUMES_MAX || self.next_volume == u32::MAX {
            return refused(Refusal::TooLarge);
        }
        self.check_size(size)?;
        let id = VolumeId(self.next_volume);
        let volume = VolumeInfo { id, name: name.to_owned(), size, deleting: false };
        self.next_volume += 1;
        self.put_pool();
        self.put_volume(&volume);
        self.volumes.insert(volume.id, volume.clone());
        Ok(volume)
    }

    /// Changes a volume's size; refused where a bound extent would be beyond its end.
    pub fn resize_volume(&mut self, id: VolumeId, size: u64) -> Result<(), Fault> {
        let mut volume = self.live_volume(id)?.clone();
        self.check_size(size)?;
        if size < volume.size {
            let end = LogicalExtent(self.extents_of(size) as u32);
            self.refuse_if_bound(id, end)?;
        }
        volume.size = size;
        self.put_volume(&volume);
        self.volumes.insert(id, volume);
        Ok(())
    }

    /// Gives a volume another name.
    pub fn rename_volume(&mut self, id: VolumeId, name: &str) -> Result<(), Fault> {
        let mut volume = self.live_volume(id)?.clone();
        if volume.name == name {
            return Ok(());
        }
        self.check_name(name)?;
        name.clone_into(&mut volume.name);
        self.put_volume(&volume);
        self.volumes.insert(id, volume);
        Ok(())
    }

    /// Begins a volume's deletion.
    pub fn delete_volume(&mut self, id: VolumeId) -> Result<(), Fault> {
        let volume = VolumeInfo { deleting: true, ..self.live_volume(id)?.clone() };
        self.put_volume(&volume);
        self.volumes.insert(id, volume);
        Ok(())
    }

    /// Ends a volume's deletion; refused while any of its extents is bound.
    pub fn remove_volume(&mut self, id: VolumeId) -> Result<(), Fault> {
        if !self.volume(id)?.deleting {
            return refused(Refusal::VolumeBusy);
        }
        self.refuse_if_bound(id, LogicalExtent(0))?;
        self.volumes.remove(&id);
        self.changes.insert((Table::Volumes, store::key(&[id.0])), None);
        Ok(())
    }

    /// A page of the volumes, those that are being deleted included, from a number on.
    pub fn list_volumes(&self, from: u64, count: usize) -> Vec<&VolumeInfo> {
        let Ok(from) = u32::try_from(from) else {
            return Vec::new();
        };
        self.volumes.range(VolumeId(from)..).take(count).map(|(_, volume)| volume).collect()
    }

    /// The volume of that name, which is not being deleted.
    pub fn volume_named(&self, name: &str) -> Option<VolumeId> {
        let named = |volume: &&VolumeInfo| volume.name == name && !volume.deleting;
        self.volumes.values().find(named).map(|volume| volume.id)
    }

    /// The name of a volume that is not being deleted.
    pub fn name_of(&self, id: VolumeId) -> Option<&str> {
        self.live_volume(id).ok().map(|volume| volume.name.as_str())
    }

    pub(super) fn volume(&self, id: VolumeId) -> Result<&VolumeInfo, Fault> {
        self.volumes.get(&id).ok_or(Fault::Refused(Refusal::UnknownVolume, u64::from(id.0)))
    }

    /// A volume that is not being deleted.
    fn live_volume(&self, id: VolumeId) -> Result<&VolumeInfo, Fault> {
        let volume = self.volume(id)?;
        if volume.deleting {
            return Err(Fault::Refused(Refusal::UnknownVolume, u64::from(id.0)));
        }
        Ok(volume)
    }

    /// Whether a volume may get the name.
    fn check_name(&self, name: &str) -> Result<(), Fault> {
        if !is_name(name) {
            return refused(Refusal::NameInvalid);
        }
        if self.volumes.values().any(|volume| volume.name == name && !volume.deleting) {
            return refused(Refusal::NameTaken);
        }
        Ok(())
    }

    /// How many extents a volume of that size has.
    pub(super) fn extents_of(&self, size: u64) -> u64 {
        size.div_ceil(u64::from(self.info.extent_size))
    }

    fn check_size(&self, size: u64) -> Result<(), Fault> {
        if size == 0 || self.extents_of(size) >= u64::from(u32::MAX) {
            return refused(Refusal::OutOfRange);
        }
        Ok(())
    }

    fn refuse_if_bound(&self, id: VolumeId, from: LogicalExtent) -> Result<(), Fault> {
        if self.is_bound(id, from)? { refused(Refusal::VolumeBusy) } else { Ok(()) }
    }

    fn put_volume(&mut self, volume: &VolumeInfo) {
        let row = rows::bytes(&RawVolume::from(volume));
        self.changes.insert((Table::Volumes, store::key(&[volume.id.0])), Some(row));
    }
}

/// Whether a volume, or a group of them, can have the name: it is an export's name, and a word of
/// a command line.
pub fn is_name(name: &str) -> bool {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
    fits && !name.starts_with('-')
        && name.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != '/' && c != '=')
}
