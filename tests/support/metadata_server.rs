//! The `flipside mds` process: started, killed, halted, asked.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::programs::run;
use super::target::BINARY;

/// Any free port of the loopback.
pub const ANY_PORT: &str = "127.0.0.1:0";

/// A metadata server; killed when dropped.
pub struct Server {
    child: Child,
    within: &'static [&'static str],
    /// Where it listens.
    pub at: SocketAddr,
}

/// The command for a server with its store in that directory.
pub fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["mds", "--store"]).arg(directory.join("store")).args(arguments);
    command
}

impl Server {
    /// Starts a server and waits until it can be used.
    pub fn start(directory: &Path, arguments: &[&str]) -> Server {
        Server::start_within(&[], directory, arguments)
    }

    /// The same with words in front of the command, as `ip netns exec NAME`.
    pub fn start_within(
        within: &'static [&'static str],
        directory: &Path,
        arguments: &[&str],
    ) -> Server {
        let mut server = command(directory, arguments);
        if let [program, words @ ..] = within {
            let mut outer = Command::new(program);
            outer.args(words).arg(server.get_program()).args(server.get_args());
            server = outer;
        }
        let mut child = server.stdout(Stdio::piped()).spawn().expect("the binary was built");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("a line");
        let at = line.trim().strip_prefix("ready udp://").unwrap_or_else(|| panic!("{line:?}"));
        let at = at.parse().expect("an address");
        Server { child, within, at }
    }

    /// Sends a signal that ends it; its exit code, if it was not killed.
    pub fn signal(mut self, signal: Signal) -> Option<i32> {
        self.tell(signal);
        self.child.wait().expect("it is ours").code()
    }

    /// SIGKILL, and the same server again, at the same address.
    pub fn restart(self, directory: &Path, arguments: &[&str], pause: impl FnOnce()) -> Server {
        let (at, within) = (self.at.to_string(), self.within);
        assert_eq!(self.signal(Signal::SIGKILL), None);
        pause();
        Server::start_within(within, directory, &[&["--listen", &at], arguments].concat())
    }

    /// Sends a signal.
    pub fn tell(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it is ours");
    }

    /// What `flipside status --mds --json` says.
    pub fn status(&self, arguments: &[&str]) -> serde_json::Value {
        let at = self.at.to_string();
        let all = [&["status", "--json", "--mds", &at], arguments].concat();
        let all: Vec<_> = all.iter().map(std::ffi::OsStr::new).collect();
        serde_json::from_str(&run(BINARY, &all)).expect("JSON")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
