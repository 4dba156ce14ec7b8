//! One client's session as the server keeps it: the order of its mutations and their answers.
//!
//! ```text
//!        floor            next                    floor + WINDOW
//!   ───────┼────────────────┼───────────────────────────┼──────── sequence
//!  answered,  executed, the   not executed: assembled,     dropped
//!  forgotten  answer is kept  held, run in order
//! ```
//!
//! `floor` is what the client tells with each request; an answer below it is known to have arrived.
//! `next` and the kept answers are a row of the store, written in the same transaction as what the
//! mutation did: so a server that starts again answers from the record, too.
//!
//! When the session was last heard of is in memory alone: a server that starts again counts every
//! lease from its own start.

use std::collections::BTreeMap;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assembly::{Added, Assembly};
use super::error::Refusal;
use super::ownership;
use super::raw::{self, RawAttach};
use super::records::Claim;
use super::store::StoreError;
use super::wire::{Datagram, Header, Operation, PAYLOAD_MAX, PAYLOAD_MIN, WINDOW};
use crate::env::Moment;
use crate::format::ids::UnitId;

/// An answer to a mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was asked.
    pub operation: Operation,
    /// The body, or the refusal and its detail.
    pub outcome: Result<Vec<u8>, (Refusal, u64)>,
}

/// A mutation that has not been executed.
#[derive(Debug)]
enum Pending<P> {
    /// Some of its parts are there.
    Parts(Operation, Assembly),
    /// It is whole and waits for its turn; its answer goes to this peer.
    Held(P, Header, Vec<u8>),
}

/// What became of a mutation's datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It is kept until more has come.
    Kept,
    /// It is the next and is whole: to be executed.
    Ready,
    /// It was executed already; this is its answer (`None` where only the first part is answered).
    Repeated(Option<Answer>),
    /// It cannot be of use.
    Dropped,
}

/// A session. `P` is where answers go.
#[derive(Debug)]
pub struct Session<P> {
    claim: Claim,
    payload_max: u32,
    floor: u64,
    next: u64,
    /// When this server first and last heard of it; its own start, of a session that was kept.
    since: Moment,
    heard: Moment,
    requests: u64,
    answers: BTreeMap<u64, Answer>,
    pending: BTreeMap<u64, Pending<P>>,
    /// Bytes of those.
    buffered: usize,
    /// Where its client was when something new was last heard from it.
    place: Option<P>,
    /// Above all queries of it that were heard.
    next_query: u64,
    /// Of a reader: the view of the lines before which it uses nothing.
    acknowledged: Option<u64>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSession {
    attach: RawAttach,
    floor: U64,
    next: U64,
}
const _: () = assert!(size_of::<RawSession>() == 72);
/// No session's mutations come so far: a stored number beyond is damage, and would overflow.
pub const NEXT_MAX: u64 = u64::MAX / 2;

/// One kept answer; its body follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawAnswer {
    sequence: U64,
    detail: U64,
    operation: U16,
    status: U16,
    length: U32,
}
const _: () = assert!(size_of::<RawAnswer>() == 24);

impl<P: Clone> Pending<P> {
    /// Bytes that are kept.
    fn bytes(&self) -> usize {
        match self {
            Pending::Parts(_, assembly) => assembly.bytes(),
            Pending::Held(_, _, body) => body.len(),
        }
    }

    /// Takes a datagram; ready where it is whole now.
    fn admit(&mut self, peer: &P, datagram: &Datagram<'_>) -> Admitted {
        match self {
            Pending::Held(known, _, _) => {
                *known = peer.clone();
                Admitted::Kept
            }
            Pending::Parts(known, _) if *known != datagram.header.operation => Admitted::Dropped,
            Pending::Parts(_, assembly) => match assembly.add(datagram) {
                Added::Waiting | Added::Useless => Admitted::Kept,
                Added::Whole(body) => {
                    *self = Pending::Held(peer.clone(), datagram.header, body);
                    Admitted::Ready
                }
            },
        }
    }
}

impl<P: Clone + PartialEq> Session<P> {
    /// A session of that granted claim, whose attach was the mutation of that number.
    pub fn new(claim: Claim, payload_max: u32, sequence: u64) -> Self {
        Session {
            claim,
            payload_max,
            floor: 0,
            next: sequence + 1,
            since: Moment::default(),
            heard: Moment::default(),
            requests: 0,
            answers: BTreeMap::new(),
            pending: BTreeMap::new(),
            buffered: 0,
            place: None,
            next_query: 0,
            // Of one that was kept nothing is known: what it uses may be as old as can be.
            acknowledged: claim.reads.then_some(0),
        }
    }

