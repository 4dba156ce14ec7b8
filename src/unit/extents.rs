//! Which pair is behind each logical extent of a volume.
//!
//! A table in pieces, of which only those exist that have something to say: a thin volume may be
//! far larger than the pool, and than memory.

use crate::format::ids::{LogicalExtent, PairId};

/// Extents of a piece.
const PIECE: usize = 1024;
/// Of an extent that is not backed.
const NOTHING: u32 = u32::MAX;

/// The pairs behind some extents that follow each other.
#[derive(Debug)]
struct Piece {
    backed: u32,
    pairs: [u32; PIECE],
}

/// The pairs of a volume.
#[derive(Debug, Default)]
pub struct ExtentMap {
    count: u32,
    backed: u32,
    pieces: Vec<Option<Box<Piece>>>,
}

impl ExtentMap {
    /// So many logical extents, none of them backed.
    pub fn new(count: u32) -> Self {
        let mut map = Self::default();
        map.resize(count);
        map
    }

    /// How many logical extents there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many of them are backed.
    pub fn backed(&self) -> u32 {
        self.backed
    }

    /// The pair behind a logical extent; none beyond the end.
    pub fn get(&self, logical: LogicalExtent) -> Option<PairId> {
        let at = logical.0 as usize;
        let piece = self.pieces.get(at / PIECE)?.as_ref()?;
        let pair = piece.pairs[at % PIECE];
        (pair != NOTHING).then_some(PairId(pair))
    }

    /// Sets the pair behind a logical extent, which there must be.
    pub fn set(&mut self, logical: LogicalExtent, pair: Option<PairId>) {
        assert!(logical.0 < self.count, "extent {logical} of {}", self.count);
        let at = logical.0 as usize;
        let place = &mut self.pieces[at / PIECE];
        let piece = place.get_or_insert_with(|| Box::new(Piece::EMPTY));
        let new = pair.map_or(NOTHING, |pair| pair.0);
        let old = std::mem::replace(&mut piece.pairs[at % PIECE], new);
        let (gained, lost) = (u32::from(new != NOTHING), u32::from(old != NOTHING));
        piece.backed = piece.backed + gained - lost;
        self.backed = self.backed + gained - lost;
        if piece.backed == 0 {
            *place = None;
        }
    }

    /// Changes how many logical extents there are. None that goes is backed.
    pub fn resize(&mut self, count: u32) {
        let beyond = self.backed_from(LogicalExtent(count)).next();
        assert_eq!(beyond, None, "an extent that goes is backed");
        self.pieces.resize_with((count as usize).div_ceil(PIECE), || None);
        self.count = count;
    }

    /// The backed extents from one on, in order, with their pairs.
    pub fn backed_from(
        &self,
        from: LogicalExtent,
    ) -> impl Iterator<Item = (LogicalExtent, PairId)> {
        let pieces = self.pieces.iter().enumerate().skip(from.0 as usize / PIECE);
        let all = pieces.filter_map(|(i, piece)| Some((i, piece.as_ref()?))).flat_map(|(i, of)| {
            let pairs = of.pairs.iter().enumerate().filter(|(_, pair)| **pair != NOTHING);
            pairs.map(move |(at, pair)| (LogicalExtent((i * PIECE + at) as u32), PairId(*pair)))
        });
        all.skip_while(move |(logical, _)| *logical < from)
    }
}

impl Piece {
    const EMPTY: Piece = Piece { backed: 0, pairs: [NOTHING; PIECE] };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Goal: the map says what a plain one would, whatever is set, unset, grown and cut.
        #[test]
        fn as_a_plain_map(
            steps in prop::collection::vec((0_u32..4000, prop::option::of(0_u32..99)), 0..200),
            from in 0_u32..4000,
        ) {
            let mut map = ExtentMap::new(4000);
            let mut plain = BTreeMap::new();
            for (at, pair) in steps {
                let (at, pair) = (LogicalExtent(at), pair.map(PairId));
                map.set(at, pair);
                match pair {
                    Some(pair) => drop(plain.insert(at, pair)),
                    None => drop(plain.remove(&at)),
                }
                prop_assert_eq!(map.get(at), pair);
            }
            let from = LogicalExtent(from);
            let rest: Vec<_> = plain.range(from..).map(|(at, pair)| (*at, *pair)).collect();
            prop_assert_eq!(map.backed_from(from).collect::<Vec<_>>(), rest.clone());
            prop_assert_eq!(map.backed() as usize, plain.len());
            rest.iter().for_each(|(at, _)| map.set(*at, None));
            map.resize(from.0);
            map.resize(9000);
            prop_assert_eq!(map.backed_from(from).next(), None);
            prop_assert_eq!((map.count(), map.get(LogicalExtent(8999))), (9000, None));
        }
    }

    /// Goal: the largest volume there may be takes little memory.
    #[test]
    fn thin_is_small() {
        let mut map = ExtentMap::new(u32::MAX - 1);
        map.set(LogicalExtent(u32::MAX - 2), Some(PairId(5)));
        assert_eq!(map.backed_from(LogicalExtent(7)).count(), 1);
        assert_eq!(map.pieces.iter().flatten().count(), 1);
        assert_eq!(map.get(LogicalExtent(u32::MAX)), None);
    }
}
