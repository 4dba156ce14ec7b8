//! `--config FILE`: the flags of `serve` from a TOML file.
//!
//! # Contracts
//!
//! - **Keys**: the long names of the flags, and `devices` for the devices. A key that is none is
//!   refused with its name and the file's.
//! - **Values**: strings as on the command line, arrays of them where a flag may be repeated, and
//!   true or false for flags without a value. Numbers are refused: 0o660 would not mean 660.
//! - **Precedence**: a flag on the command line replaces the file's, whole arrays included.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use toml::{Table, Value};

/// The command that takes a file, and its flag for it.
const COMMAND: &str = "serve";
const FLAG: &str = "config";
/// The key of the arguments that have no flag.
const DEVICES: &str = "devices";
/// A flag in front of the command that has a value, which could be taken for the command.
const GLOBAL_FLAG: &str = "--log";

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{0}: {1}")]
    Unreadable(String, std::io::Error),
    /// It is not TOML.
    #[error("{0}: {1}")]
    NotToml(String, toml::de::Error),
    /// A key is no flag.
    #[error("{0}: unknown key '{1}': keys are the flags of `flipside serve`, and devices")]
    UnknownKey(String, String),
    /// A value is of the wrong type.
    #[error("{0}: {1}: expected {2}")]
    WrongType(String, String, &'static str),
    /// Neither the file nor the command line says what to serve.
    #[error("{0}: no devices: name them in the file, or on the command line")]
    NoDevices(String),
}

/// The command line `given` with what the file that it names adds; as it is where it names none.
/// `command` is built, and `matches` is how it reads `given`.
pub fn extend(
    given: Vec<OsString>,
    command: &Command,
    matches: &ArgMatches,
) -> Result<Vec<OsString>, ConfigError> {
    let Some((COMMAND, matches)) = matches.subcommand() else { return Ok(given) };
    let Some(file) = matches.get_one::<std::path::PathBuf>(FLAG) else { return Ok(given) };
    let flags = command.find_subcommand(COMMAND).expect("the command that was matched");
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| ConfigError::Unreadable(name.clone(), error))?;
    let added = arguments(&text, &name, flags, matches)?;
    let named = |(i, word): (usize, &OsString)| {
        word == COMMAND && given.get(i.wrapping_sub(1)).is_none_or(|before| before != GLOBAL_FLAG)
    };
    let at = given.iter().enumerate().position(|(i, word)| named((i, word)));
    let at = at.expect("the command was matched") + 1;
    let (before, after) = given.split_at(at);
    Ok([before, &added, after].concat())
}

/// What a file's `text` says and the command line does not, as arguments. `flags` is the command
/// that takes the file, and `matches` is how it reads the command line.
pub fn arguments(
    text: &str,
    file: &str,
    flags: &Command,
    matches: &ArgMatches,
) -> Result<Vec<OsString>, ConfigError> {
    let table: Table =
        text.parse().map_err(|error| ConfigError::NotToml(file.to_owned(), error))?;
    let mut added = Vec::new();
    for (key, value) in &table {
        let flag = flags.get_arguments().find(|flag| named(flag, key));
        let flag = flag.ok_or_else(|| ConfigError::UnknownKey(file.to_owned(), key.clone()))?;
        let values = texts(value, flag)
            .map_err(|expected| ConfigError::WrongType(file.to_owned(), key.clone(), expected))?;
        if matches.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine) {
            continue;
        }
        added.extend(values.into_iter().map(|value| match value {
            Some(value) if flag.is_positional() => value.into(),
            Some(value) => format!("--{key}={value}").into(),
            None => format!("--{key}").into(),
        }));
    }
    let on_command_line = matches.value_source(DEVICES) == Some(ValueSource::CommandLine);
    if !on_command_line && !table.contains_key(DEVICES) {
        return Err(ConfigError::NoDevices(file.to_owned()));
    }
    Ok(added)
}

fn named(flag: &Arg, key: &str) -> bool {
    match flag.get_long() {
        Some("help" | "version" | FLAG) => false,
        Some(long) => long == key,
        None => flag.is_positional() && flag.get_id() == key,
    }
}

