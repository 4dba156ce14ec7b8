//! How long to wait for an answer: the estimator of RFC 6298, pure.
//!
//! Two differences, both as the RFC allows for other transports: the lower bound is far below one
//! second, as our links are short, and so is the upper, as a server that comes back should be
//! found soon. Karn's rule is the caller's: no samples from what was sent more than once.

use std::time::Duration;

/// The timeout before anything was measured.
pub const TIMEOUT_INITIAL: Duration = Duration::from_secs(1);
/// No timeout is shorter: the server makes each answer durable first.
pub const TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// No timeout is longer, however long the server is silent.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(5);

const _: () = assert!(TIMEOUT_MIN.as_nanos() < TIMEOUT_INITIAL.as_nanos());
const _: () = assert!(TIMEOUT_INITIAL.as_nanos() < TIMEOUT_MAX.as_nanos());

/// Smoothed round trips and the timeout that follows from them.
#[derive(Clone, Debug)]
pub struct Estimator {
    smoothed: Option<Smoothed>,
    timeout: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Smoothed {
    mean: Duration,
    variation: Duration,
}

impl Default for Estimator {
    fn default() -> Self {
        Estimator { smoothed: None, timeout: TIMEOUT_INITIAL }
    }
}

impl Estimator {
    /// How long to wait for an answer to what is sent now.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The smoothed round trip, once there is one.
    pub fn round_trip(&self) -> Option<Duration> {
        self.smoothed.map(|smoothed| smoothed.mean)
    }

    /// Takes the round trip of a request that was sent once; ends any backing off.
    pub fn sample(&mut self, round_trip: Duration) {
        let next = match self.smoothed {
            None => Smoothed { mean: round_trip, variation: round_trip / 2 },
            Some(Smoothed { mean, variation }) => Smoothed {
                variation: variation * 3 / 4 + mean.abs_diff(round_trip) / 4,
                mean: mean * 7 / 8 + round_trip / 8,
            },
        };
        self.smoothed = Some(next);
        self.timeout = (next.mean + next.variation * 4).clamp(TIMEOUT_MIN, TIMEOUT_MAX);
    }

    /// Nothing came in time: waits twice as long from now on.
    pub fn back_off(&mut self) {
        self.timeout = (self.timeout * 2).min(TIMEOUT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the first sample gives three times itself, as the RFC computes it.
    #[test]
    fn first_sample() {
        let mut estimator = Estimator::default();
        estimator.sample(Duration::from_millis(200));
        assert_eq!(estimator.timeout(), Duration::from_millis(600));
        assert_eq!(estimator.round_trip(), Some(Duration::from_millis(200)));
    }

    /// Goal: steady round trips bring the timeout down to its bound; one slow answer raises it.
    #[test]
    fn adapts() {
        let mut estimator = Estimator::default();
        for _ in 0..100 {
            estimator.sample(Duration::from_millis(2));
        }
        assert_eq!(estimator.timeout(), TIMEOUT_MIN);
        estimator.sample(Duration::from_millis(400));
        assert!(estimator.timeout() > Duration::from_millis(300));
    }

    /// Goal: backing off doubles up to its bound, and the next sample ends it.
    #[test]
    fn backs_off() {
        let mut estimator = Estimator::default();
        estimator.back_off();
        assert_eq!(estimator.timeout(), TIMEOUT_INITIAL * 2);
        for _ in 0..10 {
            estimator.back_off();
        }
        assert_eq!(estimator.timeout(), TIMEOUT_MAX);
        estimator.sample(Duration::from_millis(1));
        assert_eq!(estimator.timeout(), TIMEOUT_MIN);
    }

    /// Goal: absurd round trips (a stopped machine) do not overflow.
    #[test]
    fn absurd_samples() {
        let mut estimator = Estimator::default();
        for _ in 0..100 {
            estimator.sample(Duration::from_secs(1 << 32));
        }
        assert_eq!(estimator.timeout(), TIMEOUT_MAX);
    }
}
