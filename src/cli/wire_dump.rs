//! `flipside wire-dump`: shows the metadata protocol's datagrams in a network capture.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Serialize;
use zerocopy::little_endian::{U32, U64};

use crate::format::group::TransactionId;
use crate::format::home::Line;
use crate::format::ids::{PairId, PoolId};
use crate::format::record;
use crate::mds::auth::Key;
use crate::mds::catalog::PoolSpec;
use crate::mds::error::Refusal;
use crate::mds::groups::prepared::Part;
use crate::mds::groups::rows::{Deletion, NewGroup};
use crate::mds::overview::Section;
use crate::mds::raw::{
    self, RawAttach, RawChanges, RawForget, RawOwned, RawPage, RawPool, RawPrimitive, RawRun,
    RawSince, RawTold, RawVolume,
};
use crate::mds::records::{Claim, PairRecord, Primitive, ServerStatus, VolumeInfo};
use crate::mds::wire::{self, Claimed, Datagram, HEADER_BYTES, Kind, Operation};
use crate::observe::pcap::{Capture, Captured};
use crate::txn::{self, Atomic, Order, Report};

use super::network::KeyArgs;
use crate::env::os::Seal as _;

const EXAMPLES: &str = "\
Examples:
  tcpdump -i any -w mds.pcap udp port 10810
  flipside wire-dump mds.pcap
  flipside wire-dump --verbose --key-file /etc/flipside.key mds.pcap
  flipside wire-dump --json mds.pcap | jq 'select(.kind == \"refused\")'";

/// Flags of `flipside wire-dump`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Show the records in the datagrams, too
    #[arg(long, short)]
    verbose: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    key: KeyArgs,
    /// A classic capture, as tcpdump -w writes it
    #[arg(value_name = "FILE.pcap")]
    file: PathBuf,
}

/// One datagram as it is shown.
#[derive(Debug, PartialEq, Serialize)]
struct Shown {
    /// Seconds since 1970.
    time: String,
    from: String,
    to: String,
    /// `request`, `reply`, `refused` or `nudge`.
    kind: &'static str,
    operation: String,
    /// In hexadecimal: all its digits are random.
    session: String,
    sequence: u64,
    /// From 1.
    part: u16,
    parts: u16,
    /// Of the body, in bytes.
    length: usize,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    /// Of a request, the lowest mutation not answered yet; of a refusal, what it is about.
    detail: u64,
    crc: &'static str,
    /// `none`, `there`, or, where the key was given, `good` or `wrong`.
    authenticator: &'static str,
    /// What is wrong with it, if it is no datagram that anybody takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    garbage: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<String>,
}

/// Shows a capture.
pub fn run(args: &Args) -> Result<()> {
    let name = || args.file.display().to_string();
    let key = args.key.read()?;
    let bytes = fs::read(&args.file).with_context(name)?;
    let mut capture = Capture::open(&bytes).with_context(name)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut others = 0u64;
    for captured in &mut capture {
        let Some(shown) = show(&captured, key.as_ref(), args.verbose) else {
            others += 1;
            continue;
        };
        if args.json {
            serde_json::to_writer(&mut out, &shown)?;
            writeln!(out)?;
        } else {
            write!(out, "{}", shown.text())?;
        }
    }
    out.flush()?;
    tell_rest(&capture, others);
    Ok(())
}

