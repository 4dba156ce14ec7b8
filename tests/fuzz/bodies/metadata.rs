//! The metadata protocol: datagrams, the records in them, and a server that gets them.

use flipside::check::dump::Dump;
use flipside::env::Moment;
use flipside::format::ids::{ExtentId, ExtentRun, PoolId};
use flipside::format::page::crc32c;
use flipside::mds::assembly::{Added, Assembly};
use flipside::mds::catalog::{Catalog, PoolSpec};
use flipside::mds::groups::prepared::Part;
use flipside::mds::groups::rows::{self, Deletion, NewGroup};
use flipside::mds::log::format::{BLOCK, Identity, RecordBuffer, replay};
use flipside::mds::overview::{GroupSeen, MemberSeen, RawGroupSeen, RawMemberSeen, Section};
use flipside::mds::pools::Pools;
use flipside::mds::raw::{
    self, RawAttach, RawForget, RawOwned, RawPage, RawPool, RawPrimitive, RawVolume,
};
use flipside::mds::records::{Claim, PairRecord, Primitive, VolumeInfo};
use flipside::mds::server::Server;
use flipside::mds::session::{Answer, Session};
use flipside::mds::store::{self, Changes};
use flipside::mds::volume_table::Kept;
use flipside::mds::wire::{self, HEADER_BYTES, Header, Kind, Operation};
use flipside::txn::wire::{REPORT_BYTES_MAX, orders, put_order, put_report, reports};

use super::cursor::Cursor;
use super::journal::POOL;
use super::store::Rows;

/// Where in a header the body's length, the message's checksum and the datagram's are.
const LENGTH_AT: usize = 36;
const MESSAGE_CRC_AT: usize = 44;
const CRC_AT: usize = 48;
/// How much of a header the datagram's checksum covers.
const COVERED: usize = 56;
/// The session of the server's only client.
const SESSION: u64 = 7;
/// The operation byte from which on a message is sent as a datagram of its own making.
const RAW_FROM: u64 = 200;
/// From one turn of the server to the next, in nanoseconds.
const TURN_NS: u64 = 1_000_000_000;

/// One datagram, as it is and with its checksums made good, and the records in its body, whichever
/// operation they may be of.
pub fn datagram(data: &[u8]) -> bool {
    let as_it_is = wire::parse(data).is_ok_and(|datagram| assembled(&datagram));
    let mut bytes = data.to_vec();
    seal(&mut bytes);
    let made_good = wire::parse(&bytes).is_ok_and(|datagram| assembled(&datagram));
    let body = data.get(HEADER_BYTES..).unwrap_or_default();
    records(body);
    of_groups(body);
    as_it_is || made_good
}

/// Makes length and checksums of a datagram good.
fn seal(bytes: &mut [u8]) {
    let Some(body_len) = bytes.len().checked_sub(HEADER_BYTES) else { return };
    bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&(body_len as u32).to_le_bytes());
    let message_crc = crc32c(&bytes[HEADER_BYTES..]);
    bytes[MESSAGE_CRC_AT..MESSAGE_CRC_AT + 4].copy_from_slice(&message_crc.to_le_bytes());
    bytes[CRC_AT..CRC_AT + 4].fill(0);
    let crc = crc32c(&[&bytes[..COVERED], &bytes[HEADER_BYTES..]].concat());
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

fn assembled(datagram: &wire::Datagram<'_>) -> bool {
    assert!(datagram.part < datagram.parts);
    let mut assembly = Assembly::new(datagram);
    match assembly.add(datagram) {
        Added::Whole(body) => assert!(datagram.parts == 1 && body == datagram.body),
        Added::Waiting => assert!(datagram.parts > 1),
        Added::Useless => assert_eq!(assembly.bytes(), 0),
    }
    // The same part again changes nothing.
    let _ = assembly.add(datagram);
    assert!(assembly.bytes() <= wire::MESSAGE_BYTES_MAX);
    true
}

