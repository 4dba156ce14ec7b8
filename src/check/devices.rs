//! Superblocks, and whether all devices of one pool are there.

use super::finding::{Code, Finding, Mend};
use crate::env::Disk;
use crate::format::superblock::{
    Copy, Defect, Superblock, SuperblockError, Warning, check_device, choose,
};
use crate::format::superblock_io;
use crate::uring::buffers::BufferPool;

/// What is on a device where superblocks are.
#[derive(Clone, Debug)]
pub struct DeviceFacts {
    /// Its path.
    pub name: String,
    /// Its size in bytes.
    pub len: u64,
    /// Its logical sector in bytes.
    pub sector: u32,
    /// The first and the second superblock.
    pub copies: [Result<Superblock, Defect>; 2],
}

impl DeviceFacts {
    /// Whether nothing says that the device was ever a part of a pool.
    pub fn is_foreign(&self) -> bool {
        let foreign =
            |copy: &Result<_, Defect>| matches!(copy, Err(Defect::Magic | Defect::Unreadable));
        self.copies.iter().all(foreign)
    }
}

/// The devices of a pool, as far as they are there.
#[derive(Debug)]
pub struct Pool {
    /// For each device of the pool, by its number, the position of the one that was given.
    pub members: Vec<Option<usize>>,
    /// The superblock of the first device, or else of any: what all of them agree on counts.
    pub superblock: Superblock,
}

impl Pool {
    /// The position of the pool's first device, which has the metadata.
    pub fn first(&self) -> Option<usize> {
        self.members.first().copied().flatten()
    }

    /// Whether every device is there.
    pub fn is_whole(&self) -> bool {
        self.members.iter().all(Option::is_some)
    }
}

/// Reads the superblocks of a device.
pub async fn look<D: Disk>(disk: &D, buffers: &BufferPool, name: String) -> DeviceFacts {
    let copies = superblock_io::read_copies(disk, buffers).await;
    DeviceFacts { name, len: disk.len(), sector: disk.sector(), copies }
}

/// The superblock of a device that counts, and what is wrong with the others.
fn judge_device(index: usize, facts: &DeviceFacts) -> (Option<Superblock>, Option<Finding>) {
    let lost = |error: SuperblockError| {
        let code = match error {
            SuperblockError::Shrunk { .. } | SuperblockError::SectorGrown { .. } => {
                Code::DeviceChanged
            }
            _ => Code::SuperblockLost,
        };
        (None, Some(Finding::lasting(code, &facts.name, error)))
    };
    let [first, second] = facts.copies.clone();
    let (superblock, warning) = match choose(first, second) {
        Ok(chosen) => chosen,
        Err(error) => return lost(error),
    };
    if let Err(error) = check_device(&superblock, facts.len, facts.sector) {
        return lost(error);
    }
    let [first, second] = superblock.layout.superblocks();
    let finding = warning.map(|warning| {
        let (Warning::Damaged { copy, .. } | Warning::Stale(copy)) = warning;
        let at = if copy == Copy::First { first } else { second };
        let place = format!("{} at {at}", facts.name);
        if let Warning::Damaged { defect: Defect::Version(_), .. } = warning {
            // Another version of this program may know what to do with it.
            return Finding::lasting(Code::SuperblockCopy, place, warning);
        }
        Finding::mendable(Code::SuperblockCopy, place, warning, Mend::Superblock(index))
    });
    (Some(superblock), finding)
}

