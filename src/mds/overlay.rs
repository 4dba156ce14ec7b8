//! Storage that can be opened as for writing and is not written: changes stay in memory.
//!
//! Opening a store writes to it. To look at one without changing it, it is opened through this.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// Bytes that are kept together.
const PAGE: usize = 4096;

/// Storage with changes that nobody else sees.
#[derive(Debug)]
pub struct Overlay<B> {
    inner: B,
    changed: Mutex<Changed>,
}

#[derive(Debug)]
struct Changed {
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl<B: StorageBackend> Overlay<B> {
    /// The storage as it is now.
    pub fn new(inner: B) -> io::Result<Self> {
        let changed = Changed { len: inner.len()?, pages: BTreeMap::new() };
        Ok(Overlay { inner, changed: Mutex::new(changed) })
    }

    fn changed(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page as it was before any change; zeros beyond the end.
    fn original(&self, page: u64) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; PAGE].into_boxed_slice();
        let start = page * PAGE as u64;
        let there = self.inner.len()?.saturating_sub(start).min(PAGE as u64) as usize;
        self.inner.read(start, &mut bytes[..there])?;
        Ok(bytes)
    }
}

/// The pieces of pages that a range covers: page, where in it, how much.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let count = (PAGE - within).min((end - at) as usize);
            at += count as u64;
            (page, within, count)
        })
    })
}

impl<B: StorageBackend> StorageBackend for Overlay<B> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changed().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changed = self.changed();
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > changed.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let untouched =
            pieces(offset, out.len()).all(|(page, ..)| !changed.pages.contains_key(&page));
        if untouched && end.is_some_and(|end| self.inner.len().is_ok_and(|len| end <= len)) {
            return self.inner.read(offset, out);
        }
        let mut rest = out;
        for (page, within, count) in pieces(offset, rest.len()) {
            let (here, after) = rest.split_at_mut(count);
            match changed.pages.get(&page) {
                Some(bytes) => here.copy_from_slice(&bytes[within..within + count]),
                None => here.copy_from_slice(&self.original(page)?[within..within + count]),
            }
            rest = after;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.changed().len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changed = self.changed();
        let mut rest = data;
        for (page, within, count) in pieces(offset, data.len()) {
            let (here, after) = rest.split_at(count);
            if !changed.pages.contains_key(&page) {
                let original = self.original(page)?;
                changed.pages.insert(page, original);
            }
            let bytes = changed.pages.get_mut(&page).expect("it was inserted");
            bytes[within..within + count].copy_from_slice(here);
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mds::testing::Memory;

    proptest! {
        /// Goal: reads see what was written, as on storage that is written; below, nothing changes.
        #[test]
        fn behaves_as_storage(
            writes in proptest::collection::vec((0..30_000u64, 1..9000usize, any::<u8>()), 0..20),
        ) {
            let below = Memory::default();
            below.set_len(20_000).unwrap();
            below.write(100, &[7; 15_000]).unwrap();
            let model = below.snapshot();
            let before = below.snapshot();
            let overlay = Overlay::new(below.clone()).unwrap();
            for storage in [&overlay as &dyn StorageBackend, &model] {
                storage.set_len(40_000).unwrap();
                for (offset, len, byte) in &writes {
                    storage.write(*offset, &vec![*byte; *len]).unwrap();
                }
            }
            for (offset, len) in [(0, 40_000), (5, 4097), (19_990, 20), (39_999, 1)] {
                let (mut one, mut other) = (vec![1; len], vec![2; len]);
                overlay.read(offset, &mut one).unwrap();
                model.read(offset, &mut other).unwrap();
                prop_assert!(one == other);
            }
            prop_assert!(overlay.read(39_999, &mut [0; 2]).is_err());
            let (mut one, mut other) = (vec![1; 20_000], vec![2; 20_000]);
            below.read(0, &mut one).unwrap();
            before.read(0, &mut other).unwrap();
            prop_assert!(one == other && below.len().unwrap() == 20_000);
        }
    }
}
