//! A pool that nobody serves, looked at as a whole: for `check` and `metadata`.
//!
//! # Contract
//!
//! Devices and NVRAM are claimed for this process alone, and nothing is written to them. What a
//! killed target has left in memory is in doubt from then on, as whoever mends flushes them.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use indicatif::ProgressBar;
use uuid::Uuid;

use super::device::Claimed;
use super::warm;
use crate::check::devices::{self, DeviceFacts, Pool};
use crate::check::finding::{Code, Finding, keep_the_store};
use crate::check::region::{self, Recovered};
use crate::check::{identity, lines, metadata};
use crate::env::flags::FlagsRegion;
use crate::env::os::{OsDisk, OsEnv, OsNvram};
use crate::env::region::DeviceRegion;
use crate::env::{Env as _, Nvram as _, Region};
use crate::format::nvram::{NvramIdentity, REGION_START};
use crate::format::superblock::{FlagsPlace, MetadataAt};
use crate::journal;
use crate::journal::inspect::{RegionFacts, inspect};
use crate::mds::examine::{HostedFacts, MetadataFacts};
use crate::mds::opening::MetadataPlace;
use crate::uring::buffers::View;

/// Where the unit's region is.
type UnitRegion = FlagsRegion<DeviceRegion<OsDisk>, OsNvram>;

/// What was claimed.
pub struct Offline {
    /// The world.
    pub env: OsEnv,
    /// The devices, in the order in which they were given.
    pub claimed: Vec<Claimed>,
    nvram: Option<(PathBuf, OsNvram)>,
    /// What the store of the metadata server holds, where it was given.
    pub mds_store: Option<HostedFacts>,
}

/// What was found.
#[derive(Default)]
pub struct Examination {
    /// Each device's superblocks.
    pub devices: Vec<DeviceFacts>,
    /// The pool that they are.
    pub pool: Option<Pool>,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// The unit's region.
    pub region: Option<(UnitRegion, RegionFacts)>,
    /// The unit's pairs, where nothing about them is in doubt.
    pub home: Option<Recovered>,
    /// The metadata's place, and what is there.
    pub metadata: Option<(MetadataPlace, MetadataFacts)>,
    /// How many volumes there are, as far as that is known.
    pub volumes: usize,
    /// Whether the metadata are in a store that was not looked at.
    pub store_elsewhere: bool,
}

impl Offline {
    /// Claims devices and NVRAM.
    pub async fn claim(env: &OsEnv, devices: &[PathBuf], nvram: Option<&Path>) -> Result<Self> {
        let claimed = warm::claim_unserved(env, devices).await?;
        let nvram = match nvram {
            Some(path) => {
                let opened = OsNvram::open(env.ring(), path, false).await;
                Some((path.to_owned(), opened.with_context(|| path.display().to_string())?))
            }
            None => None,
        };
        Ok(Offline { env: env.clone(), claimed, nvram, mds_store: None })
    }

    /// The whole NVRAM.
    pub fn nvram(&self) -> Option<&OsNvram> {
        self.nvram.as_ref().map(|(_, nvram)| nvram)
    }

    /// Looks at everything. Fails where that is not possible, and not where something is damaged.
    pub async fn examine(&self, progress: &ProgressBar) -> Result<Examination> {
        let mut devices = Vec::with_capacity(self.claimed.len());
        for of in &self.claimed {
            let name = of.path.display().to_string();
            devices.push(devices::look(&of.disk, self.env.buffers(), name).await);
        }
        let (pool, findings) = devices::judge(&devices);
        let mut found = Examination { devices, findings, ..Examination::default() };
        match &pool {
            None => {
                let foreign = |facts: &DeviceFacts| facts.is_foreign();
                ensure!(!found.devices.iter().all(foreign), "no device is of a pool");
            }
            Some(pool) => {
                if let Some(of) = pool.first().and_then(|first| self.claimed.get(first)) {
                    self.examine_first(of, pool, &mut found, progress).await?;
                }
            }
        }
        found.pool = pool;
        keep_the_store(&mut found.findings);
        Ok(found)
    }

