//! Telling whoever started a server that it can be used.

use std::fmt::Display;
use std::io::Write as _;

use tracing::warn;

use crate::env::os::notify_ready;

/// Prints a line `ready URI` for each, and then tells the service manager. That nobody listens is
/// said in the log and nothing else.
pub fn say_ready(uris: impl IntoIterator<Item = impl Display>) {
    let mut out = std::io::stdout().lock();
    let lines = uris.into_iter().try_for_each(|uri| writeln!(out, "ready {uri}"));
    if let Err(error) = lines.and_then(|()| out.flush()) {
        warn!("nobody reads that the server is ready: {error}");
    }
    if let Err(error) = notify_ready() {
        warn!("the service manager was not told that the server is ready: {error}");
    }
}
