//! The simulator's random numbers: small, fast, and the same on every machine for ever.
//!
//! A seed names a run, so the generator is our own: xoshiro256** seeded by SplitMix64, both in the
//! public domain. Not for secrets.

/// One step of SplitMix64: a good hash of a number, and the seeder of [`Rng`].
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seeded stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; 4];
        let mut value = seed;
        for word in &mut state {
            *word = mix(value);
            value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
        }
        Self(state)
    }

    /// A stream of its own, drawn from this one.
    #[must_use]
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.bits())
    }

    /// Sixty-four random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a number below nothing");
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "a number between {low} and {high}");
        low + self.below(high - low + 1)
    }

    /// A number from `low` (at least 1) to `high`, each order of magnitude as likely as another.
    pub fn log_between(&mut self, low: u64, high: u64) -> u64 {
        assert!(0 < low && low <= high, "a number between {low} and {high}");
        let bits = u64::from((high / low).ilog2() + 1);
        let scale = self.below(bits);
        let top = low.saturating_mul(2 << scale).min(high);
        self.between(low, top)
    }

    /// True with a probability of `ppm` in a million.
    pub fn chance(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// One of `options`, which are some.
    pub fn pick<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: draws stay in their bounds and reach both ends.
    #[test]
    fn draws_fill_their_ranges() {
        let mut rng = Rng::new(1);
        let (mut low, mut high) = (u64::MAX, 0);
        for _ in 0..10_000 {
            let n = rng.between(3, 9);
            assert!((3..=9).contains(&n));
            let n = rng.log_between(2, 100);
            assert!((2..=100).contains(&n));
            (low, high) = (low.min(n), high.max(n));
        }
        assert_eq!((low, high), (2, 100));
        assert!(!rng.chance(0) && rng.chance(1_000_000));
    }

    /// Goal: a seed is a stream, and streams differ.
    #[test]
    fn a_seed_repeats() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..8).map(|_| rng.bits()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
