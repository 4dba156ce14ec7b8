//! What a server tells of itself to whoever asks, without a session: its counters, its pools, and
//! who is attached.
//!
//! A request has a [`RawAsk`] and zeros after it: as many bytes as the answer may have. So nobody
//! gets more bytes out of the server than were sent to it.
//!
//! | section | from | reply's body |
//! | --- | --- | --- |
//! | 0, the counters | 0 | U64s in the order of [`ServerStatus`], all pools together |
//! | 1, pools | a pool's name, as a number | [`RawPoolSeen`]s |
//! | 2, sessions | how many come before | [`RawSessionSeen`]s |
//! | 3, consistency groups | a group's number | [`RawGroupSeen`]s |
//! | 4, volumes of groups | how many come before | [`RawMemberSeen`]s |
//!
//! A page ends the list when one more record would have fitted.

use zerocopy::byteorder::big_endian::U128;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use super::groups::seen::{GroupSeen, MemberSeen, RawGroupSeen, RawMemberSeen};
use super::raw::{Malformed, first};
use super::records::ServerStatus;
use crate::format::ids::{HostId, Incarnation, PoolId, UnitId};

/// The largest body of a page, in bytes.
pub const PAGE_BYTES_MAX: usize = 32 << 10;
/// The most bytes of a record of any section.
pub const SEEN_BYTES_MAX: usize = size_of::<RawGroupSeen>();

/// The pool keeps its flags at the server.
const OPTION_FLAGS_HERE: u32 = 1;
/// Of a pool: something of it is damaged.
const OPTION_DAMAGED: u32 = 2;
/// The session only reads.
const OPTION_READS: u32 = 1;

/// All that a server tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// The counters of all pools together, since the server was started.
    pub counters: ServerStatus,
    /// The pools, by name.
    pub pools: Vec<PoolSeen>,
    /// The sessions, in no order.
    pub sessions: Vec<SessionSeen>,
    /// The consistency groups, by number.
    pub groups: Vec<GroupSeen>,
    /// Their volumes, by group.
    pub members: Vec<MemberSeen>,
}

/// A pool of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolSeen {
    /// Its name; all zeros of an embedded server's.
    pub pool: PoolId,
    /// Size of an extent, in bytes.
    pub extent_size: u32,
    /// How many volumes there are.
    pub volumes: u32,
    /// Extents in all.
    pub extents: u32,
    /// Extents that thin allocation cannot take.
    pub reserve: u32,
    /// Extents granted to no unit.
    pub free: u32,
    /// Extents granted to a unit, bound ones included.
    pub granted: u32,
    /// Extents in pairs.
    pub bound: u32,
    /// Whether its flags are kept at the server.
    pub flags_here: bool,
    /// Whether something of its metadata is damaged: it is not served, and nothing else is known.
    pub damaged: bool,
    /// Metadata transactions executed since the server was started.
    pub transactions: u64,
}

impl PoolSeen {
    /// A pool of which something is damaged.
    pub fn damaged(pool: PoolId) -> Self {
        PoolSeen { pool, damaged: true, ..PoolSeen::default() }
    }
}

/// Who is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSeen {
    /// To which pool.
    pub pool: PoolId,
    /// On which host.
    pub host: HostId,
    /// As which unit.
    pub unit: UnitId,
    /// As which start of it; 0 of who only reads.
    pub incarnation: Incarnation,
    /// Whether it only reads.
    pub reads: bool,
    /// Its lease, in milliseconds; 0: none.
    pub lease_ms: u32,
    /// For how long this server has known it, in milliseconds.
    pub age_ms: u64,
    /// What is left of its lease, in milliseconds: 0 where it has ended, all ones where there is
    /// none.
    pub left_ms: u64,
    /// Requests of it that this server has executed.
    pub requests: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The counters.
    Counters,
    /// The pools from that name on.
    Pools(PoolId),
    /// The sessions after so many.
    Sessions(u64),
    /// The consistency groups from that number on.
    Groups(u32),
    /// The volumes of groups after so many.
    Members(u64),
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawAsk {
    section: U32,
    reserved: U32,
    from: U128,
}
const _: () = assert!(size_of::<RawAsk>() == 24);

/// A [`PoolSeen`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawPoolSeen {
    pool: [u8; 16],
    extent_size: U32,
    volumes: U32,
    extents: U32,
    reserve: U32,
    free: U32,
    granted: U32,
    bound: U32,
    options: U32,
    transactions: U64,
}
const _: () = assert!(size_of::<RawPoolSeen>() == 56);

/// A [`SessionSeen`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawSessionSeen {
    pool: [u8; 16],
    host: [u8; 16],
    unit: U32,
    incarnation: U32,
    options: U32,
    lease_ms: U32,
    age_ms: U64,
    left_ms: U64,
    requests: U64,
}
const _: () = assert!(size_of::<RawSessionSeen>() == 72);

