//! What is said to `ublk_drv`, and what it asks for.

use nix::libc;
use zerocopy::native_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::front::export::ErrorKind;
use crate::uring::ublk::Descriptor;

/// Bytes of the sectors in which the kernel counts.
pub const SECTOR: u64 = 512;
/// Log2 of it.
const SECTOR_SHIFT: u8 = 9;

/// The most queues that the kernel lets a device have.
pub const QUEUES_MAX: u16 = 4096;

/// Numbers of control commands: `_IOR('u', N, 32 bytes)` and `_IOWR('u', N, 32 bytes)`.
pub mod command {
    /// Fills a [`super::DeviceInfo`].
    pub const INFO: u32 = 0x8020_7502;
    /// Makes a device of a [`super::DeviceInfo`], which it completes.
    pub const ADD: u32 = 0xc020_7504;
    /// Removes a device that is stopped, and waits until nobody has its character file open.
    pub const DELETE: u32 = 0xc020_7505;
    /// Makes the block device; its word is the process that serves it.
    pub const START: u32 = 0xc020_7506;
    /// Removes the block device, after what is under way.
    pub const STOP: u32 = 0xc020_7507;
    /// Takes [`super::Parameters`].
    pub const SET_PARAMETERS: u32 = 0xc020_7508;
    /// Takes over a device that lost its process; requests wait until [`END_RECOVERY`].
    pub const START_RECOVERY: u32 = 0xc020_7510;
    /// Goes on with a device once all its tags are fetched; its word is the process that serves it.
    pub const END_RECOVERY: u32 = 0xc020_7511;
    /// Fills a word of features.
    pub const FEATURES: u32 = 0x8020_7513;
}

/// The kernel can register the data of requests with a ring.
pub const FEATURE_ZERO_COPY: u64 = 1 << 0;
/// It does so by itself, from the arrival of each request to its answer.
pub const FEATURE_AUTO_REGISTRATION: u64 = 1 << 11;
/// Data is copied with reads and writes of the device's character file.
pub const FEATURE_USER_COPY: u64 = 1 << 7;
/// Commands are numbered as above.
pub const FEATURE_NUMBERS: u64 = 1 << 6;

/// The device stays when its process dies, and another one may go on with it.
pub const FEATURE_RECOVERY: u64 = 1 << 3;
/// What the dead process had not answered is asked again.
pub const FEATURE_REISSUE: u64 = 1 << 4;

/// What a driver must have.
pub const FEATURES_NEEDED: u64 =
    FEATURE_USER_COPY | FEATURE_NUMBERS | FEATURE_RECOVERY | FEATURE_REISSUE;
/// What a driver must have to lend us the data of requests.
pub const FEATURES_LENDING: u64 = FEATURE_ZERO_COPY | FEATURE_AUTO_REGISTRATION;

/// Names of features, by their bits.
pub const FEATURE_NAMES: [(u32, &str); 14] = [
    (0, "zero-copy"),
    (1, "complete-in-task"),
    (2, "need-get-data"),
    (3, "user-recovery"),
    (4, "user-recovery-reissue"),
    (5, "unprivileged"),
    (6, "ioctl-encode"),
    (7, "user-copy"),
    (8, "zoned"),
    (9, "user-recovery-fail-io"),
    (10, "update-size"),
    (11, "auto-buffer-registration"),
    (12, "quiesce"),
    (13, "per-io-daemon"),
];

/// The state of a device that was never started, or is stopped.
const DEAD: u16 = 0;
/// The state of a device that is served.
const LIVE: u16 = 1;
/// The state of a device that waits for another process, and its clients with it.
const QUIESCED: u16 = 2;

