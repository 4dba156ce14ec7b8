//! Moving a unit's region to another place: into NVRAM, back to the device, to another NVRAM.
//!
//! What is moved is what a recovery would find there: the home, with the linked groups applied to
//! it. It goes into a region that is laid out anew, so that places may differ in length and sector,
//! and the pool need not have been stopped well: what data is in the journal alone goes to its
//! place on the devices first.
//!
//! # Contracts
//!
//! - **Atomicity**: the first device's superblock decides where the region is. The order is: the
//!   new place is made nobody's, wiped, its header first, laid out, its header last, and read back;
//!   then it gets its identity, where it is NVRAM; then the superblocks name it, that of the first
//!   device last; then the old place is made nobody's. Each is durable before the next one. Cut
//!   short, the region is wholly at the old place or wholly at the new one, and to call again
//!   completes it.
//! - **Never backward**: incarnations and sequences go on from those of the old place. A place that
//!   holds a newer state of the same pool ([`Age`]) than the one that the superblocks name is not
//!   overwritten: they were restored from a copy. What a move that was cut short left is not newer,
//!   and what it left behind is nobody's, so that an old superblock does not lead there.
//! - **Ownership**: devices and NVRAM are claimed, and nobody uses the region meanwhile.
//! - **Cancellation**: as a crash.

use std::fmt;
use std::io;

use uuid::Uuid;

use super::carry::carry;
use super::layout::{HEADER_PAGE, RegionLayout};
use super::open::{Beginning, PAGE_WORK, Survey};
use super::pages::read_what_can_be;
use super::payload::DECIDED;
use super::{JournalError, identity, replay};
use crate::env::flags::FlagsRegion;
use crate::env::region::DeviceRegion;
use crate::env::{Disk, Env, Nvram, Region};
use crate::format::ids::{Incarnation, PoolId, Sequence};
use crate::format::nvram::{NvramIdentity, REGION_START};
use crate::format::superblock::{FlagsPlace, Superblock};
use crate::format::superblock_io;

/// Bytes of both copies of a region's header.
const HEADERS: usize = 2 * HEADER_PAGE;
/// Bytes that are wiped at a time.
const CHUNK: u64 = 1 << 20;

/// A device of a pool.
pub struct PoolDisk<'a, D> {
    /// The device, claimed.
    pub disk: &'a D,
    /// What it says of itself and its pool.
    pub superblock: &'a mut Superblock,
}

/// Where a region is to be.
pub struct Move<'a, N> {
    /// The NVRAM that it is in, or was in before a move that was cut short; `None`: none.
    pub from: Option<&'a N>,
    /// The NVRAM that it goes to; `None`: the first device.
    pub to: Option<&'a N>,
    /// Whether a newer state of the pool, or another pool's, is overwritten too.
    pub force: bool,
}

/// What a call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// The region is at the new place.
    Now,
    /// It was there; what it had left behind was erased.
    Completed,
    /// It was there, and there was nothing to do.
    Before,
}

/// How far a unit has come: of two states of it the greater one is the newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age {
    /// The unit's starts so far.
    pub incarnation: Incarnation,
    /// The next group.
    pub sequence: Sequence,
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start {}, group {}", self.incarnation, self.sequence)
    }
}

/// Why a region is not moved, or not found.
#[derive(Debug, thiserror::Error)]
pub enum RelocateError {
    /// A place cannot be used.
    #[error("{place}: {problem}")]
    At {
        /// Which device or NVRAM.
        place: String,
        /// What is wrong there.
        problem: Problem,
    },
    /// The flags are in NVRAM, and none was given.
    #[error(
        "the pool's flags are in the NVRAM region {}: name it with --nvram, or with --from where \
         another one is to take its place",
        uuid(*region)
    )]
    NvramWanted {
        /// The region that the superblocks name.
        region: [u8; 16],
    },
    /// The flags are nowhere that this could reach.
    #[error("the pool's flags are at a metadata server")]
    AtServer,
}

