//! The rows of consistency groups, and the bodies that make and delete them.
//!
//! | table | key | row |
//! | --- | --- | --- |
//! | groups | all ones | one [`RawHead`] |
//! | groups | number | one [`RawGroup`]; the name; [`RawMember`]s |
//! | decisions | group's number | one [`RawDecision`]; the pools waited for, 16 bytes each |
//!
//! | operation | request's body | reply's body |
//! | --- | --- | --- |
//! | CreateGroup | one [`RawCreate`]; the name; [`RawNamed`]s, each before its name | U32: number |
//! | DeleteGroup | one [`RawDelete`] | empty |

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::ids::{PoolId, VolumeId};
use crate::mds::raw::{Malformed, first, many, one, pack};
use crate::mds::store::{self, StoreError, Table};
use crate::txn::GroupId;
use crate::txn::coordinator::{Decision, Group};
use crate::txn::wire::RawTransaction;

/// Version of the rows.
const VERSION: u32 = 1;
/// Key of the head: no group's number.
const HEAD_KEY: u32 = u32::MAX;

/// What is kept of all groups together.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHead {
    version: U32,
    next: U32,
    starts: U32,
    groups: U32,
}
const _: () = assert!(size_of::<RawHead>() == 16);

/// A group.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawGroup {
    number: U32,
    version: U32,
    life: U32,
    name: U16,
    members: U16,
}
const _: () = assert!(size_of::<RawGroup>() == 16);

/// A volume of a group.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMember {
    pool: [u8; 16],
    volume: U32,
}
const _: () = assert!(size_of::<RawMember>() == 20);

/// A decision, before who is waited for.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDecision {
    group: U32,
    transaction: RawTransaction,
}
const _: () = assert!(size_of::<RawDecision>() == 20);

/// A group that is to be made, before its name.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawCreate {
    number: U32,
    name: U16,
    volumes: U16,
}
const _: () = assert!(size_of::<RawCreate>() == 8);

/// A volume of a group that is to be made, before its name; of any pool where that is all zeros.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawNamed {
    pool: [u8; 16],
    name: U16,
}
const _: () = assert!(size_of::<RawNamed>() == 18);

/// A group that is to be deleted; option 1: also where units do not know what took place.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDelete {
    number: U32,
    options: U32,
}
const _: () = assert!(size_of::<RawDelete>() == 8);

/// What is kept of all groups together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The next group's number.
    pub next: u32,
    /// The number of the last start of the server that began transactions.
    pub starts: u32,
    /// How many groups there are.
    pub groups: u32,
}

/// A volume by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedVolume {
    /// Its pool; none where the name is enough.
    pub pool: Option<PoolId>,
    /// Its name.
    pub name: String,
}

/// A group that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGroup {
    /// The number that it shall have, so that a request that is repeated is known.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its volumes.
    pub volumes: Vec<NamedVolume>,
}

/// A group that is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Its number.
    pub group: GroupId,
    /// Also where units that are not attached have not heard what took place.
    pub force: bool,
}

/// A row's place and value.
pub type RowChange = ((Table, Vec<u8>), Option<Vec<u8>>);

fn text(bytes: &[u8], len: usize) -> Result<(String, &[u8]), Malformed> {
    let (text, rest) = bytes.split_at_checked(len).ok_or(Malformed)?;
    let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
    Ok((text.to_owned(), rest))
}

impl Head {
    /// Its row.
    pub fn row(&self) -> RowChange {
        let raw = RawHead {
            version: U32::new(VERSION),
            next: U32::new(self.next),
            starts: U32::new(self.starts),
            groups: U32::new(self.groups),
        };
        ((Table::Groups, store::key(&[HEAD_KEY])), Some(raw.as_bytes().to_vec()))
    }

