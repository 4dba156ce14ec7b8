//! What several tests share.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`nbd_client`] | a small NBD client |
//! | [`memory_server`] | the NBD front end over memory, without an engine |
//! | [`workload`] | stamped writes over several connections, judged by the simulator's oracle |
//! | [`device`] | loop devices and files to serve, with the kernel's counters |
//! | [`target`] | the `flipside` process: format, serve, kill, status |
//! | [`metadata_server`] | the `flipside mds` process |
//! | [`killing`] | loads that end with a kill, and the verdict |
//! | [`programs`] | other programs, waiting with a deadline, skipping aloud |

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod device;
pub mod killing;
pub mod memory_server;
pub mod metadata_server;
pub mod nbd_client;
pub mod programs;
pub mod target;
pub mod workload;
