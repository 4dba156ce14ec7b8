//! Values on the command line, each a type that parses itself: sizes, percentages, times, volumes
//! and their names.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use crate::mds::records::NAME_BYTES_MAX;
use crate::unit::SettlePolicy;
use crate::unit::lease::LEASE_MIN;

/// Why a value on the command line is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Not a size.
    #[error("a size is a whole number with K, M, G or T for KiB, MiB, GiB or TiB, as in 64M")]
    Size,
    /// A size in powers of ten, which is read differently by different people.
    #[error("sizes are powers of two: write M or MiB for 1048576 bytes, not MB")]
    DecimalSize,
    /// Not a percentage in the range.
    #[error("a percentage is a whole number from 1% to 90%")]
    Percent,
    /// Not marks of fullness.
    #[error("marks are percentages from 1% to 100% that rise, as in 80%,90%; or never")]
    Marks,
    /// Not a time.
    #[error("a time is a whole number with us, ms, s, m or h, as in 5s, and not zero; or never")]
    Time,
    /// Not a time that ends.
    #[error("a time is a whole number with us, ms, s, m or h, as in 5s, and not zero")]
    Period,
    /// Not a lease.
    #[error("a lease is a time from 3s to 1h")]
    Lease,
    /// Not a volume's name and size.
    #[error("a volume is given as NAME=SIZE, as in data=10G")]
    Volume,
    /// Not a name for a volume.
    #[error("a name has 1 to 128 bytes, no spaces, '/' or '=', and does not begin with '-'")]
    Name,
    /// Not a host and a port.
    #[error("an address is HOST:PORT, as in 10.0.0.1:10810 or [::1]:10810")]
    HostPort,
    /// Not the size of a datagram.
    #[error("the size of a datagram is a number of bytes from 1200 to 65507")]
    DatagramSize,
    /// Not a grant.
    #[error("a grant is a number of extents, not zero; or all")]
    Grant,
    /// Not a mode of a file.
    #[error("a mode is octal, as in 660, and at most 777")]
    Mode,
}

/// A number of bytes; its suffixes are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 = digits.parse().map_err(|_| ValueError::Size)?;
        let suffix = text.get(digits.len()..).unwrap_or_default().to_ascii_uppercase();
        let letter = match suffix.as_bytes() {
            [] | [b'B'] => return Ok(Self(number)),
            [letter] | [letter, b'I', b'B'] => *letter,
            [b'K' | b'M' | b'G' | b'T' | b'P', b'B'] => return Err(ValueError::DecimalSize),
            _ => return Err(ValueError::Size),
        };
        let shift = match letter {
            b'K' => 10,
            b'M' => 20,
            b'G' => 30,
            b'T' => 40,
            b'P' => 50,
            _ => return Err(ValueError::Size),
        };
        number.checked_mul(1 << shift).map(Self).ok_or(ValueError::Size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).display().iec().fmt(f)
    }
}

/// A percentage from 1 to 90.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u8);

impl FromStr for Percent {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = text.strip_suffix('%').ok_or(ValueError::Percent)?;
        let number = number.parse().map_err(|_| ValueError::Percent)?;
        if (1..=90).contains(&number) { Ok(Self(number)) } else { Err(ValueError::Percent) }
    }
}

/// How often a target commits on its own; `None` is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitInterval(pub Option<Duration>);

impl FromStr for CommitInterval {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        parse_time(text).map(Self)
    }
}

/// How long a silent metadata server is waited for; `None` is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MdsTimeout(pub Option<Duration>);

impl FromStr for MdsTimeout {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        parse_time(text).map(Self)
    }
}

/// A doubt that nobody lives to see the end of.
const DOUBT_FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long a request waits for what is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoubtTimeout(pub Duration);

impl FromStr for DoubtTimeout {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Ok(Self(parse_time(text)?.unwrap_or(DOUBT_FOR_EVER)))
    }
}