/// The values of one key, `None` for a flag without a value; or what was expected.
fn texts(value: &Value, flag: &Arg) -> Result<Vec<Option<String>>, &'static str> {
    let text = |value: &Value| value.as_str().map(|text| Some(text.to_owned()));
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let like_a_flag = |value: &Value| value.as_str().is_some_and(|text| text.starts_with('-'));
    if flag.is_positional() && values.iter().any(like_a_flag) {
        return Err("paths that do not begin with '-'");
    }
    if !flag.get_action().takes_values() {
        let set = value.as_bool().ok_or("true or false")?;
        return Ok(if set { vec![None] } else { Vec::new() });
    }
    if !matches!(flag.get_action(), clap::ArgAction::Append) {
        return Ok(vec![text(value).ok_or("a text in quotes, as on the command line")?]);
    }
    let several = "texts in quotes, as on the command line: [\"…\", \"…\"]";
    values.iter().map(text).collect::<Option<_>>().ok_or(several)
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    fn command() -> Command {
        let arg = |name: &'static str| Arg::new(name).long(name);
        let path = clap::value_parser!(std::path::PathBuf);
        let serve = Command::new("serve")
            .arg(arg("config").value_parser(path))
            .arg(arg("listen").action(ArgAction::Append))
            .arg(arg("socket-mode").default_value("600"))
            .arg(arg("read-only").action(ArgAction::SetTrue))
            .arg(Arg::new("devices").action(ArgAction::Append));
        let mut command = Command::new("f").arg(arg("log").global(true)).subcommand(serve);
        command.build();
        command
    }

    /// The command line after a file with `text` was read.
    fn extended(text: &str, line: &[&str]) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        let name = file.to_str().unwrap().to_owned();
        let given: Vec<OsString> =
            line.iter().map(|&word| if word == "FILE" { &name } else { word }.into()).collect();
        let command = command();
        let matches = command.clone().try_get_matches_from(&given).unwrap();
        let words = extend(given, &command, &matches).map_err(|error| error.to_string())?;
        let words = words.into_iter().map(|word| word.into_string().unwrap());
        Ok(words.filter(|word| *word != name).collect())
    }

    /// Goal: the file's values come in front of the command line's, which replace them.
    #[test]
    fn the_command_line_wins() {
        let text = "listen = ['tcp:1', 'tcp:2']\nsocket-mode = '660'\nread-only = true\n\
                    devices = 'a'\nlog = 'debug'";
        let line = ["f", "--log", "serve", "serve", "--config", "FILE", "--socket-mode=600"];
        let expected = "f --log serve serve a --listen=tcp:1 --listen=tcp:2 --read-only --config \
                        --socket-mode=600";
        assert_eq!(extended(text, &line).unwrap().join(" "), expected);
        let line = ["f", "serve", "--config", "FILE", "--listen", "tcp:3", "b"];
        let expected =
            "f serve --log=debug --read-only --socket-mode=660 --config --listen tcp:3 b";
        assert_eq!(extended(text, &line).unwrap().join(" "), expected);
        assert_eq!(extended("", &["f", "serve", "b"]).unwrap().join(" "), "f serve b");
    }

    /// Goal: what is no flag, or no value of one, is refused with key and file.
    #[test]
    fn nonsense_is_refused() {
        for (text, words) in [
            ("lisen = 'x'", "c.toml: unknown key 'lisen'"),
            ("config = 'x'", "c.toml: unknown key 'config'"),
            ("help = true", "c.toml: unknown key 'help'"),
            ("[serve]\nlisten = 'x'", "c.toml: unknown key 'serve'"),
            ("socket-mode = 0o660", "c.toml: socket-mode: expected a text"),
            ("read-only = 'yes'", "c.toml: read-only: expected true or false"),
            ("listen = [1]", "c.toml: listen: expected texts"),
            ("devices = ['a', '--read-only']", "c.toml: devices: expected paths"),
            ("devices = '-'", "c.toml: devices: expected paths"),
            ("listen = ['x'", "c.toml: TOML parse error"),
            ("read-only = false", "c.toml: no devices"),
        ] {
            let error = extended(text, &["f", "serve", "--config", "FILE"]).unwrap_err();
            assert!(error.contains(words), "'{words}' is not in: {error}");
        }
    }
}
