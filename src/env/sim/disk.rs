//! A handle of a simulated disk, and of a simulated persistent memory.

use std::future::Future;
use std::io;
use std::panic::Location;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::calls::Fate;
use super::points::Point;
use super::world::{Done, Event};
use super::{Shell, ended};
use crate::env::{Disk, Durability, Nvram, Region};
use crate::uring::buffers::View;

/// A simulated disk. Cheap to clone: a handle.
#[derive(Clone)]
pub struct SimDisk {
    shell: Rc<Shell>,
    index: usize,
    name: Rc<str>,
    len: u64,
    sector: u32,
    volatile_cache: bool,
}

impl SimDisk {
    pub(super) fn new(shell: Rc<Shell>, index: usize) -> Self {
        let world = shell.world.borrow();
        let medium = &world.disks[index];
        let (len, sector) = (medium.size(), medium.sector());
        let volatile_cache = medium.volatile_cache();
        drop(world);
        let name = format!("sim{index}").into();
        Self { shell, index, name, len, sector, volatile_cache }
    }

    fn check(&self, offset: u64, len: u64) {
        let sector = u64::from(self.sector);
        assert!(
            offset.is_multiple_of(sector) && len.is_multiple_of(sector) && len > 0,
            "{len} bytes at {offset} of {} are not whole sectors of {sector}",
            self.name
        );
        assert!(offset + len <= self.len, "{len} bytes at {offset} are beyond {}", self.name);
    }

    /// Counts the call; unless it comes after the crash, `begin` makes the event that ends it.
    fn submit(
        &self,
        what: &str,
        place: u64,
        len: u64,
        begin: impl FnOnce(&mut super::world::World, Done) -> Event,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (done, receiver) = oneshot::channel();
        let mut world = self.shell.world.borrow_mut();
        // After a crash `done` is dropped here, and the future never ends.
        if world.call(what, place, len) != Fate::Dead {
            let event = begin(&mut world, done);
            let delay = world.latency();
            world.schedule(delay, event);
        }
        ended(receiver)
    }
}

impl Disk for SimDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn volatile_cache(&self) -> bool {
        self.volatile_cache
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        let (disk, len) = (self.index, view.len() as u64);
        self.check(offset, len);
        self.submit("read", offset, len, move |_, done| Event::Read { disk, offset, view, done })
    }

    #[track_caller]
    fn write(
        &self,
        offset: u64,
        view: View,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (disk, len) = (self.index, view.len() as u64);
        self.check(offset, len);
        let what = match durability {
            Durability::Volatile => "write",
            Durability::Durable => "write durable",
        };
        let caller = Location::caller();
        self.submit(what, offset, len, move |world, done| {
            let data = view.with(|bytes: &[u8]| bytes.into());
            let id = world.disks[disk].begin(offset, data, durability);
            let part = world.disks[disk].part_at(offset, len);
            world.writes(part);
            let point = Point::new(caller, part);
            let point = (durability == Durability::Durable).then_some(point);
            world.points.passed(point);
            Event::Write { disk, id, view: Some(view), done, point }
        })
    }

    #[track_caller]
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let disk = self.index;
        let point = Point::new(Location::caller(), "flush");
        self.submit("flush", 0, 0, move |world, done| {
            let mark = world.disks[disk].mark();
            world.points.passed(Some(point));
            Event::Flush { disk, mark, done, point }
        })
    }

    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let disk = self.index;
        self.check(offset, length);
        self.submit("discard", offset, length, move |world, done| {
            let data = world.disks[disk].discarded(length as usize);
            let id = world.disks[disk].begin(offset, data, Durability::Volatile);
            Event::Write { disk, id, view: None, done, point: None }
        })
    }
}

/// A simulated persistent memory. Cheap to clone: a handle.
#[derive(Clone)]
pub struct SimNvram {
    shell: Rc<Shell>,
    start: u64,
    len: u64,
    sector: u32,
}

impl SimNvram {
    pub(super) fn new(shell: Rc<Shell>) -> Self {
        let world = shell.world.borrow();
        let nvram = world.nvram.as_ref().expect("a machine with persistent memory");
        let (len, sector) = (nvram.size(), nvram.sector());
        drop(world);
        Self { shell, start: 0, len, sector }
    }

    /// Where a piece of it lies in the memory.
    fn place(&self, offset: u64, len: u64) -> u64 {
        assert!(offset + len <= self.len, "{len} bytes at {offset} are beyond {}", self.len);
        self.start + offset
    }
}

impl Nvram for SimNvram {
    fn name(&self) -> &'static str {
        "nvram"
    }

    fn part(&self, start: u64, len: u64) -> Self {
        let start = self.place(start, len);
        Self { shell: Rc::clone(&self.shell), start, len, sector: self.sector }
    }
}

impl Region for SimNvram {
    fn len(&self) -> u64 {
        self.len
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        let offset = self.place(offset, view.len() as u64);
        let (done, receiver) = oneshot::channel();
        let mut world = self.shell.world.borrow_mut();
        if world.call("nvram read", offset, view.len() as u64) != Fate::Dead {
            let delay = world.rng.between(100, 1_000);
            world.schedule(delay, Event::NvramRead { offset, view, done });
        }
        ended(receiver)
    }

    #[track_caller]
    fn persist(&self, pieces: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static {
        let placed = |(offset, view): (u64, View)| (self.place(offset, view.len() as u64), view);
        let pieces: Vec<_> = pieces.into_iter().map(placed).collect();
        let (done, receiver) = oneshot::channel();
        let mut world = self.shell.world.borrow_mut();
        let place = pieces.first().map_or(0, |(offset, _)| *offset);
        let len = pieces.iter().map(|(_, view)| view.len() as u64).sum();
        let caller = Location::caller();
        if world.call("persist", place, len) != Fate::Dead {
            let data = pieces
                .iter()
                .map(|(at, view)| (*at, view.with(|bytes: &[u8]| bytes.into())))
                .collect();
            let views = pieces.into_iter().map(|(_, view)| view).collect();
            let nvram = world.nvram.as_mut().expect("a persist of what is there");
            let id = nvram.begin(data);
            let part = nvram.part_at(place, len);
            let point = Point::new(caller, part);
            world.writes(part);
            world.points.passed(Some(point));
            let delay = world.rng.log_between(100, 20_000);
            world.schedule(delay, Event::Persist { id, views, done, point });
        }
        ended(receiver)
    }

    /// What is not persisted has no promise: there is nothing between memory and persistence.
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let call = self.shell.world.borrow_mut().call("nvram flush", 0, 0);
        async move { if call == Fate::Live { Ok(()) } else { std::future::pending().await } }
    }
}