/// How many free extents a target keeps in hand; `None` is all of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant(pub Option<u32>);

impl FromStr for Grant {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "all" {
            return Ok(Self(None));
        }
        let count = text.parse().ok().filter(|count| *count > 0);
        count.map(|count| Self(Some(count))).ok_or(ValueError::Grant)
    }
}

/// The leases that can be asked for.
const LEASES: RangeInclusive<Duration> = LEASE_MIN..=Duration::from_secs(3600);

/// How long a pool is held without word from its metadata server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTime(pub Duration);

impl FromStr for LeaseTime {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let time = parse_time(text)?.filter(|time| LEASES.contains(time));
        time.map(Self).ok_or(ValueError::Lease)
    }
}

/// How long I/O may take before it is warned about; `None` is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowIo(pub Option<Duration>);

impl FromStr for SlowIo {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        parse_time(text).map(Self)
    }
}

/// A time that ends, and is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        parse_time(text).ok().flatten().map(Self).ok_or(ValueError::Period)
    }
}

/// A time that is not zero, or never.
fn parse_time(text: &str) -> Result<Option<Duration>, ValueError> {
    if text == "never" {
        return Ok(None);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| ValueError::Time)?;
    let unit_us = match text.get(digits.len()..) {
        Some("us") => 1,
        Some("ms") => 1000,
        Some("s") => 1000 * 1000,
        Some("m") => 60 * 1000 * 1000,
        Some("h") => 60 * 60 * 1000 * 1000,
        _ => return Err(ValueError::Time),
    };
    match number.checked_mul(unit_us) {
        None | Some(0) => Err(ValueError::Time),
        Some(us) => Ok(Some(Duration::from_micros(us))),
    }
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name, checked.
    pub name: String,
    /// Its size.
    pub size: Size,
}

impl FromStr for VolumeSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (name, size) = text.rsplit_once('=').ok_or(ValueError::Volume)?;
        check_name(name)?;
        Ok(Self { name: name.to_owned(), size: size.parse()? })
    }
}

/// Whether a volume can have this name: one that the metadata server takes.
pub fn check_name(name: &str) -> Result<(), ValueError> {
    let length = (1..=NAME_BYTES_MAX).contains(&name.len());
    let allowed = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '/' | '=');
    if length && !name.starts_with('-') && name.chars().all(allowed) {
        Ok(())
    } else {
        Err(ValueError::Name)
    }
}

/// A name for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub String);

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        check_name(text)?;
        Ok(Self(text.to_owned()))
    }
}

/// How full the pool is when that is warned of, in percent, rising; none is never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarnFull(pub Vec<u8>);

impl FromStr for WarnFull {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "never" {
            return Ok(Self(Vec::new()));
        }
        let mark = |part: &str| {
            let number = part.strip_suffix('%').and_then(|digits| digits.parse().ok());
            number.filter(|number| (1..=100).contains(number)).ok_or(ValueError::Marks)
        };
        let marks: Vec<u8> = text.split(',').map(mark).collect::<Result<_, _>>()?;
        if marks.is_sorted_by(|a, b| a < b) { Ok(Self(marks)) } else { Err(ValueError::Marks) }
    }
}

/// Permissions of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(ValueError::Mode),
        }
    }
}

/// What `--settle` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Settle {
    /// When journal space runs low, the cheapest areas first.
    Pressure,
    /// Also while clients are idle.
    Idle,
    /// After every commit.
    Always,
}

