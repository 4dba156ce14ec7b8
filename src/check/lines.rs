//! The pairs among themselves and against the volumes.

use std::collections::BTreeMap;

use super::finding::{Code, Finding};
use crate::format::blocks::BlockSet;
use crate::format::home::Line;
use crate::format::ids::{ExtentId, LogicalExtent, PairId, Slot, VolumeId};
use crate::format::layout::Geometry;
use crate::mds::records::VolumeInfo;

/// What to do about pairs that contradict each other.
const ADVICE: &str = "restore a dump of the metadata, or the volumes from a copy";

/// What is wrong with sound lines, where the pool has these volumes and as many extents as lines.
pub fn judge(lines: &[Line], geometry: Geometry, volumes: &[VolumeInfo]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |code, pair: PairId, what: String| {
        findings.push(Finding::lasting(code, format!("pair {pair}"), format!("{what}: {ADVICE}")));
    };
    let beyond = BlockSet::range(geometry.blocks_per_extent() as usize..BLOCKS_MAX);
    let mut places: BTreeMap<ExtentId, PairId> = BTreeMap::new();
    let mut owned: BTreeMap<(VolumeId, LogicalExtent), PairId> = BTreeMap::new();
    for (number, line) in lines.iter().enumerate() {
        let pair = PairId(number as u32);
        for extent in line.binding.extents.into_iter().flatten() {
            if extent.0 as usize >= lines.len() {
                say(Code::ExtentBeyond, pair, format!("extent {extent} does not exist"));
            } else if let Some(other) = places.insert(extent, pair) {
                say(Code::ExtentTwice, pair, format!("extent {extent} is also in pair {other}"));
            }
        }
        if Slot::BOTH.into_iter().any(|slot| line.map.side(slot).meets(beyond)) {
            say(Code::BlockBeyond, pair, "it has blocks beyond the end of its extents".to_owned());
        }
        let Some((volume, logical)) = line.binding.owner else { continue };
        match volumes.iter().find(|info| info.id == volume) {
            None => say(Code::VolumeUnknown, pair, format!("there is no volume {volume}")),
            Some(info) if u64::from(logical.0) >= geometry.extents_for(info.size) => {
                let what = format!("extent {logical} is beyond the end of volume {}", info.name);
                say(Code::LogicalBeyond, pair, what);
            }
            Some(info) => {
                if let Some(other) = owned.insert((volume, logical), pair) {
                    let what = format!("extent {logical} of volume {} is pair {other}", info.name);
                    say(Code::LogicalTwice, pair, what);
                }
            }
        }
    }
    findings
}

/// The most blocks that an extent can have.
const BLOCKS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blocks::BlockMap;
    use crate::format::ids::Generation;
    use crate::format::record::Binding;

    fn line(logical: u32, extents: [Option<u32>; 2]) -> Line {
        Line {
            binding: Binding {
                generation: Generation(1),
                owner: Some((VolumeId(4), LogicalExtent(logical))),
                extents: extents.map(|extent| extent.map(ExtentId)),
                data_slot: Slot::Zero,
            },
            map: BlockMap::NONE,
        }
    }

    fn codes(lines: &[Line], geometry: Geometry) -> Vec<Code> {
        let name = "v".to_owned();
        let mut volume = VolumeInfo::try_from(
            &crate::mds::raw::RawVolume::named(VolumeId(4), &name, 3 << 20).expect("it fits"),
        )
        .expect("it is one");
        volume.size = 3 << 20;
        judge(lines, geometry, &[volume]).into_iter().map(|finding| finding.code).collect()
    }

    /// Goal: pairs that can stand beside each other are, and each contradiction has its name.
    #[test]
    fn contradictions() {
        let geometry = Geometry::DEFAULT;
        let good = [line(0, [Some(3), None]), line(2, [Some(0), Some(1)]), Line::FREE, Line::FREE];
        assert_eq!(codes(&good, geometry), []);
        let with = |changed: Line| {
            let mut lines = good;
            lines[2] = changed;
            codes(&lines, geometry)
        };
        assert_eq!(with(line(1, [Some(2), None])), []);
        assert_eq!(with(line(1, [Some(4), None])), [Code::ExtentBeyond]);
        assert_eq!(with(line(1, [Some(1), None])), [Code::ExtentTwice]);
        assert_eq!(with(line(3, [Some(2), None])), [Code::LogicalBeyond]);
        assert_eq!(with(line(0, [Some(2), None])), [Code::LogicalTwice]);
        let mut other = line(1, [Some(2), None]);
        other.binding.owner = Some((VolumeId(5), LogicalExtent(0)));
        assert_eq!(with(other), [Code::VolumeUnknown]);
        let small = Geometry::new(4096, 64 << 10).unwrap();
        let mut full = line(1, [Some(2), None]);
        full.map = BlockMap::new([BlockSet::range(0..16), BlockSet::EMPTY]).unwrap();
        assert_eq!(codes(&[Line::FREE, Line::FREE, full], small), []);
        full.map = BlockMap::new([BlockSet::range(0..17), BlockSet::EMPTY]).unwrap();
        assert_eq!(codes(&[Line::FREE, Line::FREE, full], small), [Code::BlockBeyond]);
    }
}
