//! The corpus, as code: small valid inputs of every target, from which a fuzzer starts.
//!
//! They are files in `tests/fuzz/corpus/TARGET/`, written by
//!
//! ```text
//! cargo test --test fuzz_corpus -- --ignored write_seeds
//! ```
//!
//! to be done again when a format changes; inputs that once broke a parser are kept beside them
//! under other names.

use flipside::check::dump::{Dump, Verified};
use flipside::format::blocks::{BlockMap, BlockSet, Location};
use flipside::format::group::{Group, GroupState, Link, SLOT_BYTES, TransactionId};
use flipside::format::header::{HEADER_MAGIC, RegionHeader};
use flipside::format::home::{HOME_PAGE, Line};
use flipside::format::ids::{
    ExtentId, ExtentRun, Generation, Incarnation, LogicalExtent, PairId, PoolId, Sequence, Slot,
    UnitId, VolumeId,
};
use flipside::format::layout::{DeviceFacts, Geometry, plan};
use flipside::format::nvram::{self, NvramIdentity};
use flipside::format::page::{PAGE_HEADER, crc32c};
use flipside::format::record::{Binding, Payload, Record, Sum, pack};
use flipside::format::status::{ROOT, StatusEntry};
use flipside::format::superblock::{FlagsPlace, LEN, MAGIC, MetadataAt, PoolDevice, Superblock};
use flipside::format::warm;
use flipside::front::nbd::wire::{
    self, ExtendedRequestHeader, OptionHeader, RequestHeader, StatusFilter, command, command_flags,
    info, option,
};
use flipside::mds::catalog::PoolSpec;
use flipside::mds::groups::rows::{self, NamedVolume, NewGroup};
use flipside::mds::log::format::RecordBuffer;
use flipside::mds::overview::{GroupSeen, MemberSeen, RawGroupSeen, RawMemberSeen, Section};
use flipside::mds::raw::{self, RawAttach, RawForget, RawPage, RawPair, RawPrimitive, RawVolume};
use flipside::mds::records::{Claim, Grants, PairRecord, Primitive};
use flipside::mds::session::{Answer, Session};
use flipside::mds::store::{Changes, Table};
use flipside::mds::volume_table::Kept;
use flipside::mds::wire::{Header, Kind, Operation, PAYLOAD_MIN, encode};
use flipside::txn::coordinator::{self, Decision};
use flipside::txn::wire::{put_order, put_report};
use flipside::txn::{Atomic, AtomicId, COORDINATOR, GroupId, Order, Phase, Report, Stage, Trouble};
use zerocopy::IntoBytes;

use super::bodies::cursor::put_piece;
use super::bodies::journal::{POOL, stored_parts};
use super::bodies::metadata::{LOG, LOG_TAIL};

/// The seeds of a target: a name and the bytes of each.
pub fn of(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "capture" => vec![("ethernet", capture())],
        "command_line" => text(&[
            "64M",
            "10%",
            "1500ms",
            "never",
            "660",
            "data=10GiB",
            "75%,95%",
            "tcp:[::1]:10809",
        ]),
        "configuration" => text(&[
            "devices = ['/dev/sdx', '/dev/sdy']\nlisten = ['tcp:1']\nsocket-mode = '660'\n",
            "devices = 'a'\nread-only = false\ncommit-interval = '5s'\nlog = 'debug'\n",
        ]),
        "control" => text(&[
            r#"{"command":"status"}"#,
            r#"{"command":"commit","volume":"vol0"}"#,
            r#"{"command":"settle"}"#,
            r#"{"command":"volume","action":"list"}"#,
            r#"{"command":"volume","action":"resize","name":"v","size":4096,"shrink":true}"#,
            r#"{"command":"txn","action":"write","volume":"v","offset":0,"hex":"00ff"}"#,
            r#"{"command":"txn","action":"begin","id":"0f-1","members":2}"#,
            r#"{"command":"group","action":"create","name":"g","volumes":["a","p:b"]}"#,
            r#"{"command":"commit","group":"g"}"#,
        ]),
        "datagram" => datagrams(),
        "dump" => vec![("one_device", dump())],
        "foreign" => devices(),
        "group" => groups(),
        "home" => vec![("lines", home())],
        "metadata_log" => vec![("three_records", metadata_log())],
        "metadata_server" => vec![("conversation", conversation())],
        "nbd_handshake" => handshakes(),
        "nbd_request" => vec![("one_of_each", requests()), ("extended", extended_requests())],
        "nvram_identity" => vec![("two_copies", nvram_identity())],
        "record" => vec![("history", history())],
        "recovery" => vec![("three_groups", whole_region())],
        "region" => vec![("header", region())],
        "status" => vec![("root_and_entry", status())],
        "superblock" => vec![("one_device", superblock(1)), ("second_of_three", superblock(3))],
        "volume_table" => vec![("two_volumes", volume_table())],
        "warm_table" => vec![("three_entries", warm_table())],
        _ => panic!("{target} has no seeds"),
    }
}

