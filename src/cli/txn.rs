//! `flipside txn`: writes to several volumes that take place together, or not at all.

use std::fs;
use std::io::{Read as _, stdin};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::Value;

use super::control::only_target;
use crate::client::Transaction;
use crate::front::control::{Request, VolumeRequest, call};
use crate::front::hex::Hex;

const EXAMPLES: &str = "\
Examples:
  Two volumes of the only target that runs here, which are in one consistency group:
    flipside group create database data log
    echo '{\"writes\": [{\"volume\": \"data\", \"offset\": 0, \"text\": \"hello\"},
                      {\"volume\": \"log\", \"offset\": 4096, \"hex\": \"00ff\"}]}' | flipside txn apply -
  Two targets, with the volumes' contents in files:
    flipside txn apply both.json --control /run/one.sock --control /run/two.sock
    where both.json is
    {\"writes\": [{\"volume\": \"one\", \"offset\": 0, \"file\": \"one.bin\"},
                {\"target\": \"/run/two.sock\", \"volume\": \"two\", \"offset\": 0, \"file\": \"two.bin\"}]}

Each write has a volume, an offset in bytes and one of text, hex and file, from which the whole file
is taken. Its target is found by the volume's name, unless it is named. Of writes to the same bytes
the later one counts. What was acknowledged before on those volumes is committed with it.

Exit codes:
  0  applied; the transaction's name is printed
  1  not applied, or it is not known whether it was; the standard error says which
  2  the command line is wrong";

/// Flags of `flipside txn`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Write to several volumes, all of it or nothing, and make it durable
    Apply {
        /// The writes, as JSON; -: from the standard input
        file: PathBuf,
        /// A control socket of a target that has a part in it; where only one target runs it is
        /// found without
        #[arg(long, value_name = "PATH")]
        control: Vec<PathBuf>,
    },
}

/// What is to be written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Writes {
    writes: Vec<Write>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Write {
    target: Option<PathBuf>,
    volume: String,
    offset: u64,
    text: Option<String>,
    hex: Option<Hex>,
    file: Option<PathBuf>,
}

/// Applies a file's writes.
pub fn run(args: &Args) -> Result<()> {
    let Action::Apply { file, control } = &args.action;
    let mut text = String::new();
    if file == Path::new("-") {
        stdin().read_to_string(&mut text).context("the standard input")?;
    } else {
        text = fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    }
    let Writes { writes } = serde_json::from_str(&text).context("the writes")?;
    if writes.is_empty() {
        bail!("there is nothing to write");
    }
    let targets = Targets::find(control, &writes)?;
    let mut transaction = Transaction::new();
    for write in writes {
        let target = targets.of(&write)?.to_owned();
        let (volume, offset) = (write.volume.clone(), write.offset);
        transaction.write(target, &volume, offset, write.bytes()?);
    }
    println!("{}", transaction.apply()?);
    Ok(())
}

impl Write {
    fn bytes(self) -> Result<Vec<u8>> {
        match (self.text, self.hex, self.file) {
            (Some(text), None, None) => Ok(text.into_bytes()),
            (None, Some(Hex(bytes)), None) => Ok(bytes),
            (None, None, Some(file)) => {
                fs::read(&file).with_context(|| format!("{}", file.display()))
            }
            _ => bail!("a write to {} needs one of text, hex and file", self.volume),
        }
    }
}

/// The targets that have been named, with the names of their volumes.
struct Targets(Vec<(PathBuf, Vec<String>)>);

impl Targets {
    fn find(control: &[PathBuf], writes: &[Write]) -> Result<Self> {
        if control.is_empty() && writes.iter().all(|write| write.target.is_some()) {
            return Ok(Self(Vec::new()));
        }
        let paths = if control.is_empty() { vec![only_target()?] } else { control.to_vec() };
        let known = paths.into_iter().map(|path| {
            let listed = call(&path, &Request::Volume(VolumeRequest::List))?;
            let volumes = listed.as_array().into_iter().flatten();
            let names = volumes.filter_map(|volume: &Value| volume["name"].as_str());
            let names = names.map(str::to_owned).collect();
            Ok((path, names))
        });
        known.collect::<Result<_>>().map(Self)
    }

    /// The target of a write.
    fn of<'a>(&'a self, write: &'a Write) -> Result<&'a Path> {
        if let Some(target) = &write.target {
            return Ok(target);
        }
        let has = |(_, names): &&(PathBuf, Vec<String>)| names.contains(&write.volume);
        let mut found = self.0.iter().filter(has).map(|(path, _)| path.as_path());
        let volume = &write.volume;
        let first = found.next().ok_or_else(|| anyhow!("no target has a volume named {volume}"))?;
        if found.next().is_some() {
            bail!("several targets have a volume named {volume}: say which as \"target\"");
        }
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: &str) -> Write {
        serde_json::from_str(text).unwrap()
    }

    /// Goal: contents come from exactly one place.
    #[test]
    fn contents() {
        let text = write(r#"{"volume": "v", "offset": 1, "text": "ab"}"#);
        assert_eq!(text.bytes().unwrap(), b"ab");
        let hex = write(r#"{"volume": "v", "offset": 1, "hex": "00fF"}"#);
        assert_eq!(hex.bytes().unwrap(), [0, 255]);
        let both = write(r#"{"volume": "v", "offset": 1, "hex": "00", "text": "a"}"#);
        assert!(both.bytes().unwrap_err().to_string().contains("one of text, hex and file"));
        assert!(serde_json::from_str::<Write>(r#"{"volume": "v", "offset": -1}"#).is_err());
    }

    /// Goal: a target is found by its volume, unless it is named or several have it.
    #[test]
    fn targets() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let targets =
            Targets(vec![("one".into(), names(&["a", "b"])), ("two".into(), names(&["b"]))]);
        let of = |text: &str| {
            let write = write(text);
            targets.of(&write).map(Path::to_path_buf).map_err(|error| error.to_string())
        };
        assert_eq!(of(r#"{"volume": "a", "offset": 0}"#), Ok("one".into()));
        assert!(of(r#"{"volume": "b", "offset": 0}"#).unwrap_err().contains("several"));
        assert_eq!(of(r#"{"volume": "b", "offset": 0, "target": "x"}"#), Ok("x".into()));
        assert!(of(r#"{"volume": "c", "offset": 0}"#).unwrap_err().contains("no target"));
    }
}
