//! The virtual machine as tests use it: `tools/vm/run`, one at a time.
//!
//! A test that needs the machine comes in two halves: the outer one starts the machine, and the
//! inner one, ignored elsewhere, is what this same binary does in it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::programs::{say, skip, wait_for};

/// Seconds that a machine may take which is not meant to be killed; where counts are long, too.
const SECONDS: [&str; 2] = ["280", "3000"];
/// What is there in place of an exit status where the machine was killed for its time.
pub const TIMED_OUT: i32 = 124;
/// What is there in place of an exit status where the machine ended without one.
pub const NO_STATUS: i32 = 125;

/// One machine of this test at a time: they share two processors with all else.
static RUNNING: Mutex<()> = Mutex::new(());

fn tool(name: &str) -> String {
    format!("{}/tools/vm/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Whether a machine can be had; said aloud where it cannot.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let setup = Command::new(tool("setup")).output().expect("tools/vm/setup is there");
        if !setup.status.success() {
            skip(&format!("the virtual machine: {}", String::from_utf8_lossy(&setup.stderr)));
        }
        setup.status.success()
    })
}

/// Runs a command in a machine with these options.
pub fn run(options: &[&str], command: &[&str]) -> Output {
    let _alone = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let is_long = std::env::var_os("FLIPSIDE_ROUNDS").is_some();
    Command::new(tool("run"))
        .args(["--seconds", SECONDS[usize::from(is_long)]])
        .args(options)
        .arg("--")
        .args(command)
        .output()
        .expect("tools/vm/run is there")
}

/// Runs the inner half of a test in a machine.
pub fn run_inner(options: &[&str], test: &str) -> Output {
    let binary = std::env::current_exe().expect("this program's path");
    let binary = binary.to_str().expect("a path in UTF-8");
    run(options, &[binary, "--ignored", "--exact", "--nocapture", test])
}

/// Runs the inner half of a test in a machine, where it must succeed; what it says is said.
#[track_caller]
pub fn passes(options: &[&str], test: &str) {
    let output = run_inner(options, test);
    assert!(
        output.status.success() && text(&output.stdout).contains("1 passed"),
        "{test} in the machine: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    say(text(&output.stderr).trim_end());
}

/// How long a machine may take to come to where it is of use, on a host that is busy with others.
const PATIENCE: Duration = Duration::from_secs(1200);

/// A machine in which the inner half of a test runs while the outer one goes on.
pub struct Machine {
    child: Child,
    directory: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    /// Starts one.
    pub fn start(options: &[&str], test: &str) -> Machine {
        let alone = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().expect("a directory");
        let binary = std::env::current_exe().expect("this program's path");
        let errors = std::fs::File::create(directory.path().join("errors")).expect("a file");
        let mut command = Command::new(tool("run"));
        command.args(["--seconds", "3000", "--output"]).arg(directory.path().join("output"));
        command.args(options).arg("--").arg(binary);
        command.args(["--ignored", "--exact", "--nocapture", test]);
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn();
        Machine { child: started.expect("tools/vm/run is there"), directory, _alone: alone }
    }

    /// What was said on the standard error, once the machine has ended.
    pub fn errors(&self) -> String {
        text(&std::fs::read(self.directory.path().join("errors")).unwrap_or_default())
    }

    /// What the inner half has printed so far.
    pub fn output(&self) -> String {
        text(&std::fs::read(self.directory.path().join("output")).unwrap_or_default())
    }

    /// Waits until the inner half has printed a text or has ended: whether it has printed it.
    pub fn prints(&mut self, wanted: &str) -> bool {
        wait_for(wanted, PATIENCE, || {
            let ended = self.child.try_wait().expect("it is ours").is_some();
            let printed = self.output().contains(wanted);
            (printed || ended).then_some(printed)
        })
    }

    /// Cuts the machine off, as a loss of power does: SIGKILL to qemu; it may have ended before.
    /// What the inner half had printed.
    pub fn cut_off(mut self) -> String {
        self.end();
        self.output()
    }

    fn end(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // SIGKILL would leave the machine's files behind.
            kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)
                .expect("it is ours");
            let _ = self.child.wait();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("--- in the machine:\n{}", self.output());
        }
    }
}

/// What a program printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of zeros for a machine's memory or disk.
pub fn sparse(path: &Path, bytes: u64) -> String {
    let file = std::fs::File::create(path).expect("a file can be made");
    file.set_len(bytes).expect("and have a length");
    path.to_str().expect("a path in UTF-8").to_owned()
}
