//! Takes an input apart: every input is some sequence of numbers and pieces, none is malformed.

/// What is left of an input.
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `count` bytes: fewer where fewer are left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// A number of up to eight bytes; the bytes that are missing count as zeros.
    pub fn number(&mut self, bytes: usize) -> u64 {
        self.bytes(bytes).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A piece that is preceded by its length in two bytes.
    pub fn piece(&mut self) -> &'a [u8] {
        let length = self.number(2) as usize;
        self.bytes(length)
    }
}

/// Adds a piece as [`Cursor::piece`] takes it.
pub fn put_piece(out: &mut Vec<u8>, piece: &[u8]) {
    out.extend_from_slice(&(piece.len() as u16).to_le_bytes());
    out.extend_from_slice(piece);
}
