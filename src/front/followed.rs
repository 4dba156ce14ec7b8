//! A volume that is read beside the unit that writes it, as an export.

use std::borrow::Cow;
use std::future::{Future, ready};

use super::export::{ErrorKind, Export, ExportError, PAYLOAD_MAX, Placement, Run};
use crate::env::Env;
use crate::follow::{ReadError, Volume};
use crate::uring::buffers::Buf;

type Done = Result<(), ExportError>;

fn read_only() -> Done {
    Err(ExportError::new(ErrorKind::ReadOnly, "the volume is only read here"))
}

impl<E: Env> Export for Volume<E> {
    fn name(&self) -> String {
        self.name().unwrap_or_default()
    }

    fn size(&self) -> u64 {
        self.size()
    }

    fn block_size(&self) -> u32 {
        self.block_size()
    }

    fn payload_max(&self) -> u32 {
        PAYLOAD_MAX
    }

    fn placement(&self, offset: u64, length: u32) -> Placement {
        let (blocks, block) = (self.blocks(offset, length.into()), u64::from(self.block_size()));
        let total = (blocks.end - blocks.start) * block;
        Placement { lead: (offset % block) as usize, total: total as usize }
    }

    fn read(
        &self,
        offset: u64,
        length: u32,
        buffer: Buf,
    ) -> impl Future<Output = Result<Buf, ExportError>> + 'static {
        let volume = self.clone();
        async move { Ok(Volume::read(&volume, offset, length.into(), buffer).await?) }
    }

    fn write(&self, _: u64, _: u32, _: Buf, _: bool) -> impl Future<Output = Done> + 'static {
        ready(read_only())
    }

    fn flush(&self) -> impl Future<Output = Done> + 'static {
        ready(Ok(()))
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> impl Future<Output = Done> + 'static {
        ready(read_only())
    }

    /// What it finds would be old before it is told: all may have contents.
    fn status(&self, _: u64, length: u64, _: usize) -> Result<Vec<Run>, ExportError> {
        Ok(vec![Run { length, used: true }])
    }

    fn write_zeroes(
        &self,
        _: u64,
        _: u64,
        _: bool,
        _: bool,
    ) -> impl Future<Output = Done> + 'static {
        ready(read_only())
    }
}

impl From<ReadError> for ExportError {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::OutOfRange { .. } => ErrorKind::OutOfRange,
            ReadError::ShuttingDown => ErrorKind::ShuttingDown,
            ReadError::Deleted
            | ReadError::Device(_)
            | ReadError::LeaseOver { .. }
            | ReadError::TooSlow { .. }
            | ReadError::Unsettled(_) => ErrorKind::Device,
        };
        Self::new(kind, Cow::Owned(error.to_string()))
    }
}
