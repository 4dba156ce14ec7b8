//! Every on-disk and in-NVRAM struct, and the parsing of each.
//!
//! Everything stored is little-endian, without padding, versioned and checksummed, and is read
//! through a parser that yields either a verified value or a typed refusal.

pub mod blocks;
pub mod group;
pub mod header;
pub mod home;
pub mod ids;
pub mod layout;
pub mod nvram;
pub mod page;
pub mod probe;
pub mod record;
pub mod status;
pub mod superblock;
pub mod superblock_io;
pub mod warm;
