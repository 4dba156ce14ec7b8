//! Reports and orders as bytes: the body of a Coordinate request, and of its answer.
//!
//! Each is a fixed record and, after it, what its lengths say. All numbers are little-endian.
//!
//! | record | after it |
//! | --- | --- |
//! | [`RawReport`] | the reason of a refusal; an atomic request |
//! | [`RawOrder`] | the name; a trouble's unit and reason; volumes, 4 bytes each; a request |
//!
//! # Contract
//!
//! **Parse, don't validate**: what comes out of [`reports`] and [`orders`] was whole, with texts in
//! UTF-8 and no field out of its range; any bytes may go in.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Atomic, AtomicId, GroupId, Order, Phase, REASON_MAX, Report, Stage, Trouble};
use crate::format::group::TransactionId;
use crate::format::ids::{Incarnation, VolumeId};
use crate::mds::raw::{Malformed, first, many, pack};

/// Bytes of the longest report.
pub const REPORT_BYTES_MAX: usize = size_of::<RawReport>() + REASON_MAX + size_of::<RawAtomic>();

/// The unit's open epoch is wanted committed.
const OPTION_WANTS: u8 = 1;
/// Other units are members, too.
const OPTION_SHARED: u8 = 1;
/// All members serve by this membership in this life.
const OPTION_WHOLE: u8 = 2;
/// A transaction is named; else its fields are zeros.
const OPTION_TRANSACTION: u8 = 4;
/// An atomic request follows.
const OPTION_ATOMIC: u8 = 8;

/// A transaction's name.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct RawTransaction {
    coordinator: U32,
    incarnation: U32,
    number: U64,
}
const _: () = assert!(size_of::<RawTransaction>() == 16);

/// An atomic request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawAtomic {
    id: U128,
    members: U32,
}
const _: () = assert!(size_of::<RawAtomic>() == 20);

/// A [`Report`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawReport {
    group: U32,
    version: U32,
    life: U32,
    options: u8,
    phase: u8,
    reason: U16,
    transaction: RawTransaction,
}
const _: () = assert!(size_of::<RawReport>() == 32);

/// An [`Order`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawOrder {
    group: U32,
    version: U32,
    life: U32,
    options: u8,
    stage: u8,
    trouble: u8,
    name: u8,
    unit: u8,
    reason: u8,
    volumes: U16,
    transaction: RawTransaction,
}
const _: () = assert!(size_of::<RawOrder>() == 36);

impl From<TransactionId> for RawTransaction {
    fn from(id: TransactionId) -> Self {
        RawTransaction {
            coordinator: U32::new(id.coordinator),
            incarnation: U32::new(id.incarnation.0),
            number: U64::new(id.number),
        }
    }
}

impl From<RawTransaction> for TransactionId {
    fn from(raw: RawTransaction) -> Self {
        TransactionId {
            coordinator: raw.coordinator.get(),
            incarnation: Incarnation(raw.incarnation.get()),
            number: raw.number.get(),
        }
    }
}

/// The record of a transaction that there may be, and the option that says so.
fn put_transaction(id: Option<TransactionId>) -> (RawTransaction, u8) {
    match id {
        Some(id) => (id.into(), OPTION_TRANSACTION),
        None => (RawTransaction::read_from_bytes(&[0; 16]).expect("16 bytes"), 0),
    }
}

fn transaction(raw: RawTransaction, options: u8) -> Result<Option<TransactionId>, Malformed> {
    match options & OPTION_TRANSACTION {
        0 if raw.as_bytes() == [0; 16] => Ok(None),
        0 => Err(Malformed),
        _ => Ok(Some(raw.into())),
    }
}

fn put_atomic(atomic: Option<Atomic>, to: &mut Vec<u8>) {
    if let Some(Atomic { id, members }) = atomic {
        let raw = RawAtomic { id: U128::new(id.0), members: U32::new(members) };
        to.extend_from_slice(raw.as_bytes());
    }
}

fn atomic(bytes: &[u8], options: u8) -> Result<(Option<Atomic>, &[u8]), Malformed> {
    if options & OPTION_ATOMIC == 0 {
        return Ok((None, bytes));
    }
    let (raw, rest) = first::<RawAtomic>(bytes)?;
    let (id, members) = (AtomicId(raw.id.get()), raw.members.get());
    Ok((Some(Atomic { id, members }), rest))
}

fn option(bit: u8, set: bool) -> u8 {
    if set { bit } else { 0 }
}

/// As much of a text as a field of `max` bytes takes.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let mut ends = (0..=max.min(text.len())).rev();
    let end = ends.find(|&end| text.is_char_boundary(end));
    &text[..end.expect("a text may be cut off at its start")]
}

