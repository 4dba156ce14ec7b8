//! The process `flipside mds`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::unistd::{SysconfVar, sysconf};

/// The process; killed when dropped.
pub struct Process {
    child: Child,
    pub at: SocketAddr,
}

impl Process {
    /// Starts it with a store at that path, and waits until it can be used.
    pub fn start(store: &Path) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flipside"));
        command.args(["mds", "--listen", "127.0.0.1:0", "--store"]).arg(store);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary was built");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("a line");
        let at = line.trim().strip_prefix("ready udp://").expect("a server that is ready");
        Process { at: at.parse().expect("an address"), child }
    }

    /// Processor time of all its threads so far, in microseconds.
    pub fn cpu_time(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("it runs");
        // After the name, which ends with the last bracket, user and system time are 12th and 13th.
        let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|count| count.parse::<u64>().expect("ticks")).sum();
        let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().expect("ticks a second");
        ticks * 1_000_000 / a_second.cast_unsigned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
