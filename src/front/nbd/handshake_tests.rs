use proptest::prelude::*;

use super::*;

fn exports() -> Vec<ExportInfo> {
    let export = |name: &str, size| ExportInfo {
        name: name.into(),
        size,
        block_size: 4096,
        payload_max: 32 << 20,
        read_only: name == "other",
    };
    vec![export("vol0", 1 << 30), export("other", 1 << 20)]
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader {
        magic: wire::OPTION_MAGIC.into(),
        option: option.into(),
        length: (data.len() as u32).into(),
    };
    [header.as_bytes(), data].concat()
}

fn go_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

/// Feeds flags and options in pieces of `step` bytes; the replies (type, data) and the end.
fn converse(flags: u32, input: &[u8], step: usize) -> (Vec<u8>, Option<Finished>) {
    let exports = exports();
    let offer = Offer { exports: &exports, shutting_down: false };
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(&mut out);
    out.clear();
    let input = [&flags.to_be_bytes(), input].concat();
    let mut pending: Vec<u8> = Vec::new();
    for piece in input.chunks(step) {
        pending.extend_from_slice(piece);
        let progress = handshake.advance(&pending, offer, &mut out);
        pending.drain(..progress.consumed);
        assert!(pending.len() <= INPUT_MAX, "the machine lets input pile up");
        if progress.finished.is_some() {
            return (out, progress.finished);
        }
    }
    (out, None)
}

fn replies(mut out: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while let Ok((header, rest)) = wire::OptionReplyHeader::read_from_prefix(out) {
        assert_eq!(header.magic.get(), wire::OPTION_REPLY_MAGIC);
        let (data, rest) = rest.split_at(header.length.get() as usize);
        replies.push((header.reply.get(), data.to_vec()));
        out = rest;
    }
    assert!(out.is_empty());
    replies
}

/// Goal: a client that knows everything gets information and the export, however its bytes are
/// cut.
#[test]
fn structured_go() {
    let input = [
        option(option::STRUCTURED_REPLY, &[]),
        option(option::GO, &go_data("other", &[info::NAME, info::BLOCK_SIZE, 77])),
    ]
    .concat();
    for step in [1, 3, 16, 1000] {
        let (out, finished) = converse(3, &input, step);
        assert_eq!(
            finished,
            Some(Finished::Transmission { export: 1, framing: Framing::Structured, status: false })
        );
        let replies = replies(&out);
        let kinds: Vec<u32> = replies.iter().map(|reply| reply.0).collect();
        let wanted = [
            option_reply::ACK,
            option_reply::INFO,
            option_reply::INFO,
            option_reply::INFO,
            option_reply::ACK,
        ];
        assert_eq!(kinds, wanted);
        let about = wire::InfoExport::read_from_bytes(&replies[1].1).unwrap();
        assert_eq!(about.size.get(), 1 << 20);
        assert_ne!(about.flags.get() & wire::transmission_flags::SEND_DF, 0);
        assert_ne!(about.flags.get() & wire::transmission_flags::READ_ONLY, 0);
        assert_eq!(about.flags.get() & wire::transmission_flags::SEND_TRIM, 0);
        assert_eq!(&replies[2].1[2..], b"other");
        let limits = wire::InfoBlockSize::read_from_bytes(&replies[3].1).unwrap();
        let limits = (limits.minimum.get(), limits.preferred.get(), limits.maximum.get());
        assert_eq!(limits, (1, 4096, 32 << 20));
    }
}

/// Goal: the old way in works, with the padding and without it, and the empty name means the first
/// export.
#[test]
fn export_name() {
    for (flags, padding) in [(1, 124), (3, 0), (0, 124)] {
        let (out, finished) = converse(flags, &option(option::EXPORT_NAME, b""), 7);
        let framing = Framing::Simple;
        let taken = Finished::Transmission { export: 0, framing, status: false };
        assert_eq!(finished, Some(taken));
        assert_eq!(out.len(), size_of::<wire::ExportNameReply>() + padding);
        let about = wire::ExportNameReply::read_from_prefix(&out).unwrap().0;
        assert_eq!(about.size.get(), 1 << 30);
        assert_eq!(about.flags.get() & wire::transmission_flags::SEND_DF, 0);
    }
    let (out, finished) = converse(3, &option(option::EXPORT_NAME, b"none"), 100);
    assert_eq!(finished, Some(Finished::Close(Reason::UnknownExport)));
    assert!(out.is_empty());
}

