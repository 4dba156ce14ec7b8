//! The packed records of message bodies, and of the store's rows, which are the same where they
//! can.
//!
//! | operation | request's body | reply's body |
//! | --- | --- | --- |
//! | Attach | one [`RawAttach`] | one [`RawPool`] |
//! | Detach | empty | empty |
//! | Renew | empty | one [`RawTold`] |
//! | Transact | [`RawPrimitive`]s | one [`RawTold`] |
//! | HardenExtentFlags | records as in a group ([`crate::format::record`]) | one [`RawTold`] |
//! | AllocateJournalSpace, AllocateDataExtents | one U32: how many | U64: quota; [`RawRun`]s |
//! | ReturnExtents | one U32: how much of the data quota with them; [`RawRun`]s | empty |
//! | CreateVolume | one [`RawVolume`], id 0 | one [`RawVolume`] |
//! | ResizeVolume, DeleteVolume, RemoveVolume | one [`RawVolume`], name empty | empty |
//! | RenameVolume | one [`RawVolume`] with the new name | empty |
//! | ListVolumes | one [`RawPage`], from an id | [`RawVolume`]s |
//! | ListGrants | one [`RawPage`], from an extent | U64: quota; [`RawRun`]s |
//! | Layout | one [`RawPage`] of a volume, from a logical extent | [`RawOwned`]s |
//! | RegisterPool | one [`RawPoolSpec`]; [`RawRun`]s: the extents of each device | empty |
//! | ForgetPool | one [`RawForget`] | empty |
//! | Overview | see [`super::overview`] | |
//! | Coordinate | reports, as in [`crate::txn::wire`] | orders |
//! | CreateGroup, DeleteGroup | see [`super::groups::rows`] | |
//! | PrepareExtentFlags | see [`super::groups::prepared`] | one [`RawTold`] |
//! | Lines | one [`RawPage`], from a pair | U64: view; [`RawPairLine`]s |
//! | Changes | one [`RawSince`] | one [`RawChanges`]; [`RawPairLine`]s |
//! | Status | empty | U64s in the order of [`super::records::ServerStatus`] |
//!
//! A page ends the list when it has fewer records than were asked for; the next begins after the
//! last record's key.
//!
//! # Contract
//!
//! Records are parsed by `TryFrom`: what comes out is verified (slots, names and opcodes in range).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::catalog::PoolSpec;
use super::records::{
    Claim, Grants, NAME_BYTES_MAX, PairRecord, PoolInfo, Primitive, Told, VolumeInfo,
};
use crate::format::home::{LINE_BYTES, Line};
use crate::format::ids::{
    ExtentId, ExtentRun, Generation, HostId, Incarnation, LogicalExtent, PairId, PoolId, Slot,
    UnitId, VolumeId,
};

/// Stands for an empty slot; no pool is so large that an extent has this number.
pub const NO_EXTENT: u32 = u32::MAX;

/// Of who attaches and does not count the starts itself.
const NO_INCARNATION: u32 = u32::MAX;

/// [`RawChanges::rest`]: nothing more changed.
pub const REST_NONE: u32 = 0;
/// [`RawChanges::rest`]: what changed is not known.
pub const REST_UNKNOWN: u32 = 1;
/// [`RawChanges::rest`]: more changed, and is told to who asks again.
pub const REST_MORE: u32 = 2;
/// Options of who attaches.
const OPTION_FENCED: u32 = 1;
const OPTION_READS: u32 = 2;
/// Option of who forgets a pool.
const OPTION_FORCE: u32 = 1;
/// Of who forgets a pool and does not know by which number it was registered.
pub const NO_NUMBER: u32 = u32::MAX;

/// States of a volume's record.
const STATE_LIVE: u16 = 0;
const STATE_DELETING: u16 = 1;

/// Bytes that are not the record that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

