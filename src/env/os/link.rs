//! The channel to a metadata server on another thread of this process.
//!
//! # Contracts
//!
//! - **Delivery**: in order and once, while the other end is there; what is sent to an end that is
//!   gone is lost, as on any network.
//! - **Threads**: the link stays on its ring's thread; its far end goes to the server's.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::Poll;

use tokio::sync::mpsc as woken;

use crate::env::Link;

/// The unit's end of the channel. Cheap to clone: a handle.
#[derive(Clone)]
pub struct OsLink(Rc<Inner>);

struct Inner {
    payload_max: usize,
    sender: mpsc::Sender<Vec<u8>>,
    receiver: RefCell<woken::UnboundedReceiver<Vec<u8>>>,
}

impl OsLink {
    /// A link that sends to `sender`, whose thread blocks on the other end, and receives what is
    /// sent to `receiver`, which wakes the ring.
    pub fn new(
        payload_max: usize,
        sender: mpsc::Sender<Vec<u8>>,
        receiver: woken::UnboundedReceiver<Vec<u8>>,
    ) -> Self {
        Self(Rc::new(Inner { payload_max, sender, receiver: RefCell::new(receiver) }))
    }
}

impl Link for OsLink {
    fn payload_max(&self) -> usize {
        self.0.payload_max
    }

    fn send(&self, datagram: Vec<u8>) {
        assert!(datagram.len() <= self.0.payload_max, "a datagram of {} bytes", datagram.len());
        // A server that is gone is noticed by its silence, here as over a network.
        let _ = self.0.sender.send(datagram);
    }

    fn receive(&self) -> impl Future<Output = Vec<u8>> {
        std::future::poll_fn(|cx| match self.0.receiver.borrow_mut().poll_recv(cx) {
            Poll::Ready(Some(datagram)) => Poll::Ready(datagram),
            // The server is gone: nothing ever arrives.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::{Ring, RingOptions};

    /// Goal: datagrams go to a thread and back, and wake the ring that waits for them.
    #[test]
    fn a_thread_answers() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let (to_server, server_receives) = mpsc::channel::<Vec<u8>>();
        let (to_unit, unit_receives) = woken::unbounded_channel();
        let server = std::thread::spawn(move || {
            while let Ok(mut datagram) = server_receives.recv() {
                datagram.reverse();
                to_unit.send(datagram).unwrap();
            }
        });
        let link = OsLink::new(100, to_server, unit_receives);
        ring.block_on(async move {
            for i in 0..100 {
                link.send(vec![i, 1, 2]);
                assert_eq!(link.receive().await, [2, 1, i]);
            }
        });
        server.join().unwrap();
    }
}
