//! The journal's list of groups, over losses of power.

#[path = "support/linking.rs"]
mod linking;

/// Goal: see [`linking::what_is_older_is_unlinked_before`].
#[test]
fn what_is_older_is_unlinked_before() {
    linking::what_is_older_is_unlinked_before();
}

/// Goal: see [`linking::what_rots_before_a_cut_off_is_missed`].
#[test]
fn what_rots_before_a_cut_off_is_missed() {
    linking::what_rots_before_a_cut_off_is_missed();
}

/// Goal: see [`linking::what_is_cut_off_does_not_count`].
#[test]
fn what_is_cut_off_does_not_count() {
    linking::what_is_cut_off_does_not_count();
}