macro_rules! raw {
    ($(#[$doc:meta])* $name:ident[$size:literal] { $($field:ident: $type:ty,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub struct $name { $(#[allow(missing_docs)] pub $field: $type,)+ }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

raw! {
    /// A pair as it shall be. The extents come last so that a later version can append flags.
    RawPair[28] {
        volume: U32,
        logical: U32,
        pair: U32,
        generation: U32,
        data_slot: u8,
        reserved: [u8; 3],
        slots: [U32; 2],
    }
}
raw! {
    /// A pair of a layout, with its owner.
    RawOwned[32] { unit: U32, pair: RawPair, }
}
raw! {
    /// One record of a transaction.
    RawPrimitive[32] { opcode: U16, reserved: U16, pair: RawPair, }
}
raw! {
    /// A run of extents.
    RawRun[8] { start: U32, count: U32, }
}
raw! {
    /// A volume; its state is 0, or 1 while it is being deleted.
    RawVolume[144] {
        id: U32,
        name_length: U16,
        state: U16,
        size: U64,
        name: [u8; NAME_BYTES_MAX],
    }
}
raw! {
    /// Who attaches to which pool, on which host, for how long, and the largest datagram that it
    /// takes; and after which start ([`Claim::after`]).
    RawAttach[56] {
        pool: [u8; 16],
        host: [u8; 16],
        unit: U32,
        incarnation: U32,
        payload_max: U32,
        lease_ms: U32,
        options: U32,
        after: U32,
    }
}
raw! {
    /// What an attached unit is told of the pool and of its session.
    RawPool[20] { extents: U32, reserve: U32, extent_size: U32, incarnation: U32, lease_ms: U32, }
}
raw! {
    /// What a pool is made of, before the extents of its devices.
    RawPoolSpec[24] { pool: [u8; 16], extent_size: U32, reserve: U32, }
}
raw! {
    /// Which pool is forgotten, by which number it was registered ([`NO_NUMBER`]: not known), and
    /// whether also one that is attached.
    RawForget[24] { pool: [u8; 16], options: U32, number: U32, }
}
raw! {
    /// Which page of a list.
    RawPage[16] { volume: U32, count: U32, from: U64, }
}

raw! {
    /// How far lines have changed, and the readers followed ([`Told`]).
    RawTold[16] { view: U64, horizon: U64, }
}
raw! {
    /// A pair's line, as in the home ([`crate::format::home`]).
    RawPairLine[92] { pair: U32, line: [u8; LINE_BYTES], }
}
raw! {
    /// Since which view changes are asked for; and before which nothing is used any more.
    RawSince[16] { since: U64, used: U64, }
}
raw! {
    /// What the lines that follow are: those that changed up to `view`, after which more did where
    /// `rest` is [`REST_MORE`]; or none where it is [`REST_UNKNOWN`], as it is not known what
    /// changed: all are to be asked for.
    RawChanges[12] { view: U64, rest: U32, }
}

/// One record at the start of `bytes` with nothing after it.
pub fn one<T: FromBytes + Unaligned>(bytes: &[u8]) -> Result<T, Malformed> {
    T::read_from_bytes(bytes).map_err(|_| Malformed)
}

/// `bytes` as records without remainder.
pub fn many<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<&[T], Malformed> {
    <[T]>::ref_from_bytes(bytes).map_err(|_| Malformed)
}

/// A first record and the bytes after it.
pub fn first<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), Malformed> {
    T::read_from_prefix(bytes).map_err(|_| Malformed)
}

/// Packs records one after another.
pub fn pack<T: IntoBytes + Immutable>(records: impl IntoIterator<Item = T>) -> Vec<u8> {
    records.into_iter().fold(Vec::new(), |mut bytes, record| {
        bytes.extend_from_slice(record.as_bytes());
        bytes
    })
}

impl From<Told> for RawTold {
    fn from(told: Told) -> Self {
        RawTold { view: U64::new(told.view), horizon: U64::new(told.horizon) }
    }
}

impl From<RawTold> for Told {
    fn from(raw: RawTold) -> Self {
        Told { view: raw.view.get(), horizon: raw.horizon.get() }
    }
}

impl RawPairLine {
    /// The record of a pair's line.
    pub fn new(pair: PairId, line: [u8; LINE_BYTES]) -> Self {
        RawPairLine { pair: U32::new(pair.0), line }
    }
}

/// Every line of `bytes`, sound.
pub fn lines(bytes: &[u8]) -> Result<Vec<(PairId, Line)>, Malformed> {
    let line = |raw: &RawPairLine| {
        let line = Line::from_bytes(&raw.line).filter(Line::is_sound).ok_or(Malformed)?;
        Ok((PairId(raw.pair.get()), line))
    };
    many::<RawPairLine>(bytes)?.iter().map(line).collect()
}

impl From<&PairRecord> for RawPair {
    fn from(record: &PairRecord) -> Self {
        RawPair {
            volume: U32::new(record.volume.0),
            logical: U32::new(record.logical.0),
            pair: U32::new(record.pair.0),
            generation: U32::new(record.generation.0),
            data_slot: record.data_slot as u8,
            reserved: [0; 3],
            slots: record.slots.map(|slot| U32::new(slot.map_or(NO_EXTENT, |extent| extent.0))),
        }
    }
}

impl TryFrom<&RawPair> for PairRecord {
    type Error = Malformed;

    fn try_from(raw: &RawPair) -> Result<Self, Malformed> {
        if raw.reserved != [0; 3] {
            return Err(Malformed);
        }
        let slots = raw.slots.map(|slot| match slot.get() {
            NO_EXTENT => None,
            extent => Some(ExtentId(extent)),
        });
        let data_slot = Slot::from_index(raw.data_slot).ok_or(Malformed)?;
        let record = PairRecord {
            volume: VolumeId(raw.volume.get()),
            logical: LogicalExtent(raw.logical.get()),
            pair: PairId(raw.pair.get()),
            generation: Generation(raw.generation.get()),
            slots,
            data_slot,
        };
        // A live pair has its data area; its two sides differ.
        let sane =
            record.is_released() || (slots[data_slot.index()].is_some() && slots[0] != slots[1]);
        if sane { Ok(record) } else { Err(Malformed) }
    }
}

impl From<&Primitive> for RawPrimitive {
    fn from(primitive: &Primitive) -> Self {
        let opcode = match primitive {
            Primitive::AssociateDataJournal(_) => 1,
            Primitive::HardenExtentFlags(_) => 2,
            Primitive::SwapDataJournal(_) => 3,
            Primitive::CommitDataJournal(_) => 4,
            Primitive::DisassociateJournalExtent(_) => 5,
            Primitive::BindData(_) => 6,
            Primitive::ReleasePair(_) => 7,
        };
        RawPrimitive {
            opcode: U16::new(opcode),
            reserved: U16::ZERO,
            pair: RawPair::from(primitive.pair()),
        }
    }
}

impl TryFrom<&RawPrimitive> for Primitive {
    type Error = Malformed;

    fn try_from(raw: &RawPrimitive) -> Result<Self, Malformed> {
        let pair = PairRecord::try_from(&raw.pair)?;
        if raw.reserved.get() != 0 {
            return Err(Malformed);
        }
        match raw.opcode.get() {
            1 => Ok(Primitive::AssociateDataJournal(pair)),
            2 => Ok(Primitive::HardenExtentFlags(pair)),
            3 => Ok(Primitive::SwapDataJournal(pair)),
            4 => Ok(Primitive::CommitDataJournal(pair)),
            5 => Ok(Primitive::DisassociateJournalExtent(pair)),
            6 => Ok(Primitive::BindData(pair)),
            7 => Ok(Primitive::ReleasePair(pair)),
            _ => Err(Malformed),
        }
    }
}

impl From<ExtentRun> for RawRun {
    fn from(run: ExtentRun) -> Self {
        RawRun { start: U32::new(run.start.0), count: U32::new(run.count) }
    }
}

impl TryFrom<&RawRun> for ExtentRun {
    type Error = Malformed;

    fn try_from(raw: &RawRun) -> Result<Self, Malformed> {
        let (start, count) = (raw.start.get(), raw.count.get());
        // No extent has the number that stands for none, as the run's end is a number too.
        if count == 0 || start.checked_add(count).is_none() {
            return Err(Malformed);
        }
        Ok(ExtentRun { start: ExtentId(start), count })
    }
}

/// Every run of `bytes`.
pub fn runs(bytes: &[u8]) -> Result<Vec<ExtentRun>, Malformed> {
    many::<RawRun>(bytes)?.iter().map(ExtentRun::try_from).collect()
}

/// Grants: the quota, and the runs.
pub fn grants_body(grants: &Grants) -> Vec<u8> {
    let mut body = U64::new(grants.data_quota).as_bytes().to_vec();
    body.extend(pack(grants.runs.iter().map(|run| RawRun::from(*run))));
    body
}

/// The grants in a body that is nothing else.
pub fn grants(bytes: &[u8]) -> Result<Grants, Malformed> {
    let (quota, rest) = first::<U64>(bytes)?;
    Ok(Grants { runs: runs(rest)?, data_quota: quota.get() })
}

impl RawVolume {
    /// A volume without its name, where the id is enough.
    pub fn nameless(id: VolumeId, size: u64) -> Self {
        RawVolume {
            id: U32::new(id.0),
            name_length: U16::ZERO,
            state: U16::new(STATE_LIVE),
            size: U64::new(size),
            name: [0; NAME_BYTES_MAX],
        }
    }

    /// A volume; `None` where the name is too long.
    pub fn named(id: VolumeId, name: &str, size: u64) -> Option<Self> {
        let mut raw = Self::nameless(id, size);
        raw.name.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        raw.name_length = U16::new(name.len() as u16);
        Some(raw)
    }
}

impl From<&VolumeInfo> for RawVolume {
    fn from(volume: &VolumeInfo) -> Self {
        let named = RawVolume::named(volume.id, &volume.name, volume.size);
        let mut raw = named.expect("names are checked when they are given");
        if volume.deleting {
            raw.state = U16::new(STATE_DELETING);
        }
        raw
    }
}

impl TryFrom<&RawVolume> for VolumeInfo {
    type Error = Malformed;

    fn try_from(raw: &RawVolume) -> Result<Self, Malformed> {
        let name = raw.name.get(..usize::from(raw.name_length.get())).ok_or(Malformed)?;
        let name = std::str::from_utf8(name).map_err(|_| Malformed)?;
        let deleting = match raw.state.get() {
            STATE_LIVE => false,
            STATE_DELETING => true,
            _ => return Err(Malformed),
        };
        let (id, size) = (VolumeId(raw.id.get()), raw.size.get());
        Ok(VolumeInfo { id, name: name.to_owned(), size, deleting })
    }
}

impl RawAttach {
    /// The record of a claim that takes datagrams of so many bytes.
    pub fn new(claim: &Claim, payload_max: u32) -> Self {
        let option = |bit, set| if set { bit } else { 0 };
        let incarnation = claim.incarnation.map_or(NO_INCARNATION, |incarnation| incarnation.0);
        RawAttach {
            pool: claim.pool.0,
            host: claim.host.0,
            unit: U32::new(claim.unit.0),
            incarnation: U32::new(incarnation),
            payload_max: U32::new(payload_max),
            lease_ms: U32::new(claim.lease_ms),
            options: U32::new(
                option(OPTION_FENCED, claim.fenced) | option(OPTION_READS, claim.reads),
            ),
            after: U32::new(claim.after.0),
        }
    }
}

impl TryFrom<&RawAttach> for Claim {
    type Error = Malformed;

    fn try_from(raw: &RawAttach) -> Result<Self, Malformed> {
        let options = raw.options.get();
        if options & !(OPTION_FENCED | OPTION_READS) != 0 {
            return Err(Malformed);
        }
        let incarnation = raw.incarnation.get();
        Ok(Claim {
            pool: PoolId(raw.pool),
            host: HostId(raw.host),
            unit: UnitId(raw.unit.get()),
            incarnation: (incarnation != NO_INCARNATION).then_some(Incarnation(incarnation)),
            after: Incarnation(raw.after.get()),
            lease_ms: raw.lease_ms.get(),
            fenced: options & OPTION_FENCED != 0,
            reads: options & OPTION_READS != 0,
        })
    }
}

/// The body that registers a pool.
pub fn pool_spec_body(pool: PoolId, spec: &PoolSpec) -> Vec<u8> {
    let head = RawPoolSpec {
        pool: pool.0,
        extent_size: U32::new(spec.extent_size),
        reserve: U32::new(spec.reserve),
    };
    let mut body = head.as_bytes().to_vec();
    body.extend(pack(spec.devices.iter().map(|run| RawRun::from(*run))));
    body
}

/// The pool that a body registers, and what it is made of, which can be.
pub fn pool_spec(body: &[u8]) -> Result<(PoolId, PoolSpec), Malformed> {
    let (head, rest) = first::<RawPoolSpec>(body)?;
    let spec = PoolSpec {
        extent_size: head.extent_size.get(),
        devices: runs(rest)?,
        reserve: head.reserve.get(),
    };
    if spec.is_sound() { Ok((PoolId(head.pool), spec)) } else { Err(Malformed) }
}

impl RawForget {
    /// Forgets a pool that was registered by that number; also one that is attached where it is to
    /// be by `force`.
    pub fn new(pool: PoolId, number: u32, force: bool) -> Self {
        let options = U32::new(if force { OPTION_FORCE } else { 0 });
        RawForget { pool: pool.0, options, number: U32::new(number) }
    }

    /// The pool, its number, and whether also one that is attached is forgotten.
    pub fn parts(&self) -> Result<(PoolId, u32, bool), Malformed> {
        let (pool, number) = (PoolId(self.pool), self.number.get());
        match self.options.get() {
            0 => Ok((pool, number, false)),
            OPTION_FORCE => Ok((pool, number, true)),
            _ => Err(Malformed),
        }
    }
}

impl RawPool {
    /// What is told of a pool, to a session of that incarnation with that lease.
    pub fn new(pool: PoolInfo, incarnation: Incarnation, lease_ms: u32) -> Self {
        RawPool {
            extents: U32::new(pool.extents),
            reserve: U32::new(pool.reserve),
            extent_size: U32::new(pool.extent_size),
            incarnation: U32::new(incarnation.0),
            lease_ms: U32::new(lease_ms),
        }
    }
}

impl From<RawPool> for PoolInfo {
    fn from(raw: RawPool) -> Self {
        PoolInfo {
            extents: raw.extents.get(),
            reserve: raw.reserve.get(),
            extent_size: raw.extent_size.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Goal: a sane pair survives its record, in every operation.
        #[test]
        fn primitives_round_trip(
            numbers in any::<[u32; 4]>(), a in 0..1000u32, b in 1000..2000u32,
            both: bool, one: bool, opcode in 1..=7u16,
        ) {
            let data_slot = if one { Slot::One } else { Slot::Zero };
            let mut slots = [None, None];
            slots[data_slot.index()] = Some(ExtentId(a));
            slots[data_slot.other().index()] = both.then_some(ExtentId(b));
            let pair = PairRecord {
                volume: VolumeId(numbers[0]),
                logical: LogicalExtent(numbers[1]),
                pair: PairId(numbers[2]),
                generation: Generation(numbers[3]),
                slots,
                data_slot,
            };
            let raw = RawPrimitive {
                opcode: U16::new(opcode),
                reserved: U16::ZERO,
                pair: RawPair::from(&pair),
            };
            let primitive = Primitive::try_from(&raw).unwrap();
            prop_assert_eq!(primitive.pair(), &pair);
            let again = RawPrimitive::from(&primitive);
            prop_assert_eq!(again.as_bytes(), raw.as_bytes());
        }

        /// Goal: random records are refused or parsed, never a panic.
        #[test]
        fn any_records_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(raws) = many::<RawPrimitive>(&bytes) {
                let sane = raws.iter().filter(|raw| Primitive::try_from(*raw).is_ok());
                prop_assert!(sane.count() <= raws.len());
            }
            let _ = one::<RawVolume>(&bytes).map(|raw| VolumeInfo::try_from(&raw).is_ok());
            let _ = runs(&bytes);
        }
    }

    /// Goal: names as long as may be survive, longer ones are refused; so are unknown states.
    #[test]
    fn volume_names() {
        let name = "v".repeat(NAME_BYTES_MAX);
        for deleting in [false, true] {
            let volume =
                VolumeInfo { id: VolumeId(3), name: name.clone(), size: 1 << 30, deleting };
            assert_eq!(VolumeInfo::try_from(&RawVolume::from(&volume)), Ok(volume));
        }
        let unknown = RawVolume { state: U16::new(2), ..RawVolume::nameless(VolumeId(3), 1) };
        assert_eq!(VolumeInfo::try_from(&unknown), Err(Malformed));
        assert!(RawVolume::named(VolumeId(3), &(name + "v"), 0).is_none());
    }

    /// Goal: a live pair without its data area, or with one extent twice, is refused.
    #[test]
    fn insane_pairs_are_refused() {
        let pair = PairRecord {
            volume: VolumeId(0),
            logical: LogicalExtent(0),
            pair: PairId(0),
            generation: Generation(1),
            slots: [Some(ExtentId(4)), None],
            data_slot: Slot::One,
        };
        assert_eq!(PairRecord::try_from(&RawPair::from(&pair)), Err(Malformed));
        let twice = PairRecord { slots: [Some(ExtentId(4)); 2], ..pair };
        assert_eq!(PairRecord::try_from(&RawPair::from(&twice)), Err(Malformed));
    }
}
