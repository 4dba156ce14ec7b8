//! Global transactions: one cut for a consistency group over several units (design section 6).
//!
//! The metadata server coordinates. Every message tells the whole present state of one group, so
//! that loss, repetition and reordering of messages are harmless:
//!
//! ```text
//!   participant: Report (where I am)  ─▶ coordinator
//!   coordinator: Order (where all are) ─▶ participant
//!
//!     coordinator   Rest ─▶ Seal ─▶ AllSealed ─▶ Committed ─▶ Rest
//!                              └─────────┴─────▶ Aborted ───▶ Rest
//!     participant   Idle ─▶ Sealed ─▶ Prepared ─▶ Done
//! ```
//!
//! | file | what it is about |
//! | --- | --- |
//! | this one | what is said |
//! | [`coordinator`] | the coordinator of one group: a state machine over plain data |
//! | [`wire`] | reports and orders as bytes |
//!
//! # Contracts
//!
//! - **Order**: a group has one transaction at a time; the next one begins when all members are
//!   [`Phase::Done`] with the one before.
//! - **Presumed abort**: a transaction of which the coordinator knows nothing was aborted.
//! - **Done**: a member that is told [`Stage::Committed`] of a transaction of which it knows
//!   nothing has made it durable before, or had no part in it: it answers [`Phase::Done`].
//! - **Atomic requests** ‡: a transaction carries one at most. It is aborted unless exactly as many
//!   members as the request says have sealed it with their epoch.
//! - **Life** ‡: what clients opened in an earlier life fails, and a member opens its volumes to
//!   clients again only when it was told once that the group is [`Order::whole`] in the new life
//!   (that of its attach, or one that it was told of later). Who has not heard of the new life yet
//!   acknowledges writes that it is about to drop; one that follows them, in the new life of
//!   another member, would be committed without them.

pub mod coordinator;
pub mod participant;
pub mod wire;

use crate::format::group::TransactionId;
use crate::format::ids::VolumeId;

/// The coordinator's number in [`TransactionId`]s: the metadata server.
pub const COORDINATOR: u32 = u32::MAX;

/// The most bytes of a reason that a [`Phase::Refused`] or a [`Trouble`] carries.
pub const REASON_MAX: usize = 120;

/// A consistency group of the metadata server; never used again after the group is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// The name of an atomic request: 128 bits that its client draws at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AtomicId(pub u128);

/// A client's writes to several volumes that take place together, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Atomic {
    /// Its name.
    pub id: AtomicId,
    /// How many units have a part in it.
    pub members: u32,
}

/// What a participant says of one transaction of one group.
///
/// A unit says one of these for each group that it serves, and one more for each transaction that
/// it found prepared when it started and whose outcome it does not know yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Report {
    /// Which group.
    pub group: GroupId,
    /// The membership that the unit serves by; 0: none yet.
    pub version: u32,
    /// The group's life that its pending writes belong to.
    pub life: u32,
    /// Whether its open epoch is wanted committed.
    pub wants: bool,
    /// Where it is sealed, the atomic request that joined that epoch; else the one that the next
    /// transaction shall carry.
    pub atomic: Option<Atomic>,
    /// The transaction that `phase` speaks of; none where the unit is idle.
    pub transaction: Option<TransactionId>,
    /// How far it is with that.
    pub phase: Phase,
}

/// How far a participant is with a transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It knows of none.
    Idle,
    /// Its epoch is sealed, and what follows is not acknowledged.
    Sealed,
    /// Its part is durable and can be committed or aborted: it has voted.
    Prepared,
    /// It cannot commit, for this reason (at most [`REASON_MAX`] bytes): nor will it later, before
    /// it is started again.
    Refused(String),
    /// It has committed, durably, or aborted.
    Done,
}

/// What the coordinator says of one transaction of one group: to each report the answer, and one
/// for each group of the unit that it did not report.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order {
    /// Which group.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// The membership as it is now; grows with every change.
    pub version: u32,
    /// The volumes of this unit that are members; none: the unit is not in the group (any more).
    pub volumes: Vec<VolumeId>,
    /// Whether other units are in it, too. A unit that is alone in a group commits by itself.
    pub shared: bool,
    /// The life that the group is in: it grows where a member lost what was not committed.
    pub life: u32,
    /// Whether every attached member has said that it serves by this membership in this life.
    pub whole: bool,
    /// The transaction that `stage` speaks of.
    pub transaction: Option<TransactionId>,
    /// The atomic request that it carries, until it is decided.
    pub atomic: Option<Atomic>,
    /// How far that is.
    pub stage: Stage,
    /// Why no transaction can succeed now.
    pub trouble: Option<Trouble>,
}

/// How far a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// There is none.
    Rest,
    /// It has begun: every member seals its open epoch.
    Seal,
    /// All have: what follows may be acknowledged, and everyone makes the sealed epoch durable.
    AllSealed,
    /// It took place, whatever happens.
    Committed,
    /// It did not take place.
    Aborted,
}

/// Why no transaction of a group can succeed now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// Not all members have joined (yet), or one has not been heard of for long: its name.
    Silent(String),
    /// A member cannot commit: its name, and why.
    Refused {
        /// The member's name.
        unit: String,
        /// Its reason.
        reason: String,
    },
    /// The members are changed.
    Forming,
}
