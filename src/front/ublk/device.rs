//! One device being served: a task for each tag of each of its queues, on the unit's own ring.
//!
//! # Contracts
//!
//! - **Durability**: a flush, and a write with FUA, is answered when the export's is. The device
//!   tells the kernel of a volatile write cache, so that file systems flush.
//! - **Memory**: payloads of all devices together take no more than their share of the pool, so
//!   that a queue full of long requests never keeps the unit or other clients waiting.
//! - **Copies**: the data of a request is copied once, between the pages of whoever asked and a
//!   buffer with the export's placement. Where the kernel can lend us those pages (Linux 6.16), a
//!   read of whole blocks that the devices alone hold is not copied at all: they fill the pages.
//!   Writes are copied always: their sums, the journal and warm restarts need bytes that nobody
//!   changes under way, which those pages are not.
//! - **Stop**: [`Device::stop`] removes the block device, which writes back what is dirty, answers
//!   what is under way, and ends when nothing of it is left.
//! - **Death**: the device of a process that dies stays, and its clients wait. The next start goes
//!   on with it where nothing that was acknowledged is lost ([`Device::resume`]), and is asked
//!   again what was not answered; otherwise it removes it ([`Device::remove`]), so that clients see
//!   errors and not older contents.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::uio::{pread, pwrite};
use tokio::sync::{Notify, Semaphore};
use tracing::{info, warn};

use super::control::{Control, UblkError, aside, block_device, character_file};
use super::wire::{DeviceInfo, Parameters, Request, Shape, data_position, errno};
use crate::front::export::Export;
use crate::observe::{Counters, Latencies, Operation};
use crate::uring::buffers::{Buf, BufferPool, PAGE};
use crate::uring::ublk::{Descriptor, Descriptors, Lending, become_io_flusher};
use crate::uring::{Fd, Ring};

/// Requests of a queue that are on the way at most.
const DEPTH: u16 = 64;
/// The longest request, in bytes.
const REQUEST_MAX: u32 = 512 << 10;
/// Of the pool, payloads of devices take at most one part in so many.
const SHARE: usize = 4;
/// How long the kernel may take to see that a device's process has died.
const RESUME_PATIENCE: Duration = Duration::from_secs(20);
const RESUME_PAUSE: Duration = Duration::from_millis(20);

/// What all devices share. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Shared(Rc<SharedInner>);

struct SharedInner {
    ring: Ring,
    control: Control,
    pool: BufferPool,
    /// Pages that payloads may take yet.
    room: Semaphore,
    /// Whether the kernel is to lend us the data of new devices' requests.
    lends: bool,
    counters: Rc<Counters>,
    latencies: Rc<Latencies>,
}

impl Shared {
    /// Opens the driver. Payloads come from `pool`, and with `copies` alone.
    pub async fn new(
        ring: &Ring,
        pool: &BufferPool,
        copies: bool,
        counters: Rc<Counters>,
        latencies: Rc<Latencies>,
    ) -> Result<Self, UblkError> {
        let control = Control::open()?;
        let asked = control.clone();
        let lends = aside(move || asked.suffices()).await? && !copies && ring.has_buffer_place();
        if let Err(error) = become_io_flusher() {
            warn!(
                "write-back through our own devices may wait for us when memory is short: {error}"
            );
        }
        let room = Semaphore::new(pool.capacity() / PAGE / SHARE);
        let (ring, pool) = (ring.clone(), pool.clone());
        let inner = SharedInner { ring, control, pool, room, lends, counters, latencies };
        Ok(Self(Rc::new(inner)))
    }
}

/// A device that is being served.
pub struct Device {
    shared: Shared,
    id: u32,
    tags: Rc<Tags>,
}

/// The tasks of a device.
#[derive(Default)]
struct Tags {
    running: Cell<usize>,
    ended: Notify,
}

/// A device that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Its number; any free one, without.
    pub id: Option<u32>,
    /// What it is known again by.
    pub tag: u64,
    /// Queues: at most [`super::wire::QUEUES_MAX`], of which the kernel makes no more than there
    /// are processors.
    pub queues: u16,
}

/// What the tasks of one queue use.
struct Queue<X> {
    shared: Shared,
    export: X,
    shape: Shape,
    number: u16,
    descriptors: Descriptors,
    /// Whether the kernel registers the data of requests.
    lends: bool,
    /// For fetching and committing.
    fd: Fd,
    /// For copying.
    file: Rc<File>,
}

impl Device {
    /// The device that a process which died had made with that tag.
    pub async fn left(shared: &Shared, tag: u64) -> Result<Option<DeviceInfo>, UblkError> {
        let control = shared.0.control.clone();
        let all = aside(move || control.list()).await?;
        Ok(all.into_iter().find(|info| info.server_flags.get() == tag))
    }

