//! What strangers can do who send any bytes, or what they have recorded.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::format::ids::{Incarnation, PoolId};
use crate::mds::pools::Pools;
use crate::mds::raw::RawAttach;
use crate::mds::testing::{create, serve};
use crate::mds::wire::{HEADER_BYTES, encode};

/// Where the client is, and where the stranger is.
const CLIENT: u8 = 1;
const STRANGER: u8 = 2;

fn request(session: u64, operation: Operation, sequence: u64, body: &[u8]) -> Vec<u8> {
    let header = Header { kind: Kind::Request, operation, session, sequence, detail: 1 };
    let detail = sequence.min(1);
    encode(&Header { detail, ..header }, body, PAYLOAD_MIN).remove(0)
}

fn attach(session: u64, incarnation: u32) -> Vec<u8> {
    let claim = Claim::of(PoolId::default(), UnitId(1), Incarnation(incarnation));
    request(session, Operation::Attach, 0, RawAttach::new(&claim, 1472).as_bytes())
}

fn sent(server: &mut Server<u8>, from: u8, bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    server.handle(Moment(1), [(from, bytes.to_vec())])
}

fn server() -> (crate::mds::testing::Memory, Server<u8>) {
    let (memory, catalog) = create(1000, 0);
    (memory, Server::new(Pools::single(catalog)).unwrap())
}

/// All that a server keeps, as far as it can be asked for it.
fn contents(server: &Server<u8>) -> ([u64; 4], BTreeMap<u64, Vec<u8>>) {
    let sessions = server.sessions.iter().map(|(id, session)| (id, session.row())).collect();
    let ServerStatus { volumes, extents_free, data_quota, transactions, .. } = server.status();
    ([volumes, extents_free, data_quota, transactions], sessions)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Goal: a datagram of any bytes, whether or not it looks like one of ours, is answered with
    /// no more bytes than it has.
    #[test]
    fn no_answer_is_larger_than_its_request(
        operation in prop::sample::select(Operation::ALL), session in 0..3u64, sequence in 0..3u64,
        body in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0..400usize, flip in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (_memory, mut server) = server();
        let mut bytes = request(session, operation, sequence, &body);
        if let Some(flip) = flip {
            let at = flip.index(bytes.len());
            bytes[at] ^= 0x40;
        }
        bytes.truncate(cut.max(HEADER_BYTES - 1));
        for datagram in [bytes, body] {
            let replies = sent(&mut server, STRANGER, &datagram);
            let answered: usize = replies.iter().map(|(_, reply)| reply.len()).sum();
            prop_assert!(answered <= datagram.len(), "{answered} for {}", datagram.len());
        }
    }
}

/// Goal: everything that a session ever sent, sent again by a stranger at any time, changes
/// nothing: while the session lives, after a later one has replaced it, after its end, and after a
/// restart of the server. No query of it is answered to the stranger while the client lives.
#[test]
fn recorded_sessions_change_nothing() {
    let (memory, mut server) = server();
    let volume = RawVolume::named(VolumeId(0), "vol0", 1 << 20).unwrap();
    let page = RawPage { volume: U32::new(0), count: U32::new(10), from: U64::new(0) };
    let recorded = [
        attach(5, 1),
        request(5, Operation::CreateVolume, 1, volume.as_bytes()),
        request(5, Operation::AllocateDataExtents, 2, U32::new(10).as_bytes()),
        request(5, Operation::ListVolumes, 0, page.as_bytes()),
        request(5, Operation::Detach, 3, &[]),
    ];
    let replay = |server: &mut Server<u8>, up_to: usize| {
        let before = contents(server);
        for bytes in recorded.iter().take(up_to).chain(recorded.iter().take(up_to).rev()) {
            let replies = sent(server, STRANGER, bytes);
            let answered: usize = replies.iter().map(|(_, reply)| reply.len()).sum();
            assert!(answered <= 2 * bytes.len());
        }
        assert_eq!(contents(server), before);
    };
    for (index, bytes) in recorded.iter().enumerate() {
        let replies = sent(&mut server, CLIENT, bytes);
        assert_eq!(replies.len(), 1, "request {index}");
        replay(&mut server, index + 1);
        if index == 3 {
            assert_eq!(sent(&mut server, STRANGER, bytes), [], "the client is elsewhere");
            assert_eq!(sent(&mut server, CLIENT, bytes).len(), 1);
        }
    }
    assert_eq!(server.sessions.len(), 0);
    assert_eq!(sent(&mut server, CLIENT, &attach(6, 2)).len(), 1);
    replay(&mut server, recorded.len());
    drop(server);
    let mut server = serve(&memory);
    replay(&mut server, recorded.len());
    assert_eq!(server.sessions.iter().map(|(id, _)| id).collect::<Vec<_>>(), [6]);
}