    /// Looks at what is on the pool's first device, or in NVRAM on its behalf.
    async fn examine_first(
        &self,
        first: &Claimed,
        pool: &Pool,
        found: &mut Examination,
        progress: &ProgressBar,
    ) -> Result<()> {
        let superblock = &pool.superblock;
        let path = first.path.display().to_string();
        let region = self.region(first, pool, &mut found.findings).await?;
        if let Some((region, name)) = region {
            progress.set_length(region.len());
            let counted = Counted { region: region.clone(), progress: progress.clone() };
            // What is found there must not vanish later: a dump outlives it.
            region.flush().await.with_context(|| name.clone())?;
            let facts = inspect(&self.env, &counted, superblock.pool).await;
            let facts = facts.with_context(|| name.clone())?;
            let (home, findings) = region::judge(&facts, superblock, &name);
            found.findings.extend(findings);
            found.home = home;
            found.region = Some((region, facts));
        }
        if superblock.metadata == MetadataAt::Server {
            found.store_elsewhere = self.mds_store.is_none();
            if let Some(store) = &self.mds_store {
                found.volumes = store.volumes_of(superblock.pool);
                let (home, findings) =
                    metadata::against_server(store, superblock, found.home.take());
                found.home = home;
                found.findings.extend(findings);
            }
            return Ok(());
        }
        ensure!(
            self.mds_store.is_none(),
            "pool {} has its metadata on {path}: leave out --mds-store",
            superblock.pool
        );
        let place = match MetadataPlace::on(&first.path, superblock) {
            Ok(place) => place,
            Err(error) => {
                found.findings.push(Finding::lasting(Code::StoreUnreadable, &path, error));
                return Ok(());
            }
        };
        let facts = place.examine().with_context(|| format!("the metadata on {path}"))?;
        if let Some(home) = metadata::home(&facts, superblock.unit, superblock.pool_extents()) {
            found.home = Some(home);
        }
        found.findings.extend(metadata::judge(&facts, &path));
        let volumes = metadata::volumes(&facts);
        found.volumes = volumes.as_ref().map_or(0, Vec::len);
        if let (Some(home), Some(volumes)) = (&found.home, volumes) {
            let judged = lines::judge(&home.lines, superblock.geometry, &volumes);
            found.findings.extend(judged);
        }
        if let (Some(home), Ok(store)) = (&found.home, &facts.store) {
            found.findings.extend(metadata::against(&store.catalog, superblock.unit, home));
        }
        found.metadata = Some((place, facts));
        Ok(())
    }

    /// The unit's region and what to call it.
    async fn region(
        &self,
        first: &Claimed,
        pool: &Pool,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<(UnitRegion, String)>> {
        let span = pool.superblock.layout.regions.expect("the first device has the regions").unit;
        match (pool.superblock.flags, &self.nvram) {
            (FlagsPlace::Device, None) => {
                let region = DeviceRegion::new(first.disk.clone(), span.offset, span.len);
                let name = format!("the unit's region of {}", first.path.display());
                Ok(Some((FlagsRegion::Device(region), name)))
            }
            (FlagsPlace::Device, Some(_)) => {
                bail!("the pool's flags are on its first device: --nvram is of no use")
            }
            (FlagsPlace::Nvram { region, .. }, None) => bail!(
                "the pool's flags are in the NVRAM region {}: say --nvram PATH",
                Uuid::from_bytes(region)
            ),
            (FlagsPlace::Nvram { region, len }, Some((path, nvram))) => {
                let wanted = NvramIdentity { pool: pool.superblock.pool, region, len };
                let name = path.display().to_string();
                if !self.judge_identity(nvram, &name, wanted, findings).await? {
                    return Ok(None);
                }
                let name = format!("the unit's region in {name}");
                Ok(Some((FlagsRegion::Nvram(nvram.part(REGION_START, len)), name)))
            }
            (FlagsPlace::Mds, None) => Ok(None),
            (FlagsPlace::Mds, Some(_)) => {
                bail!("the pool's flags are at the metadata server: --nvram is of no use")
            }
        }
    }

    /// Whether NVRAM is the one that is wanted.
    async fn judge_identity(
        &self,
        nvram: &OsNvram,
        name: &str,
        wanted: NvramIdentity,
        findings: &mut Vec<Finding>,
    ) -> Result<bool> {
        ensure!(nvram.len() >= REGION_START + wanted.len, "{name}: a part of it is missing");
        let copies =
            journal::identity::copies(&self.env, nvram).await.with_context(|| name.to_owned())?;
        if identity::is_another(&copies, &wanted) {
            let id = Uuid::from_bytes(wanted.region);
            bail!("{name} is another NVRAM: pool {} wants the region {id}", wanted.pool);
        }
        findings.extend(identity::judge(&copies, &wanted, name));
        Ok(copies.iter().any(Option::is_some))
    }
}

/// A region whose reading is watched.
#[derive(Clone)]
struct Counted<R> {
    region: R,
    progress: ProgressBar,
}

impl<R: Region> Region for Counted<R> {
    fn len(&self) -> u64 {
        self.region.len()
    }

    fn sector(&self) -> u32 {
        self.region.sector()
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        self.progress.inc(view.len() as u64);
        self.region.read(offset, view)
    }

    fn persist(&self, pieces: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static {
        self.region.persist(pieces)
    }

    fn persist_all(
        &self,
        pieces: Vec<(u64, View)>,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.region.persist_all(pieces)
    }

    fn whole(&self) -> Option<Self> {
        let region = self.region.whole()?;
        Some(Self { region, progress: self.progress.clone() })
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        self.region.flush()
    }
}
