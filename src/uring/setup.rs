//! Making the kernel's end of a ring, with as many of the wanted flags as the kernel knows.

use std::io;

use io_uring::IoUring;
use nix::libc;

use super::error::RingError;
use super::ring::RingOptions;

/// Answers that fit per entry of the submission queue; beyond that the kernel keeps them itself.
const ANSWERS_PER_ENTRY: u32 = 8;

/// Sets of flags to try, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flags {
    /// A thread of the kernel takes what is submitted, and sleeps after so many milliseconds.
    KernelThread(u32),
    /// One issuer, and completions are worked on only when it enters the kernel (6.1).
    Deferred,
    /// Completions do not interrupt the issuer (5.19).
    Cooperative,
    /// What every kernel has.
    Plain,
}

const PREFERENCE: [Flags; 3] = [Flags::Deferred, Flags::Cooperative, Flags::Plain];

/// A ring with the best flags that the kernel knows.
pub(super) fn build(options: &RingOptions) -> Result<IoUring, RingError> {
    if let Some(idle_ms) = options.kernel_thread {
        let ring = build_with(Flags::KernelThread(idle_ms), options.entries);
        return check(ring.map_err(RingError::from_setup)?);
    }
    let mut refused = None;
    for flags in PREFERENCE {
        match build_with(flags, options.entries) {
            Ok(ring) => {
                if refused.is_some() {
                    tracing::info!(?flags, "an older kernel: the ring does without some flags");
                }
                return check(ring);
            }
            // What this kernel does not know it calls invalid.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
            Err(error) => return Err(RingError::from_setup(error)),
        }
    }
    Err(RingError::from_setup(refused.expect("there is at least one set of flags")))
}

fn build_with(flags: Flags, entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize(entries.saturating_mul(ANSWERS_PER_ENTRY));
    match flags {
        Flags::Deferred => {
            builder.setup_single_issuer().setup_defer_taskrun();
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        Flags::Cooperative => {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        Flags::KernelThread(idle_ms) => {
            builder.setup_sqpoll(idle_ms).setup_submit_all();
        }
        Flags::Plain => (),
    }
    builder.build(entries)
}

fn check(ring: IoUring) -> Result<IoUring, RingError> {
    let params = ring.params();
    if !params.is_feature_nodrop() {
        return Err(RingError::too_old("this kernel's io_uring may lose completions"));
    }
    if !params.is_feature_ext_arg() {
        return Err(RingError::too_old("this kernel's io_uring cannot wait with a time limit"));
    }
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each set of flags is one that the kernel takes, not only the first.
    #[test]
    fn every_set_of_flags_works() {
        for flags in PREFERENCE.into_iter().chain([Flags::KernelThread(1)]) {
            let mut ring = build_with(flags, 8).unwrap();
            let nop = io_uring::opcode::Nop::new().build().user_data(7);
            // SAFETY: the entry uses no memory.
            unsafe { ring.submission().push(&nop) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            assert_eq!(ring.completion().next().unwrap().user_data(), 7, "{flags:?}");
        }
    }
}
