//! The channel to a metadata server: on another thread of this process, or over UDP.
//!
//! # Contracts
//!
//! - **Delivery**: to a thread in order and once, while the other end is there; over UDP perhaps.
//!   What is sent to an end that is gone is lost, as on any network.
//! - **Threads**: the link stays on its ring's thread; the far end of a channel goes to the
//!   server's.
//! - **Strangers**: over UDP only what comes from the server's address is taken, and where there is
//!   a key, only what carries the proof.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc as woken;

use crate::env::Link;
use crate::uring::{DatagramOptions, Datagrams, Ring};

/// How many datagrams the ring takes before the client looks.
const BUFFERS: u16 = 64;
/// How long nothing is received after the system has refused to.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Proves to the other end that this one has the key, and looks at its proofs.
pub trait Seal {
    /// Writes the proof into a datagram.
    fn seal(&self, datagram: &mut [u8]);
    /// Whether any bytes carry the proof.
    fn opens(&self, datagram: &[u8]) -> bool;
}

/// The unit's end of the channel. Cheap to clone: a handle.
#[derive(Clone)]
pub struct OsLink(Rc<Inner>);

struct Inner {
    payload_max: usize,
    way: Way,
}

enum Way {
    Thread {
        sender: mpsc::Sender<Vec<u8>>,
        receiver: RefCell<woken::UnboundedReceiver<Vec<u8>>>,
    },
    Udp {
        ring: Ring,
        datagrams: Datagrams,
        seal: Option<Box<dyn Seal>>,
        unauthenticated: Cell<u64>,
    },
}

impl OsLink {
    /// A link that sends to `sender`, whose thread blocks on the other end, and receives what is
    /// sent to `receiver`, which wakes the ring.
    pub fn new(
        payload_max: usize,
        sender: mpsc::Sender<Vec<u8>>,
        receiver: woken::UnboundedReceiver<Vec<u8>>,
    ) -> Self {
        let way = Way::Thread { sender, receiver: RefCell::new(receiver) };
        Self(Rc::new(Inner { payload_max, way }))
    }

    /// A link to the server at that address, with datagrams of at most `payload_max` bytes in both
    /// directions, sealed where there is a key. Nothing is sent yet: whether anybody is there is
    /// found out by asking.
    pub fn udp(
        ring: &Ring,
        server: SocketAddr,
        payload_max: usize,
        seal: Option<Box<dyn Seal>>,
    ) -> io::Result<Self> {
        let own: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(own)?;
        socket.connect(server)?;
        let datagrams =
            ring.datagrams(socket, DatagramOptions { payload_max, buffers: BUFFERS })?;
        let (ring, unauthenticated) = (ring.clone(), Cell::new(0));
        let way = Way::Udp { ring, datagrams, seal, unauthenticated };
        Ok(Self(Rc::new(Inner { payload_max, way })))
    }

    /// How many datagrams were dropped because they did not carry the proof.
    pub fn unauthenticated(&self) -> u64 {
        match &self.0.way {
            Way::Thread { .. } => 0,
            Way::Udp { unauthenticated, .. } => unauthenticated.get(),
        }
    }
}

impl Link for OsLink {
    fn payload_max(&self) -> usize {
        self.0.payload_max
    }

    fn send(&self, mut datagram: Vec<u8>) {
        assert!(datagram.len() <= self.0.payload_max, "a datagram of {} bytes", datagram.len());
        match &self.0.way {
            // A server that is gone is noticed by its silence, here as over a network.
            Way::Thread { sender, .. } => drop(sender.send(datagram)),
            Way::Udp { datagrams, seal, .. } => {
                if let Some(seal) = seal {
                    seal.seal(&mut datagram);
                }
                datagrams.send(None, datagram);
            }
        }
    }

    async fn receive(&self) -> Vec<u8> {
        match &self.0.way {
            Way::Thread { receiver, .. } => {
                poll_fn(|cx| match receiver.borrow_mut().poll_recv(cx) {
                    Poll::Ready(Some(datagram)) => Poll::Ready(datagram),
                    // The server is gone: nothing ever arrives.
                    Poll::Ready(None) | Poll::Pending => Poll::Pending,
                })
                .await
            }
            Way::Udp { ring, datagrams, seal, unauthenticated } => loop {
                match datagrams.receive().await {
                    Ok(arrived) => {
                        if seal.as_ref().is_none_or(|seal| seal.opens(&arrived.bytes)) {
                            return arrived.bytes;
                        }
                        unauthenticated.set(unauthenticated.get() + 1);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "nothing can be received of the metadata server");
                        ring.sleep(REFUSED_PAUSE).await;
                    }
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::RingOptions;

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

    /// Turns datagrams around as the proof, which is their first byte.
    struct Backwards;

    impl Seal for Backwards {
        fn seal(&self, datagram: &mut [u8]) {
            datagram[0] = 7;
        }

        fn opens(&self, datagram: &[u8]) -> bool {
            datagram.first() == Some(&7)
        }
    }

    /// Goal: over UDP datagrams are sealed, come back, and only from the server and with a proof.
    #[test]
    fn udp_takes_what_the_server_seals() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(address).unwrap();
            let stranger = UdpSocket::bind(address).unwrap();
            let at = server.local_addr().unwrap();
            let link = OsLink::udp(&ring, at, 1200, Some(Box::new(Backwards))).unwrap();
            let handle = ring.clone();
            ring.block_on(async move {
                link.send(vec![0, 1, 2]);
                handle.sleep(Duration::from_millis(1)).await;
                let mut bytes = [0; 10];
                let (count, from) = server.recv_from(&mut bytes).unwrap();
                assert_eq!(bytes[..count], [7, 1, 2]);
                stranger.send_to(&[7, 9], from).unwrap();
                server.send_to(&[8, 3], from).unwrap();
                server.send_to(&[7, 4], from).unwrap();
                assert_eq!(link.receive().await, [7, 4]);
                assert_eq!(link.unauthenticated(), 1);
            });
        }
        ring.shutdown();
    }
}
