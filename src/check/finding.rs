//! What is said of a damage.

use serde::Serialize;

use crate::journal::inspect::{PageKind, UnevenPage};

/// A kind of damage, by its published name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// One of a device's superblocks is damaged, or older than the other.
    SuperblockCopy,
    /// A device has no superblock that can be used.
    SuperblockLost,
    /// The device is not what its superblock says.
    DeviceChanged,
    /// The device is of another pool, or of another state of this one.
    DeviceForeign,
    /// Two devices are the same one of the pool.
    DeviceTwice,
    /// A device of the pool was not given.
    DeviceMissing,
    /// One copy of the NVRAM's identity is damaged.
    NvramIdentityCopy,
    /// No copy of the NVRAM's identity can be used.
    NvramIdentityLost,
    /// One copy of the region's header is damaged.
    HeaderCopy,
    /// The region has no header that can be used.
    HeaderLost,
    /// The region is of another unit or size.
    RegionForeign,
    /// One copy of a status page is damaged.
    StatusCopy,
    /// A status page is lost.
    StatusLost,
    /// One copy of a home page is damaged.
    HomeCopy,
    /// A home page is lost, and with it where its pairs' blocks are.
    HomeLost,
    /// The list of groups is broken.
    GroupList,
    /// A group cannot follow what is before it.
    GroupReplay,
    /// The line of a pair cannot be read.
    LineUnreadable,
    /// The line of a pair says what cannot be.
    LineUnsound,
    /// A pair has an extent that there is not.
    ExtentBeyond,
    /// An extent is in two places.
    ExtentTwice,
    /// A block is beyond the end of its extent.
    BlockBeyond,
    /// A pair is of a volume that there is not.
    VolumeUnknown,
    /// A pair is of an extent beyond the end of its volume.
    LogicalBeyond,
    /// Two pairs are the same extent of a volume.
    LogicalTwice,
    /// One header of the store's region is damaged.
    StoreHeader,
    /// The metadata store is damaged.
    StoreDamaged,
    /// The metadata store cannot be read.
    StoreUnreadable,
    /// The metadata store and both copies of the volume table are damaged.
    VolumesLost,
    /// One copy of the volume table is damaged or out of date.
    VolumeTableCopy,
    /// The store is older than the volume table.
    StoreOlder,
    /// The store knows of a later state of a pair than the home.
    StoreNewer,
    /// The store and the home contradict each other about a pair.
    StoreContradicts,
    /// The store holds an extent for what is not there.
    ExtentLeaked,
    /// The metadata server's store does not have the pool.
    PoolUnknown,
    /// The metadata server's store has the pool as one of other extents.
    PoolDiffers,
    /// The store knows of a later start of the unit than the region.
    IncarnationBehind,
}

/// How a damage is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mend {
    /// Write the damaged superblocks of the device of that position.
    Superblock(usize),
    /// Write the damaged copy of the NVRAM's identity.
    Identity,
    /// Write the damaged copy of a page of the region.
    Page(PageKind, UnevenPage),
    /// Write the store region's header again.
    StoreHeader,
    /// Write the volume table again.
    VolumeTable,
    /// Make a new store from the volume table; the unit then tells it of all pairs.
    NewStore,
}

/// A damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its kind.
    pub code: Code,
    /// Where it is: a device's path with a byte offset, a pair, an extent.
    #[serde(rename = "where")]
    pub place: String,
    /// What is wrong, and what to do where that is not a repair.
    pub what: String,
    /// Whether `--repair` can mend it.
    pub repairable: bool,
    /// How.
    #[serde(skip)]
    pub mend: Option<Mend>,
}

impl Finding {
    /// A damage that a repair mends.
    #[expect(clippy::needless_pass_by_value, reason = "most are made for the call")]
    pub fn mendable(code: Code, place: impl ToString, what: impl ToString, mend: Mend) -> Self {
        let (place, what) = (place.to_string(), what.to_string());
        Finding { code, place, what, repairable: true, mend: Some(mend) }
    }

    /// A damage that nothing here can mend.
    #[expect(clippy::needless_pass_by_value, reason = "most are made for the call")]
    pub fn lasting(code: Code, place: impl ToString, what: impl ToString) -> Self {
        let (place, what) = (place.to_string(), what.to_string());
        Finding { code, place, what, repairable: false, mend: None }
    }
}

/// Takes back the promise of a new store where anything else is past mending: the old store may be
/// all that is left of what was lost.
pub fn keep_the_store(findings: &mut [Finding]) {
    if findings.iter().all(|finding| finding.mend.is_some()) {
        return;
    }
    for finding in findings.iter_mut().filter(|finding| finding.mend == Some(Mend::NewStore)) {
        finding.mend = None;
        finding.repairable = false;
        finding.what.push_str("; it is left alone because of the other damages");
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let can = if self.repairable { " (can be repaired)" } else { "" };
        write!(f, "{}: {}{can}", self.place, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a store is made anew only where nothing else is past mending.
    #[test]
    fn a_store_may_be_all_that_is_left() {
        let renew = Finding::mendable(Code::ExtentLeaked, "a", "b", Mend::NewStore);
        let copy = Finding::mendable(Code::HeaderCopy, "a", "b", Mend::Identity);
        let lost = Finding::lasting(Code::HomeLost, "a", "b");
        let mut fine = [renew.clone(), copy.clone()];
        keep_the_store(&mut fine);
        assert!(fine.iter().all(|finding| finding.repairable));
        let mut bad = [renew, copy, lost];
        keep_the_store(&mut bad);
        assert_eq!(bad.map(|finding| finding.repairable), [false, true, false]);
    }
}
