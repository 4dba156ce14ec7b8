//! NBD: whatever a client may send.

use flipside::front::PAYLOAD_MAX;
use flipside::front::nbd::handshake::{ExportInfo, Finished, Handshake, INPUT_MAX, Offer};
use flipside::front::nbd::request::{Command, Request, Terms};
use flipside::front::nbd::wire::{self, Framing, REQUEST_HEADER_MAX, StatusFilter};

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
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let good = match framing {
            Framing::Simple | Framing::Structured => wire::REQUEST_MAGIC,
            Framing::Extended => wire::EXTENDED_REQUEST_MAGIC,
        };
        let mut rest = data;
        while !rest.is_empty() {
            let mut bytes = [0; REQUEST_HEADER_MAX];
            let (piece, after) = rest.split_at(rest.len().min(framing.request_header()));
            bytes[..piece.len()].copy_from_slice(piece);
            rest = after;
            let header = &mut bytes[..framing.request_header()];
            passed |= one_request(header, rest, framing);
            header[..4].copy_from_slice(&good.to_be_bytes());
            passed |= one_request(header, rest, framing);
        }
    }
    passed
}

fn one_request(header: &[u8], after: &[u8], framing: Framing) -> bool {
    let terms = Terms {
        size: SIZE,
        block_size: 4096,
        payload_max: PAYLOAD_MAX,
        framing,
        status: true,
        read_only: false,
    };
    let Ok(mut request) = Request::parse(framing, header) else { return false };
    if request.has_filter() {
        let Some((length, after)) = after.split_first_chunk() else { return false };
        let Some(context) = after.first_chunk() else { return false };
        let length = u64::from_be_bytes(*length).into();
        let context = u32::from_be_bytes(*context).into();
        request = request.narrow(&StatusFilter { length, context });
        assert_eq!(request.payload(), 0);
    }
    let payload = request.payload();
    let Ok(command) = request.check(terms) else { return false };
    let within =
        |offset: u64, length: u64| offset.checked_add(length).is_some_and(|end| end <= SIZE);
    match command {
        Command::Read { offset, length } => {
            assert!(length <= PAYLOAD_MAX && within(offset, length.into()) && payload == 0);
        }
        Command::Write { offset, length, .. } => {
            let length = u64::from(length);
            assert!(length <= PAYLOAD_MAX.into() && within(offset, length) && payload == length);
        }
        Command::Trim { offset, length, .. } | Command::WriteZeroes { offset, length, .. } => {
            assert!(within(offset, length) && payload == 0);
        }
        Command::Status { offset, length, .. } => {
            assert!(length > 0 && within(offset, length) && payload == 0);
        }
        Command::Flush | Command::Cache => assert_eq!(payload, 0),
        // What follows a farewell is read by nobody.
        Command::Disconnect => {}
    }
    true
}
