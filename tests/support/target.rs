//! The `flipside` process: format, serve, kill, stop, status.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use flipside::observe::Snapshot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::nbd_client::Client;
use super::programs::{PATIENCE, run, wait_for};

/// The program.
pub const BINARY: &str = env!("CARGO_BIN_EXE_flipside");

/// How a target is served.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where sockets and logs are put.
    pub directory: PathBuf,
    /// What is served.
    pub devices: Vec<PathBuf>,
    /// Further arguments of `flipside serve`.
    pub arguments: Vec<String>,
}

/// A place of flags and journal.
#[derive(Clone, Copy)]
pub struct Place {
    /// What [`format`] must be told for it.
    pub format: &'static [&'static str],
    /// What [`Service::arguments`] must have; files go into the directory.
    pub serve: fn(&Path) -> Vec<String>,
}

/// Flags and journal on the first device.
pub const ON_THE_DEVICE: Place = Place { format: &[], serve: |_| Vec::new() };

/// Flags and journal in a file of the directory, as NVRAM.
pub const IN_NVRAM: Place = Place { format: &[], serve: in_nvram };

/// Flags at the metadata server.
pub const AT_THE_SERVER: Place = Place { format: &["--flags", "mds"], serve: |_| Vec::new() };

/// All places.
pub const PLACES: [Place; 3] = [ON_THE_DEVICE, IN_NVRAM, AT_THE_SERVER];

fn in_nvram(directory: &Path) -> Vec<String> {
    let path = directory.join("nvram").display().to_string();
    ["--flags", "nvram", "--nvram", &path].map(String::from).to_vec()
}

/// A target that serves; killed when dropped.
pub struct Target {
    child: Child,
    socket: PathBuf,
    control: PathBuf,
    log: PathBuf,
    lines: Receiver<String>,
}

/// Formats `device` with its flags at a place.
pub fn format_at(place: Place, device: &Path, arguments: &[&str]) {
    format(device, &[place.format, arguments].concat());
}

/// Formats `device`.
pub fn format(device: &Path, arguments: &[&str]) {
    let mut all: Vec<&OsStr> = vec![OsStr::new("format")];
    all.extend(arguments.iter().map(OsStr::new));
    all.push(device.as_os_str());
    run(BINARY, &all);
}

impl Service {
    /// Serves `device` with the defaults.
    pub fn new(directory: &Path, device: &Path) -> Service {
        let devices = vec![device.to_owned()];
        Service { directory: directory.to_owned(), devices, arguments: Vec::new() }
    }

    /// Starts a target and does not wait for it.
    pub fn start(&self) -> Target {
        let socket = self.directory.join("nbd.sock");
        let control = self.directory.join("control.sock");
        let log = self.directory.join("target.log");
        let mut listen = OsString::from("unix:");
        listen.push(&socket);
        let errors = File::options().create(true).append(true).open(&log).expect("a log file");
        let mut child = Command::new(BINARY)
            .arg("serve")
            .arg("--listen")
            .arg(&listen)
            .arg("--control")
            .arg(&control)
            .arg("--warm-dir")
            .arg(self.directory.join("warm"))
            .args(&self.arguments)
            .args(&self.devices)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("the binary was built");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            // The receiver is gone once the test needs no more lines.
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Target { child, socket, control, log, lines }
    }

    /// Starts a target and waits until it can be used.
    pub fn serve(&self) -> Target {
        let target = self.start();
        target.wait_ready();
        target
    }
}

impl Target {
    /// Waits for the line that says that the first export can be used.
    pub fn wait_ready(&self) {
        self.wait_ready_at("nbd+unix://");
    }

    /// Waits for the line that says that what begins with these words can be used.
    pub fn wait_ready_at(&self, place: &str) {
        let wanted = format!("ready {place}");
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with(&wanted) => return,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("not ready in time: {}", self.log()),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended: {}", self.log()),
            }
        }
    }

    /// Waits until the first export can be used, or the target has ended: whether it can be used.
    pub fn ready_or_ended(&self) -> bool {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with("ready ") => return true,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("not ready in time: {}", self.log()),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The export's address for other programs.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// A session with `export`.
    pub fn connect(&self, export: &str) -> Client {
        Client::unix(&self.socket, export)
            .unwrap_or_else(|error| panic!("{export}: {error}\n{}", self.log()))
    }

    /// What `flipside status --json` says.
    pub fn status(&self) -> Snapshot {
        let arguments = [
            OsStr::new("status"),
            OsStr::new("--json"),
            OsStr::new("--control"),
            self.control.as_os_str(),
        ];
        serde_json::from_str(&run(BINARY, &arguments)).expect("the published names")
    }

    /// Its messages since the first start in this directory.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.strike();
    }

    /// SIGKILL, and waits until it is gone; nothing else can be asked of it then.
    pub fn strike(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// SIGTERM, and waits until it has ended.
    pub fn stop(mut self) -> ExitStatus {
        self.terminate();
        self.wait_ended(PATIENCE)
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is ours");
    }

    /// Waits until it has ended.
    pub fn wait_ended(&mut self, patience: Duration) -> ExitStatus {
        wait_for("the target's end", patience, || self.child.try_wait().expect("it is ours"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the target's log:\n{}", self.log());
        }
    }
}