fn text(texts: &[&'static str]) -> Vec<(&'static str, Vec<u8>)> {
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    NAMES.into_iter().zip(texts.iter().map(|text| text.as_bytes().to_vec())).collect()
}

fn metadata_log() -> Vec<u8> {
    let (epoch, before) = LOG_TAIL;
    let pair = |number: u8, value: Option<Vec<u8>>| ((Table::Pairs, vec![number]), value);
    let commits = [
        Changes::from([pair(1, Some(vec![7; 28])), ((Table::Layout, vec![2; 16]), Some(vec![]))]),
        Changes::from([pair(2, Some(vec![8; 5000])), pair(1, None)]),
        Changes::from([pair(3, Some(vec![9]))]),
    ];
    let mut record = RecordBuffer::default();
    let sealed = commits.iter().zip(before + 1..).map(|(changes, sequence)| {
        record.fill(changes);
        record.seal(LOG, epoch, sequence).to_vec()
    });
    sealed.collect::<Vec<_>>().concat()
}

fn nbd_option(option: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader {
        magic: wire::OPTION_MAGIC.into(),
        option: option.into(),
        length: (data.len() as u32).into(),
    };
    [header.as_bytes(), data].concat()
}

fn handshakes() -> Vec<(&'static str, Vec<u8>)> {
    let mut go = vec![0, 0, 0, 5];
    go.extend_from_slice(b"other");
    go.extend_from_slice(&[0, 2, 0, info::NAME as u8, 0, info::BLOCK_SIZE as u8]);
    let flags = |flags: u8| vec![3, 0, 0, 0, flags];
    let modern = [
        flags(3),
        nbd_option(option::LIST, &[]),
        nbd_option(99, &[7; 9]),
        nbd_option(option::STRUCTURED_REPLY, &[]),
        nbd_option(option::INFO, &go),
        nbd_option(option::GO, &go),
    ];
    let set = [&[0, 0, 0, 4][..], b"vol0", &[0, 0, 0, 1, 0, 0, 0, 15], b"base:allocation"].concat();
    let extended = [
        flags(3),
        nbd_option(option::EXTENDED_HEADERS, &[]),
        nbd_option(option::STRUCTURED_REPLY, &[]),
        nbd_option(option::SET_META_CONTEXT, &set),
        nbd_option(option::GO, &go),
    ];
    let old = [flags(1), nbd_option(option::EXPORT_NAME, b"vol0")];
    vec![("go", modern.concat()), ("extended", extended.concat()), ("export_name", old.concat())]
}

fn requests() -> Vec<u8> {
    let requests = [
        (command::READ, command_flags::DF, 4096, 8192),
        (command::WRITE, command_flags::FUA, 512, 512),
        (command::FLUSH, 0, 0, 0),
        (command::TRIM, 0, 1 << 20, 1 << 20),
        (command::WRITE_ZEROES, command_flags::NO_HOLE, 0, 1 << 30),
        (command::DISC, 0, 0, 0),
    ];
    let header = |(command, flags, offset, length): (u16, u16, u64, u32)| RequestHeader {
        magic: wire::REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: command.into(),
        cookie: *b"a cookie",
        offset: offset.into(),
        length: length.into(),
    };
    requests.map(|request| header(request).as_bytes().to_vec()).concat()
}

/// The last one has a payload.
fn extended_requests() -> Vec<u8> {
    let requests = [
        (command::READ, 0, 8192),
        (command::WRITE, command_flags::PAYLOAD_LEN, 512),
        (command::TRIM, 0, 1 << 30),
        (command::WRITE_ZEROES, command_flags::FAST_ZERO, 1 << 29),
        (command::BLOCK_STATUS, 0, 1 << 30),
        (command::BLOCK_STATUS, command_flags::PAYLOAD_LEN, size_of::<StatusFilter>() as u64),
    ];
    let header = |(command, flags, length): (u16, u16, u64)| ExtendedRequestHeader {
        magic: wire::EXTENDED_REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: command.into(),
        cookie: *b"a cookie",
        offset: 4096.into(),
        length: length.into(),
    };
    let headers = requests.map(|request| header(request).as_bytes().to_vec()).concat();
    let filter = StatusFilter { length: (1 << 20).into(), context: 1.into() };
    [&headers, filter.as_bytes()].concat()
}

fn superblock(devices: usize) -> Vec<u8> {
    let facts = vec![DeviceFacts { size: 256 << 20, sector: 512 }; devices];
    let layouts = plan(Geometry::DEFAULT, &facts).unwrap();
    let index = devices / 2;
    let of = |(i, layout): (usize, &flipside::format::layout::DeviceLayout)| PoolDevice {
        id: [i as u8 + 1; 16],
        extents: layout.extents.count,
    };
    let superblock = Superblock {
        revision: 3,
        pool: PoolId([9; 16]),
        device_index: index as u32,
        unit: UnitId(1),
        geometry: Geometry::DEFAULT,
        sector: 512,
        flags: FlagsPlace::Device,
        metadata: MetadataAt::Device,
        created_s: 1_700_000_000,
        layout: layouts[index],
        journal_reserve: 20,
        devices: layouts.iter().enumerate().map(of).collect(),
    };
    superblock.encode().to_vec()
}

fn devices() -> Vec<(&'static str, Vec<u8>)> {
    const FROM_END: u32 = 1 << 31;
    let device = |patches: &[(u32, &[u8])]| {
        let mut bytes = (4_u32 << 20).to_le_bytes().to_vec();
        for (place, patch) in patches {
            bytes.extend_from_slice(&place.to_le_bytes());
            put_piece(&mut bytes, patch);
        }
        bytes
    };
    vec![
        ("ext4", device(&[(1024 + 56, &[0x53, 0xef]), (1024 + 96, &[0x40])])),
        ("gpt", device(&[(512, b"EFI PART"), (FROM_END | 512, b"EFI PART")])),
        ("lvm", device(&[(512, b"LABELONE"), (512 + 24, b"LVM2 001")])),
        ("mbr", device(&[(446, &[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 1]), (510, b"\x55\xaa")])),
        ("zfs", device(&[((128 << 10) + 1024, &0x00ba_b10c_u64.to_le_bytes())])),
        ("raid_at_end", device(&[(FROM_END | 8192, &0xa92b_4efc_u32.to_le_bytes())])),
        ("flipside", device(&[(0, &MAGIC), (FROM_END | 4096, &MAGIC)])),
    ]
}

fn binding(generation: u32, extents: [Option<u32>; 2]) -> Binding {
    Binding {
        generation: Generation(generation),
        owner: Some((VolumeId(1), LogicalExtent(2))),
        extents: extents.map(|extent| extent.map(ExtentId)),
        data_slot: Slot::Zero,
    }
}

/// What is in the journal slots that hold a block's bytes, before zeros.
const HELD: &[u8] = b"the bytes of a block";

/// The journal slot for a block's bytes, as a record names it.
fn payload(slot: u32) -> Payload {
    let mut bytes = HELD.to_vec();
    bytes.resize(SLOT_BYTES, 0);
    Payload { slot, crc: crc32c(&bytes), veiled: false }
}

fn place(generation: u32, first: u16, count: u16, location: Location) -> Record {
    let payload = (first == 9).then(|| payload(4));
    let generation = Generation(generation);
    Record::Place { pair: PairId(3), generation, first, count, location, payload }
}

fn records() -> Vec<Record> {
    let bind = |binding| Record::Binding { pair: PairId(3), binding };
    vec![
        Record::Participant(UnitId(1)),
        bind(binding(1, [Some(10), None])),
        place(1, 0, 4, Location::At(Slot::Zero)),
        bind(binding(2, [Some(10), Some(11)])),
        place(2, 9, 1, Location::At(Slot::One)),
        place(2, 1, 255, Location::Unused),
        Record::Sum(Sum { offset: 512, block: 512, count: 3, sum: 0x1234_5678_9abc_def0 }),
    ]
}

fn history() -> Vec<u8> {
    let store = |record: &Record| {
        let mut bytes = vec![0; record.stored_len()];
        record.store(&mut bytes);
        bytes
    };
    // A participant is no change of a pair: what is applied begins with a binding.
    records().iter().map(store).collect::<Vec<_>>().concat()
}

fn group(sequence: u64, next_slot: u32, records: Vec<Record>) -> Group {
    Group {
        sequence: Sequence(sequence),
        incarnation: Incarnation(3),
        transaction: TransactionId { coordinator: 1, incarnation: Incarnation(3), number: 9 },
        domain: 4,
        state: GroupState::Committed,
        link: Link { slot: next_slot, sequence: Sequence(sequence + 1) },
        records,
    }
}

fn groups() -> Vec<(&'static str, Vec<u8>)> {
    let input = |records| {
        let mut bytes = Vec::new();
        for (slot, part) in stored_parts(&group(77, 12, records), 3) {
            bytes.push(slot as u8);
            put_piece(&mut bytes, &part);
        }
        bytes
    };
    let long: Vec<Record> = records().into_iter().cycle().take(200).collect();
    vec![("one_part", input(records())), ("two_parts", input(long)), ("empty", input(Vec::new()))]
}

/// The contents of a page whose last stored byte is not zero, without the zeros after it.
fn contents(page: &[u8]) -> Vec<u8> {
    let end = page.iter().rposition(|byte| *byte != 0).map_or(PAGE_HEADER, |last| last + 1);
    page[PAGE_HEADER..end].to_vec()
}

/// Writes, over what was pending and not, and trims of one epoch.
fn warm_table() -> Vec<u8> {
    let place = Record::placed(PairId(1), Generation(2), &(3..5), Location::Unused);
    let kept = Record::kept(PairId(1), Generation(2), 9, Location::At(Slot::One));
    let mut bytes = warm::run_head(7, 3).to_vec();
    let placed = Record::placed(PairId(1), Generation(2), &(6..8), Location::At(Slot::Zero));
    let entries =
        [(4, vec![place], 0), (6, vec![kept, place], 512), (7, vec![kept, placed], 512 + 16)];
    for (sequence, records, data) in entries {
        let (word, rest) = warm::entry_bytes(sequence, &pack(&records), &[&vec![9; data]]);
        bytes.extend_from_slice(&word.to_le_bytes());
        bytes.extend_from_slice(&rest);
    }
    bytes
}

fn home() -> Vec<u8> {
    let mut page = vec![0; HOME_PAGE];
    let mut map = BlockMap::NONE;
    map.set(BlockSet::range(3..9), Location::At(Slot::One));
    map.set(BlockSet::range(100..256), Location::At(Slot::Zero));
    Line { binding: binding(3, [Some(1), Some(2)]), map }.store(&mut page, 0);
    Line { binding: binding(1, [Some(7), None]), map: BlockMap::NONE }.store(&mut page, 1);
    Line::FREE.store(&mut page, 2);
    contents(&page)
}

fn status() -> Vec<u8> {
    let mut page = vec![0; 512];
    let link = Link { slot: 5, sequence: Sequence(8) };
    StatusEntry { of: ROOT, state: GroupState::Done, link }.store(&mut page, 0);
    let link = Link { slot: 6, sequence: Sequence(10) };
    StatusEntry { of: Sequence(9), state: GroupState::Prepared, link }.store(&mut page, 3);
    contents(&page)
}

fn region() -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[..4].copy_from_slice(&HEADER_MAGIC);
    let incarnation = Incarnation(2);
    RegionHeader { unit: UnitId(1), incarnation, slots: 500, pairs: 100, sector: 512 }
        .store(&mut page);
    contents(&page)
}

