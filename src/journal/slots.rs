//! Which journal slots are free.

use crate::mutants::{Mutant, mutated};

/// A set of free slots that gives out runs where it can.
#[derive(Debug)]
pub struct Slots {
    free: Vec<bool>,
    count: usize,
    /// Where the search for the next free slot begins.
    cursor: usize,
}

impl Slots {
    /// All of `count` slots, free.
    pub fn new(count: u32) -> Self {
        Self { free: vec![true; count as usize], count: count as usize, cursor: 0 }
    }

    /// How many slots are free.
    pub fn available(&self) -> usize {
        self.count
    }

    /// How many slots there are.
    pub fn total(&self) -> usize {
        self.free.len()
    }

    /// Whether a slot is free.
    pub fn is_free(&self, slot: u32) -> bool {
        self.free[slot as usize]
    }

    /// Takes one particular slot, which must be free.
    pub fn take_one(&mut self, slot: u32) {
        let free = &mut self.free[slot as usize];
        assert!(std::mem::take(free), "slot {slot} is in two groups");
        self.count -= 1;
    }

    /// Takes `count` slots, following on each other where possible; `None` when too few are free.
    pub fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        if count > self.count {
            return None;
        }
        if mutated(Mutant::SlotsReusedEarly) {
            self.cursor = 0;
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            if self.free[self.cursor] {
                self.take_one(self.cursor as u32);
                taken.push(self.cursor as u32);
            }
            self.cursor = (self.cursor + 1) % self.free.len();
        }
        Some(taken)
    }

    /// Gives slots back.
    pub fn give(&mut self, slots: &[u32]) {
        for &slot in slots {
            let free = &mut self.free[slot as usize];
            assert!(!std::mem::replace(free, true), "slot {slot} was given back twice");
        }
        self.count += slots.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: no slot is given out twice, all come back, and too much is refused untouched.
    #[test]
    fn slots_are_given_out_once() {
        let mut slots = Slots::new(10);
        slots.take_one(3);
        let a = slots.take(4).unwrap();
        assert_eq!(a, [0, 1, 2, 4]);
        assert_eq!(slots.take(6), None);
        let b = slots.take(5).unwrap();
        assert_eq!(slots.available(), 0);
        slots.give(&a);
        slots.give(&b);
        assert_eq!(slots.available(), 9);
    }
}