fn text(bytes: &[u8], len: usize) -> Result<(String, &[u8]), Malformed> {
    let (text, rest) = bytes.split_at_checked(len).ok_or(Malformed)?;
    let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
    Ok((text.to_owned(), rest))
}

/// Appends a report; a reason that is too long is cut.
pub fn put_report(report: &Report, to: &mut Vec<u8>) {
    let (phase, reason) = match &report.phase {
        Phase::Idle => (0, ""),
        Phase::Sealed => (1, ""),
        Phase::Prepared => (2, ""),
        Phase::Refused(reason) => (3, cut(reason, REASON_MAX)),
        Phase::Done => (4, ""),
    };
    let (transaction, named) = put_transaction(report.transaction);
    let raw = RawReport {
        group: U32::new(report.group.0),
        version: U32::new(report.version),
        life: U32::new(report.life),
        options: option(OPTION_WANTS, report.wants)
            | option(OPTION_ATOMIC, report.atomic.is_some())
            | named,
        phase,
        reason: U16::new(reason.len() as u16),
        transaction,
    };
    to.extend_from_slice(raw.as_bytes());
    to.extend_from_slice(reason.as_bytes());
    put_atomic(report.atomic, to);
}

/// All reports of a body.
pub fn reports(mut bytes: &[u8]) -> Result<Vec<Report>, Malformed> {
    let mut reports = Vec::new();
    while !bytes.is_empty() {
        let (raw, rest) = first::<RawReport>(bytes)?;
        let reason_len = usize::from(raw.reason.get());
        if raw.options & !(OPTION_WANTS | OPTION_TRANSACTION | OPTION_ATOMIC) != 0
            || reason_len > REASON_MAX
            || raw.phase != 3 && reason_len != 0
        {
            return Err(Malformed);
        }
        let (reason, rest) = text(rest, reason_len)?;
        let (atomic, rest) = atomic(rest, raw.options)?;
        reports.push(Report {
            group: GroupId(raw.group.get()),
            version: raw.version.get(),
            life: raw.life.get(),
            wants: raw.options & OPTION_WANTS != 0,
            atomic,
            transaction: transaction(raw.transaction, raw.options)?,
            phase: match raw.phase {
                0 => Phase::Idle,
                1 => Phase::Sealed,
                2 => Phase::Prepared,
                3 => Phase::Refused(reason),
                4 => Phase::Done,
                _ => return Err(Malformed),
            },
        });
        bytes = rest;
    }
    Ok(reports)
}

/// Appends an order; texts that are too long are cut.
pub fn put_order(order: &Order, to: &mut Vec<u8>) {
    let (trouble, unit, reason) = match &order.trouble {
        None => (0, "", ""),
        Some(Trouble::Silent(unit)) => (1, unit.as_str(), ""),
        Some(Trouble::Refused { unit, reason }) => (2, unit.as_str(), reason.as_str()),
        Some(Trouble::Forming) => (3, "", ""),
    };
    let (name, unit) = (cut(&order.name, u8::MAX.into()), cut(unit, u8::MAX.into()));
    let reason = cut(reason, REASON_MAX);
    let (transaction, named) = put_transaction(order.transaction);
    let raw = RawOrder {
        group: U32::new(order.group.0),
        version: U32::new(order.version),
        life: U32::new(order.life),
        options: option(OPTION_SHARED, order.shared)
            | option(OPTION_WHOLE, order.whole)
            | option(OPTION_ATOMIC, order.atomic.is_some())
            | named,
        stage: order.stage as u8,
        trouble,
        name: name.len() as u8,
        unit: unit.len() as u8,
        reason: reason.len() as u8,
        volumes: U16::new(order.volumes.len() as u16),
        transaction,
    };
    to.extend_from_slice(raw.as_bytes());
    [name, unit, reason].iter().for_each(|text| to.extend_from_slice(text.as_bytes()));
    to.extend(pack(order.volumes.iter().map(|volume| U32::new(volume.0))));
    put_atomic(order.atomic, to);
}

