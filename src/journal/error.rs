//! What can go wrong with a unit's region.

use std::sync::Arc;

use crate::format::ids::Sequence;

/// Why the journal or the home cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// The region failed; nothing more will be written to it.
    #[error("the journal failed and takes no more writes: {0}")]
    Failed(Arc<str>),
    /// What is stored contradicts itself.
    #[error(
        "the journal is damaged: {0}; run `flipside check`, or restore the volumes from a copy"
    )]
    Damaged(String),
    /// A group is prepared for a transaction whose outcome is not known here.
    #[error(
        "group {0} of the journal is in doubt: only the metadata server knows whether its \
         transaction took place; start the target, so that it asks, and try again"
    )]
    InDoubt(Sequence),
    /// The region holds another pool's journal, or none.
    #[error("the journal region holds no journal of this pool: {0}")]
    Foreign(String),
    /// The region is too small.
    #[error("the journal region has {len} bytes; it needs {needed}")]
    TooSmall {
        /// What there is.
        len: u64,
        /// What it takes.
        needed: u64,
    },
}
