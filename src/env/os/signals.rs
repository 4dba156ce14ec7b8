//! Being asked to stop: SIGTERM and SIGINT, as something to await.

use std::io;
use std::os::fd::AsFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::uring::{Fd, Ring};

/// A signal that asks the process to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM: from a service manager.
    Terminate,
    /// SIGINT: from a terminal.
    Interrupt,
}

/// The signals that ask the process to stop, from now on.
pub struct Signals {
    ring: Ring,
    source: SignalFd,
    fd: Fd,
}

impl Signals {
    /// Takes the signals away from their default, which is death, for this thread and those that
    /// it starts from here on: call it before any other thread is started.
    pub fn new(ring: &Ring) -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.thread_block()?;
        let source = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let fd = ring.register_file(source.as_fd().try_clone_to_owned()?);
        Ok(Self { ring: ring.clone(), source, fd })
    }

    /// The next signal.
    pub async fn next(&self) -> io::Result<StopSignal> {
        loop {
            // Asked first: of two signals that came together the poll tells once.
            if let Some(information) = self.source.read_signal()? {
                let interrupt = information.ssi_signo == Signal::SIGINT as u32;
                let terminate = StopSignal::Terminate;
                return Ok(if interrupt { StopSignal::Interrupt } else { terminate });
            }
            self.ring.readable(&self.fd).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::RingOptions;
    use nix::sys::signal::raise;
    use std::time::Duration;

    /// Goal: signals wake whoever waits for them, and each is told.
    #[test]
    fn signals_arrive() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let signals = Signals::new(&ring).unwrap();
        let handle = ring.clone();
        ring.block_on(async move {
            raise(Signal::SIGINT).unwrap();
            assert_eq!(signals.next().await.unwrap(), StopSignal::Interrupt);
            let sleeper = handle.clone();
            handle.spawn(async move {
                sleeper.sleep(Duration::from_millis(5)).await;
                raise(Signal::SIGTERM).unwrap();
            });
            assert_eq!(signals.next().await.unwrap(), StopSignal::Terminate);
        });
        ring.shutdown();
    }
}
