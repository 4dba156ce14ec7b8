//! What is on a device before it is ours, and what people type.

use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;

use clap::Command;
use flipside::cli::network::{DatagramSize, HostPort};
use flipside::cli::values::{
    CommitInterval, Mode, Name, Percent, Size, SlowIo, VolumeSpec, WarnFull,
};
use flipside::cli::{config, definitions};
use flipside::format::nvram::{self, NvramIdentity};
use flipside::format::probe::{HEAD_LEN, Image, TAIL_LEN};
use flipside::format::superblock::{self, LEN, Superblock};
use flipside::front::control::Request;
use flipside::front::listen::Address;
use flipside::mds::wire;
use flipside::observe::pcap::Capture;

use super::cursor::Cursor;

/// The largest device that is probed, in bytes: larger than both ends together.
const DEVICE_MAX: u64 = 4 << 20;

/// A superblock, as it is and with magic, version and checksum made good; the other copy is the
/// bytes after it.
pub fn superblock(data: &[u8]) -> bool {
    let copy = |from: usize| {
        let mut bytes = [0; LEN];
        let given = data.get(from..).unwrap_or_default();
        let given = &given[..given.len().min(LEN)];
        bytes[..given.len()].copy_from_slice(given);
        bytes
    };
    let (first, second) = (copy(0), copy(LEN));
    let _ = superblock::choose(Superblock::parse(data), Superblock::parse(&second));
    let first = Superblock::parse(&sealed(first));
    let accepted = match &first {
        Ok(parsed) => {
            // Encoding checks that what it made reads as itself.
            let again = Superblock::parse(&parsed.encode());
            assert_eq!(again.as_ref(), Ok(parsed));
            assert!(parsed.pool_extents() >= parsed.layout.extents.count);
            let (size, sector) = (parsed.layout.size, parsed.sector);
            assert_eq!(superblock::check_device(parsed, size, sector), Ok(()));
            true
        }
        Err(defect) => {
            assert!(!defect.to_string().is_empty());
            false
        }
    };
    if let Err(error) = superblock::choose(first, Superblock::parse(&sealed(second))) {
        assert!(!error.to_string().is_empty());
    }
    accepted
}

