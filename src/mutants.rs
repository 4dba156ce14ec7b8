//! Faults in our own code, planted on purpose: whoever says that the simulator finds everything
//! shows that it finds these.
//!
//! With the feature `mutants` one of them can be switched on at run time ([`choose`]); without it
//! [`mutated`] is `false` for the compiler, and nothing of them is in the program. `make mutants`
//! (`tests/mutants.rs`) runs random seeds against each until one fails, and prints how many that
//! took. What is not caught is a hole in the simulator, to be closed.
//!
//! # Adding a mutant
//!
//! A line in the table below, and at the place of the fault `mutated(Mutant::Name)`, so that the
//! code says what it does right with the fault taken out of it. The fault must break a promise of
//! design section 1 or a rule marked ‡: what merely makes things slower is caught by nobody.

macro_rules! mutants {
    ($($name:ident: $what:literal,)+) => {
        /// A fault, by what it does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "`Mutant::what` says it")]
        pub enum Mutant { $($name,)+ }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$name,)+];

            /// What it does wrong.
            pub fn what(self) -> &'static str {
                match self { $(Mutant::$name => $what,)+ }
            }
        }
    };
}

mutants! {
    // Commit.
    DataFlushDropped: "a commit does not flush the devices that its epoch wrote to",
    DrainSkipped: "a commit does not wait for its epoch's requests",
    FlushBeforeDrain: "a commit flushes before the epoch's requests have ended",
    PublishedBeforeHardened: "a commit is acknowledged before its group is persisted",
    CommitUnderWayIgnored: "a flush does not wait for the commit under way",
    NextEpochAcknowledged: "a flush is acknowledged an epoch too early",
    FlushRetried: "a failed flush is tried again and believed",
    BindingNotRecorded: "a group lacks the bindings of new pairs",
    TrimNotRecorded: "a group lacks what was trimmed",
    LastRunNotRecorded: "a group lacks the last run of blocks of each pair",
    WrittenToOpenEpoch: "what a request of the sealed epoch wrote is noted in the open one",
    DeviceOfEpochForgotten: "an epoch forgets all devices but the first that it wrote to",
    // Requests.
    FailedWriteForgotten: "a failed device write stops nothing",
    EdgesNotRead: "a write of half a block does not keep the other half",
    TrimRoundedOutward: "a trim takes the blocks that it covers in part, too",
    CommittedSideOverwritten: "a write after an uncommitted trim goes to the committed side",
    BusyIgnored: "a request does not wait for those that hold its blocks",
    SealedIgnored: "a request does not wait for the commit of its blocks",
    SettlingIgnored: "a request does not wait for a settle of its pair",
    WakeLost: "who waits for a block is not woken",
    PlaceShrinks: "who waits lets go of blocks without a word to those behind it",
    EpochNotWanted: "a full epoch is not committed",
    SpaceWakeLost: "who waits for extents is not woken",
    ReserveIgnored: "thin allocation takes the journal reserve, too",
    PendingNotRead: "a read passes over what is not committed",
    SealedNotRead: "a read passes over what is being committed",
    UnusedReadFromDisk: "a read of unused blocks returns what lies in their place",
    MixedNotPicked: "a read of both places whole takes every block from one of them",
    LostContentsRead: "after a failed device, reads of uncommitted blocks go on",
    // Settle and upkeep.
    CopyFlushDropped: "a settle does not flush its copies",
    CopyIncomplete: "a settle does not copy the last block",
    ServerToldFirst: "the metadata server is told of a settle before it is hardened",
    LeftSlotReused: "a slot is free before the metadata server was told",
    ReadersNotAwaited: "a slot is free while readers may see it",
    PendingSettled: "a pair with pending blocks is settled",
    SwapNotTold: "the metadata server is told of a commit where a swap was made",
    HomeNotWritten: "groups are unlinked before the home has their effect",
    StalePageForgotten: "a settle's pages are not written to the home",
    NewerUnlinkedFirst: "a group is unlinked while an older one of its pairs stays",
    UnlinkedInOneGo: "links on several pages are changed at once, in no order",
    SlotsReusedEarly: "a group's slots are free before its unlinking is persisted",
    // The journal's formats.
    PersistNotDurable: "what is persisted on a device stays in its cache",
    SecondCopyAtOnce: "both copies of a page are written at a time",
    OnlyGoodCopyFirst: "the only good copy of a page is overwritten first",
    OlderCopyChosen: "of two copies of a page the older one counts",
    PageChecksumIgnored: "a page is believed whatever its checksum",
    GroupChecksumIgnored: "a group is believed whatever its checksum",
    GroupPartMissing: "a group counts where only its first part arrived",
    // Data in the journal.
    UnlinkedBeforeDestaged: "a group is unlinked before its payload's destaging is durable",
    PayloadDroppedForPending: "payload is dropped for a newer version that is not committed",
    PayloadCrcIgnored: "a group is whole whatever its payload",
    SumIgnored: "a group whose data is missing is not found out",
    SumKept: "what is written again in an epoch keeps its first sum",
    SumsNotFlushed: "a group that goes with sums of its data is not flushed",
    OlderGroupDoubted: "the data of a group is looked for that newer ones followed",
    PayloadNotRead: "reads look for a block on its device though it is in the journal",
    SupersededDestaged: "payload is destaged though there is a newer version",
    DestageUnheld: "a block may be written while it is destaged",
    // Recovery.
    RecoveryFlushSkipped: "recovery does not make durable what it reads",
    InvalidationSkipped: "what was cut off is not invalidated",
    SequenceUnchecked: "any group counts that lies where the list goes on",
    NewerGroupsIgnored: "groups behind a lost link are not missed",
    CutOffSuccessorIgnored: "a group that was cut off does not tell that the one before it is lost",
    UnreadableGivenUp: "a sector that cannot be read once counts as lost",
    ReplayReversed: "the newest group is applied first",
    StaleBindingApplied: "an older binding replaces a newer one",
    StalePlaceApplied: "places of an earlier binding are applied",
    ReconcileSkipped: "the metadata server is not told what it missed",
    IncarnationKept: "a start of a unit goes by the number of the one before",
    // Repairs.
    GoodCopyMended: "a repair writes both copies of a page, the good one first",
    // Warm restarts.
    WarmEntryLate: "a request is acknowledged before it is in the warm table",
    WarmEpochKept: "a committed epoch stays in the warm table, and is adopted again",
    WarmFlushUnnoted: "a flush under way is not in the warm table: its failure may go unheard",
    WarmNotIntended: "a write over pending contents that was cut short is not done again",
    // The metadata server and its protocol.
    GenerationUnchecked: "the server applies older generations, again where they are repeated",
    RequestRepeated: "a repeated request is executed again",
    PartLost: "a message is executed without its last part",
    DatagramChecksumIgnored: "a datagram is believed whatever its checksum",
    HardenNotStored: "flags are acknowledged as hardened and are not in the transaction",
    HardenUnknownBelieved: "a hardening that was not answered in time is taken for done",
    HardenOfStaleSession: "flags are hardened for a session that was replaced",
    LinesNotRead: "recovery passes over the lines that the metadata server keeps",
    GrantForgotten: "some of what the metadata server grants is not taken",
    ReturnedTwice: "what is given back to the metadata server stays in the pool",
    ExhaustedBelieved: "a metadata server that had nothing more is never asked again",
    AnsweredBeforeCommit: "answers leave before their commit",
    SessionNotStored: "what a session has executed is not in the transaction",
    RegisterOverwrites: "a pool that is registered again begins anew",
    UnfencedGranted: "a claim of another host is granted without a fence",
    StartBegunAtOnce: "a start that has written nothing counts as one that has",
    LeaseBelievedTooLong: "a unit goes on for twice as long as its lease",
    SessionUnchecked: "a datagram of another session is taken",
    // The coordinator of global transactions.
    DecisionNotStored: "a transaction is told as committed that is not in the store as decided",
    CommitBeforeDecision: "a member that is prepared is told to commit before all are",
    IdleMemberLeftOut: "a member that wants no commit takes no part in it",
    CommitPresumed: "a transaction of which nothing is known is told as committed",
    PreparedMemberForgotten: "a decision is forgotten when the first member is done",
    LifeNotCounted: "a member that lost what was pending begins no new life of its group",
    PreparedAppliedEarly: "flags that were prepared at the server count before the decision",
    PreparedNotApplied: "flags that were prepared at the server are not applied by the decision",
    PreparedKeptAtAbort: "flags that were prepared at the server are kept when that is aborted",
    PreparedOfAnyApplied: "a decision applies what was prepared for an aborted transaction, too",
    // A unit's part in global transactions.
    AcknowledgedBeforeAllSealed: "a write is acknowledged before all units have sealed",
    CommitsWithoutDecision: "a unit commits when all are sealed, before it is decided",
    DoneBeforePersisted: "a unit says that it is done before that is persistent",
    PreparedDroppedAtRecovery: "a recovery passes over what is prepared",
    LifeIgnored: "a unit keeps what is pending when another member lost its own",
    // Atomic requests.
    StagedVisible: "what is staged for an atomic request is seen before its commit",
    StagedNotHeld: "the blocks of an atomic request are not held",
    JoinedNotRecorded: "what joined an epoch is not in the group of a unit that was not asked",
    VotedRead: "what an atomic request writes is read while its outcome is not known",
    PartsNotCounted: "a transaction is decided where a part of its atomic request is missing",
    // Readers beside the unit.
    ReaderNotWaitedFor: "what a pair left is free while a reader may go by its old line",
    ReaderLeaseBelievedTooLong: "a reader goes on by its lines when its lease is over",
    ReadNotValidated: "a reader does not ask whether what it has read was still there",
    StaleLineKept: "a reader keeps a line that changed within its generation",
}

#[cfg(feature = "mutants")]
mod chosen {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Mutant;

    static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// Switches one fault on for the whole process, or all off.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.store(mutant.map_or(usize::MAX, |mutant| mutant as usize), Ordering::SeqCst);
    }

    /// Whether that fault is on.
    pub fn mutated(mutant: Mutant) -> bool {
        CHOSEN.load(Ordering::Relaxed) == mutant as usize
    }
}

#[cfg(feature = "mutants")]
pub use chosen::{choose, mutated};

/// Whether that fault is on: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[expect(clippy::inline_always, reason = "nothing of a mutant is left in the program")]
pub const fn mutated(_: Mutant) -> bool {
    false
}
