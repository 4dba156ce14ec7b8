//! Repairs.
//!
//! # Contracts
//!
//! - **Ordering**: each repair writes what is damaged from what is good, durably, and touches
//!   nothing else: wherever a repair is cut short, no less is whole than before.
//! - A new store comes last: it is told by a home that is mended.

use std::io;

use super::devices::DeviceFacts;
use super::finding::{Finding, Mend};
use crate::env::{Disk, Env, Region};
use crate::format::superblock::{Copy, Warning, choose};
use crate::format::superblock_io;
use crate::journal;
use crate::journal::inspect::{RegionFacts, mend_page, runs};
use crate::mds::backend::Medium;
use crate::mds::opening::MetadataPlace;
use crate::mds::store::StoreError;

/// Why a repair was given up.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// A device failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The store did.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Every repair that the findings ask for, once, the store's last.
pub fn plan(findings: &[Finding]) -> Vec<Mend> {
    let mut mends: Vec<Mend> = Vec::new();
    for mend in findings.iter().filter_map(|finding| finding.mend) {
        if !mends.contains(&mend) {
            mends.push(mend);
        }
    }
    mends.sort_by_key(|mend| *mend == Mend::NewStore);
    mends
}

/// Writes the superblock that is damaged or older, from the other one.
pub async fn superblock<E: Env, D: Disk>(env: &E, disk: &D, facts: &DeviceFacts) -> io::Result<()> {
    let [first, second] = facts.copies.clone();
    let Ok((good, Some(warning))) = choose(first, second) else { return Ok(()) };
    let (Warning::Damaged { copy, .. } | Warning::Stale(copy)) = warning;
    let offset = good.layout.superblocks()[usize::from(copy == Copy::Second)];
    superblock_io::write_copy(disk, env.buffers(), &good, offset).await
}

/// Writes the damaged copies of the NVRAM's identity; `nvram` is all of it.
pub async fn identity<E: Env, R: Region>(env: &E, nvram: &R) -> io::Result<()> {
    let len = crate::format::nvram::LEN;
    let copies = journal::identity::copies(env, nvram).await?;
    let Some(good) = copies.iter().flatten().next().copied() else { return Ok(()) };
    let mut buffer = env.buffers().acquire(2 * len).await;
    good.store(&mut buffer.as_mut_slice()[..2 * len]);
    for (number, _) in copies.iter().enumerate().filter(|(_, copy)| copy.is_none()) {
        let place = number * len..(number + 1) * len;
        nvram.persist(vec![((number * len) as u64, buffer.view(place))]).await?;
    }
    Ok(())
}

/// Carries out a repair of the region.
pub async fn page<E: Env, R: Region>(
    env: &E,
    region: &R,
    facts: &RegionFacts,
    mend: &Mend,
) -> io::Result<()> {
    let Mend::Page(kind, page) = mend else { return Ok(()) };
    let runs = runs(*kind, facts.header.as_ref().map(|(_, layout)| layout));
    mend_page(env, region, &runs, page).await.map(|_| ())
}

/// Carries out a repair of the metadata.
pub fn metadata<M: Medium>(place: &MetadataPlace<M>, mend: &Mend) -> Result<(), MendError> {
    match mend {
        Mend::StoreHeader => place.mend_headers()?,
        Mend::VolumeTable => place.mend_table()?,
        Mend::NewStore => place.renew()?,
        Mend::Superblock(_) | Mend::Identity | Mend::Page(..) => {}
    }
    Ok(())
}