fn sealed(mut bytes: [u8; LEN]) -> [u8; LEN] {
    bytes[..8].copy_from_slice(&superblock::MAGIC);
    bytes[8..12].copy_from_slice(&superblock::VERSION.to_le_bytes());
    let crc = flipside::format::page::crc32c(&bytes[..LEN - 4]);
    bytes[LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// A device: its size, then patches over zeros, each an offset (from the end where its top bit is
/// set) and a piece. Whether anything was recognised.
pub fn foreign(data: &[u8]) -> bool {
    let mut cursor = Cursor(data);
    let size = cursor.number(4) % (DEVICE_MAX + 1);
    let mut device = vec![0; size as usize];
    while !cursor.is_empty() {
        let place = cursor.number(4);
        let distance = (place & 0x7fff_ffff) as usize;
        let from_end = place & 0x8000_0000 != 0;
        let at = if from_end { device.len().checked_sub(distance) } else { Some(distance) };
        let piece = cursor.piece();
        let Some(room) = at.and_then(|at| device.get_mut(at..)) else { continue };
        let taken = piece.len().min(room.len());
        room[..taken].copy_from_slice(&piece[..taken]);
    }
    let head = &device[..HEAD_LEN.min(size) as usize];
    let tail = &device[(size - TAIL_LEN.min(size)) as usize..];
    let image = Image::new(size, head, tail);
    let found = image.probe();
    for one in &found {
        assert!(one.offset < size && !one.what.is_empty(), "{one:?} on {size} bytes");
    }
    assert!(found.is_empty() || !image.is_blank(), "{found:?} on a blank device");
    !found.is_empty()
}

/// A network capture. Whether there was a datagram of the metadata protocol.
pub fn capture(data: &[u8]) -> bool {
    let Ok(mut capture) = Capture::open(data) else { return false };
    let mut found = false;
    for captured in &mut capture {
        assert!(captured.bytes.len() <= data.len());
        found |= wire::claimed(captured.bytes).is_some();
    }
    assert!(capture.fragments() + capture.passed_over() <= data.len() as u64);
    found
}

/// Every kind of value on the command line; sizes survive their being shown.
pub fn command_line(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    if let Ok(size) = text.parse::<Size>() {
        assert!(!size.to_string().is_empty());
    }
    if let Ok(Percent(percent)) = text.parse() {
        assert!((1..=90).contains(&percent));
    }
    if let Ok(CommitInterval(Some(interval))) = text.parse() {
        assert!(!interval.is_zero());
    }
    if let Ok(SlowIo(Some(time))) = text.parse() {
        assert!(!time.is_zero());
    }
    if let Ok(DatagramSize(size)) = text.parse() {
        assert!((wire::PAYLOAD_MIN..=wire::PAYLOAD_UDP_MAX).contains(&size));
    }
    let _ = text.parse::<HostPort>();
    if let Ok(Mode(mode)) = text.parse() {
        assert!(mode <= 0o777);
    }
    if let Ok(WarnFull(marks)) = text.parse() {
        assert!(marks.iter().all(|mark| (1..=100).contains(mark)));
    }
    if let Ok(Name(name)) = text.parse() {
        assert!(!name.is_empty() && name == text);
    }
    let address = text.parse::<Address>().map(|address| address.to_string());
    if let Ok(shown) = &address {
        let again = shown.parse::<Address>().map(|address| address.to_string());
        assert_eq!(again.as_ref(), Ok(shown));
    }
    let volume = text.parse::<VolumeSpec>();
    text.parse::<Size>().is_ok()
        || text.parse::<Percent>().is_ok()
        || text.parse::<CommitInterval>().is_ok()
        || text.parse::<Mode>().is_ok()
        || text.parse::<WarnFull>().is_ok()
        || address.is_ok()
        || volume.is_ok_and(|volume| !volume.name.is_empty())
}

/// A line on the control socket.
pub fn control(data: &[u8]) -> bool {
    let Ok(request) = serde_json::from_slice::<Request>(data) else { return false };
    let line = serde_json::to_vec(&request).expect("a request is plain");
    assert_eq!(serde_json::from_slice::<Request>(&line).ok(), Some(request));
    assert!(!line.contains(&b'\n'), "a request is one line");
    true
}

/// A configuration file: the devices are read as what the file calls so, and never as flags.
pub fn configuration(data: &[u8]) -> bool {
    static DEFINITIONS: OnceLock<Command> = OnceLock::new();
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let definitions = DEFINITIONS.get_or_init(definitions);
    let read = |words: &[&OsStr]| definitions.clone().try_get_matches_from(words);
    let [program, command] = ["flipside", "serve"].map(OsStr::new);
    let given = read(&[program, command, OsStr::new("--config"), OsStr::new("c.toml")]);
    let given = given.expect("a file is enough");
    let (_, matches) = given.subcommand().expect("a command is named");
    let flags = definitions.find_subcommand("serve").expect("there is such a command");
    let added = match config::arguments(text, "c.toml", flags, matches) {
        Ok(added) => added,
        Err(error) => {
            assert!(error.to_string().starts_with("c.toml: "), "{error}");
            return false;
        }
    };
    let words: Vec<&OsStr> =
        [program, command].into_iter().chain(added.iter().map(OsString::as_os_str)).collect();
    // What the values say is for the flags to judge.
    let Ok(found) = read(&words) else { return false };
    let (_, found) = found.subcommand().expect("a command is named");
    let devices = found.get_raw("devices").into_iter().flatten();
    let is_flag = |word: &&OsString| word.to_string_lossy().starts_with("--");
    assert!(devices.eq(added.iter().filter(|word| !is_flag(word))), "{added:?}");
    true
}

/// The identity of an NVRAM, as it is and with magic, version and checksum made good; the other
/// copy is the bytes after it.
pub fn nvram_identity(data: &[u8]) -> bool {
    let mut bytes = vec![0; 2 * nvram::LEN];
    let taken = data.len().min(bytes.len());
    bytes[..taken].copy_from_slice(&data[..taken]);
    let as_it_is = (NvramIdentity::find(data), NvramIdentity::find(&bytes));
    assert!(as_it_is.0.is_none() || as_it_is.0 == as_it_is.1, "zeros after it change nothing");
    for copy in bytes.chunks_exact_mut(nvram::LEN) {
        copy[..8].copy_from_slice(&nvram::MAGIC);
        copy[8..12].copy_from_slice(&1_u32.to_le_bytes());
        let crc = flipside::format::page::crc32c(&copy[..nvram::LEN - 4]);
        copy[nvram::LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    let copies = NvramIdentity::copies(&bytes);
    assert_eq!(NvramIdentity::find(&bytes), copies[0]);
    for identity in copies.into_iter().flatten() {
        let mut stored = vec![0; 2 * nvram::LEN];
        identity.store(&mut stored);
        assert_eq!(NvramIdentity::copies(&stored), [Some(identity); 2]);
    }
    as_it_is.0.is_some()
}
