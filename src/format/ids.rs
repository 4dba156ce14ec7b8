//! The numbers that name things, each a type of its own so that none is taken for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// A storage unit within its pool.
    UnitId(u32)
}
id! {
    /// A volume within its pool; never used again after the volume is deleted.
    VolumeId(u32)
}
id! {
    /// The position of an extent's worth of blocks within a volume.
    LogicalExtent(u32)
}
id! {
    /// A physical extent of the pool; each device of the pool owns one contiguous run of these.
    ExtentId(u32)
}
id! {
    /// A line of a unit's home map: the one or two physical extents behind a logical extent.
    PairId(u32)
}
id! {
    /// Counts the changes of one pair's binding; the higher is the newer (design section 5).
    Generation(u32)
}
id! {
    /// The place of a group in its journal's order; never used twice in the life of a pool.
    Sequence(u64)
}
id! {
    /// Counts the starts of a unit, so that what an earlier process wrote is told apart.
    Incarnation(u32)
}

/// One of the two sides of an area pair (design section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Slot {
    /// The first side.
    Zero = 0,
    /// The second side.
    One = 1,
}

impl Slot {
    /// Both sides, in order.
    pub const BOTH: [Slot; 2] = [Slot::Zero, Slot::One];

    /// The side that this one is not.
    #[must_use]
    pub fn other(self) -> Slot {
        match self {
            Slot::Zero => Slot::One,
            Slot::One => Slot::Zero,
        }
    }

    /// 0 or 1, to index an array of two.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The side of that index, when there is one.
    pub fn from_index(index: u8) -> Option<Slot> {
        match index {
            0 => Some(Slot::Zero),
            1 => Some(Slot::One),
            _ => None,
        }
    }
}

/// A run of physical extents that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentRun {
    /// The first of them.
    pub start: ExtentId,
    /// How many; at least one.
    pub count: u32,
}

impl ExtentRun {
    /// The first extent after the run.
    pub fn end(self) -> ExtentId {
        ExtentId(self.start.0 + self.count)
    }

    /// Every extent of the run.
    pub fn iter(self) -> impl Iterator<Item = ExtentId> {
        (self.start.0..self.end().0).map(ExtentId)
    }
}

/// Names a pool for ever: sixteen random bytes, drawn at format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PoolId(pub [u8; 16]);

/// Names a machine: where two claims come from one host, the exclusive claim of the devices tells
/// who has them (design section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostId(pub [u8; 16]);

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