/// All orders of a body.
pub fn orders(mut bytes: &[u8]) -> Result<Vec<Order>, Malformed> {
    let mut orders = Vec::new();
    while !bytes.is_empty() {
        let (raw, rest) = first::<RawOrder>(bytes)?;
        let known = OPTION_SHARED | OPTION_WHOLE | OPTION_TRANSACTION | OPTION_ATOMIC;
        if raw.options & !known != 0 {
            return Err(Malformed);
        }
        let (name, rest) = text(rest, raw.name.into())?;
        let (unit, rest) = text(rest, raw.unit.into())?;
        let (reason, rest) = text(rest, raw.reason.into())?;
        let volumes_len = 4 * usize::from(raw.volumes.get());
        let (volumes, rest) = rest.split_at_checked(volumes_len).ok_or(Malformed)?;
        let volumes = many::<U32>(volumes)?.iter().map(|volume| VolumeId(volume.get()));
        let (atomic, rest) = atomic(rest, raw.options)?;
        orders.push(Order {
            group: GroupId(raw.group.get()),
            name,
            version: raw.version.get(),
            volumes: volumes.collect(),
            shared: raw.options & OPTION_SHARED != 0,
            life: raw.life.get(),
            whole: raw.options & OPTION_WHOLE != 0,
            transaction: transaction(raw.transaction, raw.options)?,
            atomic,
            stage: stage(raw.stage)?,
            trouble: trouble(raw.trouble, unit, reason)?,
        });
        bytes = rest;
    }
    Ok(orders)
}

/// The trouble of that number, with its unit and reason where it has them.
pub(crate) fn trouble(
    number: u8,
    unit: String,
    reason: String,
) -> Result<Option<Trouble>, Malformed> {
    match number {
        0 => Ok(None),
        1 => Ok(Some(Trouble::Silent(unit))),
        2 => Ok(Some(Trouble::Refused { unit, reason })),
        3 => Ok(Some(Trouble::Forming)),
        _ => Err(Malformed),
    }
}

/// The stage of that number.
pub fn stage(number: u8) -> Result<Stage, Malformed> {
    let all = [Stage::Rest, Stage::Seal, Stage::AllSealed, Stage::Committed, Stage::Aborted];
    all.into_iter().find(|stage| *stage as u8 == number).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> TransactionId {
        TransactionId { coordinator: u32::MAX, incarnation: Incarnation(7), number }
    }

    /// Goal: every report and order survives its bytes, many together, too.
    #[test]
    fn round_trips() {
        let refused = Phase::Refused("the disk is gone".to_owned());
        let phases = [Phase::Idle, Phase::Sealed, Phase::Prepared, refused, Phase::Done];
        let said = (1..).zip(phases).map(|(number, phase)| Report {
            group: GroupId(number),
            version: 2,
            life: 3,
            wants: number % 2 == 0,
            atomic: (number > 2).then_some(Atomic { id: AtomicId(7 << 100), members: 2 }),
            transaction: (number > 1).then(|| id(number.into())),
            phase,
        });
        let said: Vec<Report> = said.collect();
        let mut bytes = Vec::new();
        said.iter().for_each(|report| put_report(report, &mut bytes));
        assert_eq!(reports(&bytes), Ok(said));
        let troubles = [
            None,
            Some(Trouble::Silent("one".to_owned())),
            Some(Trouble::Refused { unit: "two".to_owned(), reason: "why".to_owned() }),
            Some(Trouble::Forming),
        ];
        let stages = [Stage::Seal, Stage::AllSealed, Stage::Committed, Stage::Aborted];
        let told =
            troubles.into_iter().zip(stages).zip(0..).map(|((trouble, stage), number)| Order {
                group: GroupId(number),
                name: "g".repeat(number as usize),
                version: 4,
                volumes: (0..number).map(VolumeId).collect(),
                shared: number == 1,
                life: 5,
                whole: number == 2,
                transaction: (number == 3).then(|| id(9)),
                atomic: (number > 2).then_some(Atomic { id: AtomicId(5 << 90), members: 3 }),
                stage,
                trouble,
            });
        let told: Vec<Order> = told.collect();
        let mut bytes = Vec::new();
        told.iter().for_each(|order| put_order(order, &mut bytes));
        assert_eq!(orders(&bytes), Ok(told));
    }

    /// Goal: a reason that is too long is cut at a character, and then parsed.
    #[test]
    fn long_reasons_are_cut() {
        let report = Report {
            group: GroupId(1),
            version: 1,
            life: 1,
            wants: false,
            atomic: Some(Atomic { id: AtomicId(1), members: 1 }),
            transaction: None,
            phase: Phase::Refused("ä".repeat(REASON_MAX)),
        };
        let mut bytes = Vec::new();
        put_report(&report, &mut bytes);
        assert_eq!(bytes.len(), REPORT_BYTES_MAX);
        let cut = Phase::Refused("ä".repeat(REASON_MAX / 2));
        assert_eq!(reports(&bytes).unwrap()[0].phase, cut);
    }

    proptest! {
        /// Goal: any bytes are refused or parsed, and what is parsed is written the same.
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(parsed) = reports(&bytes) {
                let mut again = Vec::new();
                parsed.iter().for_each(|report| put_report(report, &mut again));
                prop_assert_eq!(&again, &bytes);
            }
            let _ = orders(&bytes);
        }
    }
}
