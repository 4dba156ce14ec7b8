//! Other programs, waiting with a deadline, and skipping aloud.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a condition may take that usually holds at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory for devices and sockets: `FLIPSIDE_TEST_DIR`, or in memory where that is possible.
pub fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let parent = match std::env::var_os("FLIPSIDE_TEST_DIR") {
        Some(chosen) => PathBuf::from(chosen),
        None if memory.is_dir() => memory.to_owned(),
        None => std::env::temp_dir(),
    };
    tempfile::Builder::new()
        .prefix("flipside-test-")
        .tempdir_in(&parent)
        .unwrap_or_else(|error| panic!("no directory can be made in {}: {error}", parent.display()))
}

/// Says why a test, or a part of it, is not run; past the harness, which would swallow it.
///
/// # Panics
/// Where `FLIPSIDE_REQUIRE_ALL` is set.
pub fn skip(reason: &str) {
    let line = format!("\n*** not tested here: {reason}\n");
    assert!(std::env::var_os("FLIPSIDE_REQUIRE_ALL").is_none(), "{line}");
    std::io::stderr().write_all(line.as_bytes()).expect("stderr takes a line");
}

/// Says how far a long test is; past the harness.
pub fn say(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).expect("stderr takes a line");
}

/// Whether all of `programs` are installed; the missing ones are named.
pub fn installed(programs: &[&str]) -> bool {
    let missing = |program: &&&str| {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output();
        !found.is_ok_and(|output| output.status.success())
    };
    let missing: Vec<&str> = programs.iter().filter(missing).copied().collect();
    if !missing.is_empty() {
        skip(&format!("{} not installed (tools/setup.sh installs them)", missing.join(", ")));
    }
    missing.is_empty()
}

/// Runs a program that must succeed; its standard output.
///
/// # Panics
/// With all that it printed, if it fails.
pub fn run(program: &str, arguments: &[&OsStr]) -> String {
    match try_run(program, arguments) {
        Ok(output) => output,
        Err(message) => panic!("{message}"),
    }
}

/// Runs a program; its standard output, or what it printed when it failed.
pub fn try_run(program: &str, arguments: &[&OsStr]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?} failed ({}):\n{text}\n{errors}", output.status))
}

/// Waits until `condition` gives something.
///
/// # Panics
/// When it does not within `patience`.
pub fn wait_for<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(result) = condition() {
            return result;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {patience:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The arguments as [`run`] takes them.
#[macro_export]
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        &[$(std::ffi::OsStr::new(&$argument)),*]
    };
}
