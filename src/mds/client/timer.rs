//! When a mutation without an answer is sent again, and which: pure (RFC 6298, section 5).
//!
//! Mutations are executed in order, so the oldest one without an answer is the one that is missing,
//! or its answer is, or the server is slow. Only that one is sent again, and no other before it is
//! answered: whole windows that were sent again would make a slow server slower. Its answer tells
//! whether the others had arrived: their answers come with it. The oldest one whose answer does not
//! come within a round trip then is the next.
//!
//! ```text
//!   sent ── timeout without any answer ──▶ the oldest again; the timeout doubles
//!                                             │ answered
//!      the next one that was sent before then ◀─ a round trip without any answer
//! ```

use std::time::Duration;

use crate::env::Moment;
use crate::mds::rtt::{Estimator, TIMEOUT_MIN};

/// The timer of one session's mutations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timer {
    /// When a mutation was answered last.
    answered: Moment,
    /// When it ran out last: what had been sent until then may be lost.
    expired: Option<Moment>,
}

impl Timer {
    /// A mutation was answered.
    pub fn answered(&mut self, now: Moment) {
        self.answered = now;
    }

    /// Whether what was sent last at that moment may be lost, as something sent then was.
    pub fn suspects(&self, sent: Moment) -> bool {
        self.expired.is_some_and(|expired| sent <= expired)
    }

    /// When the oldest mutation, sent last at that moment, is to be sent again.
    pub fn due(&self, sent: Moment, estimator: &Estimator) -> Moment {
        let wait = if self.suspects(sent) {
            estimator.round_trip().unwrap_or(TIMEOUT_MIN).min(estimator.timeout())
        } else {
            estimator.timeout()
        };
        later(sent.max(self.answered), wait)
    }

    /// The oldest mutation is sent again now.
    pub fn expire(&mut self, sent: Moment, now: Moment, estimator: &mut Estimator) {
        if !self.suspects(sent) {
            // What is sent in this moment is not under suspicion.
            self.expired = Some(Moment(now.0.saturating_sub(1)));
            estimator.back_off();
        }
    }
}

/// So long after a moment.
pub fn later(moment: Moment, duration: Duration) -> Moment {
    Moment(moment.0 + duration.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Round trips of 2 ms: a timeout of 100 ms.
    fn steady() -> Estimator {
        let mut estimator = Estimator::default();
        (0..100).for_each(|_| estimator.sample(Duration::from_millis(2)));
        estimator
    }

    /// Goal: as long as answers come, nothing is sent again, however old it is; and a timeout after
    /// the last one the oldest is.
    #[test]
    fn answers_restart_it() {
        let (mut timer, estimator) = (Timer::default(), steady());
        assert_eq!(timer.due(Moment(5 * MS), &estimator), Moment(105 * MS));
        timer.answered(Moment(90 * MS));
        assert_eq!(timer.due(Moment(5 * MS), &estimator), Moment(190 * MS));
        assert_eq!(timer.due(Moment(95 * MS), &estimator), Moment(195 * MS));
    }

    /// Goal: of a window that is lost one is sent again at a time: the first after a timeout, which
    /// doubles until it is answered, each other a round trip after the answer to the one before.
    #[test]
    fn one_at_a_time() {
        let (mut timer, mut estimator) = (Timer::default(), steady());
        let sent = Moment(5 * MS);
        let mut first = sent;
        for (at, next) in [(105, 305), (305, 705)] {
            assert_eq!(timer.due(first, &estimator), Moment(at * MS));
            timer.expire(first, Moment(at * MS), &mut estimator);
            first = Moment(at * MS);
            assert!(timer.suspects(sent) && !timer.suspects(first));
            assert_eq!(timer.due(first, &estimator), Moment(next * MS));
        }
        timer.answered(Moment(400 * MS));
        assert_eq!(timer.due(sent, &estimator), Moment(402 * MS));
        timer.expire(sent, Moment(402 * MS), &mut estimator);
        assert_eq!(timer.due(Moment(402 * MS), &estimator), Moment(802 * MS), "not doubled again");
        timer.answered(Moment(410 * MS));
        assert_eq!(timer.due(sent, &estimator), Moment(412 * MS));
    }
}
