//! Why there is no ring, and what to do about it.

use std::io;

use nix::libc;

/// A ring could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up io_uring: {cause}; {remedy}")]
pub struct RingError {
    /// What kind of failure it was.
    pub kind: RingErrorKind,
    cause: &'static str,
    remedy: &'static str,
    /// What the kernel said, where it said anything.
    pub source: Option<io::Error>,
}

/// The kinds of [`RingError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingErrorKind {
    /// The kernel has no io_uring.
    Unsupported,
    /// The kernel has it and refuses it to this process.
    Forbidden,
    /// A limit on memory or on open files.
    Limit,
    /// The kernel's io_uring lacks something without which there is no going on.
    TooOld,
    /// Anything else.
    Other,
}

impl RingError {
    /// Names the cause behind an error of `io_uring_setup` or of a registration.
    pub(super) fn from_setup(source: io::Error) -> Self {
        use RingErrorKind as Kind;
        let (kind, cause, remedy) = match source.raw_os_error() {
            Some(libc::ENOSYS) => (
                Kind::Unsupported,
                "the kernel has no io_uring, or a sandbox hides it",
                "use a kernel of 5.15 or later built with CONFIG_IO_URING, and allow the system \
                 calls io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile",
            ),
            Some(libc::EPERM | libc::EACCES) => (
                Kind::Forbidden,
                "it is forbidden to this process",
                "set `sysctl kernel.io_uring_disabled=0` (or put the user into the group that \
                 kernel.io_uring_group names), and allow io_uring in the container's seccomp \
                 profile",
            ),
            Some(libc::ENOMEM) => (
                Kind::Limit,
                "the limit on locked memory, or memory itself, is exhausted",
                "raise the limit: `ulimit -l`, or LimitMEMLOCK= in the systemd unit",
            ),
            Some(libc::EMFILE | libc::ENFILE) => (
                Kind::Limit,
                "the limit on open files is exhausted",
                "raise the limit: `ulimit -n`, or LimitNOFILE= in the systemd unit",
            ),
            _ => (Kind::Other, "the kernel refuses it", "see the cause below"),
        };
        Self { kind, cause, remedy, source: Some(source) }
    }

    /// The kernel's io_uring lacks a feature.
    pub(super) fn too_old(feature: &'static str) -> Self {
        Self {
            kind: RingErrorKind::TooOld,
            cause: feature,
            remedy: "use a kernel of 5.15 or later",
            source: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whoever meets one of the usual refusals is told what to do.
    #[test]
    fn refusals_name_their_remedy() {
        for (errno, kind, remedy) in [
            (libc::ENOSYS, RingErrorKind::Unsupported, "CONFIG_IO_URING"),
            (libc::EPERM, RingErrorKind::Forbidden, "kernel.io_uring_disabled"),
            (libc::ENOMEM, RingErrorKind::Limit, "LimitMEMLOCK"),
            (libc::EMFILE, RingErrorKind::Limit, "LimitNOFILE"),
            (libc::EINVAL, RingErrorKind::Other, "kernel"),
        ] {
            let error = RingError::from_setup(io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind, kind);
            assert!(error.to_string().contains(remedy), "{error}");
        }
    }
}
