//! Aligned buffers from a bounded pool, and windows into them for operations in flight.
//!
//! # Contracts
//!
//! - **Bound**: all buffers of a pool together never exceed its capacity; who finds none waits in
//!   order of arrival ([`BufferPool::acquire`]) or is told ([`BufferPool::try_acquire`]).
//! - **Ownership**: a [`Buf`] owns its memory. An operation in flight owns a [`View`] of it, which
//!   keeps the memory from being used again until the operation has ended. While any view exists
//!   the buffer's bytes cannot be touched through [`Buf`].
//! - **Contents**: a buffer holds whatever its last user left; whoever hands bytes to a client
//!   must have written every one of them.
//! - **Allocation**: none for a buffer of the arena, nor for its views: who holds a block is
//!   counted in a table that the pool was made with.
//! - **Lent**: memory that is another's, of which we know the place among the ring's registered
//!   buffers alone ([`BufferPool::lent`]), goes to devices as our own does. Its bytes cannot be
//!   touched, and it takes none of the pool's capacity.
//! - **Threads**: none of this crosses a thread.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use memmap2::{Advice, MmapMut, MmapOptions};
use tokio::sync::{Semaphore, TryAcquireError};

use super::buddy::{Buddy, ORDER_MAX};

/// Alignment of every buffer, and the unit in which they are counted, in bytes.
pub const PAGE: usize = 4096;
/// The largest block of the arena, in bytes; larger buffers get a mapping of their own.
pub const ARENA_BLOCK: usize = PAGE << ORDER_MAX;
/// Index of the arena among the ring's registered buffers.
pub const REGISTERED_INDEX: u16 = 0;

/// A bounded pool of aligned buffers. Cheap to clone: a handle.
#[derive(Clone)]
pub struct BufferPool(Rc<Pool>);

struct Pool {
    budget: Semaphore,
    capacity_pages: usize,
    arena: Arena,
    buddy: RefCell<Buddy>,
    /// How many handles each block of the arena has, by its first page.
    handles: Box<[Cell<u32>]>,
    registered: Cell<bool>,
}

/// Memory that begins at a multiple of [`ARENA_BLOCK`], in huge pages where the kernel has them:
/// a large buffer is then few segments to a device, which it need not split.
struct Arena {
    map: MmapMut,
    at: usize,
    len: usize,
}

/// Where a buffer's memory lies.
#[derive(Clone)]
enum Memory {
    Arena {
        page: u32,
        order: u8,
    },
    Own(Rc<MmapMut>),
    /// Another's, by its place among the ring's registered buffers; it begins at address zero.
    Lent(u16),
}

/// One of those who hold a buffer's memory, which goes back to the pool with the last of them.
struct Handle {
    start: *mut u8,
    len: usize,
    memory: Memory,
    pool: Rc<Pool>,
}

/// A buffer, owned.
pub struct Buf(Handle);

/// A window into a buffer, for one operation in flight.
pub struct View {
    handle: Handle,
    range: Range<usize>,
}

impl Arena {
    fn new(len: usize) -> std::io::Result<Self> {
        let map = MmapOptions::new().len(len + ARENA_BLOCK).map_anon()?;
        let at = map.as_ptr().align_offset(ARENA_BLOCK);
        if let Err(error) = map.advise_range(Advice::HugePage, at, len) {
            tracing::debug!(%error, "no huge pages for buffers: large requests cost a little more");
        }
        Ok(Self { map, at, len })
    }

    fn start(&self) -> *const u8 {
        self.map.as_ptr().wrapping_add(self.at)
    }
}

impl BufferPool {
    /// A pool of at most `capacity` bytes in buffers, of which `arena` bytes (rounded to whole
    /// blocks of 2 MiB, and no more than the capacity) are one mapping that a ring can register.
    pub fn new(capacity: usize, arena: usize) -> std::io::Result<Self> {
        let blocks = (arena.min(capacity) / ARENA_BLOCK).max(1);
        let arena = Arena::new(blocks * ARENA_BLOCK)?;
        let capacity_pages = capacity / PAGE;
        Ok(Self(Rc::new(Pool {
            budget: Semaphore::new(capacity_pages),
            capacity_pages,
            arena,
            buddy: RefCell::new(Buddy::new(blocks as u32)),
            handles: vec![Cell::new(0); blocks << ORDER_MAX].into(),
            registered: Cell::new(false),
        })))
    }

    /// The bytes that all buffers together may have.
    pub fn capacity(&self) -> usize {
        self.0.capacity_pages * PAGE
    }

    /// The bytes that are free now.
    pub fn available(&self) -> usize {
        self.0.budget.available_permits() * PAGE
    }

    /// A buffer of `len` bytes, waiting in order of arrival until there is room.
    pub async fn acquire(&self, len: usize) -> Buf {
        let pages = self.pages_for(len);
        let permit = self.0.budget.acquire_many(pages as u32).await;
        permit.expect("the pool's budget is never closed").forget();
        self.build(len, pages)
    }

