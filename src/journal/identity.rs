//! Reading, writing and erasing the identity of an NVRAM.
//!
//! # Contracts
//!
//! - **Reading**: a copy that the medium cannot give is none: a crash may have struck its writing.
//! - **Durability**: what [`write`] and [`erase`] return after is durable. Cut short, either copy
//!   may be there still, or already.

use std::io;

use super::pages::read_what_can_be;
use crate::env::{Env, Region};
use crate::format::nvram::{NvramIdentity, REGION_START};
use crate::uring::buffers::BufferPool;

/// The identity of an NVRAM, where it has one.
pub async fn read<E: Env>(env: &E, nvram: &impl Region) -> io::Result<Option<NvramIdentity>> {
    Ok(copies(env, nvram).await?.into_iter().flatten().next())
}

/// What each copy of it says; `None` where it is damaged.
pub async fn copies<E: Env>(
    env: &E,
    nvram: &impl Region,
) -> io::Result<[Option<NvramIdentity>; 2]> {
    if nvram.len() < REGION_START {
        return Ok([None; 2]);
    }
    let mut buffer = env.buffers().acquire(REGION_START as usize).await;
    read_what_can_be(env, nvram, 0, &mut buffer, 0..REGION_START as usize).await?;
    Ok(NvramIdentity::copies(buffer.as_slice()))
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
