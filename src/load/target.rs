//! What is loaded: a device alone, or a volume of the engine.

use std::future::Future;

use crate::env::{Disk, Durability, Env};
use crate::unit::Volume;
use crate::uring::buffers::Buf;

/// A request failed; what it says is for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// Something that blocks can be read from and written to. Cheap to clone: a handle.
pub trait Target: Clone + 'static {
    /// Reads `len` bytes to the start of `buf`.
    fn read(&self, offset: u64, buf: Buf, len: u32)
    -> impl Future<Output = Result<Buf, LoadError>>;
    /// Writes `len` bytes from the start of `buf`.
    fn write(&self, offset: u64, buf: Buf, len: u32)
    -> impl Future<Output = Result<(), LoadError>>;
    /// Makes durable what was written.
    fn flush(&self) -> impl Future<Output = Result<(), LoadError>>;
}

/// A device with nothing in between.
#[derive(Clone, Debug)]
pub struct Alone<D>(pub D);

impl<D: Disk> Target for Alone<D> {
    async fn read(&self, offset: u64, mut buf: Buf, len: u32) -> Result<Buf, LoadError> {
        let read = self.0.read(offset, buf.view(0..len as usize)).await;
        read.map(|()| buf).map_err(|error| LoadError(format!("{}: {error}", self.0.name())))
    }

    async fn write(&self, offset: u64, mut buf: Buf, len: u32) -> Result<(), LoadError> {
        let view = buf.view(0..len as usize);
        let written = self.0.write(offset, view, Durability::Volatile).await;
        written.map_err(|error| LoadError(format!("{}: {error}", self.0.name())))
    }

    async fn flush(&self) -> Result<(), LoadError> {
        let flushed = self.0.flush().await;
        flushed.map_err(|error| LoadError(format!("{}: {error}", self.0.name())))
    }
}

impl<E: Env> Target for Volume<E> {
    async fn read(&self, offset: u64, buf: Buf, len: u32) -> Result<Buf, LoadError> {
        let read = Volume::read(self, offset, len.into(), buf).await;
        read.map_err(|error| LoadError(error.to_string()))
    }

    async fn write(&self, offset: u64, buf: Buf, len: u32) -> Result<(), LoadError> {
        let written = Volume::write(self, offset, len.into(), buf, false).await;
        written.map_err(|error| LoadError(error.to_string()))
    }

    async fn flush(&self) -> Result<(), LoadError> {
        Volume::flush(self).await.map_err(|error| LoadError(error.to_string()))
    }
}