/// A body as the records of every operation.
fn records(body: &[u8]) {
    for raw in raw::many::<RawPrimitive>(body).into_iter().flatten() {
        if let Ok(primitive) = Primitive::try_from(raw) {
            let again = Primitive::try_from(&RawPrimitive::from(&primitive));
            assert_eq!(again, Ok(primitive));
        }
    }
    for raw in raw::many::<RawOwned>(body).into_iter().flatten() {
        let _ = PairRecord::try_from(&raw.pair);
    }
    for run in raw::runs(body).into_iter().flatten() {
        assert!(run.end() > run.start);
    }
    if let Ok(volume) = raw::one::<RawVolume>(body).and_then(|raw| VolumeInfo::try_from(&raw)) {
        assert_eq!(VolumeInfo::try_from(&RawVolume::from(&volume)), Ok(volume));
    }
    let _ = raw::one::<RawAttach>(body).map(|raw| Claim::try_from(&raw));
    let _ = raw::one::<RawPool>(body);
    let _ = raw::one::<RawForget>(body).map(|raw| raw.parts());
    if let Ok((pool, spec)) = raw::pool_spec(body) {
        assert_eq!(raw::pool_spec(&raw::pool_spec_body(pool, &spec)), Ok((pool, spec)));
    }
    if let Ok(section) = Section::parse(body) {
        assert_eq!(section.body(body.len()), body);
    }
    if let Ok(part) = Part::parse(body) {
        let again = Part::parse(&part.body());
        assert_eq!(again, Ok(part));
    }
    if let Ok(deletion) = Deletion::parse(body) {
        assert_eq!(deletion.body(), body);
    }
    let _ = raw::one::<RawPage>(body);
    if let Ok(mut session) = Session::<()>::from_row(body) {
        assert!(Session::<()>::from_row(&session.row()).is_ok());
        session.executed(Answer { operation: Operation::Transact, outcome: Ok(body.to_vec()) });
        assert!(wire::PAYLOAD_MIN <= session.payload_max());
    }
}

/// A body as what is said of consistency groups, and as their rows.
fn of_groups(body: &[u8]) {
    if let Ok(said) = reports(body) {
        let mut again = Vec::new();
        said.iter().for_each(|report| put_report(report, &mut again));
        assert!(again == body && again.len() <= said.len() * REPORT_BYTES_MAX);
    }
    if let Ok(given) = orders(body) {
        // Texts that are too long are cut, and those of no trouble left out: once.
        let mut once = Vec::new();
        given.iter().for_each(|order| put_order(order, &mut once));
        let mut twice = Vec::new();
        let cut = orders(&once).expect("what was stored can be parsed");
        cut.iter().for_each(|order| put_order(order, &mut twice));
        assert!(once == twice && once.len() <= body.len());
    }
    if let Ok(asked) = NewGroup::parse(body) {
        assert_eq!(asked.body(), body);
    }
    for raw in raw::many::<RawGroupSeen>(body).into_iter().flatten() {
        if let Ok(seen) = GroupSeen::try_from(raw) {
            assert_eq!(GroupSeen::try_from(&RawGroupSeen::from(&seen)), Ok(seen));
        }
    }
    for raw in raw::many::<RawMemberSeen>(body).into_iter().flatten() {
        if let Ok(seen) = MemberSeen::try_from(raw) {
            assert_eq!(MemberSeen::try_from(&RawMemberSeen::from(&seen)), Ok(seen));
        }
    }
    // A row's key is the number that it begins with.
    let number = body.first_chunk().map_or(0, |number| u32::from_le_bytes(*number));
    let key = store::key(&[number]);
    if let Ok(group) = rows::parse_group(&key, body) {
        let ((_, key), row) = rows::group_row(&group);
        assert_eq!(rows::parse_group(&key, &row.expect("a row")), Ok(group));
    }
    if let Ok((id, decision)) = rows::parse_decision(&key, body) {
        let ((_, key), row) = rows::decision_row(id, Some(&decision));
        assert_eq!(rows::parse_decision(&key, &row.expect("a row")), Ok((id, decision)));
    }
}

/// A conversation with a server that has an empty pool, its only one or one of several: each
/// message a byte for its operation and its body, sent in the session's order; or a datagram with
/// its checksums made good. Whether any mutation was done.
pub fn server(data: &[u8]) -> bool {
    let spec = PoolSpec {
        extent_size: 1 << 20,
        devices: vec![ExtentRun { start: ExtentId(0), count: 64 }],
        reserve: 4,
    };
    let catalog = Catalog::create(Box::new(Rows::default()), &spec).expect("memory does not fail");
    let single = converse(Pools::single(catalog), data);
    let mut hosted = Pools::hosted(Box::new(Rows::default())).expect("memory does not fail");
    hosted.register(PoolId::default(), spec).expect("it is the first");
    converse(hosted, data) || single
}