/// Three groups, of which the home knows nothing yet; the second was done since.
fn whole_region() -> Vec<u8> {
    let mut status = vec![0; 512];
    let link = Link { slot: 9, sequence: Sequence(77) };
    StatusEntry { of: ROOT, state: GroupState::Done, link }.store(&mut status, 0);
    let link = Link { slot: 3, sequence: Sequence(79) };
    StatusEntry { of: Sequence(78), state: GroupState::Done, link }.store(&mut status, 13);
    let mut bytes = 5_u64.to_le_bytes().to_vec();
    put_piece(&mut bytes, &[]);
    put_piece(&mut bytes, &contents(&status));
    put_piece(&mut bytes, &home());
    for (slot, sequence, next_slot) in [(9, 77, 12), (12, 78, 3), (3, 79, 40)] {
        // Each has a block in the slot behind its own.
        let mut records = records();
        for record in &mut records {
            if let Record::Place { payload: Some(held), .. } = record {
                *held = payload(slot + 1);
            }
        }
        bytes.push(slot as u8 + 1);
        put_piece(&mut bytes, HELD);
        for (slot, part) in stored_parts(&group(sequence, next_slot, records), slot) {
            bytes.push(slot as u8);
            put_piece(&mut bytes, &part);
        }
    }
    bytes
}

