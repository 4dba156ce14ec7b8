//! Bytes as hexadecimal digits, as they stand in JSON.

use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Some bytes; in JSON, two digits for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hex(pub Vec<u8>);

/// Why a text is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes are written as pairs of hexadecimal digits, as in 00ff")]
pub struct NoHex;

impl FromStr for Hex {
    type Err = NoHex;

    fn from_str(text: &str) -> Result<Self, NoHex> {
        let digits = text.as_bytes();
        let digit = |of: u8| char::from(of).to_digit(16).ok_or(NoHex);
        if !digits.len().is_multiple_of(2) {
            return Err(NoHex);
        }
        let pairs = digits.chunks_exact(2);
        let bytes = pairs.map(|pair| Ok((digit(pair[0])? << 4 | digit(pair[1])?) as u8));
        bytes.collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<String> for Hex {
    type Error = NoHex;

    fn try_from(text: String) -> Result<Self, NoHex> {
        text.parse()
    }
}

impl From<Hex> for String {
    fn from(Hex(bytes): Hex) -> Self {
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: all bytes survive, in either case of digits; anything else is refused.
    #[test]
    fn round_trip() {
        let all = Hex((0..=255).collect());
        let text = String::from(all.clone());
        assert_eq!(text.parse(), Ok(all.clone()));
        assert_eq!(text.to_uppercase().parse(), Ok(all));
        assert_eq!("".parse(), Ok(Hex::default()));
        for wrong in ["0", "0g", "é0", "+1", " 1"] {
            assert_eq!(wrong.parse::<Hex>(), Err(NoHex), "{wrong}");
        }
    }
}