impl From<Settle> for SettlePolicy {
    fn from(settle: Settle) -> Self {
        match settle {
            Settle::Pressure => SettlePolicy::Pressure,
            Settle::Idle => SettlePolicy::Idle,
            Settle::Always => SettlePolicy::Always,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Goal: a grant is some extents or all of them, never none.
    #[test]
    fn grants_are_counted() {
        assert_eq!("all".parse(), Ok(Grant(None)));
        assert_eq!("1024".parse(), Ok(Grant(Some(1024))));
        for text in ["0", "", "-1", "5%", "4294967296", "All"] {
            assert_eq!(text.parse::<Grant>(), Err(ValueError::Grant), "{text}");
        }
    }

    /// Goal: suffixes are powers of two in every usual spelling; decimal ones are refused.
    #[test]
    fn sizes_are_binary() {
        let good = [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("64M", 64 << 20),
            ("1G", 1 << 30),
            ("2TiB", 2 << 40),
        ];
        for (text, bytes) in good {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "1 M", "1X", "1Ki", "99999999999T", "1BB"] {
            assert_eq!(text.parse::<Size>(), Err(ValueError::Size), "{text}");
        }
        assert_eq!("1MB".parse::<Size>(), Err(ValueError::DecimalSize));
        assert_eq!(Size(64 << 20).to_string(), "64.0 MiB");
    }

    /// Goal: percentages, times and modes have bounds.
    #[test]
    fn small_values_have_bounds() {
        assert_eq!("10%".parse(), Ok(Percent(10)));
        for text in ["0%", "91%", "10", "%", "-5%", "1000%"] {
            assert_eq!(text.parse::<Percent>(), Err(ValueError::Percent), "{text}");
        }
        let interval = |ms| Ok(CommitInterval(Some(Duration::from_millis(ms))));
        assert_eq!("250ms".parse(), interval(250));
        assert_eq!("5s".parse(), interval(5000));
        assert_eq!("2m".parse(), interval(120_000));
        assert_eq!("never".parse(), Ok(CommitInterval(None)));
        assert_eq!("1us".parse(), Ok(SlowIo(Some(Duration::from_micros(1)))));
        for text in ["0s", "5", "s", "-1s", "5d", "99999999999999999999s", ""] {
            assert_eq!(text.parse::<CommitInterval>(), Err(ValueError::Time), "{text}");
        }
        assert_eq!("80%,90%".parse(), Ok(WarnFull(vec![80, 90])));
        assert_eq!("100%".parse(), Ok(WarnFull(vec![100])));
        assert_eq!("never".parse(), Ok(WarnFull(Vec::new())));
        for text in ["", "80", "0%", "101%", "90%,80%", "80%,80%", "80%,", "80%, 90%"] {
            assert_eq!(text.parse::<WarnFull>(), Err(ValueError::Marks), "{text}");
        }
        assert_eq!("3s".parse(), Ok(LeaseTime(Duration::from_secs(3))));
        for text in ["2999ms", "61m", "never"] {
            assert_eq!(text.parse::<LeaseTime>(), Err(ValueError::Lease), "{text}");
        }
        assert_eq!("660".parse(), Ok(Mode(0o660)));
        assert!("1777".parse::<Mode>().is_err() && "8".parse::<Mode>().is_err());
    }

    /// Goal: a volume is a sound name and a size.
    #[test]
    fn volumes_have_names() {
        let spec = |name: &str, size| Ok(VolumeSpec { name: name.into(), size: Size(size) });
        assert_eq!("vol0=64M".parse(), spec("vol0", 64 << 20));
        assert_eq!("größe=1K".parse(), spec("größe", 1024));
        assert_eq!("vol0".parse::<VolumeSpec>(), Err(ValueError::Volume));
        let long = format!("{}=1K", "x".repeat(NAME_BYTES_MAX + 1));
        for text in ["=1K", "a/b=1K", "a b=1K", "a\n=1K", "-a=1K", "a=b=1K", &long] {
            assert_eq!(text.parse::<VolumeSpec>(), Err(ValueError::Name), "{text}");
        }
    }

    proptest! {
        /// Goal: no text panics.
        #[test]
        fn any_text_is_parsed(text in "\\PC{0,20}") {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Percent>();
            let _ = text.parse::<CommitInterval>();
            let _ = text.parse::<VolumeSpec>();
            let _ = text.parse::<Mode>();
            let _ = text.parse::<WarnFull>();
        }
    }
}