    /// The head, where this is its row.
    pub fn parse(key: &[u8], row: &[u8]) -> Result<Option<Head>, StoreError> {
        if key != store::key(&[HEAD_KEY]) {
            return Ok(None);
        }
        let raw = RawHead::read_from_bytes(row);
        let raw = raw.map_err(|_| StoreError::Damaged("the head of the groups".to_owned()))?;
        if raw.version.get() != VERSION {
            let text = format!("its groups are of version {}, not {VERSION}", raw.version);
            return Err(StoreError::Damaged(text));
        }
        let (next, starts, groups) = (raw.next.get(), raw.starts.get(), raw.groups.get());
        Ok(Some(Head { next, starts, groups }))
    }
}

/// The row of a group.
pub fn group_row(group: &Group) -> RowChange {
    let members = group.members.iter().flat_map(|(pool, volumes)| {
        volumes.iter().map(|volume| RawMember { pool: pool.0, volume: U32::new(volume.0) })
    });
    let members: Vec<RawMember> = members.collect();
    let raw = RawGroup {
        number: U32::new(group.id.0),
        version: U32::new(group.version),
        life: U32::new(group.life),
        name: U16::new(group.name.len() as u16),
        members: U16::new(members.len() as u16),
    };
    let row = [raw.as_bytes(), group.name.as_bytes(), members.as_bytes()].concat();
    ((Table::Groups, store::key(&[group.id.0])), Some(row))
}

/// The row of a group that is no more.
pub fn no_group(id: GroupId) -> RowChange {
    ((Table::Groups, store::key(&[id.0])), None)
}

/// The group of a row.
pub fn parse_group(key: &[u8], row: &[u8]) -> Result<Group, Malformed> {
    let (raw, rest) = first::<RawGroup>(row)?;
    let (name, rest) = text(rest, raw.name.get().into())?;
    let mut group = Group {
        id: GroupId(raw.number.get()),
        name,
        version: raw.version.get(),
        life: raw.life.get(),
        members: [].into(),
    };
    let members = many::<RawMember>(rest)?;
    for member in members {
        let volumes = group.members.entry(PoolId(member.pool)).or_default();
        if !volumes.insert(VolumeId(member.volume.get())) {
            return Err(Malformed);
        }
    }
    let sound = members.len() == usize::from(raw.members.get())
        && !members.is_empty()
        && key == store::key(&[group.id.0])
        && group.version > 0
        && group.life > 0;
    if sound { Ok(group) } else { Err(Malformed) }
}

/// The row of a group's decision, or of none.
pub fn decision_row(id: GroupId, decision: Option<&Decision>) -> RowChange {
    let row = decision.map(|decision| {
        let (group, transaction) = (U32::new(id.0), decision.transaction.into());
        let mut row = RawDecision { group, transaction }.as_bytes().to_vec();
        row.extend(pack(decision.waiting.iter().map(|pool| pool.0)));
        row
    });
    ((Table::Decisions, store::key(&[id.0])), row)
}

/// The decision of a row, and whose it is.
pub fn parse_decision(key: &[u8], row: &[u8]) -> Result<(GroupId, Decision), Malformed> {
    let (raw, rest) = first::<RawDecision>(row)?;
    let pools = many::<[u8; 16]>(rest)?;
    let waiting: std::collections::BTreeSet<PoolId> = pools.iter().copied().map(PoolId).collect();
    let id = GroupId(raw.group.get());
    let sound = !waiting.is_empty() && waiting.len() == pools.len() && key == store::key(&[id.0]);
    let decision = Decision { transaction: raw.transaction.into(), waiting };
    if sound { Ok((id, decision)) } else { Err(Malformed) }
}

impl NewGroup {
    /// The body that asks for it.
    pub fn body(&self) -> Vec<u8> {
        let raw = RawCreate {
            number: U32::new(self.number),
            name: U16::new(self.name.len() as u16),
            volumes: U16::new(self.volumes.len() as u16),
        };
        let mut body = [raw.as_bytes(), self.name.as_bytes()].concat();
        for volume in &self.volumes {
            let pool = volume.pool.unwrap_or_default().0;
            let raw = RawNamed { pool, name: U16::new(volume.name.len() as u16) };
            body.extend_from_slice(raw.as_bytes());
            body.extend_from_slice(volume.name.as_bytes());
        }
        body
    }