    /// Goes on with a device whose process has died.
    pub async fn resume<X: Export>(
        shared: &Shared,
        export: X,
        left: &DeviceInfo,
        read_only: bool,
    ) -> Result<Self, UblkError> {
        let id = left.id.get();
        let ring = &shared.0.ring;
        let begun = Instant::now();
        loop {
            let control = shared.0.control.clone();
            if aside(move || control.start_recovery(id)).await? {
                break;
            }
            if begun.elapsed() > RESUME_PATIENCE {
                let error = io::Error::from_raw_os_error(libc::EBUSY);
                return Err(UblkError::Step { device: id, step: "taken over", error });
            }
            ring.sleep(RESUME_PAUSE).await;
        }
        let device = Self { shared: shared.clone(), id, tags: Rc::default() };
        let shape = Shape { request_max: left.request_max.get(), ..shape_of(&export, read_only) };
        let name = export.name();
        device.fetch(&export, shape, left)?;
        let control = shared.0.control.clone();
        aside(move || control.end_recovery(id)).await?;
        info!(device = %block_device(id).display(), volume = name, "a block device goes on");
        Ok(device)
    }

    /// Removes a device whose process has died: its clients see errors.
    pub async fn remove(shared: &Shared, left: &DeviceInfo) -> Result<(), UblkError> {
        let (control, id, there) = (shared.0.control.clone(), left.id.get(), left.is_there());
        aside(move || {
            if there {
                control.stop(id)?;
            }
            control.delete(id)
        })
        .await
    }

    /// Makes a block device of an export.
    pub async fn start<X: Export>(
        shared: &Shared,
        export: X,
        Wanted { id, tag, queues }: Wanted,
        read_only: bool,
    ) -> Result<Self, UblkError> {
        let shape = shape_of(&export, read_only);
        let id = id.unwrap_or(u32::MAX);
        let wanted = DeviceInfo::new(id, (queues, DEPTH), shape.request_max, tag, shared.0.lends);
        let control = shared.0.control.clone();
        let info = aside(move || control.add(wanted)).await?;
        let id = info.id.get();
        let device = Self { shared: shared.clone(), id, tags: Rc::default() };
        let name = export.name();
        if let Err(error) = device.serve(&export, shape, &info).await {
            // What is left of it goes too; the first error is the one to be told.
            let _ = device.stop().await;
            return Err(error);
        }
        let (path, queues, lends) = (block_device(id), info.queues.get(), info.lends());
        info!(device = %path.display(), volume = name, queues, lends, "a block device is there");
        Ok(device)
    }

    async fn serve<X: Export>(
        &self,
        export: &X,
        shape: Shape,
        info: &DeviceInfo,
    ) -> Result<(), UblkError> {
        let id = self.id;
        let control = self.shared.0.control.clone();
        aside(move || control.set(id, Parameters::new(shape))).await?;
        self.fetch(export, shape, info)?;
        let control = self.shared.0.control.clone();
        aside(move || control.start(id)).await
    }

    /// Takes requests from here on, from all queues.
    fn fetch<X: Export>(
        &self,
        export: &X,
        shape: Shape,
        info: &DeviceInfo,
    ) -> Result<(), UblkError> {
        let id = self.id;
        let opened = |error| UblkError::Step { device: id, step: "opened", error };
        let path = character_file(id);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(opened)?;
        let file = Rc::new(file);
        // The device goes when its file is closed, and must not wait for others' operations.
        let fd = self.shared.0.ring.plain_file(file.try_clone().map_err(opened)?);
        let depth = info.depth.get();
        let queue = |number| {
            Ok(Rc::new(Queue {
                shared: self.shared.clone(),
                export: export.clone(),
                shape,
                number,
                lends: info.lends(),
                descriptors: Descriptors::map(&file, number, depth).map_err(opened)?,
                fd: fd.clone(),
                file: Rc::clone(&file),
            }))
        };
        let queues = (0..info.queues.get()).map(queue).collect::<Result<Vec<_>, _>>()?;
        self.tags.running.set(queues.len() * usize::from(depth));
        for queue in queues {
            for tag in 0..depth {
                let (queue, tags) = (Rc::clone(&queue), Rc::clone(&self.tags));
                self.shared.0.ring.spawn(async move {
                    queue.serve_tag(tag).await;
                    drop(queue);
                    tags.running.set(tags.running.get() - 1);
                    tags.ended.notify_one();
                });
            }
        }
        Ok(())
    }

    /// The number of the device.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Removes the device.
    pub async fn stop(self) -> Result<(), UblkError> {
        let (control, id) = (self.shared.0.control.clone(), self.id);
        let stopping = control.clone();
        aside(move || stopping.stop(id)).await?;
        while self.tags.running.get() > 0 {
            self.tags.ended.notified().await;
        }
        aside(move || control.delete(id)).await
    }
}

/// What a device of an export is to the kernel.
fn shape_of(export: &impl Export, read_only: bool) -> Shape {
    Shape {
        size: export.size(),
        block_size: export.block_size(),
        request_max: export.payload_max().min(REQUEST_MAX),
        read_only,
    }
}

