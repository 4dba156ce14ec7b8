//! What can go wrong: refusals, which travel on the wire, and the errors of a client's call.

use thiserror::Error;

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal: $text:literal,)+) => {
        /// Why the server did not do what it was asked. Nothing of the request was done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
        #[repr(u16)]
        pub enum Refusal {
            $($(#[doc = $doc])+ #[error($text)] $name = $code,)+
        }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Refusal] = &[$(Refusal::$name,)+];

            /// The refusal of that code.
            pub fn from_code(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Refusal::$name),)+
                    _ => None,
                }
            }

            /// The code that travels; never 0, which means success.
            pub fn code(self) -> u16 {
                self as u16
            }
        }
    };
}

refusals! {
    /// The session never was, has ended, or was replaced by a newer one of the same unit.
    UnknownSession = 1: "the session is not known or was replaced by a newer one",
    /// A unit attached with an incarnation no higher than the last; the detail holds that one.
    StaleIncarnation = 2: "the unit was attached with this or a later incarnation already",
    /// The body is not what the operation wants; the detail holds the index of the record.
    Malformed = 3: "the request is malformed",
    /// The operation is not (or not yet) known to the server.
    Unsupported = 4: "the operation is not supported",
    /// No such volume.
    UnknownVolume = 5: "no such volume",
    /// Another volume has the name.
    NameTaken = 6: "the name is taken",
    /// The name is empty, too long, or has characters that an export's name cannot have.
    NameInvalid = 7: "the name is empty, too long or has characters that cannot be used",
    /// The volume has pairs where they would be lost.
    VolumeBusy = 8: "the volume still has data there",
    /// A size or a logical extent beyond what there is.
    OutOfRange = 9: "the size or position is out of range",
    /// An extent that the unit was not granted.
    NotGranted = 10: "an extent was not granted to the unit",
    /// An extent that is in another pair.
    ExtentInUse = 11: "an extent is in another pair",
    /// A bound of the server is reached: sessions, volumes or the size of a request.
    TooLarge = 12: "a limit of the server is reached",
    /// The store failed: the server serves no more until it is started again.
    StoreFailed = 13: "the metadata store failed",
    /// The store's space is used up: the server serves no more until it has more.
    StoreFull = 14: "the metadata store is full",
    /// No such pool: it was not registered, or forgotten.
    UnknownPool = 20: "the pool is not registered there: register it with flipside format --mds",
    /// The pool is registered as one of other extents.
    PoolExists = 21: "the pool is registered there with other devices or extents",
    /// A session is attached to the pool.
    PoolAttached = 22: "the pool is attached: stop the target that serves it",
    /// The unit is attached on another host; the detail holds what is left of its lease, in
    /// milliseconds: all ones where it has none.
    OwnedElsewhere = 23: "the pool is attached to another host: stop the target there, or take its \
        devices from it and say --fenced",
    /// The pool cannot be attached to only read, as its flags are not at the server.
    FlagsElsewhere = 24: "the pool's flags are not at the metadata server: only one with \
        --flags mds can be attached to read",
    /// The session was attached to read, and this is not reading.
    ReadsOnly = 25: "the session may only read",
    /// No such consistency group: there never was.
    UnknownGroup = 26: "no such group",
    /// A group would have a number that is not the next; the detail holds that one.
    GroupStale = 27: "groups were made meanwhile: try again",
    /// A volume is in a group already, or would be in one twice; the detail holds its number, or
    /// its place in the request.
    VolumeInGroup = 28: "the volume is in a consistency group: delete the group first (flipside \
        group list shows it)",
    /// The group's last transaction took place and is not done everywhere; the detail holds how
    /// many units are missing.
    GroupInDoubt = 29: "a transaction of the group is not done on all of its units: start their \
        targets and try again (of targets that are gone for good: flipside group delete --force)",
    /// Several pools have a volume of that name; the detail holds its place in the request.
    VolumeAmbiguous = 30: "several pools have a volume of that name: say POOL:NAME",
    /// The pool has volumes in groups.
    PoolInGroup = 31: "volumes of the pool are in a consistency group: delete the group first",
    /// The unit's flags are of an earlier start than one that has begun; the detail holds that.
    FlagsTooOld = 32: "the pool was served since the flags found here were written: they were \
        brought back from an old copy",
    /// The pool was registered by another number, which the detail holds: perhaps anew.
    RegisteredAnew = 33: "the pool was registered anew meanwhile",
    /// Something of the pool's metadata is damaged at the server, which serves its other pools.
    PoolDamaged = 34: "the pool's metadata are damaged at the server: flipside check --mds-store \
        there says how",
    /// A group that cannot follow what the lines say; the detail holds the index of the record.
    LineImpossible = 15: "the group cannot follow the flags that are stored",
}

/// The error of a client's call.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MdsError {
    /// The server refused it; nothing was done.
    #[error("the metadata server refused {operation}: {refusal}{}", remark(*refusal, *detail))]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Why it was refused.
        refusal: Refusal,
        /// What the refusal tells besides: a record's index, an incarnation.
        detail: u64,
    },
    /// The request cannot be sent: it is larger than a transaction may be.
    #[error("the request is larger than the limit of {limit} {what}")]
    TooLarge {
        /// What is limited.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// The client was closed while the call waited; whether it was executed is not known.
    #[error("the connection to the metadata server was closed")]
    Closed,
    /// The server answered what cannot be an answer to the request.
    #[error("the metadata server's answer to {operation} makes no sense")]
    BadReply {
        /// What was asked.
        operation: &'static str,
    },
}

/// What the detail of a refusal says, for its message.
fn remark(refusal: Refusal, detail: u64) -> String {
    match (refusal, detail) {
        (Refusal::OwnedElsewhere, u64::MAX) => " (it has no lease)".to_owned(),
        (Refusal::OwnedElsewhere, 0) => " (its lease has ended)".to_owned(),
        (Refusal::OwnedElsewhere, ms) => format!(" (its lease ends in {ms} ms)"),
        (Refusal::StaleIncarnation, last) => format!(" (the last was {last})"),
        (Refusal::TooLarge, limit) => format!(" ({limit})"),
        (Refusal::Malformed | Refusal::NotGranted | Refusal::ExtentInUse, index) => {
            format!(" (record {index})")
        }
        (_, 0) => String::new(),
        (_, detail) => format!(" ({detail})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a refused owner is told how its rival's lease stands and what to do.
    #[test]
    fn refusals_say_what_to_do() {
        let (operation, refusal) = ("Attach", Refusal::OwnedElsewhere);
        let told = |detail| MdsError::Refused { operation, refusal, detail }.to_string();
        assert!(told(0).contains("--fenced") && told(0).ends_with("(its lease has ended)"));
        assert!(told(u64::MAX).ends_with("(it has no lease)"));
        assert!(told(70).ends_with("(its lease ends in 70 ms)"));
    }

    /// Goal: every refusal survives its code, and none is taken for success.
    #[test]
    fn codes_round_trip() {
        for refusal in Refusal::ALL {
            assert_ne!(refusal.code(), 0);
            assert_eq!(Refusal::from_code(refusal.code()), Some(*refusal));
        }
        assert_eq!(Refusal::from_code(0), None);
    }
}
