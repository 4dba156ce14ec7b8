//! The handshake: fixed newstyle, as a state machine that does no I/O.
//!
//! ```text
//!  (greeting sent) ──client flags──▶ Options ──EXPORT_NAME or GO──▶ Finished::Transmission
//!        │                           │  ▲  │
//!        │ unknown flags             │  └──┤ LIST, INFO, framing, contexts, unknown ones
//!        ▼                           │     └──data too long──▶ Skip ──all skipped──▶ Options
//!  Finished::Close ◀──ABORT, garbage─┘
//! ```
//!
//! # Contracts
//!
//! - **Bound**: an option's data longer than [`OPTION_DATA_MAX`] is skipped unread and refused;
//!   longer than [`OPTION_SKIP_MAX`], or the [`OPTIONS_MAX`]th option, ends the connection.
//! - **Input**: any bytes at all, cut anywhere.

use std::cmp::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::meta::{self, Query};
use super::wire::{self, Framing, OptionHeader, handshake_flags, info, option, option_reply};

/// The longest option data that is looked at, in bytes: a name of the longest legal length (4096)
/// and more requests for information than there are kinds of it.
pub const OPTION_DATA_MAX: u32 = 8192;
/// The longest option data that is skipped, in bytes.
pub const OPTION_SKIP_MAX: u32 = 1 << 20;
/// How many options a client may send.
pub const OPTIONS_MAX: u32 = 1000;
/// The input that [`Handshake::advance`] needs at once, at most.
pub const INPUT_MAX: usize = size_of::<OptionHeader>() + OPTION_DATA_MAX as usize;

/// What clients are told of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The preferred length and alignment of requests.
    pub block_size: u32,
    /// The longest payload of a request.
    pub payload_max: u32,
    /// Whether clients may not write.
    pub read_only: bool,
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// The client took the export of this index.
    Transmission {
        /// Index among the exports that were passed to the last call.
        export: usize,
        /// How requests and replies are framed.
        framing: Framing,
        /// Whether the client selected the context `base:allocation`.
        status: bool,
    },
    /// The connection is to be closed, once the output has been sent.
    Close(Reason),
}

/// Why a handshake ended without an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// As the client wished.
    #[error("the client left")]
    Aborted,
    /// Flags that this server did not offer.
    #[error("the client's flags {0:#x} are unknown")]
    UnknownFlags(u32),
    /// No option where one begins.
    #[error("the client sent {0:#018x} where an option begins")]
    NotAnOption(u64),
    /// Data beyond all reason.
    #[error("the client announced {0} bytes of option data")]
    TooLong(u32),
    /// Options without end.
    #[error("the client sent {OPTIONS_MAX} options and took no export")]
    TooMany,
    /// An export that does not exist, asked for in a way that has no error reply.
    #[error("there is no such export")]
    UnknownExport,
    /// `EXPORT_NAME`, which extended headers rule out.
    #[error("the client agreed on extended headers and took an export in the old way")]
    OldWay,
    /// The target is shutting down.
    #[error("the target is shutting down")]
    ShuttingDown,
}

/// What one call of [`Handshake::advance`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of input that are done with.
    pub consumed: usize,
    /// The end, where it was reached.
    pub finished: Option<Finished>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Flags,
    Options,
    Skip { option: u32, remaining: u32 },
}

/// The server's side of one handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    framing: Framing,
    padding: bool,
    options: u32,
    /// The export for which `base:allocation` is selected.
    status_of: Option<String>,
}

/// The exports at this moment, and whether clients may still take one.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// All exports; the first is the one without a name.
    pub exports: &'a [ExportInfo],
    /// Whether the target is being shut down.
    pub shutting_down: bool,
}

impl Handshake {
    /// Begins a handshake: appends the greeting to `out`.
    pub fn begin(out: &mut Vec<u8>) -> Self {
        let greeting = wire::Greeting {
            magic: wire::GREETING_MAGIC.into(),
            option_magic: wire::OPTION_MAGIC.into(),
            flags: (handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES).into(),
        };
        out.extend_from_slice(greeting.as_bytes());
        let framing = Framing::Simple;
        Self { state: State::Flags, framing, padding: true, options: 0, status_of: None }
    }

    /// Whether the client stands between two options rather than in the middle of one.
    pub fn is_between_options(&self) -> bool {
        matches!(self.state, State::Options)
    }

