//! Which place comes next.

use super::case::Order;
use crate::env::sim::rng::Rng;

/// Odd, so that multiples of it meet every one of a power of two of places; and far from a fraction
/// of a small number, so that neighbours in rank lie far apart.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Draws places out of `0..count`.
pub struct Places {
    count: u64,
    rng: Rng,
    kind: Kind,
}

enum Kind {
    Sequential {
        next: u64,
    },
    Uniform,
    /// The sums of the weights up to each rank.
    Zipf {
        sums: Vec<f64>,
    },
}

impl Places {
    /// # Panics
    /// If there is no place.
    pub fn new(order: Order, count: u64, rng: Rng) -> Self {
        assert!(count > 0, "a load wants a place");
        let kind = match order {
            Order::Sequential => Kind::Sequential { next: 0 },
            Order::Uniform => Kind::Uniform,
            Order::Zipf(exponent) => {
                let mut sum = 0.0;
                let weight = |rank: u64| (rank as f64).powf(-exponent);
                let sums = (1..=count).map(|rank| {
                    sum += weight(rank);
                    sum
                });
                Kind::Zipf { sums: sums.collect() }
            }
        };
        Self { count, rng, kind }
    }

    /// The next one.
    pub fn next(&mut self) -> u64 {
        match &mut self.kind {
            Kind::Sequential { next } => {
                let place = *next;
                *next = (place + 1) % self.count;
                place
            }
            Kind::Uniform => self.rng.below(self.count),
            Kind::Zipf { sums } => {
                let all = sums.last().copied().expect("there is a place");
                let drawn = self.rng.bits() as f64 / u64::MAX as f64 * all;
                let rank = sums.partition_point(|sum| *sum < drawn).min(sums.len() - 1) as u64;
                scattered(rank, self.count)
            }
        }
    }
}

/// Where a rank lies: ranks lie all over, and no two in one place.
fn scattered(rank: u64, count: u64) -> u64 {
    // A permutation of the next power of two, followed until it comes out below the count.
    let mask = count.next_power_of_two() - 1;
    let mut place = rank;
    loop {
        place = place.wrapping_mul(SCATTER) & mask;
        if place < count {
            return place;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Goal: whatever the count, scattering loses no place.
    #[test]
    fn scattering_is_one_to_one() {
        for count in (1..130).chain([1000, 4096]) {
            let places: BTreeSet<_> = (0..count).map(|rank| scattered(rank, count)).collect();
            assert_eq!(places.len() as u64, count);
            assert!(places.iter().all(|place| *place < count));
        }
    }

    /// Goal: in order means in order and round again; at random stays inside; a Zipfian load goes
    /// to its first rank as often as the weights say.
    #[test]
    fn orders_are_what_they_say() {
        let draw = |order, count, times| -> Vec<_> {
            let mut places = Places::new(order, count, Rng::new(7));
            (0..times).map(|_| places.next()).collect()
        };
        assert_eq!(draw(Order::Sequential, 3, 7), [0, 1, 2, 0, 1, 2, 0]);
        let uniform = draw(Order::Uniform, 10, 1000);
        assert_eq!(uniform.iter().collect::<BTreeSet<_>>().len(), 10);
        let zipf = draw(Order::Zipf(1.0), 4, 12_000);
        let first = zipf.iter().filter(|place| **place == scattered(0, 4)).count();
        // One of 1 + 1/2 + 1/3 + 1/4.
        assert!((5500..6020).contains(&first), "{first}");
    }
}
