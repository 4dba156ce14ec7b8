//! What is fuzzed: one function for each parser that meets the outside.
//!
//! A body takes any bytes at all and says whether the parser let them through. It panics where a
//! promise is broken: the parser's own panics, and what must be true of everything that passes (it
//! is stored as it was parsed, it lies within bounds, cutting the input changes nothing).
//!
//! The bodies are used twice: by cargo-fuzz, which looks for new paths (`make fuzz`), and by
//! `tests/fuzz_corpus.rs`, which tries the corpus and thousands of mutated copies of it on any
//! toolchain.
//!
//! **Checksums.** A mutated copy of anything that is checksummed is refused at the door, and what
//! lies behind would never be tried. So each body tries the bytes as they are, and then with the
//! checksum made good: what is in the NVRAM or on the disk may be old, foreign or wrong without
//! being torn.

pub mod cursor;
pub mod journal;
pub mod metadata;
pub mod nbd;
pub mod outside;
pub mod recovery;
pub mod store;

/// A body: whether the parser let the bytes through.
pub type Body = fn(&[u8]) -> bool;

/// Every target by its name, which is that of its file in `targets/` and of its corpus.
pub const TARGETS: &[(&str, Body)] = &[
    ("capture", outside::capture),
    ("command_line", outside::command_line),
    ("configuration", outside::configuration),
    ("control", outside::control),
    ("datagram", metadata::datagram),
    ("dump", metadata::dump),
    ("foreign", outside::foreign),
    ("group", journal::group),
    ("home", journal::home),
    ("metadata_log", metadata::log),
    ("metadata_server", metadata::server),
    ("nbd_handshake", nbd::handshake),
    ("nbd_request", nbd::request),
    ("nvram_identity", outside::nvram_identity),
    ("record", journal::record),
    ("recovery", recovery::recovery),
    ("region", journal::region),
    ("status", journal::status),
    ("superblock", outside::superblock),
    ("volume_table", metadata::volume_table),
    ("warm_table", journal::warm_table),
];
