//! What lies where on a medium, as far as the simulator is told: names for persist points, and
//! pages in two copies, of which one may rot.

use std::ops::Range;
use std::sync::Arc;

/// A part of a medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// Its bytes.
    pub range: Range<u64>,
    /// What a write there is called that is of more than so many bytes.
    pub long: Option<(u64, &'static str)>,
    /// Where it is made of pages in two copies: the bytes of a page, and where the part begins that
    /// holds the other copies.
    pub twofold: Option<(u64, u64)>,
}

/// The parts of a medium; what is not in one is data. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Parts(Arc<[Part]>);

impl Default for Parts {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl Parts {
    /// These parts, which do not overlap.
    pub fn new(parts: Vec<Part>) -> Self {
        Self(parts.into())
    }

    /// The name of the part that a write of `len` bytes begins in.
    pub fn name_at(&self, offset: u64, len: u64) -> &'static str {
        let part = self.0.iter().find(|part| part.range.contains(&offset));
        let long = part.and_then(|part| part.long).filter(|(bytes, _)| len > *bytes);
        long.map(|(_, name)| name).or(part.map(|part| part.name)).unwrap_or("data")
    }

    /// Whether a byte is in none of them.
    pub fn is_data(&self, offset: u64) -> bool {
        !self.0.iter().any(|part| part.range.contains(&offset))
    }

    /// Every page that is there in two copies: where they lie, and their bytes.
    pub fn twofold(&self) -> impl Iterator<Item = ([u64; 2], u64)> {
        self.0.iter().flat_map(|part| {
            let (page, other) = part.twofold.unwrap_or((1, 0));
            let whole = if part.twofold.is_some() { part.range.clone() } else { 0..0 };
            let start = whole.start;
            whole.step_by(page as usize).map(move |at| ([at, other + (at - start)], page))
        })
    }
}
