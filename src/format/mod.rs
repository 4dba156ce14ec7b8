//! Every on-disk and in-NVRAM struct, and the parsing of each.

pub mod blocks;
pub mod group;
pub mod header;
pub mod home;
pub mod ids;
pub mod page;
pub mod record;
pub mod status;