    /// What was granted; of a writer, with its incarnation.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The view of the lines before which its client uses nothing; `None` where it does not read
    /// beside the unit.
    pub fn acknowledged(&self) -> Option<u64> {
        self.acknowledged
    }

    /// Its client uses nothing any more from before this view.
    pub fn acknowledge(&mut self, view: u64) {
        self.acknowledged = self.acknowledged.map(|before| before.max(view));
    }

    /// Whose session it is.
    pub fn unit(&self) -> UnitId {
        self.claim.unit
    }

    /// The session begins for this server, which is when its lease is counted from.
    pub fn begin(&mut self, now: Moment) {
        (self.since, self.heard) = (now, now);
    }

    /// A request of it is executed now: its lease is counted from here.
    pub fn hear(&mut self, now: Moment) {
        self.heard = now;
        self.requests += 1;
    }

    /// What is left of its lease, in milliseconds: see [`ownership::left_ms`].
    pub fn left_ms(&self, now: Moment) -> u64 {
        ownership::left_ms(self.claim.lease_ms, self.heard, now)
    }

    /// Since when this server knows it.
    pub fn since(&self) -> Moment {
        self.since
    }

    /// How many of its requests this server has executed.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether that mutation is the one that is to be executed next.
    pub fn is_next(&self, sequence: u64) -> bool {
        sequence == self.next
    }

    /// The largest datagram that the client takes.
    pub fn payload_max(&self) -> usize {
        self.payload_max as usize
    }

    /// Bytes of mutations that wait.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// Whether a query is to be answered: it is a new one, or it comes from where the client is.
    /// What somebody has recorded and sends again from elsewhere is neither; its answer, which may
    /// be large, would go to whomever it says it comes from.
    pub fn asks(&mut self, peer: &P, sequence: u64) -> bool {
        let new = sequence >= self.next_query && sequence < u64::MAX;
        if new {
            self.next_query = sequence + 1;
            self.place = Some(peer.clone());
        }
        new || self.place.as_ref() == Some(peer)
    }

    /// Where its client was last heard from, if it was.
    pub fn place(&self) -> Option<&P> {
        self.place.as_ref()
    }

    /// Takes a mutation's datagram. Where there is no `room` only the next one to be executed is
    /// kept, so that those that wait for it can go on.
    pub fn admit(&mut self, peer: &P, datagram: &Datagram<'_>, room: bool) -> Admitted {
        let Header { operation, sequence, detail: floor, .. } = datagram.header;
        if floor > self.next || floor > sequence {
            return Admitted::Dropped;
        }
        self.floor = self.floor.max(floor);
        while self.answers.first_key_value().is_some_and(|(known, _)| *known < self.floor) {
            self.answers.pop_first();
        }
        if sequence < self.next {
            return match self.answers.get(&sequence) {
                Some(answer) if answer.operation == operation => {
                    Admitted::Repeated((datagram.part == 0).then(|| answer.clone()))
                }
                _ => Admitted::Dropped,
            };
        }
        // Kept answers and what waits are a window together, whatever a client says it has heard.
        if sequence >= self.floor + WINDOW || !(room || sequence == self.next) {
            return Admitted::Dropped;
        }
        self.place = Some(peer.clone());
        let pending = self
            .pending
            .entry(sequence)
            .or_insert_with(|| Pending::Parts(operation, Assembly::new(datagram)));
        let before = pending.bytes();
        let admitted = pending.admit(peer, datagram);
        self.buffered = self.buffered + pending.bytes() - before;
        match admitted {
            Admitted::Ready if sequence != self.next => Admitted::Kept,
            admitted => admitted,
        }
    }

    /// The next mutation, where it is whole.
    pub fn take_ready(&mut self) -> Option<(P, Header, Vec<u8>)> {
        if !matches!(self.pending.get(&self.next), Some(Pending::Held(..))) {
            return None;
        }
        match self.pending.remove(&self.next) {
            Some(Pending::Held(peer, header, body)) => {
                self.buffered -= body.len();
                Some((peer, header, body))
            }
            _ => None,
        }
    }

    /// Keeps the answer to the next mutation, which is now executed.
    pub fn executed(&mut self, answer: Answer) {
        self.answers.insert(self.next, answer);
        self.next += 1;
        assert!(self.answers.len() as u64 <= self.next - self.floor, "answers below the floor");
    }