/// What is wrong with a place.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The region there cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The device's superblock could not be written.
    #[error("its superblock cannot be written: {0}")]
    Superblock(io::Error),
    /// The NVRAM is not the one that the superblocks name.
    #[error("it is {}: pool {pool} wants the NVRAM region {}", named(*found), uuid(*region))]
    NotBound {
        /// Whose.
        pool: PoolId,
        /// The region that its superblocks name.
        region: [u8; 16],
        /// What the NVRAM says of itself.
        found: Option<NvramIdentity>,
    },
    /// The NVRAM is shorter than what it held.
    #[error("it has {len} bytes and had {needed}: a part of it is missing")]
    Shrunk {
        /// Its bytes.
        len: u64,
        /// What it had at least.
        needed: u64,
    },
    /// The NVRAM is too small to be moved to.
    #[error("it has {len} bytes, and the pool needs {needed}")]
    TooSmall {
        /// Its bytes.
        len: u64,
        /// What it takes.
        needed: u64,
    },
    /// The NVRAM is another pool's.
    #[error("it holds the flags of pool {0}; nothing was changed")]
    OtherPool(PoolId),
    /// What would be overwritten is newer than what is in use.
    #[error(
        "it holds a newer state of the same pool ({there}) than the place that the superblocks \
         name ({used}), as if they were restored from before a move; nothing was changed. Bring \
         the newer superblocks back, or lose the newer state with `flipside flags move --force`"
    )]
    Newer {
        /// How far what would be overwritten has come.
        there: Age,
        /// How far what is in use has come.
        used: Age,
    },
    /// The superblocks name a place that was left for this one.
    #[error(
        "it holds the flags of this pool ({there}), and the place that the superblocks name holds \
         none, as if they were restored from before a move; nothing was changed. Bring the newer \
         superblocks back, or have them name this place with `flipside flags move --force`"
    )]
    Left {
        /// How far what is here has come.
        there: Age,
    },
    /// What was written to the new place is not what is read there.
    #[error("what was just written to it reads as something else; the flags stay where they were")]
    Miscarried,
    /// What would be overwritten is of this pool and cannot be read, so that its age is not known.
    #[error(
        "it holds flags of the same pool that cannot be read ({0}); nothing was changed. `flipside \
         flags move --force` overwrites them"
    )]
    Unreadable(JournalError),
}

/// Says where something went wrong.
pub(super) fn at<P: Into<Problem>>(place: &str) -> impl FnOnce(P) -> RelocateError {
    move |problem| RelocateError::At { place: place.to_owned(), problem: problem.into() }
}

fn uuid(bytes: [u8; 16]) -> Uuid {
    Uuid::from_bytes(bytes)
}

fn named(found: Option<NvramIdentity>) -> String {
    found.map_or_else(
        || "no NVRAM of a pool".to_owned(),
        |found| format!("the NVRAM region {} of pool {}", uuid(found.region), found.pool),
    )
}

type Place<E> = FlagsRegion<DeviceRegion<<E as Env>::Disk>, <E as Env>::Nvram>;

/// The bytes that an NVRAM must have at least to take the region of this pool.
pub fn nvram_len_min(first: &Superblock) -> u64 {
    let regions = first.layout.regions.expect("the first device has the regions");
    REGION_START + regions.unit.len
}

/// The region in the NVRAM that a pool's superblocks name, if it is this one.
pub async fn bound_part<E: Env>(
    env: &E,
    first: &Superblock,
    nvram: &E::Nvram,
) -> Result<E::Nvram, RelocateError> {
    let FlagsPlace::Nvram { region, len } = first.flags else {
        unreachable!("asked of a pool whose flags are in NVRAM");
    };
    let pool = first.pool;
    let refused = at(nvram.name());
    let found = match identity::read(env, nvram).await {
        Ok(found) => found,
        Err(error) => return Err(refused(error.into())),
    };
    if found != Some(NvramIdentity { pool, region, len }) {
        return Err(refused(Problem::NotBound { pool, region, found }));
    }
    let needed = REGION_START + len;
    if nvram.len() < needed {
        return Err(refused(Problem::Shrunk { len: nvram.len(), needed }));
    }
    Ok(nvram.part(REGION_START, len))
}