    /// What a body asks for.
    pub fn parse(body: &[u8]) -> Result<NewGroup, Malformed> {
        let (raw, rest) = first::<RawCreate>(body)?;
        let (name, mut rest) = text(rest, raw.name.get().into())?;
        let mut volumes = Vec::new();
        while !rest.is_empty() {
            let (named, after) = first::<RawNamed>(rest)?;
            let (name, after) = text(after, named.name.get().into())?;
            let pool = Some(PoolId(named.pool)).filter(|pool| *pool != PoolId::default());
            volumes.push(NamedVolume { pool, name });
            rest = after;
        }
        let whole = volumes.len() == usize::from(raw.volumes.get());
        let number = raw.number.get();
        if whole { Ok(NewGroup { number, name, volumes }) } else { Err(Malformed) }
    }
}

impl Deletion {
    /// The body that asks for it.
    pub fn body(&self) -> Vec<u8> {
        let (number, options) = (U32::new(self.group.0), U32::new(self.force.into()));
        RawDelete { number, options }.as_bytes().to_vec()
    }

    /// What a body asks for.
    pub fn parse(body: &[u8]) -> Result<Deletion, Malformed> {
        let raw = one::<RawDelete>(body)?;
        let group = GroupId(raw.number.get());
        match raw.options.get() {
            options @ 0..=1 => Ok(Deletion { group, force: options == 1 }),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::group::TransactionId;
    use crate::format::ids::Incarnation;

    fn pool(byte: u8) -> PoolId {
        PoolId([byte; 16])
    }

    /// Goal: groups, decisions, heads and requests survive their bytes; a row of another key, or
    /// with a volume twice, is refused.
    #[test]
    fn round_trips() {
        let head = Head { next: 3, starts: 4, groups: 2 };
        let ((_, key), row) = head.row();
        assert_eq!(Head::parse(&key, &row.unwrap()), Ok(Some(head)));
        let volumes = |numbers: &[u32]| numbers.iter().copied().map(VolumeId).collect();
        let group = Group {
            id: GroupId(5),
            name: "pair".to_owned(),
            version: 1,
            life: 9,
            members: [(pool(1), volumes(&[0, 7])), (pool(2), volumes(&[0]))].into(),
        };
        let ((_, key), row) = group_row(&group);
        let mut row = row.unwrap();
        assert_eq!(parse_group(&key, &row), Ok(group.clone()));
        assert_eq!(parse_group(&store::key(&[6]), &row), Err(Malformed));
        let first = row.len() - 60;
        row.copy_within(first..first + 20, first + 20);
        assert_eq!(parse_group(&key, &row), Err(Malformed));
        let transaction =
            TransactionId { coordinator: u32::MAX, incarnation: Incarnation(2), number: 8 };
        let decision = Decision { transaction, waiting: [pool(1), pool(2)].into() };
        let ((_, key), row) = decision_row(group.id, Some(&decision));
        assert_eq!(parse_decision(&key, &row.unwrap()), Ok((group.id, decision)));
        let named = |pool, name: &str| NamedVolume { pool, name: name.to_owned() };
        let volumes = vec![named(None, "logs"), named(Some(pool(2)), "data")];
        let asked = NewGroup { number: 5, name: "pair".to_owned(), volumes };
        assert_eq!(NewGroup::parse(&asked.body()), Ok(asked));
        for force in [false, true] {
            let deletion = Deletion { group: GroupId(7), force };
            assert_eq!(Deletion::parse(&deletion.body()), Ok(deletion));
        }
        assert_eq!(Deletion::parse(&[7, 0, 0, 0, 2, 0, 0, 0]), Err(Malformed));
    }

    proptest! {
        /// Goal: any bytes are refused or parsed.
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Head::parse(&bytes[..bytes.len().min(4)], &bytes);
            let _ = parse_group(&[0; 4], &bytes);
            let _ = parse_decision(&[0; 4], &bytes);
            if let Ok(asked) = NewGroup::parse(&bytes) {
                prop_assert_eq!(asked.body(), bytes);
            }
        }
    }
}
