//! Which clients stand still, and for how long they may.
//!
//! Nothing on the data path starts a timer: a connection notes what it does, and one watchdog looks
//! at all connections a few times a second.
//!
//! | what the client does | may stand still for |
//! | --- | --- |
//! | nothing, between two requests | ever |
//! | nothing, in the handshake between two options | [`Patience::handshake`] |
//! | stops within an option, a header or a payload | [`Patience::request`] |
//! | the same, holding a buffer that others wait for | [`Patience::contended`] |
//! | does not take its replies | [`Patience::replies`] |
//! | the same, holding buffers that others wait for | [`Patience::replies_contended`] |
//!
//! Progress is a whole request, or [`STEP`] bytes: trickling single bytes is none.

use std::cell::Cell;
use std::time::Duration;

/// Fewer bytes than this within the time allowed are no progress.
pub const STEP: u64 = 64 << 10;
/// How often the watchdog looks.
pub const TICK: Duration = Duration::from_millis(250);

/// How long clients may stand still.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between two options.
    pub handshake: Duration,
    /// In the middle of something.
    pub request: Duration,
    /// In the middle of a payload while others wait for buffers.
    pub contended: Duration,
    /// Without taking replies.
    pub replies: Duration,
    /// Without taking replies while others wait for buffers.
    pub replies_contended: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(120),
            request: Duration::from_secs(10),
            contended: Duration::from_secs(1),
            replies: Duration::from_secs(60),
            replies_contended: Duration::from_secs(5),
        }
    }
}

/// What a connection waits for from its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The next option.
    Handshake,
    /// The next request: the client may take its time. Also while the target itself is what the
    /// connection waits for.
    Idle,
    /// The rest of something begun, for which no shared buffer is held.
    Partial,
    /// The rest of a payload, for which a shared buffer is held.
    Payload,
}

/// Why a client is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stall {
    /// It stopped sending.
    #[error("the client stopped in the middle of what it was sending")]
    Receiving,
    /// It stopped receiving.
    #[error("the client does not take its replies")]
    Sending,
    /// It takes no export.
    #[error("the client takes no export")]
    Handshake,
}

/// One direction: what moved, and since when nothing did.
#[derive(Debug, Default)]
struct Flow {
    moved: Cell<u64>,
    seen: Cell<u64>,
    still: Cell<Duration>,
}

impl Flow {
    fn note(&self, bytes: u64) {
        self.moved.set(self.moved.get().wrapping_add(bytes));
    }

    /// How long it has stood still, `since` the last look included.
    fn look(&self, since: Duration) -> Duration {
        if self.moved.get().wrapping_sub(self.seen.get()) >= STEP {
            self.restart();
        } else {
            self.still.set(self.still.get() + since);
        }
        self.still.get()
    }

    fn restart(&self) {
        self.seen.set(self.moved.get());
        self.still.set(Duration::ZERO);
    }
}

/// What the watchdog knows of one connection.
#[derive(Debug)]
pub struct Progress {
    phase: Cell<Phase>,
    sending: Cell<bool>,
    incoming: Flow,
    outgoing: Flow,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            phase: Cell::new(Phase::Handshake),
            sending: Cell::new(false),
            incoming: Flow::default(),
            outgoing: Flow::default(),
        }
    }
}

impl Progress {
    /// The connection waits for something else from now on.
    pub fn enter(&self, phase: Phase) {
        self.phase.set(phase);
    }

    /// Something whole has arrived.
    pub fn completed(&self) {
        self.incoming.note(STEP);
    }

    /// Bytes have arrived.
    pub fn received(&self, bytes: usize) {
        self.incoming.note(bytes as u64);
    }

    /// Replies are being sent.
    pub fn sending(&self) {
        self.sending.set(true);
    }

    /// A part of the replies has been taken; there is `more` or not.
    pub fn sent(&self, more: bool) {
        self.outgoing.note(STEP);
        self.sending.set(more);
    }

    /// The watchdog's look, `since` the last one; `contended` says that others wait for buffers.
    pub fn look(&self, since: Duration, contended: bool, patience: &Patience) -> Option<Stall> {
        if self.sending.get() {
            let allowed = if contended { patience.replies_contended } else { patience.replies };
            if self.outgoing.look(since) >= allowed {
                return Some(Stall::Sending);
            }
        } else {
            self.outgoing.restart();
        }
        let (allowed, stall) = match self.phase.get() {
            Phase::Idle => {
                self.incoming.restart();
                return None;
            }
            Phase::Handshake => (patience.handshake, Stall::Handshake),
            Phase::Payload if contended => (patience.contended, Stall::Receiving),
            Phase::Partial | Phase::Payload => (patience.request, Stall::Receiving),
        };
        (self.incoming.look(since) >= allowed).then_some(stall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many looks until the client is left, if it is within a thousand.
    fn looks(
        contended: bool,
        prepare: impl Fn(&Progress),
        each: impl Fn(&Progress),
    ) -> Option<usize> {
        let progress = Progress::default();
        prepare(&progress);
        (1..1000).find(|_| {
            each(&progress);
            progress.look(Duration::from_secs(1), contended, &Patience::default()).is_some()
        })
    }

    /// Goal: each way of standing still is allowed for its time and no longer.
    #[test]
    fn each_phase_has_its_time() {
        let nothing = |_: &Progress| ();
        let phase = |phase| move |p: &Progress| p.enter(phase);
        assert_eq!(looks(false, phase(Phase::Idle), nothing), None);
        assert_eq!(looks(false, phase(Phase::Handshake), nothing), Some(120));
        assert_eq!(looks(true, phase(Phase::Partial), nothing), Some(10));
        assert_eq!(looks(false, phase(Phase::Payload), nothing), Some(10));
        assert_eq!(looks(true, phase(Phase::Payload), nothing), Some(1));
        let sending = |p: &Progress| {
            p.enter(Phase::Idle);
            p.sending();
        };
        assert_eq!(looks(false, sending, nothing), Some(60));
        assert_eq!(looks(true, sending, nothing), Some(5));
    }

    /// Goal: real progress is waited for, trickling is not.
    #[test]
    fn trickling_is_no_progress() {
        let begin = |p: &Progress| p.enter(Phase::Payload);
        assert_eq!(looks(false, begin, |p| p.received(100)), Some(10));
        assert_eq!(looks(true, begin, |p| p.received(STEP as usize)), None);
        assert_eq!(looks(false, begin, Progress::completed), None);
        let sending = |p: &Progress| p.sending();
        let slowly = |p: &Progress| p.sent(true);
        assert_eq!(looks(false, sending, slowly), Some(120), "only the handshake's time ends");
    }
}
