//! A buddy allocator over page numbers: which pages of an arena are free, and nothing else.
//!
//! Constant time, and no allocation after it was made: the free lists run through arrays indexed by
//! page.

/// No page.
const NIL: u32 = u32::MAX;
/// The page is not the head of a free block.
const NOT_FREE: u8 = u8::MAX;

/// The largest block is 2^ORDER_MAX pages: 2 MiB of pages of 4 KiB.
pub const ORDER_MAX: u8 = 9;

/// The free pages of an arena.
pub struct Buddy {
    heads: [u32; ORDER_MAX as usize + 1],
    next: Vec<u32>,
    previous: Vec<u32>,
    /// For the first page of a free block its order, otherwise [`NOT_FREE`].
    order: Vec<u8>,
}

impl Buddy {
    /// All pages of `blocks` largest blocks, free.
    pub fn new(blocks: u32) -> Self {
        let pages = (blocks << ORDER_MAX) as usize;
        let mut buddy = Self {
            heads: [NIL; ORDER_MAX as usize + 1],
            next: vec![NIL; pages],
            previous: vec![NIL; pages],
            order: vec![NOT_FREE; pages],
        };
        for block in (0..blocks).rev() {
            buddy.push(block << ORDER_MAX, ORDER_MAX);
        }
        buddy
    }

    /// Takes a free block of 2^order pages and says its first page.
    pub fn take(&mut self, order: u8) -> Option<u32> {
        assert!(order <= ORDER_MAX, "a block of order {order} is larger than any");
        let mut from = (order..=ORDER_MAX).find(|&o| self.heads[o as usize] != NIL)?;
        let page = self.heads[from as usize];
        self.remove(page);
        while from > order {
            from -= 1;
            self.push(page + (1 << from), from);
        }
        Some(page)
    }

    /// Gives back a block taken with the same order.
    pub fn give(&mut self, page: u32, order: u8) {
        let (mut page, mut order) = (page, order);
        assert!(self.order[page as usize] == NOT_FREE, "page {page} was given back twice");
        while order < ORDER_MAX {
            let buddy = page ^ (1 << order);
            if self.order[buddy as usize] != order {
                break;
            }
            self.remove(buddy);
            page = page.min(buddy);
            order += 1;
        }
        self.push(page, order);
    }

    fn push(&mut self, page: u32, order: u8) {
        let head = self.heads[order as usize];
        self.next[page as usize] = head;
        self.previous[page as usize] = NIL;
        if head != NIL {
            self.previous[head as usize] = page;
        }
        self.heads[order as usize] = page;
        self.order[page as usize] = order;
    }

    fn remove(&mut self, page: u32) {
        let order = self.order[page as usize];
        assert!(order != NOT_FREE, "page {page} is not free");
        let (next, previous) = (self.next[page as usize], self.previous[page as usize]);
        if previous == NIL {
            self.heads[order as usize] = next;
        } else {
            self.next[previous as usize] = next;
        }
        if next != NIL {
            self.previous[next as usize] = previous;
        }
        self.order[page as usize] = NOT_FREE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Goal: blocks given out never overlap, and all that is given back merges into the whole.
        #[test]
        fn blocks_are_disjoint_and_merge(
            steps in prop::collection::vec(
                (0..=ORDER_MAX, any::<bool>(), any::<u16>()),
                1..200,
            ),
        ) {
            let mut buddy = Buddy::new(3);
            let mut held: Vec<(u32, u8)> = Vec::new();
            for (order, take, pick) in steps {
                if take || held.is_empty() {
                    if let Some(page) = buddy.take(order) {
                        prop_assert_eq!(page % (1 << order), 0);
                        for &(other, o) in &held {
                            prop_assert!(page + (1 << order) <= other || other + (1 << o) <= page);
                        }
                        held.push((page, order));
                    }
                } else {
                    let (page, order) = held.swap_remove(pick as usize % held.len());
                    buddy.give(page, order);
                }
            }
            for (page, order) in held {
                buddy.give(page, order);
            }
            for _ in 0..3 {
                prop_assert!(buddy.take(ORDER_MAX).is_some());
            }
            prop_assert!(buddy.take(0).is_none());
        }
    }
}
