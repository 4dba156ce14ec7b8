//! Why a volume could not be read.

use std::sync::Arc;

use crate::format::ids::PairId;
use crate::mds::error::{MdsError, Refusal};

/// Why a read failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It reaches beyond the volume's end, as far as that is known here.
    #[error("a read at byte {offset} for {len} bytes reaches beyond the volume's {size} bytes")]
    OutOfRange {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        len: u64,
        /// The volume's size.
        size: u64,
    },
    /// The volume was deleted.
    #[error("the volume was deleted")]
    Deleted,
    /// The device could not read.
    #[error("reading from the device failed: {0}")]
    Device(Arc<str>),
    /// What was read may be anybody's by now.
    #[error(
        "the lease is over: the metadata server has not answered for {silent_ms} ms; reads go on \
         when it does"
    )]
    LeaseOver {
        /// How long ago the last request was sent that it answered, in milliseconds.
        silent_ms: u64,
    },
    /// What was read may be anybody's by now, as that took longer than the lease.
    #[error(
        "the devices took {took_ms} ms to read, which is longer than the lease: what was read may \
         have been replaced; try again"
    )]
    TooSlow {
        /// How long it took, in milliseconds.
        took_ms: u64,
    },
    /// Whenever it was read, it was written again meanwhile.
    #[error("the blocks were written again each of the {0} times that they were read: try again")]
    Unsettled(u32),
    /// The follower was closed.
    #[error("the target is shutting down")]
    ShuttingDown,
}

/// Why a pool cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// The flags are where this machine does not see them.
    #[error(
        "the pool's flags are kept by the target that writes it: only a pool made with its flags \
         at the metadata server can be read beside it (flipside format --mds HOST:PORT --flags \
         mds)"
    )]
    FlagsElsewhere,
    /// The server refused, or its answer makes no sense.
    #[error(transparent)]
    Mds(MdsError),
    /// The server tells of a pair that there is none.
    #[error("the metadata server has a line of {0}, which the pool does not have")]
    Damaged(PairId),
}

impl From<MdsError> for FollowError {
    fn from(error: MdsError) -> Self {
        match error {
            MdsError::Refused { refusal: Refusal::FlagsElsewhere, .. } => Self::FlagsElsewhere,
            error => Self::Mds(error),
        }
    }
}
