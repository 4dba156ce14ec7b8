//! The log, on the standard error: one line for each event, its facts as `name=value`.

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

/// What is logged where nobody says what: what an operator should know.
const DEFAULT: &str = "info";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Which events are logged: a level, or levels of modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// Not a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a filter is off, error, warn, info, debug or trace, or levels of modules as in \
     info,flipside::unit=debug"
)]
pub struct NotAFilter;

impl FromStr for LogFilter {
    type Err = NotAFilter;

    fn from_str(text: &str) -> Result<Self, NotAFilter> {
        // A word that is no level would name a module, whose events would be all there is.
        let sound = |part: &str| {
            let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
            LEVELS.contains(&level.to_ascii_lowercase().as_str())
        };
        if text.split(',').all(sound) && EnvFilter::try_new(text).is_ok() {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAFilter)
        }
    }
}

/// Logs what `filter` asks for, else what `RUST_LOG` does.
pub fn start(filter: Option<LogFilter>) {
    let asked = filter.map(|LogFilter(text)| text).or_else(|| {
        let text = std::env::var(EnvFilter::DEFAULT_ENV).ok()?;
        EnvFilter::try_new(&text).is_ok().then_some(text)
    });
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(asked.as_deref().unwrap_or(DEFAULT)))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: levels and levels of modules are filters, other words are not.
    #[test]
    fn filters() {
        for text in ["info", "WARN", "off", "info,flipside::unit=debug", "flipside::mds=trace"] {
            assert_eq!(text.parse(), Ok(LogFilter(text.to_owned())));
        }
        for text in ["", "verbose", "info,", "flipside=loud", "flipside::unit", "a=b=c"] {
            assert_eq!(text.parse::<LogFilter>(), Err(NotAFilter), "{text}");
        }
    }
}
