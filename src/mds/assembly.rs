//! A message put together again from its parts.

use super::wire::{Datagram, MESSAGE_BYTES_MAX, crc32c};
use crate::mutants::{Mutant, mutated};

/// A message of which some parts have arrived. Holds at most [`MESSAGE_BYTES_MAX`] bytes.
#[derive(Debug)]
pub struct Assembly {
    message_crc: u32,
    pieces: Vec<Option<Box<[u8]>>>,
    missing: usize,
    bytes: usize,
}

/// What became of a part.
#[derive(Debug, PartialEq, Eq)]
pub enum Added {
    /// The message is whole; this is its body.
    Whole(Vec<u8>),
    /// More parts are to come.
    Waiting,
    /// The part was there already, or the message cannot be: nothing was kept of the datagram.
    Useless,
}

impl Assembly {
    /// An assembly for the message that the datagram is a part of.
    pub fn new(datagram: &Datagram<'_>) -> Self {
        Assembly {
            message_crc: datagram.message_crc,
            pieces: vec![None; usize::from(datagram.parts)],
            missing: usize::from(datagram.parts),
            bytes: 0,
        }
    }

    /// Bytes of the parts that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a part. One that belongs to another version of the message (a query that was executed
    /// twice may have two answers) begins the assembly anew.
    pub fn add(&mut self, datagram: &Datagram<'_>) -> Added {
        let same = self.message_crc == datagram.message_crc
            && self.pieces.len() == usize::from(datagram.parts);
        if !same {
            *self = Assembly::new(datagram);
        }
        let Some(piece) = self.pieces.get_mut(usize::from(datagram.part)) else {
            return Added::Useless;
        };
        if piece.is_some() || self.bytes + datagram.body.len() > MESSAGE_BYTES_MAX {
            return Added::Useless;
        }
        *piece = Some(datagram.body.into());
        self.bytes += datagram.body.len();
        self.missing -= 1;
        let lost = mutated(Mutant::PartLost) && self.missing == 1;
        if self.missing > 0 && !lost {
            return Added::Waiting;
        }
        let body: Vec<u8> =
            self.pieces.iter().flatten().flat_map(|piece| piece.iter()).copied().collect();
        if crc32c(&body) == self.message_crc || lost {
            return Added::Whole(body);
        }
        *self = Assembly::new(datagram);
        Added::Useless
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Header, Kind, Operation, PAYLOAD_MIN, encode, parse};
    use super::*;

    fn message(body: &[u8]) -> Vec<Vec<u8>> {
        let header = Header {
            kind: Kind::Request,
            operation: Operation::Transact,
            session: 1,
            sequence: 1,
            detail: 0,
        };
        encode(&header, body, PAYLOAD_MIN)
    }

    /// Goal: parts in any order, repeated, make the message.
    #[test]
    fn parts_in_any_order() {
        let body: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        let datagrams = message(&body);
        let first = parse(&datagrams[3]).unwrap();
        let mut assembly = Assembly::new(&first);
        assert_eq!(assembly.add(&first), Added::Waiting);
        assert_eq!(assembly.add(&first), Added::Useless);
        for i in [1, 0, 4] {
            assert_eq!(assembly.add(&parse(&datagrams[i]).unwrap()), Added::Waiting);
        }
        assert_eq!(assembly.add(&parse(&datagrams[2]).unwrap()), Added::Whole(body));
    }

    /// Goal: parts of two versions of an answer are never mixed.
    #[test]
    fn versions_are_not_mixed() {
        let (old, new) = (message(&[1; 2000]), message(&[2; 2000]));
        let mut assembly = Assembly::new(&parse(&old[0]).unwrap());
        assert_eq!(assembly.add(&parse(&old[0]).unwrap()), Added::Waiting);
        assert_eq!(assembly.add(&parse(&new[1]).unwrap()), Added::Waiting);
        assert_eq!(assembly.add(&parse(&new[0]).unwrap()), Added::Whole(vec![2; 2000]));
    }
}