    /// A buffer of `len` bytes, or `None` where there is no room or others wait for it.
    pub fn try_acquire(&self, len: usize) -> Option<Buf> {
        let pages = self.pages_for(len);
        match self.0.budget.try_acquire_many(pages as u32) {
            Ok(permit) => permit.forget(),
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => return None,
        }
        Some(self.build(len, pages))
    }

    /// The `len` bytes that whoever registered them at that place of the ring lends us. They must
    /// stay registered until the last view has ended.
    pub fn lent(&self, place: u16, len: usize) -> Buf {
        let (start, memory) = (std::ptr::null_mut(), Memory::Lent(place));
        Buf(Handle { start, len, memory, pool: Rc::clone(&self.0) })
    }

    /// The arena's memory, for a ring to register as buffer [`REGISTERED_INDEX`].
    pub fn arena(&self) -> (*const u8, usize) {
        (self.0.arena.start(), self.0.arena.len)
    }

    /// Says that the arena is registered with the ring that serves this pool.
    pub fn set_registered(&self, registered: bool) {
        self.0.registered.set(registered);
    }

    fn pages_for(&self, len: usize) -> usize {
        let pages = len.div_ceil(PAGE).max(1).next_power_of_two();
        assert!(
            pages <= self.0.capacity_pages,
            "a buffer of {len} bytes is larger than the pool of {} bytes",
            self.capacity()
        );
        pages
    }

    /// The memory for a buffer whose pages are already taken from the budget.
    fn build(&self, len: usize, pages: usize) -> Buf {
        let order = pages.trailing_zeros() as u8;
        let from_arena =
            (order <= ORDER_MAX).then(|| self.0.buddy.borrow_mut().take(order)).flatten();
        let (start, memory) = if let Some(page) = from_arena {
            let start = self.0.arena.start().wrapping_add(page as usize * PAGE).cast_mut();
            self.0.handles[page as usize].set(1);
            (start, Memory::Arena { page, order })
        } else {
            let mut own = MmapOptions::new()
                .len(pages * PAGE)
                .map_anon()
                .expect("anonymous memory within the configured bound");
            (own.as_mut_ptr(), Memory::Own(Rc::new(own)))
        };
        Buf(Handle { start, len, memory, pool: Rc::clone(&self.0) })
    }
}

impl Handle {
    /// Whether there is no other one of the same memory. Of what is lent there always is: whoever
    /// lends it.
    fn is_alone(&self) -> bool {
        match &self.memory {
            Memory::Arena { page, .. } => self.pool.handles[*page as usize].get() == 1,
            Memory::Own(map) => Rc::strong_count(map) == 1,
            Memory::Lent(_) => false,
        }
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        if let Memory::Arena { page, .. } = self.memory {
            self.pool.handles[page as usize].update(|handles| handles + 1);
        }
        Self { memory: self.memory.clone(), pool: Rc::clone(&self.pool), ..*self }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let last = self.is_alone();
        let pages = match &self.memory {
            Memory::Arena { page, order } => {
                self.pool.handles[*page as usize].update(|handles| handles - 1);
                if last {
                    self.pool.buddy.borrow_mut().give(*page, *order);
                }
                1 << order
            }
            Memory::Own(map) => map.len() / PAGE,
            Memory::Lent(_) => 0,
        };
        if last {
            self.pool.budget.add_permits(pages);
        }
    }
}

impl Buf {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Whether no operation holds a view of the buffer, and nobody else its memory.
    pub fn is_idle(&self) -> bool {
        self.0.is_alone()
    }

    /// The bytes. No operation may be in flight on any part of them.
    pub fn as_slice(&self) -> &[u8] {
        assert!(self.is_idle(), "a buffer is read while an operation is in flight on it");
        // SAFETY: start and len describe memory that lives as long as self.0; no view exists, so
        // nothing writes to it while the shared borrow of self lasts (making a view that could
        // write needs `&mut self`).
        unsafe { std::slice::from_raw_parts(self.0.start, self.0.len) }
    }

    /// The bytes, to change. No operation may be in flight on any part of them.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        assert!(self.is_idle(), "a buffer is changed while an operation is in flight on it");
        // SAFETY: as above, and the exclusive borrow of the only handle makes it unique.
        unsafe { std::slice::from_raw_parts_mut(self.0.start, self.0.len) }
    }

    /// A window for one operation.
    pub fn view(&mut self, range: Range<usize>) -> View {
        assert!(
            range.start <= range.end && range.end <= self.0.len,
            "view {range:?} of {} bytes",
            self.0.len
        );
        View { handle: self.0.clone(), range }
    }

    /// A window of the whole for one operation.
    pub fn view_all(&mut self) -> View {
        let range = 0..self.0.len;
        self.view(range)
    }
}