fn pair() -> PairRecord {
    PairRecord {
        volume: VolumeId(0),
        logical: LogicalExtent(3),
        pair: PairId(0),
        generation: Generation(1),
        slots: [Some(ExtentId(0)), None],
        data_slot: Slot::Zero,
    }
}

/// The group that is the first of a server, in its first transaction.
const GROUP: GroupId = GroupId(0);

fn global() -> TransactionId {
    TransactionId { coordinator: COORDINATOR, incarnation: Incarnation(1), number: 1 }
}

fn new_group() -> NewGroup {
    let named = |pool, name: &str| NamedVolume { pool, name: name.to_owned() };
    let volumes = vec![named(None, "vol0"), named(Some(PoolId([2; 16])), "vol1")];
    NewGroup { number: GROUP.0, name: "pair".to_owned(), volumes }
}

/// What a unit says of a group, one report for each phase.
fn reports() -> Vec<u8> {
    let refused = Phase::Refused("the disk is gone".to_owned());
    let mut body = Vec::new();
    for phase in [Phase::Idle, Phase::Sealed, Phase::Prepared, refused, Phase::Done] {
        let idle = phase == Phase::Idle;
        let atomic = (phase == Phase::Sealed).then_some(Atomic { id: AtomicId(7), members: 2 });
        let transaction = (!idle).then(global);
        let (group, version, life, wants) = (GROUP, 1, 1, idle);
        let report = Report { group, version, life, wants, atomic, transaction, phase };
        put_report(&report, &mut body);
    }
    body
}

