//! Waiting until a file can be read, for what is read by other means: signalfd, eventfd.

use std::future::Future;
use std::io;
use std::rc::Rc;

use io_uring::opcode;
use nix::libc;

use super::fd::Fd;
use super::operation::{Held, OnDrop, Operation};
use super::ring::Ring;

impl Ring {
    /// Ends when `fd` has something to read, or has failed or ended.
    pub fn readable(&self, fd: &Fd) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let (core, fd) = (Rc::clone(self.core()), fd.clone());
        async move {
            let entry = opcode::PollAdd::new(fd.number(), libc::POLLIN as u32).build();
            let operation = Operation::start(&core, Some(fd), Held::Nothing, OnDrop::Cancel, entry);
            operation.await.0.map(drop)
        }
    }
}
