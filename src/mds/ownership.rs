//! Who may attach to a pool, as which start, and for how long: the rules, as plain functions
//! (design section 8, ownership).
//!
//! | attached as the unit | who claims to write | |
//! | --- | --- | --- |
//! | nobody | anybody | granted |
//! | a start on the same host | a later start | granted: who holds the devices there is alone |
//! | a start on another host | says that it is fenced | granted |
//! | a start on another host | any other | refused, however long its lease has ended |
//!
//! A lease that has ended grants nothing: what the owner sent to its devices may still arrive. The
//! lease is for the owner, who stops at its end, and for readers, who are forgotten after it.
//!
//! # Contract
//!
//! **Fenced from whom**: a claim that says that it is fenced is true of the owner that was when it
//! was said. Where the server counts the starts it names that one, is asked once, and is refused
//! where another has attached meanwhile (the model in `tests/ownership_model.rs` found what comes
//! of asking again).
//!
//! **Once**: no claim is granted twice, however late or often its datagram arrives. A start that
//! the server counts is therefore told by the one before it ([`Start::After`]): a claim that is
//! repeated after it was granted names one that is not the last any more. Claims to read are
//! counted by themselves, in the same way.
//!
//! **Attached first**: a unit that keeps its flags itself claims its next start before it writes
//! the number to them. So a crash between leaves a start that the server knows and the flags do
//! not: one that never began, as [`may_go_on`] sees, and that [`ask_again`] counts past.

use super::error::Refusal;
use super::records::Claim;
use crate::env::Moment;
use crate::format::ids::{HostId, Incarnation};
use crate::mutants::{Mutant, mutated};

/// What is left of a claim without a lease, in milliseconds: more than of any lease.
pub const ENDLESS: u64 = u64::MAX;
/// The longest lease of a reader, in milliseconds: for so long a dead one holds extents back.
pub const READER_LEASE_MS_MAX: u32 = 60_000;

/// Who is attached as a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Its host.
    pub host: HostId,
    /// What is left of its lease, as [`left_ms`] gives it.
    pub left_ms: u64,
}

/// Which start of its unit a claim is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Start {
    /// This one: the unit counts its starts where it keeps its flags.
    Is(Incarnation),
    /// The one after this, which must be the last: the server counts, as it keeps the flags.
    After(Incarnation),
}

/// Whether a claim to write is granted while that `owner` is attached as the same unit.
pub fn may_write(owner: Option<Owner>, claim: &Claim) -> Result<(), (Refusal, u64)> {
    match owner {
        Some(owner)
            if owner.host != claim.host && !claim.fenced && !mutated(Mutant::UnfencedGranted) =>
        {
            Err((Refusal::OwnedElsewhere, owner.left_ms))
        }
        _ => Ok(()),
    }
}

/// Whether a claim to read is granted, by whether the pool's flags are at the server.
pub fn may_read(flags_here: bool, claim: &Claim) -> Result<(), (Refusal, u64)> {
    if !flags_here {
        return Err((Refusal::FlagsElsewhere, 0));
    }
    // One without would hold extents back for ever.
    if claim.lease_ms == 0 { Err((Refusal::OutOfRange, 0)) } else { Ok(()) }
}

/// The start that is granted of a claim to write. Which start it is comes first: so who does not
/// know the last one is told it, whoever the owner is, and a claim that says that it is fenced can
/// be one that knows whom it is fenced from.
pub fn may_attach(
    owner: Option<Owner>,
    last: Option<Incarnation>,
    asked: Start,
    claim: &Claim,
) -> Result<Incarnation, (Refusal, u64)> {
    let start = start(last, asked)?;
    may_write(owner, claim)?;
    Ok(start)
}

/// Refuses flags that were found, as of start [`Claim::after`], though a later one has begun: it
/// has changed them since.
pub fn may_go_on(begun: Option<Incarnation>, claim: &Claim) -> Result<(), (Refusal, u64)> {
    match begun {
        Some(begun) if claim.incarnation.is_some() && claim.after < begun => {
            Err((Refusal::FlagsTooOld, u64::from(begun.0)))
        }
        _ => Ok(()),
    }
}

/// What is asked after `asked`, which was refused as `last` was the last start; `None`: nothing.
///
/// One that says that it is fenced says so only when it knows from whom, and then once.
pub fn ask_again(wanted: &Claim, asked: &Claim, last: Incarnation) -> Option<Claim> {
    match asked.incarnation {
        None if last == asked.after => None,
        None if asked.fenced => None,
        None if wanted.fenced && asked.after != Incarnation::default() => None,
        None => Some(Claim { after: last, ..*wanted }),
        Some(start) if wanted.fenced || last < start => None,
        Some(_) => {
            let next = start_after(last)?;
            Some(Claim { incarnation: Some(next), ..*wanted })
        }
    }
}