/// Makes every device name the place that the first one names: a move may have been cut short
/// between them.
pub async fn complete<E: Env>(
    env: &E,
    pool: &mut [PoolDisk<'_, E::Disk>],
) -> Result<(), RelocateError> {
    let place = pool[0].superblock.flags;
    for member in pool.iter_mut().filter(|member| member.superblock.flags != place) {
        name_place(env, member, place).await?;
    }
    Ok(())
}

/// Moves the region of a pool, whose devices are in their order; or completes a move that was cut
/// short. See the module.
pub async fn relocate<E: Env>(
    env: &E,
    pool: &mut [PoolDisk<'_, E::Disk>],
    wanted: Move<'_, E::Nvram>,
) -> Result<Moved, RelocateError> {
    let [PoolDisk { disk, superblock }, ..] = &*pool else { unreachable!("a pool has a device") };
    let unit = Unit { env, disk: *disk, superblock };
    let there = match wanted.to {
        None => superblock.flags == FlagsPlace::Device,
        Some(nvram) => unit.is_bound_to(nvram).await?,
    };
    if there {
        return unit.clear_leavings(&wanted).await;
    }
    let (bound, id) = (superblock.flags, superblock.pool);
    let source = unit.region(bound, wanted.from).await?;
    let source_name = unit.name(wanted.from.filter(|_| bound != FlagsPlace::Device));
    let survey = match (unit.survey_stable(&source).await, wanted.to) {
        (Err(Problem::Journal(JournalError::Foreign(_))), Some(nvram))
            if unit.is_ours(nvram).await? =>
        {
            let place = unit.adopt(nvram, wanted.force).await.map_err(at(nvram.name()))?;
            name_everywhere(env, pool, place).await?;
            return Ok(Moved::Now);
        }
        (survey, _) => survey.map_err(at(source_name))?,
    };
    let age = age(&survey);
    let target = unit.room(wanted.to)?;
    if !wanted.force {
        unit.refuse_newer(wanted.to, age).await?;
    }
    let mut work = env.buffers().acquire(PAGE_WORK).await;
    let payload = survey.payload(env, &source, &mut work, &DECIDED).await;
    let payload = payload.map_err(Problem::Journal).map_err(at(source_name))?;
    carry(pool, work, &survey.lines, payload).await?;
    let target_name = unit.name(wanted.to);
    if let Some(nvram) = wanted.to {
        identity::erase(nvram, env.buffers()).await.map_err(at(target_name))?;
    }
    wipe(env, &target).await.map_err(at(target_name))?;
    let beginning = Beginning {
        unit: superblock.unit,
        pairs: superblock.pool_extents(),
        incarnation: age.incarnation,
        sequence: age.sequence,
        lines: &survey.lines,
    };
    beginning.write(&target, id, env.buffers()).await.map_err(at(target_name))?;
    unit.compare(&target, &survey).await.map_err(at(target_name))?;
    let place = match wanted.to {
        None => FlagsPlace::Device,
        Some(nvram) => identify(env, nvram, id, target.len()).await.map_err(at(target_name))?,
    };
    name_everywhere(env, pool, place).await?;
    match (bound, wanted.from) {
        (FlagsPlace::Nvram { .. }, Some(old)) => {
            identity::erase(old, env.buffers()).await.map_err(at(old.name()))?;
        }
        _ => wipe_header(env, &source).await.map_err(at(pool[0].disk.name()))?,
    }
    Ok(Moved::Now)
}

/// A unit, by its first device.
struct Unit<'a, E: Env> {
    env: &'a E,
    disk: &'a E::Disk,
    superblock: &'a Superblock,
}

impl<E: Env> Unit<'_, E> {
    /// The region on the device.
    fn on_device(&self) -> Place<E> {
        let regions = self.superblock.layout.regions.expect("the first device has the regions");
        let span = regions.unit;
        FlagsRegion::Device(DeviceRegion::new(self.disk.clone(), span.offset, span.len))
    }

    /// The region that is at a place.
    async fn region(
        &self,
        place: FlagsPlace,
        nvram: Option<&E::Nvram>,
    ) -> Result<Place<E>, RelocateError> {
        match (place, nvram) {
            (FlagsPlace::Device, _) => Ok(self.on_device()),
            (FlagsPlace::Nvram { .. }, Some(nvram)) => {
                Ok(FlagsRegion::Nvram(bound_part(self.env, self.superblock, nvram).await?))
            }
            (FlagsPlace::Nvram { region, .. }, None) => Err(RelocateError::NvramWanted { region }),
            (FlagsPlace::Mds, _) => Err(RelocateError::AtServer),
        }
    }

    /// The name of a place.
    fn name<'n>(&'n self, nvram: Option<&'n E::Nvram>) -> &'n str {
        nvram.map_or_else(|| self.disk.name(), Nvram::name)
    }

    async fn is_bound_to(&self, nvram: &E::Nvram) -> Result<bool, RelocateError> {
        let FlagsPlace::Nvram { .. } = self.superblock.flags else { return Ok(false) };
        match bound_part(self.env, self.superblock, nvram).await {
            Ok(_) => Ok(true),
            Err(RelocateError::At { problem: Problem::NotBound { .. }, .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    async fn survey(&self, region: &Place<E>) -> Result<Survey, JournalError> {
        let Superblock { pool, unit, .. } = *self.superblock;
        let pairs = self.superblock.pool_extents();
        let mut work = self.env.buffers().acquire(PAGE_WORK).await;
        Survey::read(self.env, region, pool, unit, pairs, &mut work).await
    }

    /// What is in the place in use, which will not vanish later, the linked groups applied.
    async fn survey_stable(&self, region: &Place<E>) -> Result<Survey, Problem> {
        region.flush().await?;
        let mut survey = self.survey(region).await?;
        replay(&mut survey.lines, &survey.groups)?;
        Ok(survey)
    }

    /// Looks whether what was moved is there, before anything relies on it.
    async fn compare(&self, target: &Place<E>, moved: &Survey) -> Result<(), Problem> {
        let found = self.survey(target).await?;
        let same = age(&found) == age(moved) && found.lines == moved.lines;
        if same { Ok(()) } else { Err(Problem::Miscarried) }
    }

    /// What a new region may take of its place: as many journal slots as are of use.
    fn room(&self, nvram: Option<&E::Nvram>) -> Result<Place<E>, RelocateError> {
        let Some(nvram) = nvram else { return Ok(self.on_device()) };
        let (len, needed) = (nvram.len(), nvram_len_min(self.superblock));
        if len < needed {
            return Err(at(nvram.name())(Problem::TooSmall { len, needed }));
        }
        let (room, pairs) = (len - REGION_START, self.superblock.pool_extents());
        let layout = RegionLayout::compute(room, pairs, nvram.sector())
            .map_err(|needed| JournalError::TooSmall { len: room, needed })
            .map_err(at(nvram.name()))?;
        Ok(FlagsRegion::Nvram(nvram.part(REGION_START, layout.end())))
    }

    /// Refuses where what is to be overwritten is of the same pool and has come further than what
    /// is used; or is another pool's.
    async fn refuse_newer(&self, nvram: Option<&E::Nvram>, used: Age) -> Result<(), RelocateError> {
        let there = match nvram {
            Some(nvram) => self.age_in(nvram).await,
            None => match self.survey(&self.on_device()).await {
                Ok(survey) => Ok(Some(age(&survey))),
                Err(failed @ JournalError::Failed(_)) => Err(failed.into()),
                // What was moved away from, or was being moved to, need not be whole.
                Err(_) => Ok(None),
            },
        };
        let there = there.and_then(|there| match there {
            Some(there) if there > used => Err(Problem::Newer { there, used }),
            _ => Ok(()),
        });
        there.map_err(at(self.name(nvram)))
    }

    /// How far the state of this pool in an NVRAM has come; `None` where there is none.
    async fn age_in(&self, nvram: &E::Nvram) -> Result<Option<Age>, Problem> {
        let Some(identity) = identity::read(self.env, nvram).await? else {
            return Ok(None);
        };
        if identity.pool != self.superblock.pool {
            return Err(Problem::OtherPool(identity.pool));
        }
        let needed = REGION_START.saturating_add(identity.len);
        if nvram.len() < needed {
            return Err(Problem::Shrunk { len: nvram.len(), needed });
        }
        let region = FlagsRegion::Nvram(nvram.part(REGION_START, identity.len));
        let survey = self.survey(&region).await.map_err(Problem::Unreadable)?;
        Ok(Some(age(&survey)))
    }

    /// Whether an NVRAM is of this pool, in whatever state; refused where it is another's.
    async fn is_ours(&self, nvram: &E::Nvram) -> Result<bool, RelocateError> {
        let found = identity::read(self.env, nvram).await.map_err(at(nvram.name()))?;
        match found {
            Some(found) if found.pool != self.superblock.pool => {
                Err(at(nvram.name())(Problem::OtherPool(found.pool)))
            }
            found => Ok(found.is_some()),
        }
    }

    /// The place that the superblocks should name, where they name one that was left.
    async fn adopt(&self, nvram: &E::Nvram, force: bool) -> Result<FlagsPlace, Problem> {
        let there = self.age_in(nvram).await?;
        let found = identity::read(self.env, nvram).await?;
        match (found, there) {
            (Some(NvramIdentity { region, len, .. }), _) if force => {
                Ok(FlagsPlace::Nvram { region, len })
            }
            (_, Some(there)) => Err(Problem::Left { there }),
            _ => unreachable!("asked of an NVRAM of this pool"),
        }
    }

    /// Where the region is at its place already: the end of a move that was cut short there.
    async fn clear_leavings(&self, wanted: &Move<'_, E::Nvram>) -> Result<Moved, RelocateError> {
        let old = match wanted.from {
            Some(old) if self.is_ours(old).await? => Some(old),
            _ => None,
        };
        let device = self.on_device();
        let left = wanted.to.is_some() && self.has_header(&device).await?;
        if old.is_none() && !left {
            return Ok(Moved::Before);
        }
        let region = self.region(self.superblock.flags, wanted.to).await?;
        let survey = self.survey_stable(&region).await.map_err(at(self.name(wanted.to)))?;
        let used = age(&survey);
        if let Some(old) = old {
            if !wanted.force {
                self.refuse_newer(Some(old), used).await?;
            }
            identity::erase(old, self.env.buffers()).await.map_err(at(old.name()))?;
        }
        if left {
            if !wanted.force {
                self.refuse_newer(None, used).await?;
            }
            wipe_header(self.env, &device).await.map_err(at(self.disk.name()))?;
        }
        Ok(Moved::Completed)
    }

    async fn has_header(&self, region: &Place<E>) -> Result<bool, RelocateError> {
        let mut buffer = self.env.buffers().acquire(HEADERS).await;
        let read = read_what_can_be(self.env, region, 0, &mut buffer, 0..HEADERS).await;
        read.map_err(at(self.disk.name()))?;
        Ok(buffer.as_slice().iter().any(|&byte| byte != 0))
    }
}

fn age(survey: &Survey) -> Age {
    Age { incarnation: survey.header.incarnation, sequence: survey.next_sequence() }
}

/// Makes a region in NVRAM a pool's own; where it is from now on.
async fn identify<E: Env>(
    env: &E,
    nvram: &E::Nvram,
    pool: PoolId,
    len: u64,
) -> io::Result<FlagsPlace> {
    let random = [env.random(), env.random()].map(u64::to_le_bytes);
    let region = std::array::from_fn(|i| random[i / 8][i % 8]);
    identity::write(nvram, env.buffers(), &NvramIdentity { pool, region, len }).await?;
    Ok(FlagsPlace::Nvram { region, len })
}

/// Makes a region nobody's: without a header there is nothing.
async fn wipe_header<E: Env>(env: &E, region: &Place<E>) -> io::Result<()> {
    let mut zeros = env.buffers().acquire(HEADERS).await;
    zeros.as_mut_slice().fill(0);
    region.persist(vec![(0, zeros.view_all())]).await
}

/// Zeroes a region. The header goes first: where there is one, all else is whole.
async fn wipe<E: Env>(env: &E, region: &Place<E>) -> io::Result<()> {
    wipe_header(env, region).await?;
    let mut zeros = env.buffers().acquire(CHUNK.min(region.len()) as usize).await;
    zeros.as_mut_slice().fill(0);
    let mut offset = 0;
    while offset < region.len() {
        let len = CHUNK.min(region.len() - offset);
        region.persist(vec![(offset, zeros.view(0..len as usize))]).await?;
        offset += len;
    }
    Ok(())
}

/// Has all superblocks name a place, that of the first device, which decides, last.
async fn name_everywhere<E: Env>(
    env: &E,
    pool: &mut [PoolDisk<'_, E::Disk>],
    place: FlagsPlace,
) -> Result<(), RelocateError> {
    for member in pool.iter_mut().rev() {
        name_place(env, member, place).await?;
    }
    Ok(())
}

/// Has a device's superblock name a place, durably, after everything written to it before.
async fn name_place<E: Env>(
    env: &E,
    member: &mut PoolDisk<'_, E::Disk>,
    place: FlagsPlace,
) -> Result<(), RelocateError> {
    member.superblock.flags = place;
    member.superblock.revision += 1;
    let written = superblock_io::write(member.disk, env.buffers(), member.superblock).await;
    written.map_err(Problem::Superblock).map_err(at(member.disk.name()))
}

#[cfg(test)]
#[path = "relocate_tests.rs"]
mod tests;
