//! The world of a reader on another machine: the same disks, of which every read is looked at and
//! may stall, and a channel to the metadata server that can be cut.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::future::Ready;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::stamp::{self, Seen};
use crate::env::sim::{SimDisk, SimEnv, SimLink, SimNvram};
use crate::env::{Disk, Durability, Env, Link, Moment};
use crate::follow::Follower;
use crate::format::layout::{DeviceExtents, Geometry};
use crate::uring::buffers::{BufferPool, View};

/// Bytes of a granule.
pub(super) const GRANULE: usize = 512;
/// The lease of the reader, and how long a read of its holds back what it goes by.
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// The environment of the reader's process.
#[derive(Clone)]
pub(super) struct ReaderEnv {
    env: SimEnv,
    watch: Rc<Watch>,
}

/// What happens to a reader, and what it did wrong.
#[derive(Default)]
pub(super) struct Watch {
    /// Who reads, once it does.
    pub follower: RefCell<Option<Follower<ReaderEnv>>>,
    /// Until when its machine hears nothing and is heard by nobody.
    pub cut_until: Cell<Moment>,
    /// How many in a million reads of a disk stall, and for how long.
    pub stalls: Cell<(u64, Duration)>,
    /// Reads of disks that were looked at.
    pub looked_at: Cell<u64>,
    /// Others, which took so long that what they brought may be anybody's.
    pub too_late: Cell<u64>,
    /// The first read that found what it must not.
    pub wrong: RefCell<Option<String>>,
}

impl ReaderEnv {
    pub fn new(env: &SimEnv, watch: &Rc<Watch>) -> Self {
        ReaderEnv { env: env.clone(), watch: Rc::clone(watch) }
    }

    /// A disk of the pool, as this machine sees it.
    pub fn spied(&self, disk: SimDisk, extents: DeviceExtents, geometry: Geometry) -> SpiedDisk {
        SpiedDisk { disk, extents, geometry, env: self.clone() }
    }

    /// The channel to the metadata server.
    pub fn cuttable(&self, link: SimLink) -> CutLink {
        CutLink { link, env: self.clone() }
    }
}

impl Env for ReaderEnv {
    type Disk = SpiedDisk;
    type Nvram = SimNvram;
    type Link = CutLink;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.env.spawn(task);
    }

    fn now(&self) -> Moment {
        self.env.now()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.env.sleep(duration)
    }

    fn random(&self) -> u64 {
        self.env.random()
    }

    fn buffers(&self) -> &BufferPool {
        self.env.buffers()
    }
}

/// The channel of a machine that may be cut off.
#[derive(Clone)]
pub(super) struct CutLink {
    link: SimLink,
    env: ReaderEnv,
}

impl CutLink {
    fn is_cut(&self) -> bool {
        self.env.now() < self.env.watch.cut_until.get()
    }
}

impl Link for CutLink {
    fn payload_max(&self) -> usize {
        self.link.payload_max()
    }

    fn send(&self, datagram: Vec<u8>) {
        if !self.is_cut() {
            self.link.send(datagram);
        }
    }

    async fn receive(&self) -> Vec<u8> {
        loop {
            let datagram = self.link.receive().await;
            if !self.is_cut() {
                return datagram;
            }
        }
    }
}

/// A disk that is only read.
#[derive(Clone)]
pub(super) struct SpiedDisk {
    disk: SimDisk,
    extents: DeviceExtents,
    geometry: Geometry,
    env: ReaderEnv,
}

/// What a read of a disk is for: the volume and the first granule; how often all lines had been
/// read; and when it began.
type Purpose = Option<(u8, u32, u64, Moment)>;

impl SpiedDisk {
    /// What the lines say that lies there.
    fn purpose(&self, offset: u64) -> Purpose {
        let follower = self.env.watch.follower.borrow();
        let follower = follower.as_ref()?;
        let first = self.extents.offset_of(self.extents.first, self.geometry)?;
        let inside = offset - first;
        let number = inside >> self.geometry.extent_shift();
        let extent = crate::format::ids::ExtentId(self.extents.first.0 + number as u32);
        let (volume, logical) = follower.owner_of(extent)?;
        let start = u64::from(logical.0) << self.geometry.extent_shift();
        let at = start + (inside & (u64::from(self.geometry.extent_size()) - 1));
        let granule = (at / GRANULE as u64) as u32;
        Some((volume.0 as u8, granule, follower.status().readings, self.env.now()))
    }

    /// Looks at what was read: while the lease lasts, an extent is nobody else's, for a read of no
    /// more than one lease.
    fn look(&self, purpose: Purpose, bytes: &[u8]) {
        let watch = &self.env.watch;
        let Some((volume, first, readings, began)) = purpose else { return };
        let status = watch.follower.borrow().as_ref().map(Follower::status);
        let status = status.expect("it reads");
        let late = self.env.now().since(began) >= LEASE;
        if late || status.lease_left.is_zero() || status.readings != readings {
            watch.too_late.set(watch.too_late.get() + 1);
            return;
        }
        watch.looked_at.set(watch.looked_at.get() + 1);
        for (granule, number) in bytes.chunks_exact(GRANULE).zip(first..) {
            if let foreign @ Seen::Misplaced { .. } = stamp::read(granule, volume, number) {
                let text = format!("granule {number} was read in a place of another: {foreign:?}");
                watch.wrong.borrow_mut().get_or_insert(text);
            }
        }
    }
}

impl Disk for SpiedDisk {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn sector(&self) -> u32 {
        self.disk.sector()
    }

    fn volatile_cache(&self) -> bool {
        self.disk.volatile_cache()
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        let (disk, seen) = (self.clone(), view.narrow(0..view.len()));
        let purpose = self.purpose(offset);
        let (ppm, stall) = self.env.watch.stalls.get();
        let stalls = self.env.random() % 1_000_000 < ppm;
        async move {
            if stalls {
                disk.env.sleep(stall).await;
            }
            disk.disk.read(offset, view).await?;
            seen.with(|bytes| disk.look(purpose, bytes));
            Ok(())
        }
    }

    fn write(
        &self,
        offset: u64,
        _: View,
        _: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        refused(&format!("a reader writes at {offset}"))
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        refused("a reader flushes")
    }

    fn discard(&self, offset: u64, _: u64) -> impl Future<Output = io::Result<()>> + 'static {
        refused(&format!("a reader discards at {offset}"))
    }
}

/// What no reader does.
fn refused(what: &str) -> Ready<io::Result<()>> {
    panic!("{what}")
}
