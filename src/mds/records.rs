//! What client and server speak of.

use crate::format::home::Line;
use crate::format::ids::{
    ExtentId, ExtentRun, Generation, HostId, Incarnation, LogicalExtent, PairId, PoolId, Slot,
    UnitId, VolumeId,
};

/// The longest name of a volume, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The most primitives that one transaction can hold.
pub const TRANSACT_PRIMITIVES_MAX: usize = 32_768;
/// The most runs that one allocation answers with; it gives fewer extents rather than more runs.
pub const ALLOCATION_RUNS_MAX: usize = 64;
/// The most runs that can be given back in one request.
pub const RETURN_RUNS_MAX: usize = 4096;

/// An area pair, absolute: as it shall be from this generation on.
///
/// Generations count the changes of one `pair` of one unit (a line of that unit's home map),
/// whatever logical extent the line stands for. A pair without any slot is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PairRecord {
    /// The volume that the pair backs.
    pub volume: VolumeId,
    /// The position in that volume.
    pub logical: LogicalExtent,
    /// The line of the unit's home map.
    pub pair: PairId,
    /// Which change of the pair this is.
    pub generation: Generation,
    /// The physical extent in each slot.
    pub slots: [Option<ExtentId>; 2],
    /// The slot that is the data area; the other, where there is one, is the journal area.
    pub data_slot: Slot,
}

impl PairRecord {
    /// Whether the pair backs nothing any more.
    pub fn is_released(&self) -> bool {
        self.slots == [None, None]
    }
}

/// What one record of a transaction does, by the patent's names and ours.
///
/// The result is always the whole pair; the operation is its reason, counted by the server and
/// checked against the shape of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primitive {
    /// Associate_Data_Journal: a journal area joins the data area.
    AssociateDataJournal(PairRecord),
    /// Swap_Data_Journal: the journal area becomes the data area.
    SwapDataJournal(PairRecord),
    /// Commit_Data_Journal: the data area holds all again.
    CommitDataJournal(PairRecord),
    /// Disassociate_Journal_Extent: the journal area leaves the pair.
    DisassociateJournalExtent(PairRecord),
    /// The first extent behind a logical extent of a thin volume.
    BindData(PairRecord),
    /// The whole logical extent was trimmed: no slot is left.
    ReleasePair(PairRecord),
    /// Harden_Extent_Flags: reserved; flags are hardened by an operation of their own.
    HardenExtentFlags(PairRecord),
}

impl Primitive {
    /// The pair as it shall be.
    pub fn pair(&self) -> &PairRecord {
        match self {
            Primitive::AssociateDataJournal(pair)
            | Primitive::SwapDataJournal(pair)
            | Primitive::CommitDataJournal(pair)
            | Primitive::DisassociateJournalExtent(pair)
            | Primitive::BindData(pair)
            | Primitive::ReleasePair(pair)
            | Primitive::HardenExtentFlags(pair) => pair,
        }
    }
}

/// How far lines have changed, and how far those who read beside the unit know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The view that holds all that was executed so far: grows with each turn of the server that
    /// changed lines, also over its starts.
    pub view: u64,
    /// The lowest view that a reader may still use; `u64::MAX` where there is no reader.
    pub horizon: u64,
}

/// The lines of a unit, or those that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinesSeen {
    /// The view that they are of.
    pub view: u64,
    /// The lines; pairs that are not named never belonged to anything, or have not changed.
    pub lines: Vec<(PairId, Line)>,
}

/// A volume as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its number, never used again.
    pub id: VolumeId,
    /// Its name: 1 to [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its deletion has begun: nobody may use it, and its extents are being given back. Its name
    /// may be another volume's.
    pub deleting: bool,
}

/// Who attaches to a pool, and how (design section 8, ownership).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The pool.
    pub pool: PoolId,
    /// The machine.
    pub host: HostId,
    /// The storage unit.
    pub unit: UnitId,
    /// Which start of the unit this is; none where the server counts them, as nothing of the unit
    /// is kept elsewhere, and of a reader.
    pub incarnation: Option<Incarnation>,
    /// The start that the unit's flags were found to be of; where the server counts, the last one
    /// that it told: of a reader, of readers.
    pub after: Incarnation,
    /// How long the claim is good without being renewed, in milliseconds; 0: for ever, as the
    /// devices are one host's.
    pub lease_ms: u32,
    /// Whether the writes of an owner on another host can arrive no more: its devices were taken
    /// from it.
    pub fenced: bool,
    /// Whether it only reads, beside the one who writes.
    pub reads: bool,
}