/// Which pool the devices are, and what is wrong with them; no pool where none has a superblock.
pub fn judge(devices: &[DeviceFacts]) -> (Option<Pool>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut known: Vec<(usize, Superblock)> = Vec::new();
    for (index, facts) in devices.iter().enumerate() {
        let (superblock, finding) = judge_device(index, facts);
        findings.extend(finding);
        known.extend(superblock.map(|superblock| (index, superblock)));
    }
    known.sort_by_key(|(_, superblock)| superblock.device_index);
    let Some((_, leader)) = known.first().cloned() else { return (None, findings) };
    let name = |index: usize| devices.get(index).map_or("", |facts| facts.name.as_str());
    let mut members = vec![None; leader.devices.len()];
    for (index, superblock) in &known {
        let agrees = superblock.pool == leader.pool
            && superblock.devices == leader.devices
            && superblock.geometry == leader.geometry;
        let place = members.get_mut(superblock.device_index as usize).filter(|_| agrees);
        let Some(place) = place else {
            let what = format!("it is not of pool {}, as the first device is", leader.pool);
            findings.push(Finding::lasting(Code::DeviceForeign, name(*index), what));
            continue;
        };
        if let Some(earlier) = *place {
            let what = format!("it is the same device of the pool as {}", name(earlier));
            findings.push(Finding::lasting(Code::DeviceTwice, name(*index), what));
            continue;
        }
        *place = Some(*index);
    }
    for (number, _) in members.iter().enumerate().filter(|(_, member)| member.is_none()) {
        let what = "it was not given, or is not to be recognised: name all devices of the pool";
        let place = format!("device {} of pool {}", number + 1, leader.pool);
        findings.push(Finding::lasting(Code::DeviceMissing, place, what));
    }
    (Some(Pool { members, superblock: leader }), findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{PoolId, UnitId};
    use crate::format::layout::{self, Geometry, plan};
    use crate::format::superblock::{FlagsPlace, MetadataAt, PoolDevice};

    const SIZE: u64 = 1 << 30;

    fn pool(id: u8) -> Vec<DeviceFacts> {
        let facts = [layout::DeviceFacts { size: SIZE, sector: 512 }; 3];
        let layouts = plan(Geometry::DEFAULT, &facts).unwrap();
        let named = |layout: &layout::DeviceLayout| PoolDevice {
            id: [layout.extents.first.0 as u8; 16],
            extents: layout.extents.count,
        };
        let devices: Vec<_> = layouts.iter().map(named).collect();
        let superblock = |(index, layout): (u32, &layout::DeviceLayout)| Superblock {
            revision: 1,
            pool: PoolId([id; 16]),
            device_index: index,
            unit: UnitId(0),
            geometry: Geometry::DEFAULT,
            sector: 512,
            flags: FlagsPlace::Device,
            metadata: MetadataAt::Device,
            created_s: 0,
            layout: *layout,
            journal_reserve: 10,
            devices: devices.clone(),
        };
        let superblocks = (0..).zip(&layouts).map(superblock);
        let facts = |superblock: Superblock| DeviceFacts {
            name: format!("dev{}", superblock.device_index),
            len: SIZE,
            sector: 512,
            copies: [Ok(superblock.clone()), Ok(superblock)],
        };
        superblocks.map(facts).collect()
    }

    fn codes(devices: &[DeviceFacts]) -> Vec<Code> {
        judge(devices).1.into_iter().map(|finding| finding.code).collect()
    }

    /// Goal: a whole pool in any order is well; each way of not being one is told apart.
    #[test]
    fn pools_and_their_damages() {
        let ours = pool(1);
        let [a, b, c] = ours.as_slice() else { panic!("three") };
        let of = |devices: &[&DeviceFacts]| -> Vec<DeviceFacts> {
            devices.iter().map(|facts| (*facts).clone()).collect()
        };
        assert_eq!(codes(&of(&[c, a, b])), []);
        assert_eq!(judge(&of(&[c, a, b])).0.unwrap().members, [Some(1), Some(2), Some(0)]);
        assert_eq!(codes(&of(&[a, b])), [Code::DeviceMissing]);
        assert_eq!(codes(&of(&[a, b, b, c])), [Code::DeviceTwice]);
        let other = &pool(2)[1];
        assert_eq!(codes(&of(&[a, other, c])), [Code::DeviceForeign, Code::DeviceMissing]);
        for copy in [0, 1] {
            let mut bad = b.clone();
            bad.copies[copy] = Err(Defect::Checksum);
            let (pool, findings) = judge(&of(&[a, &bad, c]));
            assert!(pool.unwrap().is_whole());
            assert_eq!(findings[0].mend, Some(Mend::Superblock(1)));
        }
        let mut other_version = b.clone();
        other_version.copies[1] = Err(Defect::Version(9));
        assert_eq!(judge(&of(&[a, &other_version, c])).1[0].mend, None, "it is not overwritten");
        let mut bad = a.clone();
        bad.copies = [Err(Defect::Checksum), Err(Defect::Magic)];
        assert_eq!(codes(&of(&[&bad, b, c])), [Code::SuperblockLost, Code::DeviceMissing]);
        assert!(judge(&of(&[&bad, b, c])).0.unwrap().first().is_none());
        assert!(judge(&of(&[&bad])).0.is_none());
        let small = DeviceFacts { len: SIZE - 4096, ..c.clone() };
        assert_eq!(codes(&of(&[a, b, &small])), [Code::DeviceChanged, Code::DeviceMissing]);
    }
}
