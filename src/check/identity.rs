//! The identity of NVRAM, against the one that a pool's superblocks name.

use uuid::Uuid;

use super::finding::{Code, Finding, Mend};
use crate::format::nvram::NvramIdentity;

/// Whether that is NVRAM of another pool, or another one of this.
pub fn is_another(copies: &[Option<NvramIdentity>; 2], wanted: &NvramIdentity) -> bool {
    copies.iter().flatten().any(|copy| copy != wanted)
}

/// What is wrong with it, where it is not another; `name` is where it is.
pub fn judge(
    copies: &[Option<NvramIdentity>; 2],
    wanted: &NvramIdentity,
    name: &str,
) -> Option<Finding> {
    match copies.iter().filter(|copy| copy.is_none()).count() {
        0 => None,
        1 => {
            let what = "one copy of the NVRAM's identity is damaged";
            Some(Finding::mendable(Code::NvramIdentityCopy, name, what, Mend::Identity))
        }
        _ => {
            let id = Uuid::from_bytes(wanted.region);
            let what = format!(
                "there is no identity: it is not the region {id}, or both copies are damaged"
            );
            Some(Finding::lasting(Code::NvramIdentityLost, name, what))
        }
    }
}