/// Goal: what is wrong or unknown is answered so, and the haggling goes on.
#[test]
fn refusals_do_not_end_the_haggling() {
    let long = vec![0; OPTION_DATA_MAX as usize + 1];
    let input = [
        option(option::LIST, b"x"),
        option(option::INFO, &go_data("none", &[])),
        option(option::INFO, b"\0\0\0\x09abc"),
        option(5, b""),
        option(12345, &long),
        option(option::INFO, &go_data("vol0", &[])),
        option(option::LIST, b""),
        option(option::ABORT, b"ignored"),
    ]
    .concat();
    let (out, finished) = converse(3, &input, 1000);
    assert_eq!(finished, Some(Finished::Close(Reason::Aborted)));
    let kinds: Vec<u32> = replies(&out).iter().map(|reply| reply.0).collect();
    let wanted = [
        option_reply::ERR_INVALID,
        option_reply::ERR_UNKNOWN,
        option_reply::ERR_INVALID,
        option_reply::ERR_UNSUP,
        option_reply::ERR_TOO_BIG,
        option_reply::INFO,
        option_reply::ACK,
        option_reply::SERVER,
        option_reply::SERVER,
        option_reply::ACK,
        option_reply::ACK,
    ];
    assert_eq!(kinds, wanted);
}

/// The flags that the last description of an export among these replies names.
fn flags_of(out: &[u8]) -> u16 {
    let described = |reply: &(u32, Vec<u8>)| wire::InfoExport::read_from_bytes(&reply.1).ok();
    replies(out).iter().filter_map(described).last().unwrap().flags.get()
}

/// Goal: extended headers are agreed on with structured replies or without, stay whatever is asked
/// for later, bring the flags that depend on them, and rule the old way out.
#[test]
fn extended_headers() {
    use wire::transmission_flags::{BLOCK_STATUS_PAYLOAD, SEND_DF};
    let extend = option(option::EXTENDED_HEADERS, &[]);
    let structured = option(option::STRUCTURED_REPLY, &[]);
    let set = option(option::SET_META_CONTEXT, &context_data("vol0", "base:allocation"));
    let info = option(option::INFO, &go_data("vol0", &[]));
    let go = option(option::GO, &go_data("vol0", &[]));
    let taken =
        |status| Some(Finished::Transmission { export: 0, framing: Framing::Extended, status });
    for before in [vec![], structured.clone()] {
        let input = [&before[..], &extend, &extend, &go].concat();
        let (out, finished) = converse(3, &input, 5);
        assert_eq!(finished, taken(false));
        let again = replies(&out)[before.len().min(1) + 1].0;
        assert_eq!(again, option_reply::ERR_INVALID, "once is enough");
        assert_eq!(flags_of(&out) & (BLOCK_STATUS_PAYLOAD | SEND_DF), SEND_DF);
    }
    let (out, finished) = converse(3, &[&extend[..], &structured, &set, &go].concat(), 9);
    assert_eq!(finished, taken(true));
    assert_eq!(replies(&out)[1].0, option_reply::ERR_EXT_HEADER_REQD);
    assert_ne!(flags_of(&out) & BLOCK_STATUS_PAYLOAD, 0);
    let (_, finished) = converse(3, &[&structured[..], &set, &extend, &go].concat(), 9);
    assert_eq!(finished, taken(true), "a selection stays when headers grow");
    assert_ne!(flags_of(&converse(3, &[&extend[..], &info].concat(), 99).0) & (1 << 12), 0);
    assert_eq!(flags_of(&converse(3, &[&structured[..], &set, &go].concat(), 99).0) & (1 << 12), 0);

    let data = option(option::EXTENDED_HEADERS, b"x");
    let (out, finished) = converse(3, &[&data[..], &go].concat(), 9);
    assert_eq!(replies(&out)[0].0, option_reply::ERR_INVALID);
    assert!(matches!(finished, Some(Finished::Transmission { framing: Framing::Simple, .. })));
    let old = option(option::EXPORT_NAME, b"vol0");
    let (_, finished) = converse(3, &[&extend[..], &old].concat(), 9);
    assert_eq!(finished, Some(Finished::Close(Reason::OldWay)));
}