impl Claim {
    /// The claim of a unit whose devices are this one host's, as the start after the one that its
    /// flags are of.
    pub fn of(pool: PoolId, unit: UnitId, incarnation: Incarnation) -> Self {
        Claim {
            pool,
            host: HostId::default(),
            unit,
            incarnation: Some(incarnation),
            after: Incarnation(incarnation.0.saturating_sub(1)),
            lease_ms: 0,
            fenced: false,
            reads: false,
        }
    }
}

/// What one unit was granted, in all or by one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Every extent that is the unit's, bound or free, in order.
    pub runs: Vec<ExtentRun>,
    /// How many of them it may use as data areas.
    pub data_quota: u64,
}

impl Grants {
    /// Whether nothing is granted.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.data_quota == 0
    }
}

/// A page of a volume's layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayoutPage {
    /// The live pairs in order of their logical extent, each with the unit that owns it. For a
    /// moment, while changes are on their way, two pairs may stand for one logical extent.
    pub pairs: Vec<(UnitId, PairRecord)>,
    /// Where the next page begins, if there is one.
    pub next: Option<LogicalExtent>,
}

/// What does not change in the life of a pool's metadata, as told at attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolInfo {
    /// Extents in all.
    pub extents: u32,
    /// Extents that thin allocation cannot take: the journal reserve.
    pub reserve: u32,
    /// Size of an extent, in bytes.
    pub extent_size: u32,
}

macro_rules! counters {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $field:ident,)+ }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct $name { $($(#[$doc])* pub $field: u64,)+ }

        impl $name {
            /// How many counters there are.
            pub const COUNT: usize = [$(stringify!($field)),+].len();

            /// The counters in the order of their declaration, as they are sent.
            pub fn words(&self) -> [u64; Self::COUNT] {
                [$(self.$field),+]
            }

            /// Both together.
            #[must_use]
            pub fn plus(&self, other: &Self) -> Self {
                Self { $($field: self.$field + other.$field),+ }
            }

            /// The counters from what was sent.
            pub fn from_words(words: [u64; Self::COUNT]) -> Self {
                let [$($field),+] = words;
                Self { $($field),+ }
            }
        }
    };
}

counters! {
    /// What the server has done since it started, and what it holds.
    ServerStatus {
        /// Metadata transactions executed: [`Primitive`] batches, one each whatever its size.
        transactions,
        /// Durable store transactions; requests that wait together share one.
        store_commits,
        /// Associate_Data_Journal records applied.
        associates,
        /// Swap_Data_Journal records applied.
        swaps,
        /// Commit_Data_Journal records applied.
        commits,
        /// Disassociate_Journal_Extent records applied.
        disassociates,
        /// First bindings applied.
        binds,
        /// Released pairs.
        releases,
        /// Harden_Extent_Flags requests executed: groups of a pool whose flags are here.
        hardens,
        /// Records not applied because the stored generation was no older.
        stale,
        /// Allocate_Journal_Space requests executed.
        journal_allocations,
        /// Data extent allocations executed.
        data_allocations,
        /// Extents given back.
        extents_returned,
        /// Requests refused.
        refused,
        /// Datagrams received.
        datagrams,
        /// Datagrams dropped: garbage, out of the window, or for lack of memory.
        dropped,
        /// Datagrams dropped because they did not carry the proof of the key.
        unauthenticated,
        /// Requests that had been executed already and were answered from the record.
        repeated,
        /// Sessions attached.
        sessions,
        /// Volumes that exist.
        volumes,
        /// Extents of the pool.
        extents,
        /// Extents granted to no unit.
        extents_free,
        /// Extents granted as data, over all units.
        data_quota,
        /// Bytes that the store wrote to its device.
        store_bytes_written,
    }
}
