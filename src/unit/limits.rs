//! How large a request and an epoch may be, so that neither the journal nor the reserve can be
//! exhausted by one of them (design sections 3 and 4). Plain arithmetic.

use crate::format::layout::Geometry;
use crate::format::record::{BINDING_BYTES, PLACE_BYTES};

/// The largest write that is ever advertised, in bytes.
pub const REQUEST_MAX: u64 = 32 << 20;
/// The most data that an epoch holds before it is committed unasked, in bytes.
pub const EPOCH_DATA_MAX: u64 = 256 << 20;

/// The bounds of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest write, in bytes.
    pub request_bytes: u64,
    /// The largest piece of a trim or write-zeroes that is atomic, in bytes.
    pub zero_bytes: u64,
    /// Bytes of records in an epoch's group.
    pub epoch_record_bytes: usize,
    /// Bytes of data in an epoch.
    pub epoch_data_bytes: u64,
}

impl Limits {
    /// The bounds for a journal whose groups have at most `group_bytes` of records, and a pool that
    /// keeps `reserve` extents for journaling, with no more than `epoch_data_max` bytes of data in
    /// an epoch of more than one request; `None` where not even one extent's worth fits.
    pub fn new(
        geometry: Geometry,
        group_bytes: usize,
        reserve: u32,
        epoch_data_max: u64,
    ) -> Option<Limits> {
        let fits = |len: u64| {
            pairs_touched(len, geometry) <= u64::from(reserve)
                && write_record_bytes(len, geometry) <= group_bytes as u64
        };
        let sizes = std::iter::successors(Some(REQUEST_MAX), |size| Some(size / 2));
        let request_bytes =
            sizes.take_while(|s| *s >= u64::from(geometry.block_size())).find(|s| fits(*s))?;
        // For each pair: the run of unused blocks, two partly written ones beside it, a binding.
        let per_pair = (BINDING_BYTES + 6 * PLACE_BYTES) as u64;
        let zero_pairs = (group_bytes as u64 / per_pair).saturating_sub(2).max(1);
        Some(Limits {
            request_bytes,
            zero_bytes: zero_pairs * u64::from(geometry.extent_size()),
            epoch_record_bytes: group_bytes,
            epoch_data_bytes: epoch_data_max.max(request_bytes),
        })
    }
}

/// The most pairs that a request of so many bytes touches, wherever it begins.
fn pairs_touched(len: u64, geometry: Geometry) -> u64 {
    let extent = u64::from(geometry.extent_size());
    (len + extent - 2) / extent + 1
}

/// The most bytes of records that a write of so many bytes adds to a group.
fn write_record_bytes(len: u64, geometry: Geometry) -> u64 {
    let blocks = len / u64::from(geometry.block_size()) + 1;
    let pairs = pairs_touched(len, geometry);
    (blocks + pairs) * PLACE_BYTES as u64 + pairs * BINDING_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an ample pool gives 32 MiB, a small reserve or journal less, and too small ones none.
    #[test]
    fn the_largest_request_fits_reserve_and_group() {
        let geometry = Geometry::new(4096, 1 << 20).unwrap();
        let limits = Limits::new(geometry, 1 << 20, 40, EPOCH_DATA_MAX).unwrap();
        assert_eq!(limits.request_bytes, REQUEST_MAX);
        assert!(limits.zero_bytes > REQUEST_MAX);
        assert_eq!(
            Limits::new(geometry, 1 << 20, 5, EPOCH_DATA_MAX).unwrap().request_bytes,
            4 << 20
        );
        assert_eq!(
            Limits::new(geometry, 1 << 20, 2, EPOCH_DATA_MAX).unwrap().request_bytes,
            1 << 20
        );
        assert_eq!(Limits::new(geometry, 1 << 20, 1, EPOCH_DATA_MAX), None);
        assert!(Limits::new(geometry, 10_000, 40, EPOCH_DATA_MAX).unwrap().request_bytes < 2 << 20);
    }
}
