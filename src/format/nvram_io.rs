//! Reading, writing and erasing the identity of an NVRAM.
//!
//! # Contracts
//!
//! - **Durability**: what [`write`] and [`erase`] return after is durable. Cut short, either copy
//!   may be there still, or already.

use std::io;

use super::nvram::{NvramIdentity, REGION_START};
use crate::env::Region;
use crate::uring::buffers::BufferPool;

/// The identity of an NVRAM, where it has one.
pub async fn read(nvram: &impl Region, buffers: &BufferPool) -> io::Result<Option<NvramIdentity>> {
    if nvram.len() < REGION_START {
        return Ok(None);
    }
    let mut buffer = buffers.acquire(REGION_START as usize).await;
    nvram.read(0, buffer.view_all()).await?;
    Ok(NvramIdentity::find(buffer.as_slice()))
}

/// Writes both copies. The NVRAM must be larger.
pub async fn write(
    nvram: &impl Region,
    buffers: &BufferPool,
    identity: &NvramIdentity,
) -> io::Result<()> {
    let mut buffer = buffers.acquire(REGION_START as usize).await;
    identity.store(buffer.as_mut_slice());
    nvram.persist(vec![(0, buffer.view_all())]).await
}

/// Makes it NVRAM of nobody. It must be large enough to have an identity.
pub async fn erase(nvram: &impl Region, buffers: &BufferPool) -> io::Result<()> {
    let mut buffer = buffers.acquire(REGION_START as usize).await;
    buffer.as_mut_slice().fill(0);
    nvram.persist(vec![(0, buffer.view_all())]).await
}
