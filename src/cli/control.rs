//! The commands' end of the control socket: finding it, and asking.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use crate::front::control::{Request, call};

/// The end of the names of control sockets.
const EXTENSION: &str = "control";

/// Where a command finds its target.
#[derive(clap::Args)]
pub struct ControlArgs {
    /// The target's control socket; where only one target runs it is found without
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl ControlArgs {
    /// Asks the target, and waits for its answer.
    pub fn ask(&self, request: &Request) -> Result<Value> {
        let path = match &self.control {
            Some(path) => path.clone(),
            None => only_target()?,
        };
        Ok(call(&path, request)?)
    }
}

/// The control socket of the only target that runs here.
pub fn only_target() -> Result<PathBuf> {
    only_socket(&runtime_dir()?)
}

/// Where targets put their sockets unless they are told otherwise: `/run/flipside` for root, and
/// `flipside` in `XDG_RUNTIME_DIR` for others.
pub fn runtime_dir() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/run/flipside".into());
    }
    let dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    dir.map(|dir| Path::new(&dir).join("flipside"))
        .ok_or_else(|| anyhow!("XDG_RUNTIME_DIR is not set: say where the socket is (--control)"))
}

/// Makes the runtime directory, for its owner alone.
pub fn make_runtime_dir() -> Result<PathBuf> {
    let dir = runtime_dir()?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.with_context(|| format!("{} cannot be made", dir.display()))?;
    Ok(dir)
}

/// The default control socket of a target of that name: its pool's, and how it serves it.
pub fn socket_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.{EXTENSION}"))
}

/// The one control socket of a directory.
fn only_socket(dir: &Path) -> Result<PathBuf> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("{}", dir.display())),
    };
    let is_socket = |path: &PathBuf| path.extension().is_some_and(|end| end == EXTENSION);
    let mut sockets: Vec<_> = entries.into_iter().filter(is_socket).collect();
    sockets.sort();
    match sockets.as_slice() {
        [] => bail!("no target runs (there is no control socket in {})", dir.display()),
        [socket] => Ok(socket.clone()),
        several => {
            let list: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
            bail!(
                "several targets run; choose one of them with --control:\n  {}",
                list.join("\n  ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: one socket is found; none and several are said.
    #[test]
    fn the_only_socket_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let error = only_socket(&dir.path().join("absent")).unwrap_err();
        assert!(error.to_string().starts_with("no target runs"));
        let first = socket_path(dir.path(), "one");
        std::fs::write(&first, "").unwrap();
        std::fs::write(dir.path().join("other.sock"), "").unwrap();
        assert_eq!(only_socket(dir.path()).unwrap(), first);
        std::fs::write(socket_path(dir.path(), "two"), "").unwrap();
        assert!(only_socket(dir.path()).unwrap_err().to_string().contains("--control"));
    }
}
