//! A bad network between targets and their metadata server.

#[allow(dead_code, reason = "it is a program of its own, with its own tests")]
#[path = "../../tools/lossy.rs"]
mod lossy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lossy::{Proxy, Weather};

use crate::support::metadata_server::ANY_PORT;

/// A bad network, until it is dropped.
pub struct Network {
    /// Where the way to the server begins.
    pub at: SocketAddr,
    ended: Arc<AtomicBool>,
    passing: Option<JoinHandle<()>>,
}

impl Network {
    /// A network that loses, repeats and reorders some of what goes to a server and back.
    pub fn to(server: SocketAddr, seed: u64) -> Network {
        let delay = Duration::ZERO..=Duration::from_millis(2);
        let weather = Weather { loss: 0.01, repeat: 0.01, reorder: 0.01, delay };
        let mut proxy = Proxy::new(ANY_PORT, &server.to_string(), weather, seed).unwrap();
        let at = proxy.front.local_addr().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let passing = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                if !proxy.step().unwrap() {
                    thread::sleep(Duration::from_micros(100));
                }
            }
        });
        Network { at, ended, passing: Some(passing) }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let ended = self.passing.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}