fn converse(pools: Pools, data: &[u8]) -> bool {
    let mut server = Server::new(pools).expect("memory does not fail");
    let (mut sequence, mut done) = (0, false);
    let mut cursor = Cursor(data);
    let mut now = 0;
    while !cursor.is_empty() {
        now += TURN_NS;
        let choice = cursor.number(1);
        let body = cursor.piece();
        if choice >= RAW_FROM {
            let mut bytes = body.to_vec();
            seal(&mut bytes);
            server.handle(Moment(now), [((), bytes)]);
            continue;
        }
        let operation = Operation::ALL[choice as usize % Operation::ALL.len()];
        let ordered = operation.is_ordered();
        let header = Header {
            kind: Kind::Request,
            operation,
            session: SESSION,
            sequence: if operation == Operation::Attach { 0 } else { sequence },
            detail: if ordered { sequence } else { 0 },
        };
        let datagrams = wire::encode(&header, body, wire::PAYLOAD_MIN);
        let asked: usize = datagrams.iter().map(Vec::len).sum();
        let arrived = datagrams.into_iter().map(|datagram| ((), datagram));
        let replies = server.handle(Moment(now), arrived);
        if operation.is_sessionless() {
            // Who is nudged is a unit that is attached, and need not be who has asked.
            let answers = replies.iter().filter(|((), reply)| {
                wire::parse(reply).is_ok_and(|reply| reply.header.kind != Kind::Nudge)
            });
            let told: usize = answers.map(|((), reply)| reply.len()).sum();
            assert!(told <= asked, "{operation:?}: {told} bytes for {asked}");
        }
        let answers = replies.iter().map(|((), reply)| wire::parse(reply).map(|r| r.header.kind));
        let went_well = answers.into_iter().any(|kind| kind == Ok(Kind::Reply(Ok(()))));
        done |= ordered && went_well;
        if ordered && (operation != Operation::Attach || sequence == 0) {
            sequence += 1;
        }
        assert!(server.failure().is_none(), "memory does not fail");
        let status = server.status();
        assert!(status.extents_free <= status.extents && status.data_quota <= status.extents);
    }
    done
}

/// A place of the volume table, as it is and with its checksum made good.
pub fn volume_table(data: &[u8]) -> bool {
    let as_it_is = Kept::parse(data, POOL).is_some();
    let mut bytes = data.to_vec();
    let used = bytes.get(44..48).map(|used| u32::from_le_bytes(used.try_into().expect("four")));
    if let Some(covered) = used.and_then(|used| bytes.get_mut(..used as usize))
        && let Some(crc) = covered.get_mut(12..16)
    {
        crc.fill(0);
        let crc = crc32c(covered).to_le_bytes();
        bytes[12..16].copy_from_slice(&crc);
    }
    let made_good = Kept::parse(&bytes, POOL);
    if let Some(kept) = &made_good
        && let Some(encoded) = kept.encode(POOL)
    {
        assert_eq!(Kept::parse(&encoded, POOL).as_ref(), Some(kept));
    }
    as_it_is || made_good.is_some()
}

/// The log whose records are tried.
pub const LOG: Identity = Identity([4; 16]);
/// The epoch of its half, and the record that the first one follows.
pub const LOG_TAIL: (u64, u64) = (3, 10);

/// A half of the store's log, as it is and with the checksums of its records made good. Whether any
/// record was believed.
pub fn log(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    let as_it_is = replayed(&bytes);
    for at in (0..bytes.len()).step_by(BLOCK) {
        let length = bytes.get(at + 24..at + 28).and_then(|length| length.try_into().ok());
        let length = length.map_or(0, u32::from_le_bytes) as usize;
        if let Some(record) = bytes.get_mut(at..at.saturating_add(32 + length)) {
            record[4..8].copy_from_slice(&crc32c(&LOG.0).to_le_bytes());
            let crc = crc32c(record).to_le_bytes();
            record[4..8].copy_from_slice(&crc);
        }
    }
    replayed(&bytes) || as_it_is
}

fn replayed(half: &[u8]) -> bool {
    let (epoch, before) = LOG_TAIL;
    let mut changes = Changes::new();
    let Ok(last) = replay(half, LOG, epoch, before, &mut changes) else { return false };
    assert!(last >= before && last - before <= half.len().div_ceil(BLOCK) as u64);
    let mut record = RecordBuffer::default();
    record.fill(&changes);
    let mut again = Changes::new();
    let sealed = record.seal(LOG, epoch, before + 1);
    assert_eq!(replay(sealed, LOG, epoch, before, &mut again), Ok(before + 1));
    assert_eq!(again, changes);
    last > before
}

/// A dump of the metadata: what is accepted is dumped as it was.
pub fn dump(data: &[u8]) -> bool {
    let Ok(dump) = serde_json::from_slice::<Dump>(data) else { return false };
    match dump.verify() {
        Ok(verified) => {
            let again = Dump::new(&verified, 0, None);
            assert_eq!(again.verify().expect("it was").lines, verified.lines);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
