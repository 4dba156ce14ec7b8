//! Atomic requests: writes to several volumes that take place together or not at all, at every
//! crash, on one unit and with another one; what is staged is seen by nobody and in nobody's way
//! for long.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/peer.rs"]
mod peer;
#[path = "support/atomic.rs"]
mod scenarios;
#[path = "support/simulated.rs"]
mod simulated;

/// Goal: whichever call of the unit a loss of power meets, what is found afterwards is all of the
/// request or nothing of it; all of it, and what was acknowledged before it, where it was applied.
#[test]
fn all_or_nothing_at_every_call() {
    scenarios::all_or_nothing_at_every_call();
}

/// Goal: what is staged is seen by nobody and goes with nobody's commit; its blocks are held until
/// it is dropped, and then have what they had, which was pending when it came.
#[test]
fn staged_writes_are_invisible_and_held() {
    scenarios::staged_writes_are_invisible_and_held();
}

/// Goal: what cannot be one request is refused, and says why.
#[test]
fn refusals() {
    scenarios::refusals();
}

/// Goal: who holds blocks for long loses them; others wait for their turn until then; a request
/// that is staged when the target stops is told so.
#[test]
fn nobody_holds_for_ever() {
    scenarios::nobody_holds_for_ever();
}

/// Goal: an atomic request of two units takes place where both have their part, whichever of them
/// was asked; one whose other part is missing does not, and harms nobody.
#[test]
fn atomic_requests_of_two_units() {
    scenarios::atomic_requests_of_two_units();
}

/// Goal: a unit that has voted for an atomic request lets nobody read its blocks before the
/// decision, as another may show the new contents already; and nobody sees half of it after a loss
/// of power at that point, however it was decided.
#[test]
fn nobody_reads_between_vote_and_decision() {
    scenarios::nobody_reads_between_vote_and_decision();
}
