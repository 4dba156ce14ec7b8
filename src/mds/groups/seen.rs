//! Consistency groups as the server tells of them to whoever asks ([`crate::mds::overview`]).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::group::TransactionId;
use crate::format::ids::{PoolId, VolumeId};
use crate::mds::raw::Malformed;
use crate::mds::records::NAME_BYTES_MAX;
use crate::txn::wire::{RawTransaction, cut, stage, trouble};
use crate::txn::{GroupId, REASON_MAX, Stage, Trouble};

/// Bytes of a unit's name: a pool's.
const UNIT_BYTES: usize = 36;
/// A transaction is under way, or not done everywhere.
const OPTION_TRANSACTION: u8 = 1;
/// The unit of the volume is attached.
const OPTION_ATTACHED: u8 = 1;
/// The unit of the volume is waited for.
const OPTION_WAITED: u8 = 2;

/// A consistency group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSeen {
    /// Its number.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// Which of its memberships this is.
    pub version: u32,
    /// Grows where a member lost what was not committed.
    pub life: u32,
    /// The transaction under way, or not done everywhere.
    pub transaction: Option<TransactionId>,
    /// How far that is.
    pub stage: Stage,
    /// Why no transaction can succeed now.
    pub trouble: Option<Trouble>,
}

/// A volume of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSeen {
    /// The group.
    pub group: GroupId,
    /// The volume's pool; all zeros of an embedded server's.
    pub pool: PoolId,
    /// Its number there.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// Whether the pool's unit is attached.
    pub attached: bool,
    /// Whether that unit is waited for: by a transaction, or by those who join.
    pub waited: bool,
}

/// A [`GroupSeen`].
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawGroupSeen {
    group: U32,
    version: U32,
    life: U32,
    options: u8,
    stage: u8,
    trouble: u8,
    name_len: u8,
    unit_len: u8,
    reason_len: u8,
    reserved: [u8; 2],
    transaction: RawTransaction,
    name: [u8; NAME_BYTES_MAX],
    unit: [u8; UNIT_BYTES],
    reason: [u8; REASON_MAX],
}
const _: () = assert!(size_of::<RawGroupSeen>() == 320);

/// A [`MemberSeen`].
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawMemberSeen {
    group: U32,
    volume: U32,
    pool: [u8; 16],
    name_len: U16,
    options: u8,
    reserved: u8,
    name: [u8; NAME_BYTES_MAX],
}
const _: () = assert!(size_of::<RawMemberSeen>() == 156);

/// Puts as much of a text into a field as it takes; gives how many bytes that are.
fn put(text: &str, field: &mut [u8]) -> u8 {
    let text = cut(text, field.len().min(u8::MAX.into()));
    field[..text.len()].copy_from_slice(text.as_bytes());
    text.len() as u8
}

fn text(field: &[u8], len: usize) -> Result<String, Malformed> {
    let bytes = field.get(..len).ok_or(Malformed)?;
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed)
}

impl From<&GroupSeen> for RawGroupSeen {
    fn from(seen: &GroupSeen) -> Self {
        let (trouble, unit, reason) = match &seen.trouble {
            None => (0, "", ""),
            Some(Trouble::Silent(unit)) => (1, unit.as_str(), ""),
            Some(Trouble::Refused { unit, reason }) => (2, unit.as_str(), reason.as_str()),
            Some(Trouble::Forming) => (3, "", ""),
        };
        let mut raw = RawGroupSeen::new_zeroed();
        raw.group = U32::new(seen.group.0);
        raw.version = U32::new(seen.version);
        raw.life = U32::new(seen.life);
        raw.stage = seen.stage as u8;
        raw.trouble = trouble;
        if let Some(transaction) = seen.transaction {
            raw.options = OPTION_TRANSACTION;
            raw.transaction = transaction.into();
        }
        raw.name_len = put(&seen.name, &mut raw.name);
        raw.unit_len = put(unit, &mut raw.unit);
        raw.reason_len = put(reason, &mut raw.reason);
        raw
    }
}

impl TryFrom<&RawGroupSeen> for GroupSeen {
    type Error = Malformed;

    fn try_from(raw: &RawGroupSeen) -> Result<Self, Malformed> {
        let unit = text(&raw.unit, raw.unit_len.into())?;
        let reason = text(&raw.reason, raw.reason_len.into())?;
        let named = raw.options & OPTION_TRANSACTION != 0;
        Ok(GroupSeen {
            group: GroupId(raw.group.get()),
            name: text(&raw.name, raw.name_len.into())?,
            version: raw.version.get(),
            life: raw.life.get(),
            transaction: named.then(|| raw.transaction.into()),
            stage: stage(raw.stage)?,
            trouble: trouble(raw.trouble, unit, reason)?,
        })
    }
}

impl From<&MemberSeen> for RawMemberSeen {
    fn from(seen: &MemberSeen) -> Self {
        let mut raw = RawMemberSeen::new_zeroed();
        raw.group = U32::new(seen.group.0);
        raw.volume = U32::new(seen.volume.0);
        raw.pool = seen.pool.0;
        raw.name_len = U16::new(put(&seen.name, &mut raw.name).into());
        raw.options = if seen.attached { OPTION_ATTACHED } else { 0 };
        raw.options |= if seen.waited { OPTION_WAITED } else { 0 };
        raw
    }
}

impl TryFrom<&RawMemberSeen> for MemberSeen {
    type Error = Malformed;

    fn try_from(raw: &RawMemberSeen) -> Result<Self, Malformed> {
        Ok(MemberSeen {
            group: GroupId(raw.group.get()),
            pool: PoolId(raw.pool),
            volume: VolumeId(raw.volume.get()),
            name: text(&raw.name, raw.name_len.get().into())?,
            attached: raw.options & OPTION_ATTACHED != 0,
            waited: raw.options & OPTION_WAITED != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::Incarnation;

    /// Goal: what is shown survives its record.
    #[test]
    fn round_trips() {
        let transaction =
            TransactionId { coordinator: u32::MAX, incarnation: Incarnation(3), number: 9 };
        let unit = PoolId([7; 16]).to_string();
        let mut seen = GroupSeen {
            group: GroupId(4),
            name: "n".repeat(NAME_BYTES_MAX),
            version: 1,
            life: 2,
            transaction: Some(transaction),
            stage: Stage::Committed,
            trouble: None,
        };
        let reason = "r".repeat(REASON_MAX);
        for trouble in [
            None,
            Some(Trouble::Silent(unit.clone())),
            Some(Trouble::Refused { unit, reason }),
            Some(Trouble::Forming),
        ] {
            seen.trouble = trouble;
            assert_eq!(GroupSeen::try_from(&RawGroupSeen::from(&seen)), Ok(seen.clone()));
        }
        let member = MemberSeen {
            group: GroupId(4),
            pool: PoolId([7; 16]),
            volume: VolumeId(8),
            name: "logs".to_owned(),
            attached: true,
            waited: false,
        };
        assert_eq!(MemberSeen::try_from(&RawMemberSeen::from(&member)), Ok(member));
    }
}
