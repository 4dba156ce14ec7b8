//! Every on-disk and in-NVRAM struct, and the parsing of each.

pub mod ids;
pub mod layout;
pub mod superblock;
