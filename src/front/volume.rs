//! A volume of the storage unit as an export.

use std::borrow::Cow;
use std::future::Future;

use super::export::{ErrorKind, Export, ExportError, PAYLOAD_MAX, Placement, Run};
use crate::env::Env;
use crate::unit::{IoError, Volume};
use crate::uring::buffers::Buf;

impl<E: Env> Export for Volume<E> {
    fn opened(&self) -> impl Future<Output = Self> + 'static {
        let volume = self.clone();
        async move { Volume::opened(&volume).await }
    }

    fn name(&self) -> String {
        self.name().to_string()
    }

    fn size(&self) -> u64 {
        self.size()
    }

    fn block_size(&self) -> u32 {
        self.block_size()
    }

    fn payload_max(&self) -> u32 {
        u32::try_from(self.request_max()).unwrap_or(PAYLOAD_MAX).min(PAYLOAD_MAX)
    }

    fn placement(&self, offset: u64, length: u32) -> Placement {
        let room = self.buffer_for(offset, length.into());
        Placement { lead: room.place.start, total: room.total }
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

    fn read_straight(
        &self,
        offset: u64,
        length: u32,
        mut lent: Buf,
    ) -> impl Future<Output = bool> + 'static {
        let volume = self.clone();
        async move {
            let read = Volume::read_straight(&volume, offset, length.into(), &mut lent).await;
            // What is wrong is found again, and told, by who then reads in the ordinary way.
            read.unwrap_or(false)
        }
    }

    fn write(
        &self,
        offset: u64,
        length: u32,
        buffer: Buf,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let volume = self.clone();
        async move { Ok(Volume::write(&volume, offset, length.into(), buffer, fua).await?) }
    }

    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let volume = self.clone();
        async move { Ok(Volume::flush(&volume).await?) }
    }

    fn trim(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let volume = self.clone();
        async move { Ok(Volume::trim(&volume, offset, length, fua).await?) }
    }

    fn status(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Run>, ExportError> {
        let runs = self.allocation(offset, length, max)?;
        Ok(runs.into_iter().map(|run| Run { length: run.len, used: run.used }).collect())
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
        no_hole: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + 'static {
        let volume = self.clone();
        async move { Ok(Volume::write_zeroes(&volume, offset, length, fua, no_hole).await?) }
    }
}

impl From<IoError> for ExportError {
    fn from(error: IoError) -> Self {
        let kind = match &error {
            IoError::OutOfRange { .. } => ErrorKind::OutOfRange,
            IoError::NoSpace => ErrorKind::NoSpace,
            IoError::DeviceRead(_)
            | IoError::Latched(_)
            | IoError::Deleted
            | IoError::WentBack(_)
            | IoError::Group(_)
            | IoError::InDoubt => ErrorKind::Device,
            IoError::ShuttingDown => ErrorKind::ShuttingDown,
        };
        Self::new(kind, Cow::Owned(error.to_string()))
    }
}
