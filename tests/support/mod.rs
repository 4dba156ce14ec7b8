//! What several tests share.

pub mod nbd_client;
