//! Proof by simulation: random work and random crashes against the promises of design section 1.
//!
//! One seed is one run ([`run::run_seed`]): it draws a geometry, policies, rates of faults and
//! habits of clients; formats; then works, crashes and recovers several times, also crashing inside
//! recoveries, and after each checks the whole image of every volume against the [`oracle`]. The
//! world of a run is [`crate::env::sim`].
//!
//! # How to read a failing seed
//!
//! The failure names the promise, the granule, what is seen there, and every operation over it with
//! the moments of its sending and acknowledgement; the command printed beside it runs the seed
//! again, and with `FLIPSIDE_TRACE=1` every call of the environment is printed as it is made.

mod churn;
mod cut;
pub mod engine;
pub mod flipside;
pub mod metadata;
pub mod oracle;
pub mod run;
pub mod stamp;
mod subject;
pub mod sweep;
#[cfg(test)]
mod toy;
pub mod workload;
