//! Who may talk: datagrams that carry the proof that their sender has the key.
//!
//! Each session has a key of its own, derived from the file's key and the session's number. The
//! authenticator of a datagram is the keyed BLAKE3 hash, under that key, of all of the header
//! before it and of the body; 16 bytes of it are sent. Kind, session, sequence and part are in the
//! header, so that no datagram is good as another one, in another session, or as its own answer.
//!
//! Sealing and opening are the last thing that happens to a datagram on its way out and the first
//! on its way in: at the sockets, where the strangers are. Inside of a process there is no key.
//!
//! # Contracts
//!
//! - **Time**: what is compared is compared in constant time.
//! - **Replays** are not noticed here: they are proofs. Sequence numbers, incarnations and absolute
//!   records make them harmless (see [`super::wire`]).
//! - **Secrecy**: there is none: whoever sees the datagrams can read them.

use std::fmt;

use blake3::{Hash, Hasher, KEY_LEN};
use thiserror::Error;

use super::wire::{AUTHENTICATED_BYTES, AUTHENTICATOR_BYTES, HEADER_BYTES, session_of};
use crate::env::os::Seal;

/// Separates session keys from other uses of the file's key.
const PURPOSE: &[u8] = b"flipside metadata session v1";

/// The secret that targets and server share.
#[derive(Clone)]
pub struct Key([u8; KEY_LEN]);

/// Bytes that are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a key is 64 hex digits, or 32 bytes as they are")]
pub struct NotAKey;

impl Key {
    /// The key in a file's contents: 64 hex digits and perhaps a line's end, or 32 bytes.
    pub fn parse(contents: &[u8]) -> Result<Self, NotAKey> {
        if let Ok(raw) = contents.try_into() {
            return Ok(Key(raw));
        }
        let hash = Hash::from_hex(contents.trim_ascii()).map_err(|_| NotAKey)?;
        Ok(Key(*hash.as_bytes()))
    }

    fn authenticator(&self, datagram: &[u8]) -> Option<[u8; AUTHENTICATOR_BYTES]> {
        let session = session_of(datagram)?;
        let (header, body) = datagram.split_at_checked(HEADER_BYTES)?;
        let mut hasher = Hasher::new_keyed(&self.of_session(session));
        hasher.update(&header[..AUTHENTICATED_BYTES]).update(body);
        hasher.finalize().as_bytes().first_chunk().copied()
    }

    fn of_session(&self, session: u64) -> [u8; KEY_LEN] {
        let mut hasher = Hasher::new_keyed(&self.0);
        *hasher.update(PURPOSE).update(&session.to_le_bytes()).finalize().as_bytes()
    }
}

impl Seal for Key {
    /// The datagram must be one: at least a header.
    fn seal(&self, datagram: &mut [u8]) {
        let proof = self.authenticator(datagram).expect("a datagram has a header");
        datagram[AUTHENTICATED_BYTES..HEADER_BYTES].copy_from_slice(&proof);
    }

    fn opens(&self, datagram: &[u8]) -> bool {
        let Some(proof) = self.authenticator(datagram) else {
            return false;
        };
        let claimed = &datagram[AUTHENTICATED_BYTES..HEADER_BYTES];
        // Hashes are compared in constant time.
        whole(&proof) == whole(claimed)
    }
}

/// Whether a datagram carries anything where the proof is: its sender has a key.
pub fn is_sealed(datagram: &[u8]) -> bool {
    let proof = datagram.get(AUTHENTICATED_BYTES..HEADER_BYTES);
    proof.is_some_and(|proof| proof.iter().any(|byte| *byte != 0))
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// An authenticator as a hash, the rest of it zero.
fn whole(authenticator: &[u8]) -> Hash {
    let mut bytes = [0; KEY_LEN];
    bytes[..AUTHENTICATOR_BYTES].copy_from_slice(authenticator);
    Hash::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{Header, Kind, Operation, PAYLOAD_MIN, encode, parse};
    use super::*;

    fn datagram(session: u64, body: &[u8]) -> Vec<u8> {
        let header = Header {
            kind: Kind::Request,
            operation: Operation::Transact,
            session,
            sequence: 9,
            detail: 3,
        };
        encode(&header, body, PAYLOAD_MIN).remove(0)
    }

    proptest! {
        /// Goal: what is sealed opens with the same key and parses as before; with any bit changed,
        /// wherever it is, or with another key, it does not open.
        #[test]
        fn only_what_was_sealed_opens(
            keys: [[u8; 32]; 2], session: u64,
            body in proptest::collection::vec(any::<u8>(), 0..1000),
            bit: prop::sample::Index,
        ) {
            prop_assume!(keys[0] != keys[1]);
            let [key, other] = keys.map(Key);
            let plain = datagram(session, &body);
            let mut sealed = plain.clone();
            key.seal(&mut sealed);
            prop_assert!(key.opens(&sealed) && !other.opens(&sealed) && !key.opens(&plain));
            prop_assert_eq!(parse(&sealed), parse(&plain));
            let bit = bit.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!key.opens(&sealed));
        }

        /// Goal: any bytes are looked at, and do not open.
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!Key([7; 32]).opens(&bytes));
        }
    }

    /// Goal: the proof is the documented one, for those who write another client.
    #[test]
    fn the_proof_is_as_documented() {
        let mut sealed = datagram(0x0102_0304_0506_0708, b"body");
        Key([1; 32]).seal(&mut sealed);
        let purpose = b"flipside metadata session v1\x08\x07\x06\x05\x04\x03\x02\x01";
        let session_key = blake3::keyed_hash(&[1; 32], purpose);
        let proof = blake3::keyed_hash(session_key.as_bytes(), &[&sealed[..56], b"body"].concat());
        assert_eq!(sealed[56..72], proof.as_bytes()[..16]);
    }

    /// Goal: keys are read in both forms, and nothing else is taken for one.
    #[test]
    fn keys_are_read() {
        let digits = "0123456789abcdef".repeat(4);
        let of_digits = Key::parse(format!("{digits}\n").as_bytes()).unwrap();
        assert_eq!(of_digits.0[..2], [0x01, 0x23]);
        assert_eq!(Key::parse(&of_digits.0).unwrap().0, of_digits.0);
        let (short, other) = (&digits[1..], digits.replace('0', "g"));
        for wrong in ["", short, &other, &(digits.clone() + "00")] {
            assert_eq!(Key::parse(wrong.as_bytes()).err(), Some(NotAKey));
        }
        assert_eq!(format!("{of_digits:?}"), "Key(..)");
    }
}
