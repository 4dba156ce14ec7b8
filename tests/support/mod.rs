//! What several tests share.

pub mod memory_server;
pub mod nbd_client;
