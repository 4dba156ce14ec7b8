//! Repairs that are cut short and begun again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/repair.rs"]
mod repair;
#[path = "support/simulated.rs"]
mod simulated;

/// Goal: wherever a loss of power meets a repair, and the next one, the one after that leaves
/// nothing to be mended, and everything is there that was.
#[test]
fn cut_short_anywhere() {
    repair::cut_short_anywhere();
}
