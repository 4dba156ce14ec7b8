//! Why a request on a volume failed.

use std::sync::Arc;

use crate::journal::JournalError;
use crate::mds::error::{MdsError, Refusal};

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The request reaches beyond the volume's end, or is larger than a request may be.
    #[error("{what} at byte {offset} for {len} bytes reaches beyond the volume's {size} bytes")]
    OutOfRange {
        /// The kind of request.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// How long it is.
        len: u64,
        /// The volume's size.
        size: u64,
    },
    /// The pool has no room for more data. What is there can still be overwritten and trimmed.
    #[error("the pool is full: trim or delete something, or add a device")]
    NoSpace,
    /// The device could not read; other requests go on.
    #[error("reading from the device failed: {0}")]
    DeviceRead(Arc<str>),
    /// The volume takes no more writes, because it could no longer keep its promise.
    #[error(
        "the volume takes no more writes, because {0}; restart the target to go back to the last \
         commit"
    )]
    Latched(Arc<str>),
    /// The volume was deleted.
    #[error("the volume was deleted")]
    Deleted,
    /// What was not committed is lost, here and on the other members of the volume's group.
    #[error(
        "group {0} went back to its last cut, since a unit of it lost what was not committed: \
         reconnect"
    )]
    WentBack(Arc<str>),
    /// The other members of the volume's group cannot commit. What was written stays pending.
    #[error("the commit has to wait, and may be asked for again: {0}")]
    Group(Arc<str>),
    /// Whether what is there was committed is not known yet.
    #[error(
        "it is being committed, or was when the target stopped, and the metadata server, which \
         knows whether it took place, has not said so yet: try again, or serve with a longer \
         --doubt-timeout"
    )]
    InDoubt,
    /// The target is stopping.
    #[error("the target is shutting down")]
    ShuttingDown,
}

/// Why a volume was not made or changed. Nothing has changed, but that a shrink that failed may
/// have left zeros in the tail that it was to cut off; and where the metadata server failed, the
/// next start tells whether it was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManageError {
    /// There is none of that number, or not any more.
    #[error("there is no such volume")]
    Unknown,
    /// A size that no volume of this pool can have.
    #[error("a volume's size must be a multiple of the block size, {block} bytes, and not zero")]
    Size {
        /// Bytes of a block.
        block: u32,
    },
    /// A smaller size, without the word that this is meant.
    #[error(
        "it has {from} bytes, and what is beyond the first {to} would be lost: say --shrink if \
         that is meant"
    )]
    Shrinks {
        /// Its size in bytes.
        from: u64,
        /// The size that was asked for, in bytes.
        to: u64,
    },
    /// The metadata server has a reason against it.
    #[error("{0}")]
    Refused(Refusal),
    /// The metadata server cannot.
    #[error(transparent)]
    Metadata(MdsError),
    /// What was to be given up could not be emptied.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl ManageError {
    /// Whether it may have been done all the same: a commit of the store that fails may have
    /// arrived.
    pub(super) fn is_in_doubt(&self) -> bool {
        let failed = [Refusal::StoreFailed, Refusal::StoreFull];
        match self {
            Self::Refused(refusal) => failed.contains(refusal),
            Self::Metadata(_) => true,
            Self::Unknown | Self::Size { .. } | Self::Shrinks { .. } | Self::Io(_) => false,
        }
    }
}

impl From<MdsError> for ManageError {
    fn from(error: MdsError) -> Self {
        match error {
            MdsError::Refused { refusal, .. } => Self::Refused(refusal),
            other => Self::Metadata(other),
        }
    }
}

/// Why a unit could not start.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A device failed.
    #[error("{device}: {error}")]
    Device {
        /// Which.
        device: String,
        /// How.
        error: std::io::Error,
    },
    /// The journal or home cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The metadata server refused, or its answer cannot be.
    #[error("the metadata server: {0}")]
    Metadata(#[from] MdsError),
    /// What is stored contradicts itself.
    #[error("the pool is damaged: {0}; run `flipside check`, or restore the volumes from a copy")]
    Damaged(String),
    /// What was acknowledged before this start could not be committed.
    #[error(
        "what the target before this one had acknowledged could not be committed: {0}; it is kept \
         until the next start"
    )]
    Adopt(String),
    /// The journal or the reserve is too small for even a small request.
    #[error("the pool is too small to serve requests safely: {0}")]
    TooSmall(String),
}
