//! NBD: whatever a client may send.

use flipside::front::PAYLOAD_MAX;
use flipside::front::nbd::handshake::{ExportInfo, Finished, Handshake, INPUT_MAX, Offer};
use flipside::front::nbd::request::{Command, Request, Terms};
use flipside::front::nbd::wire::{self, REQUEST_HEADER};

/// The size of the export whose requests are checked, in bytes.
const SIZE: u64 = (1 << 30) + 512;

/// The handshake, in one piece and in small ones: the answers must not depend on the cuts, and no
/// input may pile up.
///
/// The first byte says how it is cut, and whether the target is being shut down.
pub fn handshake(data: &[u8]) -> bool {
    let Some((&how, input)) = data.split_first() else { return false };
    let export = |name: &str, size| ExportInfo {
        name: name.into(),
        size,
        block_size: 4096,
        payload_max: PAYLOAD_MAX,
        read_only: false,
    };
    let exports = [export("vol0", SIZE), export("other", 1 << 20)];
    let offer = Offer { exports: &exports, shutting_down: how & 0x80 != 0 };
    let whole = converse(input, input.len().max(1), offer);
    let pieces = converse(input, usize::from(how & 0x7f) + 1, offer);
    assert_eq!(whole, pieces, "the answers depend on how the input is cut");
    matches!(whole.1, Some(Finished::Transmission { export, .. }) if export < exports.len())
}

fn converse(input: &[u8], step: usize, offer: Offer<'_>) -> (Vec<u8>, Option<Finished>) {
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(&mut out);
    let mut pending = Vec::new();
    for piece in input.chunks(step) {
        pending.extend_from_slice(piece);
        let progress = handshake.advance(&pending, offer, &mut out);
        pending.drain(..progress.consumed);
        if progress.finished.is_some() {
            return (out, progress.finished);
        }
        assert!(pending.len() < INPUT_MAX, "the machine lets input pile up");
    }
    (out, None)
}

/// Requests one after another, with their magic made good: what passes lies within the export.
pub fn request(data: &[u8]) -> bool {
    let mut passed = false;
    for chunk in data.chunks(REQUEST_HEADER) {
        let mut bytes = [0; REQUEST_HEADER];
        bytes[..chunk.len()].copy_from_slice(chunk);
        for structured in [false, true] {
            passed |= one_request(&bytes, structured);
        }
        bytes[..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
        passed |= one_request(&bytes, true);
    }
    passed
}

fn one_request(bytes: &[u8; REQUEST_HEADER], structured: bool) -> bool {
    let terms = Terms {
        size: SIZE,
        block_size: 4096,
        payload_max: PAYLOAD_MAX,
        structured,
        status: true,
        read_only: false,
    };
    let Ok(request) = Request::parse(bytes) else { return false };
    let payload = request.payload();
    let Ok(command) = request.check(terms) else { return false };
    let within = |offset: u64, length: u32| {
        offset.checked_add(u64::from(length)).is_some_and(|end| end <= SIZE)
    };
    match command {
        Command::Read { offset, length } => {
            assert!(length <= PAYLOAD_MAX && within(offset, length) && payload == 0);
        }
        Command::Write { offset, length, .. } => {
            assert!(length <= PAYLOAD_MAX && within(offset, length) && payload == length);
        }
        Command::Trim { offset, length, .. } | Command::WriteZeroes { offset, length, .. } => {
            assert!(within(offset, length) && payload == 0);
        }
        Command::Status { offset, length, .. } => {
            assert!(length > 0 && within(offset, length) && payload == 0);
        }
        Command::Flush | Command::Cache | Command::Disconnect => assert_eq!(payload, 0),
    }
    true
}
