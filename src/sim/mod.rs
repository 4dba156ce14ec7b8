//! Proof by simulation: random work and random crashes against the promises of design section 1.
//!
//! One seed is one run ([`run::run_seed`]): it draws a geometry, policies, rates of faults and
//! habits of clients; formats; then works, crashes and recovers several times, also crashing inside
//! recoveries up to three deep, and after each checks the whole image of every volume against the
//! [`oracle`]. Meanwhile the run is paused at persist points, and other machines, cloned from this
//! one as several crashes there and then would leave it, recover and are checked too; the run
//! itself goes on. The world of a run is [`crate::env::sim`].
//!
//! What is checked, and when:
//!
//! | when | what |
//! | --- | --- |
//! | a read ends | it returns what was there meanwhile (promise 5) |
//! | an operation fails | a fault that leads to such an error has struck, by the fault table |
//! | each recovery | the image is an allowed cut (promises 1 to 3 and 5); invariants |
//! | each pause at a persist point | invariants of extents, pairs and journal slots |
//! | nothing is under way | the same; all buffers are back, and no task works on |
//! | shutdown | all is durable, no buffer and no task is left |
//! | the faults have ceased | every operation ends within a bound of virtual time |
//!
//! A machine does all of this alone, with a metadata server of its own, or as one of several that
//! share one ([`cluster`], [`host`]), in one time: then the server has crashes of its own and is
//! away, machines have leases, disks are found in another machine, and pools are taken over while
//! the machine that serves them lives and goes on (`takeover`). Checked besides:
//!
//! | when | what |
//! | --- | --- |
//! | all is quiet | invariants of the server's store: extents, pairs, sessions, strays |
//! | a machine lives | nobody else gets its pool without the word that it is fenced |
//! | a pool was taken over | all is there that the former machine ever acknowledged as durable |
//! | something is acknowledged as durable | the machine's lease has not ended |
//!
//! Beside the large scope at random there is the small one, exhaustively ([`exhaustive`]): every
//! crash of a few operations, and of the recoveries from it.
//!
//! # How to read a failing seed
//!
//! The failure names the promise, the granule, what is seen there, and every operation over it with
//! the moments of its sending and acknowledgement; the command printed beside it runs the seed
//! again, and with `FLIPSIDE_TRACE=1` every call of the environment is printed as it is made. Where
//! it says *of a run that went on*, it is one of the cloned machines that failed: what is printed
//! last is its recovery. [`shrink`] then finds the few operations that suffice, and prints them as
//! a [`plan`], which runs again with
//!
//! ```text
//! FLIPSIDE_PLAN=… FLIPSIDE_TRACE=1 cargo test --test plans -- --nocapture
//! ```
//!
//! A seed names a run of one version of the code: whatever draws from the random stream in another
//! order, here or in the engine, makes another run of it. A shrunk plan names its actions itself
//! and so lasts longer; one that showed a fault is kept in `tests/regressions`, where
//! `tests/plans.rs` runs all of them.
//!
//! # How to add a fault
//!
//! See [`crate::env::sim`]: a row of [`crate::env::sim::faults::TABLE`] says what may be injected,
//! how often, and which errors, if any, it excuses.
//!
//! # How to add a mutant
//!
//! See [`crate::mutants`]: a line in its table, and the fault where the code does it right.
//! `make mutants` must then find it; what it does not find is a hole here.
//!
//! # How to look at everything
//!
//! `make sim-exhaustive ACTIONS=3 DEPTH=2` is the whole small scope, for days; `EVERY=100` takes
//! one sequence of operations in a hundred, and `ERRORS=10` tries device errors with one in ten of
//! those. `make test` takes a fixed part.

pub mod action;
mod churn;
pub mod cluster;
mod cut;
pub mod destaging;
pub mod engine;
pub mod exhaustive;
pub mod flipside;
pub mod follower;
pub mod grouped;
pub mod host;
pub mod metadata;
pub mod oracle;
mod places;
pub mod plan;
mod reader;
pub mod run;
pub mod shrink;
pub mod stamp;
mod subject;
pub mod sweep;
mod takeover;
#[cfg(test)]
mod toy;
pub mod workload;