/// A device as the kernel knows it.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DeviceInfo {
    /// Queues; the kernel makes no more of them than there are processors.
    pub queues: U16,
    /// Requests of a queue that are on the way at most.
    pub depth: U16,
    /// See [`DeviceInfo::state_name`].
    pub state: U16,
    pad0: [u8; 2],
    /// The longest request, in bytes.
    pub request_max: U32,
    /// The number of the device.
    pub id: U32,
    /// The process that serves it.
    pub pid: I32,
    pad1: [u8; 4],
    /// Features that it uses.
    pub features: U64,
    /// For the server, as it likes.
    pub server_flags: U64,
    owner_uid: U32,
    owner_gid: U32,
    reserved: [u8; 16],
}
const _: () = assert!(size_of::<DeviceInfo>() == 64);
const _: () = assert!(std::mem::offset_of!(DeviceInfo, request_max) == 8);
const _: () = assert!(std::mem::offset_of!(DeviceInfo, features) == 24);
const _: () = assert!(std::mem::offset_of!(DeviceInfo, owner_uid) == 40);

impl DeviceInfo {
    /// A device to be made, with so many queues of that depth, that is known again by `tag`; with
    /// `lends`, the kernel registers the data of its requests.
    pub fn new(
        id: u32,
        (queues, depth): (u16, u16),
        request_max: u32,
        tag: u64,
        lends: bool,
    ) -> Self {
        let lending = if lends { FEATURES_LENDING } else { 0 };
        Self {
            queues: queues.into(),
            depth: depth.into(),
            request_max: request_max.into(),
            id: id.into(),
            features: (FEATURES_NEEDED & !FEATURE_NUMBERS | lending).into(),
            server_flags: tag.into(),
            ..Self::new_zeroed()
        }
    }

    /// Whether the kernel registers the data of its requests.
    pub fn lends(&self) -> bool {
        self.features.get() & FEATURES_LENDING == FEATURES_LENDING
    }

    /// Whether a process serves it.
    pub fn is_served(&self) -> bool {
        self.state.get() == LIVE
    }

    /// Whether it waits for another process to serve it.
    pub fn is_quiesced(&self) -> bool {
        self.state.get() == QUIESCED
    }

    /// Whether there is a block device.
    pub fn is_there(&self) -> bool {
        self.state.get() != DEAD
    }

    /// What it does, for people.
    pub fn state_name(&self) -> &'static str {
        match self.state.get() {
            DEAD => "dead",
            LIVE => "live",
            QUIESCED => "quiesced",
            3 => "failing",
            _ => "unknown",
        }
    }
}

/// What the kernel is told of a device before it is there.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Parameters {
    len: U32,
    types: U32,
    attributes: U32,
    logical_shift: u8,
    physical_shift: u8,
    optimal_shift: u8,
    minimal_shift: u8,
    sectors_max: U32,
    chunk_sectors: U32,
    sectors: U64,
    boundary_mask: U64,
    discard_alignment: U32,
    discard_granularity: U32,
    discard_sectors_max: U32,
    zero_sectors_max: U32,
    discard_segments_max: U16,
    reserved: U16,
}
const _: () = assert!(size_of::<Parameters>() == 60);
const _: () = assert!(std::mem::offset_of!(Parameters, sectors) == 24);
const _: () = assert!(std::mem::offset_of!(Parameters, discard_alignment) == 40);

/// Parameters are there of these types: the basic ones, and those of discards.
const TYPES: u32 = 0b11;
const READ_ONLY: u32 = 1 << 0;
const VOLATILE_CACHE: u32 = 1 << 2;
const FUA: u32 = 1 << 3;
/// The longest discard or write of zeros that comes in one piece, in sectors: 1 GiB.
const DISCARD_SECTORS_MAX: u32 = 1 << 21;

/// What a device is to the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Size in bytes: whole sectors.
    pub size: u64,
    /// What needs no read-modify-write, in bytes: a power of two of at least a sector.
    pub block_size: u32,
    /// The longest request, in bytes.
    pub request_max: u32,
    /// Whether it takes no writes.
    pub read_only: bool,
}