/// What is asked after `asked`, which was refused as another host has the pool; `None`: nothing.
///
/// The start of that one is the one that was asked after, so it is known from whom this is fenced:
/// one that never started, whose maker did not detach (found by seed 94 of the clusters).
pub fn ask_fenced(wanted: &Claim, asked: &Claim) -> Option<Claim> {
    let unsaid = wanted.fenced && !asked.fenced && asked.incarnation.is_none();
    unsaid.then_some(Claim { fenced: true, ..*asked })
}

/// The number after a start's, where there is one: the highest stands for none on the wire.
fn start_after(last: Incarnation) -> Option<Incarnation> {
    last.0.checked_add(1).filter(|next| *next < u32::MAX).map(Incarnation)
}

/// The start that is granted; refused with the last one where it is none after the last.
pub fn start(last: Option<Incarnation>, asked: Start) -> Result<Incarnation, (Refusal, u64)> {
    let stale = |last: Incarnation| Err((Refusal::StaleIncarnation, u64::from(last.0)));
    match (last, asked) {
        (Some(last), Start::Is(asked)) if asked <= last => stale(last),
        (_, Start::Is(asked)) => Ok(asked),
        (last, Start::After(before)) => {
            let last = last.unwrap_or_default();
            match start_after(last) {
                Some(next) if before == last => Ok(next),
                Some(_) => stale(last),
                None => Err((Refusal::TooLarge, u64::from(last.0))),
            }
        }
    }
}

/// The lease that a claim is granted, in milliseconds; 0: none.
pub fn lease_ms(claim: &Claim) -> u32 {
    if claim.reads { claim.lease_ms.min(READER_LEASE_MS_MAX) } else { claim.lease_ms }
}