/// What it is told, one order for each trouble.
fn orders() -> Vec<u8> {
    let (unit, reason) = ("unit 2 of pool p".to_owned(), "the disk is gone".to_owned());
    let silent = Trouble::Silent(unit.clone());
    let refused = Trouble::Refused { unit, reason };
    let mut body = Vec::new();
    for trouble in [None, Some(silent), Some(refused), Some(Trouble::Forming)] {
        let seals = trouble.is_none();
        let order = Order {
            group: GROUP,
            name: "pair".to_owned(),
            version: 1,
            volumes: vec![VolumeId(0), VolumeId(5)],
            shared: true,
            life: 1,
            whole: seals,
            transaction: seals.then(global),
            atomic: seals.then_some(Atomic { id: AtomicId(7), members: 2 }),
            stage: if seals { Stage::AllSealed } else { Stage::Rest },
            trouble,
        };
        put_order(&order, &mut body);
    }
    body
}

/// A group's rows, and what is shown of it.
fn rows_of_groups() -> [Vec<u8>; 4] {
    let name = "pair".to_owned();
    let members =
        [(POOL, [VolumeId(0), VolumeId(5)].into()), (PoolId::default(), [VolumeId(1)].into())];
    let group = coordinator::Group {
        id: GROUP,
        name: name.clone(),
        version: 1,
        life: 2,
        members: members.into(),
    };
    let (_, row) = rows::group_row(&group);
    let decision = Decision { transaction: global(), waiting: [POOL].into() };
    let (_, decided) = rows::decision_row(GROUP, Some(&decision));
    let trouble = Some(Trouble::Silent("unit 2".to_owned()));
    let transaction = Some(global());
    let stage = Stage::Committed;
    let (version, life) = (1, 2);
    let seen =
        GroupSeen { group: GROUP, name: name.clone(), version, life, transaction, stage, trouble };
    let (volume, attached, waited) = (VolumeId(5), true, true);
    let member = MemberSeen { group: GROUP, pool: POOL, volume, name, attached, waited };
    let shown = RawGroupSeen::from(&seen).as_bytes().to_vec();
    [row.unwrap(), decided.unwrap(), shown, RawMemberSeen::from(&member).as_bytes().to_vec()]
}