fn context_data(name: &str, query: &str) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    [string(name), 1u32.to_be_bytes().to_vec(), string(query)].concat()
}

/// Goal: a context counts for the export that it was selected for, and only while the last
/// selection stands; without structured replies there is none.
#[test]
fn contexts_belong_to_an_export() {
    let structured = option(option::STRUCTURED_REPLY, &[]);
    let set = |name, query| option(option::SET_META_CONTEXT, &context_data(name, query));
    let long = option(option::SET_META_CONTEXT, &vec![0; OPTION_DATA_MAX as usize + 1]);
    let go = option(option::GO, &go_data("vol0", &[]));
    let selected = |before: &[Vec<u8>]| {
        let input = [before.concat(), go.clone()].concat();
        match converse(3, &input, 100).1 {
            Some(Finished::Transmission { status, .. }) => status,
            other => panic!("{other:?}"),
        }
    };
    let good = set("vol0", "base:allocation");
    assert!(selected(&[structured.clone(), good.clone()]));
    assert!(selected(&[structured.clone(), set("", "base:allocation")]));
    assert!(!selected(std::slice::from_ref(&good)));
    assert!(!selected(&[structured.clone(), set("other", "base:allocation")]));
    assert!(!selected(&[structured.clone(), set("vol0", "base:")]));
    assert!(!selected(&[structured.clone(), good.clone(), set("none", "base:allocation")]));
    assert!(!selected(&[structured.clone(), good.clone(), long]));
    let list = option(option::LIST_META_CONTEXT, &context_data("vol0", "base:"));
    assert!(selected(&[structured.clone(), good, list.clone()]));
    let (out, _) = converse(3, &[structured, list].concat(), 100);
    let context = [&[0, 0, 0, 0][..], b"base:allocation"].concat();
    assert_eq!(
        replies(&out)[1..],
        [(option_reply::META_CONTEXT, context), (option_reply::ACK, vec![])]
    );
}

/// Goal: garbage and abuse end the connection.
#[test]
fn garbage_ends_it() {
    let ends = |flags, input: &[u8]| match converse(flags, input, 512).1 {
        Some(Finished::Close(reason)) => Some(reason),
        _ => None,
    };
    assert_eq!(ends(4, &[]), Some(Reason::UnknownFlags(4)));
    let garbage = ends(3, b"GET / HTTP/1.1\r\n");
    assert_eq!(garbage, Some(Reason::NotAnOption(u64::from_be_bytes(*b"GET / HT"))));
    let mut huge = option(option::LIST, &[]);
    huge[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(ends(3, &huge), Some(Reason::TooLong(u32::MAX)));
    let many = option(option::LIST, &[]).repeat(OPTIONS_MAX as usize);
    assert_eq!(ends(3, &many), Some(Reason::TooMany));
}

/// Goal: during a shutdown nobody gets in, and who may be told is told.
#[test]
fn shutdown_is_said() {
    let exports = exports();
    let offer = Offer { exports: &exports, shutting_down: true };
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(&mut out);
    out.clear();
    let input = [&3u32.to_be_bytes()[..], &option(option::GO, &go_data("vol0", &[]))].concat();
    assert_eq!(handshake.advance(&input, offer, &mut out).finished, None);
    assert_eq!(replies(&out)[0].0, option_reply::ERR_SHUTDOWN);
}

proptest! {
    /// Goal: whatever is sent, the machine neither panics nor lets input pile up.
    #[test]
    fn any_bytes(
        flags in 0u32..5,
        pieces in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                (0u32..14, prop::collection::vec(any::<u8>(), 0..40))
                    .prop_map(|(kind, data)| option(kind, &data)),
                (0u32..14, 0u32..20_000)
                    .prop_map(|(kind, length)| option(kind, &vec![0; length as usize])),
            ],
            0..8,
        ),
        step in 1usize..300,
    ) {
        let _ = converse(flags, &pieces.concat(), step);
    }
}