/// What is left at `now` of a lease of `lease_ms` that was last heard of at `heard`, in
/// milliseconds and rounded up: 0 where it has ended, [`ENDLESS`] where there is none.
pub fn left_ms(lease_ms: u32, heard: Moment, now: Moment) -> u64 {
    if lease_ms == 0 {
        return ENDLESS;
    }
    let lease_ns = u128::from(lease_ms) * 1_000_000;
    let left_ns = lease_ns.saturating_sub(now.since(heard).as_nanos());
    left_ns.div_ceil(1_000_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{PoolId, UnitId};

    const HOSTS: [HostId; 3] = [HostId([0; 16]), HostId([1; 16]), HostId([2; 16])];
    const LEFT: [u64; 4] = [0, 1, 5000, ENDLESS];

    fn claim(host: HostId, fenced: bool, lease_ms: u32) -> Claim {
        let claim = Claim::of(PoolId([7; 16]), UnitId(1), Incarnation(3));
        Claim { host, lease_ms, fenced, ..claim }
    }

    /// Goal: over all owners and claims: another host's pool is taken with its devices fenced, and
    /// in no other way; the refusal tells what is left of the lease.
    #[test]
    fn writers() {
        let mut cases = 0;
        for (of, by) in HOSTS.iter().flat_map(|of| HOSTS.iter().map(move |by| (*of, *by))) {
            for (left_ms, fenced) in LEFT.iter().flat_map(|l| [(*l, false), (*l, true)]) {
                for lease_ms in [0, 1, 1000] {
                    let claim = claim(by, fenced, lease_ms);
                    assert_eq!(may_write(None, &claim), Ok(()));
                    let verdict = may_write(Some(Owner { host: of, left_ms }), &claim);
                    let refused = Err((Refusal::OwnedElsewhere, left_ms));
                    assert_eq!(verdict, if of == by || fenced { Ok(()) } else { refused });
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 9 * 8 * 3);
    }

    /// Goal: readers are let in where the flags are here and for a time; a long lease is cut.
    #[test]
    fn readers() {
        for (flags_here, asked) in
            [true, false].iter().flat_map(|h| [0, 1, u32::MAX].map(|l| (h, l)))
        {
            let claim = Claim { reads: true, ..claim(HOSTS[0], false, asked) };
            let expected = match (flags_here, asked) {
                (false, _) => Err((Refusal::FlagsElsewhere, 0)),
                (true, 0) => Err((Refusal::OutOfRange, 0)),
                (true, _) => Ok(()),
            };
            assert_eq!(may_read(*flags_here, &claim), expected);
            assert_eq!(lease_ms(&claim), asked.min(READER_LEASE_MS_MAX));
            assert_eq!(lease_ms(&Claim { reads: false, ..claim }), asked);
        }
    }

    /// Goal: over all small numbers and the highest: what is granted is later than the last start,
    /// and no claim that was granted is granted again.
    #[test]
    fn starts() {
        let numbers = [0, 1, 2, 3, u32::MAX - 2, u32::MAX - 1].map(Incarnation);
        let lasts = numbers.iter().map(|n| Some(*n)).chain([None]);
        for last in lasts {
            let asked = numbers.iter().flat_map(|n| [Start::Is(*n), Start::After(*n)]);
            for asked in asked {
                match start(last, asked) {
                    Ok(granted) => {
                        assert!(last.is_none_or(|last| granted > last), "{last:?} {asked:?}");
                        assert!(granted.0 < u32::MAX);
                        let again = start(Some(granted), asked);
                        assert!(again.is_err(), "{last:?} {asked:?} twice");
                    }
                    Err((Refusal::TooLarge, _)) => {
                        assert_eq!(last, Some(Incarnation(u32::MAX - 1)));
                    }
                    Err((refusal, detail)) => {
                        assert_eq!(refusal, Refusal::StaleIncarnation);
                        assert_eq!(detail, u64::from(last.unwrap_or_default().0));
                    }
                }
            }
            // Who asks after the last is the one who gets on.
            let last_number = last.unwrap_or_default();
            let next = start(last, Start::After(last_number));
            assert_eq!(next.is_ok(), last_number.0 < u32::MAX - 1);
        }
    }

    /// Goal: over all small numbers: flags are refused that are older than what has begun, and no
    /// others; a server that keeps the flags does not ask for any.
    #[test]
    fn old_flags() {
        for (begun, after) in (0..4).flat_map(|begun| (0..4).map(move |after| (begun, after))) {
            let claim = Claim { after: Incarnation(after), ..claim(HOSTS[0], false, 0) };
            let old = may_go_on(Some(Incarnation(begun)), &claim);
            let refused = Err((Refusal::FlagsTooOld, u64::from(begun)));
            assert_eq!(old, if after < begun { refused } else { Ok(()) });
            assert_eq!(may_go_on(None, &claim), Ok(()));
            let counted_there = Claim { incarnation: None, ..claim };
            assert_eq!(may_go_on(Some(Incarnation(begun)), &counted_there), Ok(()));
        }
    }

    /// Goal: who is refused for its number asks with one that is granted, unless it is fenced from
    /// another start; who asked for that already gives up.
    #[test]
    fn asked_again() {
        let numbers = [0, 1, 2, 3, u32::MAX - 2, u32::MAX - 1].map(Incarnation);
        for (last, asked) in numbers.iter().flat_map(|l| numbers.iter().map(move |a| (*l, *a))) {
            for (fenced, counted_there) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let wanted = claim(HOSTS[0], fenced, 0);
                let of = |number| {
                    if counted_there {
                        Claim { incarnation: None, after: number, ..wanted }
                    } else {
                        Claim { incarnation: Some(number), ..wanted }
                    }
                };
                let wanted_first = of(Incarnation(0));
                let first = Claim { fenced: fenced && !counted_there, ..of(asked) };
                let again = ask_again(&wanted_first, &first, last);
                let may_say = ask_fenced(&wanted_first, &first).is_some();
                assert_eq!(may_say, fenced && counted_there);
                let said = Claim { fenced: true, ..first };
                assert!(!counted_there || ask_again(&wanted_first, &said, last).is_none());
                let last_of_all = last.0 == u32::MAX - 1;
                let expected = match (counted_there, fenced) {
                    (true, false) => asked != last,
                    (true, true) => asked != last && asked.0 == 0,
                    (false, false) => asked <= last && !last_of_all,
                    (false, true) => false,
                };
                assert_eq!(again.is_some(), expected, "{last:?} {asked:?} {fenced}");
                if let Some(again) = again.filter(|_| !last_of_all) {
                    let start_asked =
                        again.incarnation.map_or(Start::After(again.after), Start::Is);
                    assert_eq!(start(Some(last), start_asked), Ok(Incarnation(last.0 + 1)));
                }
            }
        }
    }

    /// Goal: a lease counts down from when it was heard of, and has ended not a moment too early.
    #[test]
    fn leases() {
        let ms = |ms: u64| Moment(ms * 1_000_000);
        assert_eq!(left_ms(0, ms(0), ms(u64::from(u32::MAX))), ENDLESS);
        for (now, left) in [(100, 50), (149, 1), (150, 0), (1000, 0), (50, 50)] {
            assert_eq!(left_ms(50, ms(100), ms(now)), left, "{now}");
        }
        assert_eq!(left_ms(50, ms(100), Moment(149_999_999)), 1);
        assert_eq!(left_ms(u32::MAX, ms(0), ms(0)), u64::from(u32::MAX));
    }
}