fn datagrams() -> Vec<(&'static str, Vec<u8>)> {
    let header = |kind, operation| Header { kind, operation, session: 7, sequence: 9, detail: 3 };
    let one = |header: &Header, body: &[u8]| encode(header, body, PAYLOAD_MIN).remove(0);
    let transact = RawPrimitive::from(&Primitive::BindData(pair()));
    let owned = [&1_u32.to_le_bytes(), RawPair::from(&pair()).as_bytes()].concat();
    let volume = RawVolume::named(VolumeId(2), "vol0", 1 << 30).unwrap();
    let claim = Claim::of(POOL, UnitId(3), Incarnation(1));
    let mut session: Session<()> = Session::new(claim, 1472, 0);
    session.executed(Answer { operation: Operation::Transact, outcome: Ok(vec![1, 2, 3]) });
    let request = |operation, body: &[u8]| one(&header(Kind::Request, operation), body);
    let run = ExtentRun { start: ExtentId(3), count: 9 };
    let grants = raw::grants_body(&Grants { runs: vec![run], data_quota: 9 });
    let reply = |operation, body: &[u8]| one(&header(Kind::Reply(Ok(())), operation), body);
    let refused = Kind::Reply(Err(flipside::mds::error::Refusal::NameTaken));
    let [group, decision, seen, member] = rows_of_groups();
    vec![
        ("transact", request(Operation::Transact, transact.as_bytes())),
        ("first_of_three", request(Operation::Transact, &[0; 3000])),
        ("layout", reply(Operation::Layout, &owned)),
        ("grants", reply(Operation::AllocateDataExtents, &grants)),
        ("volume", reply(Operation::CreateVolume, volume.as_bytes())),
        ("pool_spec", request(Operation::RegisterPool, &raw::pool_spec_body(POOL, &pool_spec()))),
        ("overview", request(Operation::Overview, &Section::Sessions(3).body(100))),
        ("session_row", reply(Operation::Renew, &session.row())),
        ("refusal", one(&header(refused, Operation::CreateVolume), &[])),
        ("reports", request(Operation::Coordinate, &reports())),
        ("orders", reply(Operation::Coordinate, &orders())),
        ("new_group", request(Operation::CreateGroup, &new_group().body())),
        ("group_row", reply(Operation::Overview, &group)),
        ("decision_row", reply(Operation::Overview, &decision)),
        ("group_seen", reply(Operation::Overview, &seen)),
        ("member_seen", reply(Operation::Overview, &member)),
    ]
}

fn pool_spec() -> PoolSpec {
    let run = ExtentRun { start: ExtentId(0), count: 32 };
    PoolSpec { extent_size: 1 << 20, devices: vec![run], reserve: 2 }
}

fn conversation() -> Vec<u8> {
    let attach = RawAttach::new(
        &Claim::of(PoolId::default(), UnitId(1), Incarnation(1)),
        PAYLOAD_MIN as u32,
    );
    let volume = RawVolume::named(VolumeId(0), "vol0", 64 << 20).unwrap();
    let page = RawPage { volume: 0.into(), count: 10.into(), from: 0.into() };
    let bind = RawPrimitive::from(&Primitive::BindData(pair()));
    let release = PairRecord { generation: Generation(2), slots: [None; 2], ..pair() };
    let release = RawPrimitive::from(&Primitive::ReleasePair(release));
    let back = [1_u32, 0, 1].map(u32::to_le_bytes).concat();
    let spec = raw::pool_spec_body(POOL, &pool_spec());
    let forget = RawForget::new(POOL, 0, true);
    let overview = [Section::Counters, Section::Pools(PoolId::default()), Section::Sessions(0)];
    let overview = overview.map(|section| section.body(400));
    let groups = [Section::Groups(0), Section::Members(0)].map(|section| section.body(700));
    let one_volume = NewGroup { volumes: new_group().volumes[..1].to_vec(), ..new_group() }.body();
    let said = reports();
    let messages: &[(Operation, &[u8])] = &[
        (Operation::RegisterPool, &spec),
        (Operation::Attach, attach.as_bytes()),
        (Operation::CreateVolume, volume.as_bytes()),
        (Operation::AllocateDataExtents, &4_u32.to_le_bytes()),
        (Operation::AllocateJournalSpace, &2_u32.to_le_bytes()),
        (Operation::Transact, bind.as_bytes()),
        (Operation::ListVolumes, page.as_bytes()),
        (Operation::ListGrants, page.as_bytes()),
        (Operation::Layout, page.as_bytes()),
        (Operation::Transact, release.as_bytes()),
        (Operation::ReturnExtents, &back),
        (Operation::Status, &[]),
        (Operation::Renew, &[]),
        (Operation::CreateGroup, &one_volume),
        (Operation::Coordinate, &said),
        (Operation::Coordinate, &said[..32]),
        (Operation::Overview, &groups[0]),
        (Operation::Overview, &groups[1]),
        (Operation::DeleteGroup, &0_u32.to_le_bytes()),
        (Operation::ResizeVolume, volume.as_bytes()),
        (Operation::RenameVolume, volume.as_bytes()),
        (Operation::DeleteVolume, volume.as_bytes()),
        (Operation::RemoveVolume, volume.as_bytes()),
        (Operation::Overview, &overview[0]),
        (Operation::Overview, &overview[1]),
        (Operation::Overview, &overview[2]),
        (Operation::ForgetPool, forget.as_bytes()),
        (Operation::Detach, &[]),
    ];
    let mut bytes = Vec::new();
    for (operation, body) in messages {
        let choice = Operation::ALL.iter().position(|other| other == operation).unwrap();
        bytes.push(choice as u8);
        put_piece(&mut bytes, body);
    }
    bytes
}