impl Section {
    /// The request's body for an answer of up to `len` bytes.
    pub fn body(self, len: usize) -> Vec<u8> {
        let (section, from) = match self {
            Section::Counters => (0, 0),
            Section::Pools(from) => (1, u128::from_be_bytes(from.0)),
            Section::Sessions(from) => (2, u128::from(from)),
            Section::Groups(from) => (3, u128::from(from)),
            Section::Members(from) => (4, u128::from(from)),
        };
        let ask = RawAsk { section: U32::new(section), reserved: U32::ZERO, from: U128::new(from) };
        let mut body = ask.as_bytes().to_vec();
        body.resize(len.max(body.len()), 0);
        body
    }

    /// What a request's body asks for.
    pub fn parse(body: &[u8]) -> Result<Section, Malformed> {
        let (ask, padding) = first::<RawAsk>(body)?;
        if ask.reserved.get() != 0 || padding.iter().any(|byte| *byte != 0) {
            return Err(Malformed);
        }
        let from = ask.from.get();
        match ask.section.get() {
            0 if from == 0 => Ok(Section::Counters),
            1 => Ok(Section::Pools(PoolId(from.to_be_bytes()))),
            2 => Ok(Section::Sessions(u64::try_from(from).map_err(|_| Malformed)?)),
            3 => Ok(Section::Groups(u32::try_from(from).map_err(|_| Malformed)?)),
            4 => Ok(Section::Members(u64::try_from(from).map_err(|_| Malformed)?)),
            _ => Err(Malformed),
        }
    }
}

/// The name after that one, where there is one.
pub fn name_after(pool: PoolId) -> Option<PoolId> {
    u128::from_be_bytes(pool.0).checked_add(1).map(|next| PoolId(next.to_be_bytes()))
}

impl From<&PoolSeen> for RawPoolSeen {
    fn from(seen: &PoolSeen) -> Self {
        let option = |bit, set| if set { bit } else { 0 };
        RawPoolSeen {
            pool: seen.pool.0,
            extent_size: U32::new(seen.extent_size),
            volumes: U32::new(seen.volumes),
            extents: U32::new(seen.extents),
            reserve: U32::new(seen.reserve),
            free: U32::new(seen.free),
            granted: U32::new(seen.granted),
            bound: U32::new(seen.bound),
            options: U32::new(
                option(OPTION_FLAGS_HERE, seen.flags_here) | option(OPTION_DAMAGED, seen.damaged),
            ),
            transactions: U64::new(seen.transactions),
        }
    }
}

impl From<&RawPoolSeen> for PoolSeen {
    fn from(raw: &RawPoolSeen) -> Self {
        PoolSeen {
            pool: PoolId(raw.pool),
            extent_size: raw.extent_size.get(),
            volumes: raw.volumes.get(),
            extents: raw.extents.get(),
            reserve: raw.reserve.get(),
            free: raw.free.get(),
            granted: raw.granted.get(),
            bound: raw.bound.get(),
            flags_here: raw.options.get() & OPTION_FLAGS_HERE != 0,
            damaged: raw.options.get() & OPTION_DAMAGED != 0,
            transactions: raw.transactions.get(),
        }
    }
}

impl From<&SessionSeen> for RawSessionSeen {
    fn from(seen: &SessionSeen) -> Self {
        RawSessionSeen {
            pool: seen.pool.0,
            host: seen.host.0,
            unit: U32::new(seen.unit.0),
            incarnation: U32::new(seen.incarnation.0),
            options: U32::new(if seen.reads { OPTION_READS } else { 0 }),
            lease_ms: U32::new(seen.lease_ms),
            age_ms: U64::new(seen.age_ms),
            left_ms: U64::new(seen.left_ms),
            requests: U64::new(seen.requests),
        }
    }
}

impl From<&RawSessionSeen> for SessionSeen {
    fn from(raw: &RawSessionSeen) -> Self {
        SessionSeen {
            pool: PoolId(raw.pool),
            host: HostId(raw.host),
            unit: UnitId(raw.unit.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            reads: raw.options.get() & OPTION_READS != 0,
            lease_ms: raw.lease_ms.get(),
            age_ms: raw.age_ms.get(),
            left_ms: raw.left_ms.get(),
            requests: raw.requests.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is asked for survives its body, whatever its length; padding is zeros.
    #[test]
    fn sections_round_trip() {
        let names = [PoolId([0; 16]), PoolId([0xFF; 16]), PoolId(*b"0123456789abcdef")];
        let sections = names.map(Section::Pools).into_iter();
        let lists = [Section::Sessions, Section::Members].map(|list| list(u64::MAX));
        let others = [Section::Counters, Section::Groups(7)].into_iter().chain(lists);
        for section in sections.chain(others) {
            for len in [0, 24, 25, 1128] {
                let body = section.body(len);
                assert_eq!(body.len(), len.max(24));
                assert_eq!(Section::parse(&body), Ok(section));
            }
        }
        let mut body = Section::Counters.body(40);
        body[39] = 1;
        assert_eq!(Section::parse(&body), Err(Malformed));
        assert_eq!(name_after(PoolId([0xFF; 16])), None);
        assert!(name_after(names[0]).unwrap() > names[0]);
    }
}
