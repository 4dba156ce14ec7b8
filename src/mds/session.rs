//! One client's session as the server keeps it: the order of its mutations and their answers.
//!
//! ```text
//!        floor            next                    next + WINDOW
//!   ───────┼────────────────┼───────────────────────────┼──────── sequence
//!  answered,  executed, the   not executed: assembled,     dropped
//!  forgotten  answer is kept  held, run in order
//! ```
//!
//! `floor` is what the client tells with each request; an answer below it is known to have arrived.
//! `next` and the kept answers are a row of the store, written in the same transaction as what the
//! mutation did: so a server that starts again answers from the record, too.

use std::collections::BTreeMap;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assembly::{Added, Assembly};
use super::error::Refusal;
use super::raw;
use super::store::StoreError;
use super::wire::{Datagram, Header, Operation, PAYLOAD_MAX, PAYLOAD_MIN, WINDOW};
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
    unit: UnitId,
    payload_max: u32,
    floor: u64,
    next: u64,
    answers: BTreeMap<u64, Answer>,
    pending: BTreeMap<u64, Pending<P>>,
    /// Of a reader: the view of the lines before which it uses nothing.
    acknowledged: Option<u64>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSession {
    unit: U32,
    payload_max: U32,
    floor: U64,
    next: U64,
}
const _: () = assert!(size_of::<RawSession>() == 24);
/// No session comes so far: a stored number beyond is damage, and would overflow.
const NEXT_MAX: u64 = u64::MAX / 2;

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

impl<P: Clone> Session<P> {
    /// A session whose attach (mutation 0) is executed.
    pub fn new(unit: UnitId, payload_max: u32) -> Self {
        Session {
            unit,
            payload_max,
            floor: 0,
            next: 1,
            answers: BTreeMap::new(),
            pending: BTreeMap::new(),
            acknowledged: None,
        }
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
        self.unit
    }

    /// The largest datagram that the client takes.
    pub fn payload_max(&self) -> usize {
        self.payload_max as usize
    }

    /// Bytes of mutations that wait.
    pub fn buffered(&self) -> usize {
        let bytes = |pending: &Pending<P>| match pending {
            Pending::Parts(_, assembly) => assembly.bytes(),
            Pending::Held(_, _, body) => body.len(),
        };
        self.pending.values().map(bytes).sum()
    }

    /// Takes a mutation's datagram. Where there is no `room` only the next one to be executed is
    /// kept, so that those that wait for it can go on.
    pub fn admit(&mut self, peer: &P, datagram: &Datagram<'_>, room: bool) -> Admitted {
        let Header { operation, sequence, detail: floor, .. } = datagram.header;
        if floor > self.next || floor > sequence {
            return Admitted::Dropped;
        }
        self.floor = self.floor.max(floor);
        self.answers = self.answers.split_off(&self.floor);
        if sequence < self.next {
            return match self.answers.get(&sequence) {
                Some(answer) if answer.operation == operation => {
                    Admitted::Repeated((datagram.part == 0).then(|| answer.clone()))
                }
                _ => Admitted::Dropped,
            };
        }
        if sequence >= self.next + WINDOW || !(room || sequence == self.next) {
            return Admitted::Dropped;
        }
        let pending = self
            .pending
            .entry(sequence)
            .or_insert_with(|| Pending::Parts(operation, Assembly::new(datagram)));
        match pending {
            Pending::Held(known, _, _) => {
                *known = peer.clone();
                return Admitted::Kept;
            }
            Pending::Parts(known, _) if *known != operation => return Admitted::Dropped,
            Pending::Parts(_, assembly) => match assembly.add(datagram) {
                Added::Waiting | Added::Useless => return Admitted::Kept,
                Added::Whole(body) => {
                    *pending = Pending::Held(peer.clone(), datagram.header, body);
                }
            },
        }
        if sequence == self.next { Admitted::Ready } else { Admitted::Kept }
    }

    /// The next mutation, where it is whole.
    pub fn take_ready(&mut self) -> Option<(P, Header, Vec<u8>)> {
        if !matches!(self.pending.get(&self.next), Some(Pending::Held(..))) {
            return None;
        }
        match self.pending.remove(&self.next) {
            Some(Pending::Held(peer, header, body)) => Some((peer, header, body)),
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
            unit: U32::new(self.unit.0),
            payload_max: U32::new(self.payload_max),
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
        let mut session = Session::new(UnitId(head.unit.get()), head.payload_max.get());
        session.floor = head.floor.get();
        session.next = head.next.get();
        let sound = (PAYLOAD_MIN..=PAYLOAD_MAX).contains(&session.payload_max())
            && session.floor <= session.next
            && session.next <= NEXT_MAX;
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
        let mut session = Session::new(UnitId(3), 1472);
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
        let mut session = Session::new(UnitId(3), 1472);
        assert_eq!(admit(&mut session, &request(1 + WINDOW, 0, b"x")[0]), Admitted::Dropped);
        assert_eq!(admit(&mut session, &request(2, 2, b"x")[0]), Admitted::Dropped);
        let (second, first) = (request(2, 1, b"x"), request(1, 1, b"x"));
        let none = session.admit(&(), &parse(&second[0]).unwrap(), false);
        assert_eq!(none, Admitted::Dropped);
        assert_eq!(session.admit(&(), &parse(&first[0]).unwrap(), false), Admitted::Ready);
    }

    /// Goal: the row brings back what is needed to answer and to go on.
    #[test]
    fn rows_round_trip() {
        let mut session: Session<()> = Session::new(UnitId(3), 1472);
        session.executed(answer(b"a"));
        let outcome = Err((Refusal::NotGranted, 9));
        session.executed(Answer { operation: Operation::ReturnExtents, outcome });
        let again: Session<()> = Session::from_row(&session.row()).unwrap();
        assert_eq!(again.answers, session.answers);
        assert_eq!((again.floor, again.next, again.unit), (0, 3, UnitId(3)));
        assert!(Session::<()>::from_row(&session.row()[..30]).is_err());
    }

    /// Goal: a row that a session could not go on from (it would panic at the next answer) is
    /// refused.
    #[test]
    fn rows_have_bounds() {
        let row = |payload_max, floor, next| {
            let mut session: Session<()> = Session::new(UnitId(3), payload_max);
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
        let mut session = Session::new(UnitId(3), 1472);
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