impl<X: Export> Queue<X> {
    /// Answers the requests of a tag until there will be none.
    async fn serve_tag(&self, tag: u16) {
        let ring = &self.shared.0.ring;
        let lending =
            if self.lends { Lending::Place(ring.buffer_place()) } else { Lending::Nothing };
        let mut fetched = ring.ublk_fetch(&self.fd, self.number, tag, &lending).await;
        while let Ok(()) = fetched {
            let descriptor = self.descriptors.get(tag);
            let result = self.perform(tag, &descriptor, lending.place(&descriptor)).await;
            fetched = ring.ublk_commit(&self.fd, self.number, tag, result, &lending).await;
        }
        if let Err(error) = fetched
            && error.raw_os_error() != Some(libc::ENODEV)
        {
            let (volume, queue) = (self.export.name(), self.number);
            warn!(volume, queue, tag, "a tag of a block device ended: {error}");
        }
    }

    /// Carries out the request that a tag has, whose data may be registered at a place; what the
    /// kernel is told.
    async fn perform(&self, tag: u16, descriptor: &Descriptor, lent: Option<u16>) -> i32 {
        let shared = &self.shared.0;
        let request = match Request::parse(descriptor, &self.shape) {
            Ok(request) => request,
            Err(error) => return -error,
        };
        let begun = Instant::now();
        let (kind, done) = match request {
            Request::Read { offset, length } => {
                (Operation::Read, self.read(tag, lent, offset, length).await)
            }
            Request::Write { offset, length, fua } => {
                (Operation::Write, self.write(tag, offset, length, fua).await)
            }
            Request::Flush => (Operation::Flush, answer(self.export.flush().await)),
            Request::Trim { offset, length } => {
                (Operation::Trim, answer(self.export.trim(offset, length, false).await))
            }
            Request::WriteZeroes { offset, length, fua, no_hole } => {
                let zeroed = self.export.write_zeroes(offset, length, fua, no_hole);
                (Operation::Trim, answer(zeroed.await))
            }
        };
        shared.latencies.record(kind, begun.elapsed());
        if done < 0 {
            shared.counters.errors.increment();
        }
        done
    }

    async fn read(&self, tag: u16, lent: Option<u16>, offset: u64, length: u32) -> i32 {
        if let Some(place) = lent
            && self.read_straight(place, offset, length).await
        {
            return length.cast_signed();
        }
        let place = self.export.placement(offset, length);
        self.with_room(place.total, async |buf| {
            let buf = match self.export.read(offset, length, buf).await {
                Ok(buf) => buf,
                Err(error) => return -errno(error.kind),
            };
            let data = &buf.as_slice()[place.lead..place.lead + length as usize];
            self.shared.0.counters.client_bytes_read.add(u64::from(length));
            copied(pwrite(&self.file, data, data_position(self.number, tag)), length)
        })
        .await
    }

    /// Lets the devices fill the pages that are registered at a place, where they can.
    async fn read_straight(&self, place: u16, offset: u64, length: u32) -> bool {
        let lent = self.shared.0.pool.lent(place, length as usize);
        let read = self.export.read_straight(offset, length, lent).await;
        if read {
            self.shared.0.counters.client_bytes_read.add(u64::from(length));
            self.shared.0.counters.client_bytes_read_straight.add(u64::from(length));
        }
        read
    }

    async fn write(&self, tag: u16, offset: u64, length: u32, fua: bool) -> i32 {
        let place = self.export.placement(offset, length);
        self.with_room(place.total, async |mut buf| {
            let data = &mut buf.as_mut_slice()[place.lead..place.lead + length as usize];
            let result = copied(pread(&self.file, data, data_position(self.number, tag)), length);
            if result < 0 {
                return result;
            }
            if let Err(error) = self.export.write(offset, length, buf, fua).await {
                return -errno(error.kind);
            }
            self.shared.0.counters.client_bytes_written.add(u64::from(length));
            result
        })
        .await
    }

    /// Lets `work` have a buffer, once the devices' share of the memory has room for it.
    async fn with_room(&self, total: usize, work: impl AsyncFnOnce(Buf) -> i32) -> i32 {
        let shared = &self.shared.0;
        let pages = total.div_ceil(PAGE).max(1).next_power_of_two() as u32;
        let permit = shared.room.acquire_many(pages).await;
        let _permit = permit.expect("the room is never closed");
        work(shared.pool.acquire(total).await).await
    }
}

/// What the kernel is told of an operation without data.
fn answer(done: Result<(), crate::front::ExportError>) -> i32 {
    done.map_or_else(|error| -errno(error.kind), |()| 0)
}

/// What the kernel is told of a request whose data was copied.
fn copied(copied: nix::Result<usize>, length: u32) -> i32 {
    match copied {
        Ok(bytes) if bytes == length as usize => length.cast_signed(),
        Ok(bytes) => {
            warn!("{bytes} bytes of {length} were copied");
            -libc::EIO
        }
        Err(error) => {
            let error = io::Error::from(error);
            warn!("the data of a request could not be copied: {error}");
            -libc::EIO
        }
    }
}