impl View {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether the window has no bytes.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Another window of the same bytes, narrowed to `range` of this one.
    #[must_use]
    pub fn narrow(&self, range: Range<usize>) -> View {
        assert!(range.start <= range.end && range.end <= self.len(), "narrowed to {range:?}");
        let start = self.range.start;
        View { handle: self.handle.clone(), range: start + range.start..start + range.end }
    }

    /// Address of the first byte, for the kernel: of lent memory, in it. Whoever uses it keeps the
    /// view meanwhile.
    pub fn as_ptr(&self) -> *mut u8 {
        self.handle.start.wrapping_add(self.range.start)
    }

    /// The registered buffer that holds the window, where it lies in one.
    pub fn registered(&self) -> Option<u16> {
        match self.handle.memory {
            Memory::Arena { .. } => self.handle.pool.registered.get().then_some(REGISTERED_INDEX),
            Memory::Own(_) => None,
            Memory::Lent(place) => Some(place),
        }
    }

    fn assert_ours(&self) {
        assert!(!matches!(self.handle.memory, Memory::Lent(_)), "lent memory is touched");
    }

    /// Lets `f` read the bytes; for operations that are carried out at once.
    pub fn with<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        self.assert_ours();
        // SAFETY: the memory lives as long as self.handle. Nothing else in this thread can write to
        // it during the call but `f` itself, which gets no handle to it; the kernel writes only
        // where a reading operation was given an overlapping view, which no caller does.
        f(unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) })
    }

    /// Lets `f` write the bytes; for operations that are carried out at once.
    pub fn with_mut<R>(&mut self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        self.assert_ours();
        // SAFETY: as in `with`; a `Buf` hands out no slice while a view exists.
        f(unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> BufferPool {
        BufferPool::new(4 * ARENA_BLOCK, ARENA_BLOCK).unwrap()
    }

    /// Goal: buffers are aligned, disjoint, counted, and come back when the last view ends.
    #[test]
    fn memory_returns_with_the_last_view() {
        let pool = pool();
        let free = pool.available();
        let mut buf = pool.try_acquire(10_000).unwrap();
        assert_eq!(buf.len(), 10_000);
        assert_eq!(pool.available(), free - 16_384);
        buf.as_mut_slice().fill(7);
        let view = buf.view(4096..8192);
        assert_eq!(view.as_ptr() as usize % PAGE, 0);
        drop(buf);
        assert_eq!(pool.available(), free - 16_384);
        view.with(|bytes| assert!(bytes.iter().all(|&b| b == 7)));
        drop(view);
        assert_eq!(pool.available(), free);
    }

    /// Goal: what the arena cannot hold still comes, within the capacity, and no more than that.
    #[test]
    fn capacity_bounds_arena_and_mappings_together() {
        let pool = pool();
        let large = pool.try_acquire(ARENA_BLOCK + 1).unwrap();
        let is_own = |buf: &Buf| matches!(buf.0.memory, Memory::Own(_));
        assert!(is_own(&large));
        let small: Vec<_> = (0..2).map(|_| pool.try_acquire(ARENA_BLOCK).unwrap()).collect();
        assert!(!is_own(&small[0]) && is_own(&small[1]));
        assert!(pool.try_acquire(1).is_none());
        drop(large);
        assert!(pool.try_acquire(1).is_some());
    }

    /// Goal: memory of its own, too, comes back with the last view.
    #[test]
    fn mappings_return_with_the_last_view() {
        let pool = pool();
        let free = pool.available();
        let mut large = pool.try_acquire(ARENA_BLOCK + 1).unwrap();
        let narrow = large.view_all().narrow(5..7);
        assert!(!large.is_idle());
        drop(large);
        assert_eq!(pool.available(), free - 2 * ARENA_BLOCK);
        drop(narrow);
        assert_eq!(pool.available(), free);
    }

    /// Goal: lent memory is named by its place and by offsets from zero, takes nothing of the pool,
    /// and gives nothing back to it.
    #[test]
    fn lent_memory_is_not_the_pools() {
        let pool = pool();
        let free = pool.available();
        let mut buf = pool.lent(7, 10_000);
        let view = buf.view(512..4096);
        assert_eq!((view.registered(), view.as_ptr() as usize, view.len()), (Some(7), 512, 3584));
        assert!(!buf.is_idle());
        drop(buf);
        drop(view.narrow(1..2));
        drop(view);
        assert_eq!(pool.available(), free);
    }

    /// Goal: its bytes cannot be reached.
    #[test]
    #[should_panic(expected = "lent memory is touched")]
    fn lent_memory_cannot_be_touched() {
        pool().lent(7, 512).view_all().with(|_| ());
    }

    /// Goal: bytes under an operation cannot be reached through the buffer.
    #[test]
    #[should_panic(expected = "in flight")]
    fn a_view_locks_the_buffer() {
        let mut buf = pool().try_acquire(100).unwrap();
        let _view = buf.view_all();
        let _ = buf.as_slice();
    }
}