    /// What the store keeps of the session.
    pub fn row(&self) -> Vec<u8> {
        let head = RawSession {
            attach: RawAttach::new(&self.claim, self.payload_max),
            floor: U64::new(self.floor),
            next: U64::new(self.next),
        };
        let mut row = head.as_bytes().to_vec();
        for (sequence, answer) in &self.answers {
            let (status, detail, body) = match &answer.outcome {
                Ok(body) => (0, 0, body.as_slice()),
                Err((refusal, detail)) => (refusal.code(), *detail, [].as_slice()),
            };
            let raw = RawAnswer {
                sequence: U64::new(*sequence),
                detail: U64::new(detail),
                operation: U16::new(answer.operation as u16),
                status: U16::new(status),
                length: U32::new(body.len() as u32),
            };
            row.extend_from_slice(raw.as_bytes());
            row.extend_from_slice(body);
        }
        row
    }

    /// The session that the store kept.
    pub fn from_row(row: &[u8]) -> Result<Self, StoreError> {
        Self::parse_row(row).ok_or_else(|| StoreError::Damaged("a session's row".to_owned()))
    }

    fn parse_row(row: &[u8]) -> Option<Self> {
        let (head, mut rest) = raw::first::<RawSession>(row).ok()?;
        let claim = Claim::try_from(&head.attach).ok()?;
        let mut session = Session::new(claim, head.attach.payload_max.get(), 0);
        session.floor = head.floor.get();
        session.next = head.next.get();
        let sound = (PAYLOAD_MIN..=PAYLOAD_MAX).contains(&session.payload_max())
            && session.floor <= session.next
            && session.next <= NEXT_MAX
            && claim.incarnation.is_some() != claim.reads;
        if !sound {
            return None;
        }
        while !rest.is_empty() {
            let (record, after) = raw::first::<RawAnswer>(rest).ok()?;
            let (body, after) = after.split_at_checked(record.length.get() as usize)?;
            let outcome = match record.status.get() {
                0 => Ok(body.to_vec()),
                code => Err((Refusal::from_code(code)?, record.detail.get())),
            };
            let operation = Operation::from_code(record.operation.get())?;
            if !(session.floor..session.next).contains(&record.sequence.get()) {
                return None;
            }
            session.answers.insert(record.sequence.get(), Answer { operation, outcome });
            rest = after;
        }
        Some(session)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Kind, encode, parse};
    use super::*;
    use crate::format::ids::{Incarnation, PoolId};

    fn new(payload_max: u32) -> Session<()> {
        of(payload_max)
    }

    fn of<P: Clone + PartialEq>(payload_max: u32) -> Session<P> {
        let claim = Claim::of(PoolId([1; 16]), UnitId(3), Incarnation(8));
        Session::new(claim, payload_max, 0)
    }

    /// Goal: a query is answered once wherever it comes from, and again only to where the client
    /// is; the client may move, by a query or a mutation that is new.
    #[test]
    fn recorded_queries_are_not_answered() {
        let mut session: Session<u8> = of(PAYLOAD_MIN as u32);
        assert!(session.asks(&1, 0) && session.asks(&1, 0) && !session.asks(&2, 0));
        assert!(session.asks(&1, 5) && session.asks(&1, 3));
        // It has moved; what it asked from its old place goes nowhere, as nobody is there.
        assert!(session.asks(&3, 6) && session.asks(&3, 4) && !session.asks(&1, 5));
        let mutation = request(1, 0, b"new");
        assert_eq!(session.admit(&4, &parse(&mutation[0]).unwrap(), true), Admitted::Ready);
        assert!(session.asks(&4, 6) && !session.asks(&3, 6));
        assert!(session.asks(&1, u64::MAX - 1) && !session.asks(&2, u64::MAX));
    }

    fn request(sequence: u64, floor: u64, body: &[u8]) -> Vec<Vec<u8>> {
        let header = Header {
            kind: Kind::Request,
            operation: Operation::Transact,
            session: 1,
            sequence,
            detail: floor,
        };
        encode(&header, body, PAYLOAD_MIN)
    }

    fn admit(session: &mut Session<()>, bytes: &[u8]) -> Admitted {
        session.admit(&(), &parse(bytes).unwrap(), true)
    }

    fn answer(body: &[u8]) -> Answer {
        Answer { operation: Operation::Transact, outcome: Ok(body.to_vec()) }
    }

