//! Sockets that a service manager opened for this process: systemd's socket activation.
//!
//! # Contracts
//!
//! - **Once**: the sockets are handed out by the first call, which comes before this process has
//!   opened anything of its own; later calls get none.
//! - **Children**: the sockets are closed in every program that this process executes.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

/// The first descriptor that is passed; the others follow it.
const FIRST: RawFd = 3;
/// More sockets than any sensible unit has.
const SOCKETS_MAX: RawFd = 256;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The sockets that were passed to this process, in their order; none where nobody passed any.
pub fn passed_sockets() -> io::Result<Vec<OwnedFd>> {
    let variable = |name| std::env::var(name).ok();
    let count = count(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id())?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    (FIRST..FIRST + count).map(take).collect()
}

/// How many sockets were passed to the process `own`.
fn count(pid: Option<String>, count: Option<String>, own: u32) -> io::Result<RawFd> {
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(0) };
    // They may be meant for the process that started this one.
    if pid.parse() != Ok(own) {
        return Ok(0);
    }
    let wrong = || io::Error::other(format!("LISTEN_FDS={count} is not a number of sockets"));
    let number = count.parse().map_err(|_| wrong())?;
    if (0..=SOCKETS_MAX).contains(&number) { Ok(number) } else { Err(wrong()) }
}

fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is only asked for its flags here; were it not open, that would fail.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // The ring waits for clients by itself; a socket that does not block would not let it.
    let flags = OFlag::from_bits_truncate(fcntl(borrowed, FcntlArg::F_GETFL)?);
    fcntl(borrowed, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)))?;
    // SAFETY: it is open, the manager passed it to this process to own, and `TAKEN` sees to it
    // that it is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: sockets are counted where they are meant for this process, and nonsense is refused.
    #[test]
    fn sockets_are_counted() {
        let asked = |pid: Option<&str>, fds: Option<&str>| {
            count(pid.map(str::to_owned), fds.map(str::to_owned), 42)
        };
        assert_eq!(asked(Some("42"), Some("2")).unwrap(), 2);
        assert_eq!(asked(Some("42"), Some("0")).unwrap(), 0);
        for (pid, fds) in [(None, Some("2")), (Some("42"), None), (Some("41"), Some("2"))] {
            assert_eq!(asked(pid, fds).unwrap(), 0);
        }
        for fds in ["", "x", "-1", "257", "99999999999"] {
            asked(Some("42"), Some(fds)).unwrap_err();
        }
    }
}