    /// Takes what it can of `input` and appends the replies to `out`.
    pub fn advance(&mut self, input: &[u8], offer: Offer<'_>, out: &mut Vec<u8>) -> Progress {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let (taken, finished) = match self.state {
                State::Flags => self.take_flags(rest),
                State::Options => self.take_option(rest, offer, out),
                State::Skip { option, remaining } => self.skip(rest, option, remaining, out),
            };
            consumed += taken;
            if taken == 0 || finished.is_some() {
                return Progress { consumed, finished };
            }
        }
    }

    fn take_flags(&mut self, input: &[u8]) -> (usize, Option<Finished>) {
        let Some((bytes, _)) = input.split_first_chunk::<4>() else { return (0, None) };
        let flags = u32::from_be_bytes(*bytes);
        let known = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        if flags & !u32::from(known) != 0 {
            return (4, Some(Finished::Close(Reason::UnknownFlags(flags))));
        }
        self.padding = flags & u32::from(handshake_flags::NO_ZEROES) == 0;
        self.state = State::Options;
        (4, None)
    }

    fn take_option(
        &mut self,
        input: &[u8],
        offer: Offer<'_>,
        out: &mut Vec<u8>,
    ) -> (usize, Option<Finished>) {
        let Ok((header, rest)) = OptionHeader::read_from_prefix(input) else { return (0, None) };
        let close = |reason| (size_of::<OptionHeader>(), Some(Finished::Close(reason)));
        if header.magic.get() != wire::OPTION_MAGIC {
            return close(Reason::NotAnOption(header.magic.get()));
        }
        let (option, length) = (header.option.get(), header.length.get());
        if option == option::SET_META_CONTEXT {
            // It replaces what was selected even where it fails.
            self.status_of = None;
        }
        if length > OPTION_SKIP_MAX {
            return close(Reason::TooLong(length));
        }
        if length > OPTION_DATA_MAX {
            if option == option::EXPORT_NAME {
                return close(Reason::UnknownExport);
            }
            self.state = State::Skip { option, remaining: length };
            return (size_of::<OptionHeader>(), None);
        }
        let Some(data) = rest.get(..length as usize) else { return (0, None) };
        self.options += 1;
        if self.options >= OPTIONS_MAX {
            return close(Reason::TooMany);
        }
        (size_of::<OptionHeader>() + data.len(), self.answer(option, data, offer, out))
    }

    fn skip(
        &mut self,
        input: &[u8],
        option: u32,
        remaining: u32,
        out: &mut Vec<u8>,
    ) -> (usize, Option<Finished>) {
        let taken = input.len().min(remaining as usize);
        let remaining = remaining - taken as u32;
        self.state = State::Skip { option, remaining };
        if remaining == 0 {
            self.state = State::Options;
            self.options += 1;
            reply(out, option, option_reply::ERR_TOO_BIG, &[b"the option's data is too long"]);
        }
        (taken, None)
    }

    fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        offer: Offer<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Finished> {
        let refuse_data = b"the option takes no data".as_slice();
        match option {
            option::ABORT => {
                reply(out, option, option_reply::ACK, &[]);
                return Some(Finished::Close(Reason::Aborted));
            }
            option::EXPORT_NAME => return Some(self.export_name(data, offer, out)),
            _ if offer.shutting_down => reply(out, option, option_reply::ERR_SHUTDOWN, &[]),
            option::INFO | option::GO => return self.info_or_go(option, data, offer, out),
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS
                if !data.is_empty() =>
            {
                reply(out, option, option_reply::ERR_INVALID, &[refuse_data]);
            }
            option::LIST => {
                for export in offer.exports {
                    let length = (export.name.len() as u32).to_be_bytes();
                    reply(out, option, option_reply::SERVER, &[&length, export.name.as_bytes()]);
                }
                reply(out, option, option_reply::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, data, offer, out);
            }
            option::STRUCTURED_REPLY => self.agree(option, Framing::Structured, out),
            option::EXTENDED_HEADERS => self.agree(option, Framing::Extended, out),
            _ => reply(out, option, option_reply::ERR_UNSUP, &[]),
        }
        None
    }

    /// Agrees on more than there was; never on less, and not twice on the same.
    fn agree(&mut self, option: u32, framing: Framing, out: &mut Vec<u8>) {
        let (kind, why) = match framing.cmp(&self.framing) {
            Ordering::Greater => (option_reply::ACK, ""),
            Ordering::Equal => (option_reply::ERR_INVALID, "that was agreed on before"),
            Ordering::Less => (option_reply::ERR_EXT_HEADER_REQD, "extended headers stay"),
        };
        self.framing = self.framing.max(framing);
        reply(out, option, kind, &[why.as_bytes()]);
    }

    /// This option has no error reply: whoever asks wrongly is left.
    fn export_name(&self, name: &[u8], offer: Offer<'_>, out: &mut Vec<u8>) -> Finished {
        if offer.shutting_down {
            return Finished::Close(Reason::ShuttingDown);
        }
        if self.framing == Framing::Extended {
            return Finished::Close(Reason::OldWay);
        }
        let Some(index) = find(offer.exports, name) else {
            return Finished::Close(Reason::UnknownExport);
        };
        let export = &offer.exports[index];
        let flags = self.flags(option::EXPORT_NAME, export);
        append(out, &wire::ExportNameReply { size: export.size.into(), flags: flags.into() });
        if self.padding {
            out.extend_from_slice(&[0; wire::EXPORT_NAME_PADDING]);
        }
        self.transmission(index, export)
    }

    fn transmission(&self, index: usize, export: &ExportInfo) -> Finished {
        let status = self.has_status(export);
        Finished::Transmission { export: index, framing: self.framing, status }
    }

    /// Whether block status is selected for this export.
    fn has_status(&self, export: &ExportInfo) -> bool {
        self.status_of.as_ref() == Some(&export.name)
    }

    fn meta_context(&mut self, option: u32, data: &[u8], offer: Offer<'_>, out: &mut Vec<u8>) {
        let sets = option == option::SET_META_CONTEXT;
        let refusal = |kind, why: &'static str| (kind, why.as_bytes());
        let found = if self.framing.has_chunks() {
            Query::parse(data)
                .ok_or(refusal(option_reply::ERR_INVALID, "the option's lengths do not add up"))
                .and_then(|query| match find(offer.exports, query.export) {
                    Some(index) => Ok((query, &offer.exports[index])),
                    None => Err(refusal(option_reply::ERR_UNKNOWN, "there is no such export")),
                })
        } else {
            Err(refusal(option_reply::ERR_INVALID, "structured replies come first"))
        };
        let (query, export) = match found {
            Ok(found) => found,
            Err((kind, why)) => return reply(out, option, kind, &[why]),
        };
        if if sets { query.selects } else { query.lists } {
            let id = if sets { meta::ALLOCATION_ID } else { 0 }.to_be_bytes();
            reply(out, option, option_reply::META_CONTEXT, &[&id, meta::ALLOCATION]);
            if sets {
                self.status_of = Some(export.name.clone());
            }
        }
        reply(out, option, option_reply::ACK, &[]);
    }

    fn info_or_go(
        &self,
        option: u32,
        data: &[u8],
        offer: Offer<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Finished> {
        let Some((name, wanted)) = split_info(data) else {
            reply(out, option, option_reply::ERR_INVALID, &[b"the option's lengths do not add up"]);
            return None;
        };
        let Some(index) = find(offer.exports, name) else {
            reply(out, option, option_reply::ERR_UNKNOWN, &[b"there is no such export"]);
            return None;
        };
        let export = &offer.exports[index];
        let about = wire::InfoExport {
            info: info::EXPORT.into(),
            size: export.size.into(),
            flags: self.flags(option, export).into(),
        };
        reply(out, option, option_reply::INFO, &[about.as_bytes()]);
        let wants = |kind: u16| wanted.chunks_exact(2).any(|code| *code == kind.to_be_bytes());
        if wants(info::NAME) {
            let kind = info::NAME.to_be_bytes();
            reply(out, option, option_reply::INFO, &[&kind, export.name.as_bytes()]);
        }
        if wants(info::BLOCK_SIZE) {
            let limits = wire::InfoBlockSize {
                info: info::BLOCK_SIZE.into(),
                minimum: 1.into(),
                preferred: export.block_size.into(),
                maximum: export.payload_max.into(),
            };
            reply(out, option, option_reply::INFO, &[limits.as_bytes()]);
        }
        reply(out, option, option_reply::ACK, &[]);
        (option == option::GO).then(|| self.transmission(index, export))
    }

    /// What is offered to who asks for the export in this way: all that could be had, or, who takes
    /// it, all that was agreed on.
    fn flags(&self, option: u32, export: &ExportInfo) -> u16 {
        use wire::transmission_flags as flags;
        let always = flags::HAS_FLAGS
            | flags::SEND_FLUSH
            | flags::SEND_FUA
            | flags::SEND_CACHE
            | flags::CAN_MULTI_CONN;
        let writes = if export.read_only {
            flags::READ_ONLY
        } else {
            flags::SEND_TRIM | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO
        };
        let chunks = if self.framing.has_chunks() { flags::SEND_DF } else { 0 };
        let status = option == option::INFO || self.has_status(export);
        let filter = if self.framing == Framing::Extended && status {
            flags::BLOCK_STATUS_PAYLOAD
        } else {
            0
        };
        always | writes | chunks | filter
    }
}

/// The export of that name; the empty name is the first one's.
fn find(exports: &[ExportInfo], name: &[u8]) -> Option<usize> {
    if name.is_empty() {
        return (!exports.is_empty()).then_some(0);
    }
    exports.iter().position(|export| export.name.as_bytes() == name)
}

/// The name and the wanted kinds of information, where the lengths are consistent.
fn split_info(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (count, wanted) = rest.split_first_chunk::<2>()?;
    (wanted.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some((name, wanted))
}

fn append(out: &mut Vec<u8>, message: &(impl IntoBytes + Immutable)) {
    out.extend_from_slice(message.as_bytes());
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let length: usize = data.iter().map(|piece| piece.len()).sum();
    append(
        out,
        &wire::OptionReplyHeader {
            magic: wire::OPTION_REPLY_MAGIC.into(),
            option: option.into(),
            reply: kind.into(),
            length: (length as u32).into(),
        },
    );
    for piece in data {
        out.extend_from_slice(piece);
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
