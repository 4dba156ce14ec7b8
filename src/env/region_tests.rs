//! Which operations of the disk a region's operations become.

use super::*;
use crate::env::fake::{FakeDisk, block_on, buffers};

fn pieces(places: &[u64]) -> Vec<(u64, View)> {
    let pool = buffers();
    let mut buf = pool.try_acquire(512).unwrap();
    places.iter().map(|&offset| (offset, buf.view_all())).collect()
}

/// Goal: one piece is one durable write, several are followed by one flush, no cache needs neither.
#[test]
fn what_persist_asks_of_the_disk() {
    for (volatile_cache, places, expected) in [
        (true, &[512][..], &["durable write 4608+512"][..]),
        (true, &[0, 512], &["write 4096+512", "write 4608+512", "flush"]),
        (true, &[], &[]),
        (false, &[512], &["write 4608+512"]),
        (false, &[0, 512], &["write 4096+512", "write 4608+512"]),
    ] {
        let disk = FakeDisk::new(1 << 20, volatile_cache);
        let region = DeviceRegion::new(disk.clone(), 4096, 8192);
        block_on(region.persist(pieces(places))).unwrap();
        assert_eq!(disk.log(), expected);
    }
}

/// Goal: a piece that fails fails the whole, after all were tried and without a flush.
#[test]
fn a_failed_piece_fails_all() {
    let disk = FakeDisk::new(1 << 20, true);
    let region = DeviceRegion::new(disk.clone(), 4096, 8192);
    disk.fail_next("bad sector");
    block_on(region.persist(pieces(&[0, 512]))).unwrap_err();
    assert_eq!(disk.log(), ["write 4096+512", "write 4608+512"]);
}

/// Goal: nothing outside the region is touched.
#[test]
#[should_panic(expected = "a piece ends at 8704, its region at 8192")]
fn pieces_stay_inside() {
    let region = DeviceRegion::new(FakeDisk::new(1 << 20, true), 4096, 8192);
    drop(region.persist(pieces(&[8192])));
}

/// Goal: a region does not reach past its disk.
#[test]
#[should_panic(expected = "a region ends at 1048576, fake at 8192")]
fn regions_stay_inside() {
    DeviceRegion::new(FakeDisk::new(8192, true), 0, 1 << 20);
}
