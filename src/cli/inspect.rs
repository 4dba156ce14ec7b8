//! Looks at what a device holds before it is formatted, by our own signatures and by `blkid`.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use tracing::debug;

use crate::format::probe::{HEAD_LEN, Image, TAIL_LEN};

/// Of `blkid -p`: nothing was recognised.
const BLKID_NOTHING: i32 = 2;
/// Of `blkid -p`: several contradicting things were recognised.
const BLKID_AMBIVALENT: i32 = 8;

/// Refuses a device of `size` bytes that holds something; `force` is what takes it all the same.
pub fn refuse_if_in_use(path: &Path, size: u64, force: &str) -> Result<()> {
    let mut found = own_signatures(path, size)?;
    found.extend(blkid(path)?);
    if found.is_empty() {
        return Ok(());
    }
    bail!(
        "{} holds {}; nothing was changed. What it holds would be lost: {force}",
        path.display(),
        found.join(", ")
    )
}

/// What our own signatures say.
fn own_signatures(path: &Path, size: u64) -> Result<Vec<String>> {
    let unreadable = || format!("{} cannot be read", path.display());
    let file = File::open(path).with_context(unreadable)?;
    let part = |offset, len: u64| -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len)?];
        file.read_exact_at(&mut bytes, offset).with_context(unreadable)?;
        Ok(bytes)
    };
    let head = part(0, HEAD_LEN.min(size))?;
    let tail_len = TAIL_LEN.min(size);
    let tail = part(size - tail_len, tail_len)?;
    let found = Image::new(size, &head, &tail).probe();
    Ok(found.iter().map(|found| format!("{} (at byte {})", found.what, found.offset)).collect())
}

/// What `blkid` says, where there is one.
fn blkid(path: &Path) -> Result<Option<String>> {
    let mut command = Command::new("blkid");
    command.args(["--probe", "--output", "export"]).arg(path);
    command.stdin(Stdio::null()).stderr(Stdio::null()).env("LC_ALL", "C");
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            debug!("there is no blkid here; only our own signatures were looked for");
            return Ok(None);
        }
        Err(error) => return Err(error).context("blkid cannot be run"),
    };
    match output.status.code() {
        Some(0) => Ok(blkid_says(&String::from_utf8_lossy(&output.stdout))),
        Some(BLKID_NOTHING) => Ok(None),
        Some(BLKID_AMBIVALENT) => Ok(Some("several things at once (says blkid)".to_owned())),
        _ => {
            debug!("blkid could not tell: {}", output.status);
            Ok(None)
        }
    }
}

/// The types in blkid's answer.
fn blkid_says(answer: &str) -> Option<String> {
    let types: Vec<_> = answer
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| matches!(*name, "TYPE" | "PTTYPE"))
        .map(|(_, value)| value)
        .collect();
    (!types.is_empty()).then(|| format!("{} (says blkid)", types.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, vec![0; size]).unwrap();
        file
    }

    /// Goal: zeros and noise are accepted, a signature at either end is refused and named.
    #[test]
    fn what_is_recognised_is_refused() {
        let size = 8 << 20;
        let device = file(size);
        let refused = || refuse_if_in_use(device.path(), size as u64, "--force");
        refused().unwrap();
        let write = |offset, bytes: &[u8]| {
            let file = std::fs::OpenOptions::new().write(true).open(device.path()).unwrap();
            file.write_all_at(bytes, offset).unwrap();
        };
        write(5000, b"just some bytes");
        refused().unwrap();
        write(size as u64 - 512, b"EFI PART");
        let error = refused().unwrap_err().to_string();
        assert!(error.contains("GPT") && error.contains("--force"), "{error}");
        write(0, b"XFSB");
        assert!(refused().unwrap_err().to_string().contains("XFS"));
    }

    /// Goal: only the lines of blkid that say what there is are used.
    #[test]
    fn blkid_is_understood() {
        let answer = "DEVNAME=/dev/x\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\nPTTYPE=dos\n";
        assert_eq!(blkid_says(answer).as_deref(), Some("ext4 and dos (says blkid)"));
        assert_eq!(blkid_says("DEVNAME=/dev/x\nMINIMUM_IO_SIZE=512\n"), None);
    }
}