impl Parameters {
    /// What is true of a volume: it takes any whole sectors, and blocks best; what was written is
    /// durable after a flush, or with FUA.
    /// Of memory nothing is asked beyond what the kernel asks for all block devices, multiples of
    /// 512 bytes: what is copied needs none of that, and disks that fill memory themselves no more.
    pub fn new(shape: Shape) -> Self {
        assert!(shape.size.is_multiple_of(SECTOR), "a size of {} bytes", shape.size);
        assert!(shape.block_size.is_power_of_two() && u64::from(shape.block_size) >= SECTOR);
        let block_shift = shape.block_size.trailing_zeros() as u8;
        let read_only = if shape.read_only { READ_ONLY } else { 0 };
        Self {
            len: (size_of::<Self>() as u32).into(),
            types: TYPES.into(),
            attributes: (VOLATILE_CACHE | FUA | read_only).into(),
            logical_shift: SECTOR_SHIFT,
            physical_shift: block_shift,
            optimal_shift: block_shift,
            minimal_shift: block_shift,
            sectors_max: (shape.request_max >> SECTOR_SHIFT).into(),
            sectors: (shape.size >> SECTOR_SHIFT).into(),
            discard_granularity: shape.block_size.into(),
            discard_sectors_max: DISCARD_SECTORS_MAX.into(),
            zero_sectors_max: DISCARD_SECTORS_MAX.into(),
            discard_segments_max: 1.into(),
            ..Self::new_zeroed()
        }
    }
}

/// What the kernel asks for; offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of requests are what every block device has")]
pub enum Request {
    /// To be read.
    Read { offset: u64, length: u32 },
    /// To be written; durable before the answer, with `fua`.
    Write { offset: u64, length: u32, fua: bool },
    /// All that was written made durable.
    Flush,
    /// Not needed any more.
    Trim { offset: u64, length: u64 },
    /// To be zeros; with `no_hole` backed.
    WriteZeroes { offset: u64, length: u64, fua: bool, no_hole: bool },
}

const FLAG_FUA: u32 = 1 << 13;
const FLAG_NO_UNMAP: u32 = 1 << 15;

impl Request {
    /// Reads a descriptor; an error number where it is none that fits the device.
    pub fn parse(descriptor: &Descriptor, shape: &Shape) -> Result<Self, i32> {
        let operation = descriptor.operation.get();
        let sectors = u64::from(descriptor.sectors.get());
        let length = sectors * SECTOR;
        let start = descriptor.start.get();
        let inside = start.checked_add(sectors).is_some_and(|end| end <= shape.size / SECTOR);
        let offset = if inside { start * SECTOR } else { 0 };
        let (fua, no_hole) = (operation & FLAG_FUA != 0, operation & FLAG_NO_UNMAP != 0);
        let kind = operation & 0xff;
        match kind {
            2 => return Ok(Self::Flush),
            _ if !inside || length == 0 => return Err(libc::EINVAL),
            1 | 3 | 5 if shape.read_only => return Err(libc::EROFS),
            _ => {}
        }
        let short = u32::try_from(length).ok().filter(|&length| length <= shape.request_max);
        match (kind, short) {
            (0, Some(length)) => Ok(Self::Read { offset, length }),
            (1, Some(length)) => Ok(Self::Write { offset, length, fua }),
            (0 | 1, None) => Err(libc::EINVAL),
            (3, _) => Ok(Self::Trim { offset, length }),
            (5, _) => Ok(Self::WriteZeroes { offset, length, fua, no_hole }),
            _ => Err(libc::EOPNOTSUPP),
        }
    }
}

/// Where the data of a request lies in the character file.
pub fn data_position(queue: u16, tag: u16) -> i64 {
    0x8000_0000 + (i64::from(queue) << 41) + (i64::from(tag) << 25)
}

