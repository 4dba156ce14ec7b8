//! A volume as a front end sees it: bytes, and the checks on every read, once.

use std::ops::Range;
use std::rc::Rc;

use super::read::read_blocks;
use super::{Inner, ReadError};
use crate::env::Env;
use crate::format::ids::VolumeId;
use crate::unit::request::{Span, covering};
use crate::uring::buffers::Buf;

/// A volume that is only read. Cheap to clone: a handle.
///
/// # Contracts
///
/// - **Buffers**: a read's buffer holds the whole blocks of [`Volume::blocks`], and its bytes lie
///   there as in the blocks.
/// - **Change**: name and size are the last known.
pub struct Volume<E: Env> {
    follower: Rc<Inner<E>>,
    id: VolumeId,
}

impl<E: Env> Clone for Volume<E> {
    fn clone(&self) -> Self {
        Self { follower: Rc::clone(&self.follower), id: self.id }
    }
}

impl<E: Env> Volume<E> {
    pub(super) fn new(follower: Rc<Inner<E>>, id: VolumeId) -> Self {
        Self { follower, id }
    }

    /// Its number.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Its name; of a deleted one, none.
    pub fn name(&self) -> Option<String> {
        self.info(|name, _| name.to_owned())
    }

    /// Its size in bytes; of a deleted one, zero.
    pub fn size(&self) -> u64 {
        self.info(|_, size| size).unwrap_or(0)
    }

    fn info<T>(&self, of: impl Fn(&str, u64) -> T) -> Option<T> {
        let state = self.follower.state.borrow();
        let mut live = state.volumes.iter().filter(|volume| !volume.deleting);
        live.find(|volume| volume.id == self.id).map(|volume| of(&volume.name, volume.size))
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u32 {
        self.follower.parts.geometry.block_size()
    }

    /// The whole blocks that some bytes lie in.
    pub fn blocks(&self, offset: u64, len: u64) -> Range<u64> {
        covering(Span { offset, len }, self.follower.parts.geometry)
    }

    /// Reads the whole blocks that some bytes lie in; their bytes are from the buffer's beginning.
    pub async fn read(&self, offset: u64, len: u64, mut buf: Buf) -> Result<Buf, ReadError> {
        let size = self.info(|_, size| size).ok_or(ReadError::Deleted)?;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(ReadError::OutOfRange { offset, len, size });
        }
        if len > 0 {
            let blocks = self.blocks(offset, len);
            let bytes = (blocks.end - blocks.start) as usize * self.block_size() as usize;
            assert!(buf.len() >= bytes, "a buffer for whole blocks");
            read_blocks(&self.follower, self.id, blocks, &mut buf).await?;
        }
        Ok(buf)
    }
}