    /// Goal: mutations that come out of order run in order, each once, and repeats are answered.
    #[test]
    fn order_and_repeats() {
        let mut session = new(1472);
        assert_eq!(admit(&mut session, &request(2, 1, b"b")[0]), Admitted::Kept);
        assert!(session.take_ready().is_none());
        assert_eq!(admit(&mut session, &request(1, 1, b"a")[0]), Admitted::Ready);
        for body in [b"a", b"b"] {
            let ((), _, taken) = session.take_ready().unwrap();
            assert_eq!(taken, body);
            session.executed(answer(body));
        }
        assert!(session.take_ready().is_none());
        let repeated = admit(&mut session, &request(1, 1, b"a")[0]);
        assert_eq!(repeated, Admitted::Repeated(Some(answer(b"a"))));
        // The client has the first answer: a late repeat of it is of no use.
        assert_eq!(admit(&mut session, &request(3, 2, b"c")[0]), Admitted::Ready);
        assert_eq!(admit(&mut session, &request(1, 1, b"a")[0]), Admitted::Dropped);
        assert_eq!(session.answers.len(), 1);
    }

    /// Goal: beyond the window, or with an impossible floor, nothing is kept; without room, only
    /// the next.
    #[test]
    fn bounds() {
        let mut session = new(1472);
        assert_eq!(admit(&mut session, &request(1 + WINDOW, 0, b"x")[0]), Admitted::Dropped);
        assert_eq!(admit(&mut session, &request(2, 2, b"x")[0]), Admitted::Dropped);
        let (second, first) = (request(2, 1, b"x"), request(1, 1, b"x"));
        let none = session.admit(&(), &parse(&second[0]).unwrap(), false);
        assert_eq!(none, Admitted::Dropped);
        assert_eq!(session.admit(&(), &parse(&first[0]).unwrap(), false), Admitted::Ready);
        // A client that never says what it has heard has no more answers kept than a window.
        let mut session = new(1472);
        for sequence in 1..WINDOW {
            assert_eq!(admit(&mut session, &request(sequence, 0, b"x")[0]), Admitted::Ready);
            session.take_ready().unwrap();
            session.executed(answer(b"y"));
        }
        assert_eq!(admit(&mut session, &request(WINDOW, 0, b"x")[0]), Admitted::Dropped);
        assert_eq!(admit(&mut session, &request(WINDOW, WINDOW, b"x")[0]), Admitted::Ready);
    }

    /// Goal: the row brings back what is needed to answer and to go on.
    #[test]
    fn rows_round_trip() {
        let mut session = new(1472);
        session.executed(answer(b"a"));
        let outcome = Err((Refusal::NotGranted, 9));
        session.executed(Answer { operation: Operation::ReturnExtents, outcome });
        let again: Session<()> = Session::from_row(&session.row()).unwrap();
        assert_eq!(again.answers, session.answers);
        assert_eq!((again.floor, again.next, again.claim), (0, 3, session.claim));
        assert!(Session::<()>::from_row(&session.row()[..30]).is_err());
    }

    /// Goal: a row that a session could not go on from (it would panic at the next answer) is
    /// refused.
    #[test]
    fn rows_have_bounds() {
        let row = |payload_max, floor, next| {
            let mut session = new(payload_max);
            (session.floor, session.next) = (floor, next);
            session.answers.insert(5, answer(b"a"));
            Session::<()>::from_row(&session.row()).is_ok()
        };
        assert!(row(1472, 5, 6));
        for (payload_max, floor, next) in
            [(1199, 5, 6), (u32::MAX, 5, 6), (1472, 6, 7), (1472, 0, 5), (1472, 5, u64::MAX)]
        {
            assert!(!row(payload_max, floor, next), "{payload_max} {floor} {next}");
        }
    }

    /// Goal: a request of many parts is whole when all are there, and answered at its first part.
    #[test]
    fn parts() {
        let mut session = new(1472);
        let parts = request(1, 1, &[5; 3000]);
        assert_eq!(admit(&mut session, &parts[2]), Admitted::Kept);
        assert_eq!(admit(&mut session, &parts[0]), Admitted::Kept);
        assert!(session.buffered() > 1000);
        assert_eq!(admit(&mut session, &parts[1]), Admitted::Ready);
        session.take_ready().unwrap();
        session.executed(answer(b""));
        assert_eq!(session.buffered(), 0);
        assert_eq!(admit(&mut session, &parts[1]), Admitted::Repeated(None));
        assert_eq!(admit(&mut session, &parts[0]), Admitted::Repeated(Some(answer(b""))));
    }
}