/// What was not shown.
fn tell_rest(capture: &Capture<'_>, others: u64) {
    let counts = [
        (others, "datagrams of other protocols"),
        (capture.passed_over(), "frames without UDP"),
        (capture.fragments(), "fragments, which are not put together"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        eprintln!("flipside: not shown: {count} {what}");
    }
    if capture.ends_early() {
        eprintln!("flipside: the capture ends in the middle of a frame");
    }
}

/// The datagram as it is shown; none of another protocol.
fn show(captured: &Captured<'_>, key: Option<&Key>, verbose: bool) -> Option<Shown> {
    let claimed = wire::claimed(captured.bytes)?;
    let Claimed { session, sequence, detail, part: (part, parts), .. } = claimed;
    let operation = Operation::from_code(claimed.operation).map_or_else(
        || format!("operation {}", claimed.operation),
        |known| known.name().to_owned(),
    );
    let refusal = Refusal::from_code(claimed.status).map(|refusal| refusal.to_string());
    let status = (claimed.status != 0)
        .then(|| refusal.unwrap_or_else(|| format!("status {}", claimed.status)));
    let parsed = wire::parse(captured.bytes);
    let cut = || (!captured.whole).then(|| "the capture does not have all of it".to_owned());
    let garbage = cut().or_else(|| parsed.as_ref().err().map(ToString::to_string));
    Some(Shown {
        time: format!(
            "{}.{:06}",
            captured.time_ns / 1_000_000_000,
            captured.time_ns / 1000 % 1_000_000
        ),
        from: captured.from.to_string(),
        to: captured.to.to_string(),
        kind: match (claimed.kind, claimed.status) {
            (0, _) => "request",
            (2, _) => "nudge",
            (_, 0) => "reply",
            _ => "refused",
        },
        operation,
        session: format!("{session:016x}"),
        sequence,
        part: part.saturating_add(1),
        parts,
        length: captured.bytes.len() - HEADER_BYTES,
        status,
        detail,
        crc: if claimed.sound { "good" } else { "wrong" },
        authenticator: match (claimed.sealed, key) {
            (false, _) => "none",
            (true, None) => "there",
            (true, Some(key)) if key.opens(captured.bytes) => "good",
            (true, Some(_)) => "wrong",
        },
        garbage,
        records: parsed.iter().filter(|_| verbose).flat_map(records).collect(),
    })
}

impl Shown {
    fn text(&self) -> String {
        let Shown { time, from, to, kind, operation, session, sequence, .. } = self;
        let mut text = format!("{time} {from} > {to} {kind} {operation} {session}:{sequence}");
        if self.parts > 1 {
            let _ = write!(text, " part {}/{}", self.part, self.parts);
        }
        let _ = write!(text, " {} bytes", self.length);
        if let Some(status) = &self.status {
            let _ = write!(text, ": {status} ({})", self.detail);
        }
        if self.authenticator != "none" {
            let _ = write!(text, ", authenticator {}", self.authenticator);
        }
        if self.crc != "good" {
            text.push_str(", CRC wrong");
        }
        if let Some(garbage) = &self.garbage {
            let _ = write!(text, " [{garbage}]");
        }
        text.push('\n');
        for record in &self.records {
            let _ = writeln!(text, "    {record}");
        }
        text
    }
}

/// The records of a body, one a line; of a message in parts only that it is one.
fn records(datagram: &Datagram<'_>) -> Vec<String> {
    let body = datagram.body;
    if datagram.parts > 1 {
        return vec![format!("{} bytes of a message in {} parts", body.len(), datagram.parts)];
    }
    let parsed = match datagram.header.kind {
        Kind::Request => request(datagram.header.operation, body),
        Kind::Reply(Ok(())) | Kind::Nudge => reply(datagram.header.operation, body),
        Kind::Reply(Err(_)) => None,
    };
    let unknown =
        || if body.is_empty() { Vec::new() } else { vec![format!("{} bytes", body.len())] };
    parsed.unwrap_or_else(unknown)
}

fn request(operation: Operation, body: &[u8]) -> Option<Vec<String>> {
    match operation {
        Operation::Attach => {
            let record = raw::one::<RawAttach>(body).ok()?;
            let Claim { unit, incarnation, lease_ms, fenced, reads, .. } =
                Claim::try_from(&record).ok()?;
            let start = incarnation.map_or_else(|| "next".to_owned(), |start| start.to_string());
            let mut text = format!("pool {} unit {} start {start}", PoolId(record.pool), unit.0);
            let _ = write!(text, " lease {lease_ms} ms datagrams {}", record.payload_max);
            text.push_str(if fenced { " fenced" } else { "" });
            text.push_str(if reads { " reads" } else { "" });
            Some(vec![text])
        }
        Operation::Transact => {
            let records = raw::many::<RawPrimitive>(body).ok()?;
            records.iter().map(|record| primitive(&Primitive::try_from(record).ok()?)).collect()
        }
        Operation::AllocateJournalSpace | Operation::AllocateDataExtents => {
            let count = raw::one::<U32>(body).ok()?;
            Some(vec![format!("{count} extents")])
        }
        Operation::ReturnExtents => {
            let (data, rest) = raw::first::<U32>(body).ok()?;
            let mut lines = vec![format!("{data} of the quota")];
            lines.extend(runs(rest)?);
            Some(lines)
        }
        Operation::Coordinate => {
            let reports = txn::wire::reports(body).ok()?;
            Some(reports.iter().map(report).collect())
        }
        Operation::CreateGroup => new_group(body),
        Operation::DeleteGroup => deletion(body),
        Operation::CreateVolume
        | Operation::ResizeVolume
        | Operation::DeleteVolume
        | Operation::RenameVolume
        | Operation::RemoveVolume => volumes(body),
        Operation::HardenExtentFlags => {
            Some(record::unpack(body)?.iter().map(|record| format!("{record:?}")).collect())
        }
        Operation::PrepareExtentFlags => prepared_flags(body),
        Operation::Changes => {
            let RawSince { since, used } = raw::one(body).ok()?;
            Some(vec![format!("since view {since}, none before {used} is used")])
        }
        Operation::RegisterPool => {
            let (pool, spec) = raw::pool_spec(body).ok()?;
            let PoolSpec { extent_size, devices, reserve } = spec;
            let mut lines =
                vec![format!("pool {pool} extents of {extent_size}, reserve {reserve}")];
            lines.extend(devices.iter().map(|run| format!("extents {}+{}", run.start, run.count)));
            Some(lines)
        }
        Operation::ForgetPool => {
            let (pool, number, force) = raw::one::<RawForget>(body).ok()?.parts().ok()?;
            let number = Some(number).filter(|number| *number != raw::NO_NUMBER);
            let number = number.map_or_else(|| "any".to_owned(), |number| number.to_string());
            let force = if force { " though it is attached" } else { "" };
            Some(vec![format!("pool {pool} registered as {number}{force}")])
        }
        Operation::Overview => Some(vec![format!("{:?}", Section::parse(body).ok()?)]),
        Operation::ListVolumes | Operation::ListGrants | Operation::Layout | Operation::Lines => {
            let page = raw::one::<RawPage>(body).ok()?;
            Some(vec![format!("volume {} from {} count {}", page.volume, page.from, page.count)])
        }
        Operation::Detach | Operation::Renew | Operation::Status => None,
    }
}

fn prepared_flags(body: &[u8]) -> Option<Vec<String>> {
    let Part { transaction, records } = Part::parse(body).ok()?;
    let records = records.iter().map(|record| format!("{record:?}"));
    Some(std::iter::once(format!("for {transaction}")).chain(records).collect())
}

fn deletion(body: &[u8]) -> Option<Vec<String>> {
    let Deletion { group, force } = Deletion::parse(body).ok()?;
    Some(vec![format!("group {}{}", group.0, if force { " by force" } else { "" })])
}

fn new_group(body: &[u8]) -> Option<Vec<String>> {
    let NewGroup { number, name, volumes } = NewGroup::parse(body).ok()?;
    let volumes = volumes.iter().map(|of| match of.pool {
        Some(pool) => format!("volume '{}' of pool {pool}", of.name),
        None => format!("volume '{}'", of.name),
    });
    Some(std::iter::once(format!("group {number} '{name}'")).chain(volumes).collect())
}

fn reply(operation: Operation, body: &[u8]) -> Option<Vec<String>> {
    match operation {
        Operation::Attach => {
            let pool = raw::one::<RawPool>(body).ok()?;
            let RawPool { extents, reserve, extent_size, incarnation, lease_ms } = pool;
            Some(vec![format!(
                "start {incarnation} lease {lease_ms} ms, {extents} extents of {extent_size}, \
                 reserve {reserve}"
            )])
        }
        Operation::Coordinate => {
            let orders = txn::wire::orders(body).ok()?;
            Some(orders.iter().map(order).collect())
        }
        Operation::CreateGroup => {
            let number = raw::one::<U32>(body).ok()?;
            Some(vec![format!("group {number}")])
        }
        Operation::CreateVolume | Operation::ListVolumes => volumes(body),
        Operation::AllocateJournalSpace
        | Operation::AllocateDataExtents
        | Operation::ListGrants => {
            let (quota, rest) = raw::first::<U64>(body).ok()?;
            let mut lines = vec![format!("quota {quota}")];
            lines.extend(runs(rest)?);
            Some(lines)
        }
        Operation::Layout => {
            let records = raw::many::<RawOwned>(body).ok()?;
            let owned = |record: &RawOwned| {
                let pair = PairRecord::try_from(&record.pair).ok()?;
                Some(format!("unit {} {}", record.unit, pair_text(&pair)))
            };
            records.iter().map(owned).collect()
        }
        Operation::Renew
        | Operation::Transact
        | Operation::HardenExtentFlags
        | Operation::PrepareExtentFlags => {
            let RawTold { view, horizon } = raw::one(body).ok()?;
            let horizon = if horizon == u64::MAX { "-".to_owned() } else { horizon.to_string() };
            Some(vec![format!("view {view} horizon {horizon}")])
        }
        Operation::Lines => {
            let (view, rest) = raw::first::<U64>(body).ok()?;
            lines(format!("view {view}"), rest)
        }
        Operation::Changes => {
            let (RawChanges { view, rest }, body) = raw::first(body).ok()?;
            let rest = match rest.get() {
                raw::REST_NONE => "all",
                raw::REST_MORE => "more to come",
                _ => "not known any more",
            };
            lines(format!("up to view {view}, {rest}"), body)
        }
        Operation::Status => {
            let words = raw::one::<[U64; ServerStatus::COUNT]>(body).ok()?;
            Some(vec![format!("{:?}", ServerStatus::from_words(words.map(U64::get)))])
        }
        // Of an overview, what it shows is in its question; the others have no body.
        _ => None,
    }
}

/// The lines of pairs, after what they are.
fn lines(head: String, body: &[u8]) -> Option<Vec<String>> {
    let known = raw::lines(body).ok()?;
    let text = |(pair, line): &(PairId, Line)| {
        format!("pair {pair} {:?} used {} blocks", line.binding, line.map.used().len())
    };
    Some(std::iter::once(head).chain(known.iter().map(text)).collect())
}

fn transaction(id: Option<TransactionId>) -> String {
    id.map_or_else(|| "no transaction".to_owned(), |id| id.to_string())
}

fn atomic(atomic: Option<Atomic>) -> String {
    atomic.map_or_else(String::new, |Atomic { id, members }| {
        format!(" atomic request {:032x} of {members}", id.0)
    })
}

fn report(report: &Report) -> String {
    let Report { group, version, life, wants, .. } = report;
    let wants = if *wants { " wants a commit" } else { "" };
    let transaction = transaction(report.transaction);
    let phase = format!("{:?}", report.phase);
    let carried = atomic(report.atomic);
    let id = group.0;
    format!("group {id} membership {version} life {life} {transaction} {phase}{wants}{carried}")
}

fn order(order: &Order) -> String {
    let Order { group, name, version, life, stage, .. } = order;
    let (transaction, volumes) = (transaction(order.transaction), order.volumes.len());
    let whole = if order.whole { " whole" } else { "" };
    let mut text = format!("group {} '{name}' membership {version} life {life}{whole}", group.0);
    let carried = atomic(order.atomic);
    let _ = write!(text, " {volumes} volumes here {transaction} {stage:?}{carried}");
    if let Some(trouble) = &order.trouble {
        let _ = write!(text, " {trouble:?}");
    }
    text
}

fn primitive(primitive: &Primitive) -> Option<String> {
    let debug = format!("{primitive:?}");
    let (name, _) = debug.split_once('(')?;
    Some(format!("{name} {}", pair_text(primitive.pair())))
}

fn pair_text(pair: &PairRecord) -> String {
    let [zero, one] =
        pair.slots.map(|slot| slot.map_or_else(|| "-".to_owned(), |e| e.0.to_string()));
    format!(
        "pair {} generation {} volume {} extent {} slots {zero},{one} data in {}",
        pair.pair.0, pair.generation.0, pair.volume.0, pair.logical.0, pair.data_slot as u8
    )
}

fn runs(body: &[u8]) -> Option<Vec<String>> {
    let records = raw::many::<RawRun>(body).ok()?;
    Some(records.iter().map(|run| format!("extents {}+{}", run.start, run.count)).collect())
}

fn volumes(body: &[u8]) -> Option<Vec<String>> {
    let records = raw::many::<RawVolume>(body).ok()?;
    let text = |record: &RawVolume| {
        let VolumeInfo { id, name, size, deleting } = VolumeInfo::try_from(record).ok()?;
        let deleting = if deleting { " being deleted" } else { "" };
        Some(format!("volume {} '{name}' {size} bytes{deleting}", id.0))
    };
    records.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{ExtentId, Generation, LogicalExtent, Slot, VolumeId};
    use crate::mds::wire::{Header, PAYLOAD_MIN};

    fn captured(bytes: &[u8]) -> Captured<'_> {
        Captured {
            time_ns: 1_700_000_000_000_012_000,
            from: "10.0.0.1:7".parse().unwrap(),
            to: "10.0.0.2:10810".parse().unwrap(),
            bytes,
            whole: true,
        }
    }

    fn header(kind: Kind, operation: Operation) -> Header {
        Header { kind, operation, session: 0xfeed, sequence: 9, detail: 3 }
    }

    /// Goal: a transaction, its refusal, a part of a large one and a damaged one are shown as what
    /// they are, with and without the key.
    #[test]
    fn datagrams_are_shown() {
        let pair = PairRecord {
            volume: VolumeId(1),
            logical: LogicalExtent(2),
            pair: PairId(3),
            generation: Generation(4),
            slots: [Some(ExtentId(5)), None],
            data_slot: Slot::Zero,
        };
        let body = raw::pack([RawPrimitive::from(&Primitive::BindData(pair))]);
        let request = header(Kind::Request, Operation::Transact);
        let mut bytes = wire::encode(&request, &body, PAYLOAD_MIN).remove(0);
        let key = Key::parse(&[9; 32]).unwrap();
        key.seal(&mut bytes);
        let text = show(&captured(&bytes), Some(&key), true).unwrap().text();
        assert_eq!(
            text,
            "1700000000.000012 10.0.0.1:7 > 10.0.0.2:10810 request Transact 000000000000feed:9 \
             32 bytes, authenticator good\n    \
             BindData pair 3 generation 4 volume 1 extent 2 slots 5,- data in 0\n"
        );
        bytes[HEADER_BYTES] ^= 1;
        let damaged = show(&captured(&bytes), Some(&key), true).unwrap();
        assert_eq!((damaged.crc, damaged.authenticator), ("wrong", "wrong"));
        assert!(damaged.garbage.is_some() && damaged.records.is_empty());

        let refused = header(Kind::Reply(Err(Refusal::StaleIncarnation)), Operation::Attach);
        let bytes = wire::encode(&refused, &[], PAYLOAD_MIN).remove(0);
        let text = show(&captured(&bytes), None, false).unwrap().text();
        let end = format!(
            "refused Attach 000000000000feed:9 0 bytes: {} (3)\n",
            Refusal::StaleIncarnation
        );
        assert!(text.ends_with(&end), "{text}");

        let parts = wire::encode(&request, &[0; 3000], PAYLOAD_MIN);
        let shown = show(&captured(&parts[1]), None, true).unwrap();
        assert_eq!((shown.part, shown.parts, shown.records.len()), (2, 3, 1));
        assert_eq!(show(&captured(b"another protocol"), None, true), None);
    }

    /// Goal: whatever a body holds, showing it does not fail; every operation is shown.
    #[test]
    fn every_operation_is_shown() {
        for operation in Operation::ALL {
            for kind in [Kind::Request, Kind::Reply(Ok(()))] {
                for len in [0, 1, 4, 16, 20, 32, 52, 144, 288] {
                    let bytes = wire::encode(&header(kind, *operation), &vec![1; len], PAYLOAD_MIN);
                    let shown = show(&captured(&bytes[0]), None, true).unwrap();
                    assert_eq!((shown.length, shown.operation.as_str()), (len, operation.name()));
                    assert!(!shown.text().is_empty());
                }
            }
        }
    }
}