/// The error number that the kernel makes the right block error of.
pub fn errno(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::Invalid | ErrorKind::OutOfRange => libc::EINVAL,
        ErrorKind::NoSpace => libc::ENOSPC,
        ErrorKind::Device | ErrorKind::ShuttingDown => libc::EIO,
        ErrorKind::ReadOnly => libc::EROFS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { size: 1 << 20, block_size: 4096, request_max: 64 << 10, read_only: false };

    fn parse(operation: u32, start: u64, sectors: u32, shape: &Shape) -> Result<Request, i32> {
        let descriptor = Descriptor {
            operation: operation.into(),
            sectors: sectors.into(),
            start: start.into(),
            address: 0.into(),
        };
        Request::parse(&descriptor, shape)
    }

    /// Goal: each operation is read with its flags, and a flush has no range to be wrong.
    #[test]
    fn requests_are_read() {
        let length = 4096;
        assert_eq!(parse(0, 8, 8, &SHAPE), Ok(Request::Read { offset: 4096, length }));
        for (flags, fua) in [(0, false), (FLAG_FUA, true)] {
            let write = Request::Write { offset: 512, length, fua };
            assert_eq!(parse(1 | flags, 1, 8, &SHAPE), Ok(write));
        }
        assert_eq!(parse(2, u64::MAX, 0, &SHAPE), Ok(Request::Flush));
        let all = Request::Trim { offset: 0, length: 1 << 20 };
        assert_eq!(parse(3, 0, 2048, &SHAPE), Ok(all));
        let zeroes = Request::WriteZeroes { offset: 0, length: 1 << 20, fua: false, no_hole: true };
        assert_eq!(parse(5 | FLAG_NO_UNMAP, 0, 2048, &SHAPE), Ok(zeroes));
    }

    /// Goal: nothing outside of the device, too long, empty or unknown comes through, and no write
    /// to what takes none.
    #[test]
    fn what_does_not_fit_is_refused() {
        for kind in [0, 1, 3, 5] {
            for (start, sectors) in [(2048, 1), (2047, 2), (u64::MAX, 1), (0, 0), (0, u32::MAX)] {
                assert_eq!(parse(kind, start, sectors, &SHAPE), Err(libc::EINVAL), "{kind}");
            }
        }
        assert_eq!(parse(0, 0, 129, &SHAPE), Err(libc::EINVAL));
        assert_eq!(parse(1, 0, 129, &SHAPE), Err(libc::EINVAL));
        for kind in [4, 6, 10, 18, 255] {
            assert_eq!(parse(kind, 0, 8, &SHAPE), Err(libc::EOPNOTSUPP), "{kind}");
        }
        let read_only = Shape { read_only: true, ..SHAPE };
        for kind in [1, 3, 5] {
            assert_eq!(parse(kind, 0, 8, &read_only), Err(libc::EROFS), "{kind}");
        }
        assert!(parse(0, 0, 8, &read_only).is_ok() && parse(2, 0, 0, &read_only).is_ok());
    }

    proptest::proptest! {
        /// Goal: whatever the descriptor, a request that comes through lies in the device and is
        /// no longer than was agreed.
        #[test]
        fn what_is_read_is_inside(bytes: [u8; 24], small: bool) {
            let mut descriptor: Descriptor = zerocopy::transmute!(bytes);
            if small {
                // Near the end of the device, where most of what is random never is.
                descriptor.start = (descriptor.start.get() % 2100).into();
                descriptor.sectors = (descriptor.sectors.get() % 200).into();
                descriptor.operation = (descriptor.operation.get() & !0xf8).into();
            }
            let (offset, length) = match Request::parse(&descriptor, &SHAPE) {
                Err(_) | Ok(Request::Flush) => return Ok(()),
                Ok(Request::Read { offset, length } | Request::Write { offset, length, .. }) => {
                    assert!(length <= SHAPE.request_max);
                    (offset, length.into())
                }
                Ok(
                    Request::Trim { offset, length } | Request::WriteZeroes { offset, length, .. },
                ) => (offset, length),
            };
            assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= SHAPE.size));
        }
    }

    /// Goal: requests' data lie apart, each with room for the longest there is.
    #[test]
    fn data_lie_apart() {
        assert_eq!(data_position(0, 0), 0x8000_0000);
        assert_eq!(data_position(0, 1) - data_position(0, 0), 32 << 20);
        assert_eq!(data_position(1, 0) - data_position(0, u16::MAX), 32 << 20);
    }
}
