//! The virtual machine as tests use it: `tools/vm/run`, one at a time.
//!
//! A test that needs the machine comes in two halves: the outer one starts the machine, and the
//! inner one, ignored elsewhere, is what this same binary does in it.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::support::programs::skip;

/// Seconds that a machine may take which is not meant to be killed.
const SECONDS: &str = "280";
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
    Command::new(tool("run"))
        .args(["--seconds", SECONDS])
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

/// Runs the inner half of a test in a machine, where it must succeed.
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