fn volume_table() -> Vec<u8> {
    let volume = |id: u32| {
        let row = RawVolume::named(VolumeId(id), "vol", 1 << 20).unwrap();
        ((Table::Volumes, id.to_be_bytes().to_vec()), row.as_bytes().to_vec())
    };
    let pool = ((Table::Pool, Vec::new()), vec![1; 24]);
    let kept = Kept { sequence: 3, rows: [pool, volume(0), volume(5)].into() };
    let mut bytes = kept.encode(POOL).unwrap();
    bytes.truncate(512);
    bytes
}

fn dump() -> Vec<u8> {
    let superblock = Superblock::parse(&superblock(1)[..LEN]).unwrap();
    let extents = superblock.pool_extents() as usize;
    let numbers = [2, extents as u32, superblock.journal_reserve, 1 << 20, extents as u32, 1];
    let pool_row = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let volume = RawVolume::named(VolumeId(0), "vol", 8 << 20).unwrap();
    let rows = [
        ((Table::Pool, Vec::new()), pool_row),
        ((Table::Volumes, vec![0; 4]), volume.as_bytes().to_vec()),
    ];
    let mut lines = vec![Line::FREE; extents];
    lines[1] = Line {
        binding: Binding {
            generation: Generation(3),
            owner: Some((VolumeId(0), LogicalExtent(2))),
            extents: [Some(ExtentId(4)), Some(ExtentId(5))],
            data_slot: Slot::One,
        },
        map: BlockMap::new([BlockSet::range(0..3), BlockSet::range(3..9)]).unwrap(),
    };
    let kept = Kept { sequence: 2, rows: rows.into() };
    let incarnation = Incarnation(7);
    let verified = Verified { superblocks: vec![superblock], incarnation, kept, lines };
    let dump = Dump::new(&verified, 0, None);
    dump.verify().unwrap();
    serde_json::to_vec(&dump).unwrap()
}

fn nvram_identity() -> Vec<u8> {
    let mut bytes = vec![0; 2 * nvram::LEN];
    NvramIdentity { pool: POOL, region: [7; 16], len: 1 << 20 }.store(&mut bytes);
    bytes
}

/// A capture of an Ethernet with one datagram of the metadata protocol.
fn capture() -> Vec<u8> {
    let [(_, datagram), ..] = &datagrams()[..] else { panic!("there are datagrams") };
    let udp_len = 8 + datagram.len() as u16;
    let mut frame = [[0; 12].as_slice(), &[8, 0, 0x45]].concat();
    // An IPv4 header without options, of UDP, and the ports.
    frame.extend([0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    frame.extend([[0x2a, 0x3a], [0x2a, 0x3a], udp_len.to_be_bytes(), [0, 0]].as_flattened());
    frame.extend(datagram);
    let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
    for field in [1, 0, frame.len() as u32, frame.len() as u32] {
        file.extend(field.to_le_bytes());
    }
    file.extend(frame);
    file
}
