//! Datagrams in a network capture: the classic pcap format, as `tcpdump -w` writes it.
//!
//! Known links: Ethernet (with VLAN tags), the loopbacks of BSD, raw IP, and Linux's cooked ones,
//! old and new. Fragments of IP are counted and not put together.
//!
//! # Contract
//!
//! **Parse, don't validate**: any bytes are taken, and nothing panics: what is no UDP datagram is
//! counted and passed over; what ends early ends the capture.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

/// Bytes of the file's header and of a record's.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
/// What an Ethernet header calls the protocols that are looked at.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLANS: [u16; 2] = [0x8100, 0x88a8];
/// UDP among the protocols of IP, and IPv6's headers that may come before it.
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const EXTENSIONS: [u8; 3] = [0, 43, 60];

/// Why a file cannot be read as a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotACapture {
    /// Not one at all.
    #[error("is no network capture: tcpdump -w makes them")]
    Unknown,
    /// One of the newer format.
    #[error("is a capture in the pcapng format: editcap -F pcap makes a classic one of it")]
    NextGeneration,
    /// Of a link that is not known.
    #[error("is a capture of link type {0}, which is not known here")]
    Link(u32),
}

/// A UDP datagram of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// When it was seen, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What is in it, as far as it was captured.
    pub bytes: &'a [u8],
    /// Whether the capture has all of it.
    pub whole: bool,
}

/// A capture that is read; its datagrams are what it iterates over.
#[derive(Clone, Debug)]
pub struct Capture<'a> {
    rest: &'a [u8],
    big_endian: bool,
    /// Nanoseconds of a unit of the fraction of a second.
    tick_ns: u64,
    link: Link,
    passed_over: u64,
    fragments: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Ethernet,
    Loopback,
    Ip,
    Cooked,
    CookedNew,
}

impl Link {
    fn from_code(code: u32) -> Option<Self> {
        match code {
            0 | 108 => Some(Link::Loopback),
            1 => Some(Link::Ethernet),
            12 | 14 | 101 | 228 | 229 => Some(Link::Ip),
            113 => Some(Link::Cooked),
            276 => Some(Link::CookedNew),
            _ => None,
        }
    }

    /// The IP packet in a frame.
    fn packet(self, frame: &[u8]) -> Option<&[u8]> {
        let (protocol, mut rest) = match self {
            Link::Ip => return Some(frame),
            // The address family differs between systems; the packet says which IP it is of.
            Link::Loopback => return frame.get(4..),
            Link::Ethernet => (be16(frame, 12)?, frame.get(14..)?),
            Link::Cooked => (be16(frame, 14)?, frame.get(16..)?),
            Link::CookedNew => (be16(frame, 0)?, frame.get(20..)?),
        };
        let mut protocol = protocol;
        while VLANS.contains(&protocol) {
            (protocol, rest) = (be16(rest, 2)?, rest.get(4..)?);
        }
        [IPV4, IPV6].contains(&protocol).then_some(rest)
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// What an IP packet carries.
enum Carried<'a> {
    Udp(IpAddr, IpAddr, &'a [u8]),
    Fragment,
    Other,
}

fn unwrap_ip(packet: &[u8]) -> Option<Carried<'_>> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet.first()? & 15) * 4;
            let address = |at: usize| {
                let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(IpAddr::from(bytes))
            };
            let (from, to) = (address(12)?, address(16)?);
            // More fragments, or not the first of them.
            if be16(packet, 6)? & 0x3fff != 0 {
                return Some(Carried::Fragment);
            }
            let udp = *packet.get(9)? == UDP;
            let rest = packet.get(header.max(20)..)?;
            Some(if udp { Carried::Udp(from, to, rest) } else { Carried::Other })
        }
        6 => {
            let address = |at: usize| {
                let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(IpAddr::from(bytes))
            };
            let (from, to) = (address(8)?, address(24)?);
            let (mut next, mut rest) = (*packet.get(6)?, packet.get(40..)?);
            while EXTENSIONS.contains(&next) {
                let len = 8 * (1 + usize::from(*rest.get(1)?));
                (next, rest) = (*rest.first()?, rest.get(len..)?);
            }
            Some(match next {
                UDP => Carried::Udp(from, to, rest),
                FRAGMENT => Carried::Fragment,
                _ => Carried::Other,
            })
        }
        _ => None,
    }
}

impl<'a> Capture<'a> {
    /// The capture in a file's bytes.
    pub fn open(bytes: &'a [u8]) -> Result<Self, NotACapture> {
        let magic: [u8; 4] = *bytes.first_chunk().ok_or(NotACapture::Unknown)?;
        let (big_endian, tick_ns) = match magic {
            [0xd4, 0xc3, 0xb2, 0xa1] => (false, 1000),
            [0x4d, 0x3c, 0xb2, 0xa1] => (false, 1),
            [0xa1, 0xb2, 0xc3, 0xd4] => (true, 1000),
            [0xa1, 0xb2, 0x3c, 0x4d] => (true, 1),
            [0x0a, 0x0d, 0x0d, 0x0a] => return Err(NotACapture::NextGeneration),
            _ => return Err(NotACapture::Unknown),
        };
        let (header, rest) = bytes.split_at_checked(FILE_HEADER).ok_or(NotACapture::Unknown)?;
        // The upper bits tell of checksums at the frames' ends.
        let code = word(big_endian, header, 20).ok_or(NotACapture::Unknown)? & 0x0fff_ffff;
        let link = Link::from_code(code).ok_or(NotACapture::Link(code))?;
        Ok(Capture { rest, big_endian, tick_ns, link, passed_over: 0, fragments: 0 })
    }

    /// How many frames, of those looked at so far, were no UDP datagrams.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }

    /// How many frames, of those looked at so far, were fragments.
    pub fn fragments(&self) -> u64 {
        self.fragments
    }

    /// Whether the file ends in the middle of a frame; known once all is read.
    pub fn ends_early(&self) -> bool {
        !self.rest.is_empty()
    }

    /// The next frame: its time, what was captured, and whether that is all of it.
    fn frame(&mut self) -> Option<(u64, &'a [u8], bool)> {
        let (header, rest) = self.rest.split_at_checked(RECORD_HEADER)?;
        let field = |at| word(self.big_endian, header, at);
        let (seconds, fraction) = (u64::from(field(0)?), u64::from(field(4)?));
        let (captured, there_were) = (field(8)?, field(12)?);
        let (frame, rest) = rest.split_at_checked(captured as usize)?;
        self.rest = rest;
        let time = seconds * 1_000_000_000 + fraction * self.tick_ns;
        Some((time, frame, captured >= there_were))
    }
}

fn word(big_endian: bool, bytes: &[u8], at: usize) -> Option<u32> {
    let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
}

impl<'a> Iterator for Capture<'a> {
    type Item = Captured<'a>;

    fn next(&mut self) -> Option<Captured<'a>> {
        loop {
            let (time_ns, frame, complete) = self.frame()?;
            match self.link.packet(frame).and_then(unwrap_ip) {
                Some(Carried::Udp(from, to, rest)) => {
                    let udp = || {
                        let len = usize::from(be16(rest, 4)?).checked_sub(8)?;
                        let body = rest.get(8..)?;
                        let bytes = body.get(..len).unwrap_or(body);
                        Some((be16(rest, 0)?, be16(rest, 2)?, bytes, bytes.len() == len))
                    };
                    if let Some((source, target, bytes, whole)) = udp() {
                        let (from, to) = ((from, source).into(), (to, target).into());
                        let whole = whole && (complete || !bytes.is_empty());
                        return Some(Captured { time_ns, from, to, bytes, whole });
                    }
                    self.passed_over += 1;
                }
                Some(Carried::Fragment) => self.fragments += 1,
                Some(Carried::Other) | None => self.passed_over += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FROM: [u8; 4] = [10, 0, 0, 1];
    const TO: [u8; 4] = [10, 0, 0, 2];

    fn udp(body: &[u8]) -> Vec<u8> {
        let len = 8 + body.len() as u16;
        [&7u16.to_be_bytes()[..], &9u16.to_be_bytes(), &len.to_be_bytes(), &[0, 0], body].concat()
    }

    fn ipv4(flags: u16, body: &[u8]) -> Vec<u8> {
        let mut header = [0; 20];
        header[0] = 0x45;
        header[6..8].copy_from_slice(&flags.to_be_bytes());
        header[9] = UDP;
        header[12..16].copy_from_slice(&FROM);
        header[16..].copy_from_slice(&TO);
        [&header[..], body].concat()
    }

    fn ipv6(body: &[u8]) -> Vec<u8> {
        let mut header = [0; 40];
        header[0] = 0x60;
        header[23] = 1;
        header[39] = 2;
        // One header of options before the datagram.
        [&header[..], &[UDP, 0, 0, 0, 0, 0, 0, 0], body].concat()
    }

    fn capture(link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
        file.extend(link.to_le_bytes());
        for (second, frame) in (0u32..).zip(frames) {
            for field in [second, 5, frame.len() as u32, frame.len() as u32] {
                file.extend(field.to_le_bytes());
            }
            file.extend(frame);
        }
        file
    }

    /// Goal: on each known link the datagram is found, whole, with its addresses and time.
    #[test]
    fn links_are_known() {
        let before: [(u32, Vec<u8>); 7] = [
            (1, [&[0; 12][..], &[8, 0]].concat()),
            (1, [&[0; 12][..], &[0x81, 0, 0, 5, 8, 0]].concat()),
            (0, vec![2, 0, 0, 0]),
            (108, vec![0, 0, 0, 2]),
            (101, vec![]),
            (113, [&[0; 14][..], &[8, 0]].concat()),
            (276, [&[8, 0][..], &[0; 18]].concat()),
        ];
        for (link, before) in before {
            let frame = [before, ipv4(0x4000, &udp(b"body"))].concat();
            let file = capture(link, &[frame.clone(), frame]);
            let all: Vec<_> = Capture::open(&file).unwrap().collect();
            assert_eq!(all.len(), 2, "link {link}");
            let wanted = Captured {
                time_ns: 1_000_005_000,
                from: (FROM, 7).into(),
                to: (TO, 9).into(),
                bytes: b"body",
                whole: true,
            };
            assert_eq!(all[1], wanted);
        }
    }

    /// Goal: IPv6 with options is read; fragments and others are counted; a cut file says so.
    #[test]
    fn packets_of_all_kinds() {
        let fragment = ipv4(0x2000, &udp(b"half"));
        let frames = [ipv6(&udp(b"six")), fragment, vec![1, 2, 3], vec![], ipv4(0, &udp(b""))];
        let file = capture(101, &frames);
        let mut capture = Capture::open(&file).unwrap();
        let six = capture.next().unwrap();
        assert_eq!((six.bytes, six.from), (&b"six"[..], "[::1]:7".parse().unwrap()));
        assert_eq!(capture.next().unwrap().bytes, b"");
        assert_eq!((capture.next(), capture.ends_early()), (None, false));
        assert_eq!((capture.fragments(), capture.passed_over()), (1, 2));
        let mut cut = Capture::open(&file[..file.len() - 1]).unwrap();
        assert_eq!((cut.by_ref().count(), cut.ends_early()), (1, true));
    }

    /// Goal: what is no capture is refused by what it is.
    #[test]
    fn other_files_are_refused() {
        let open = |bytes: &[u8]| Capture::open(bytes).err();
        assert_eq!(open(b""), Some(NotACapture::Unknown));
        assert_eq!(open(&[0x0a, 0x0d, 0x0d, 0x0a]), Some(NotACapture::NextGeneration));
        assert_eq!(open(&capture(105, &[])), Some(NotACapture::Link(105)));
        assert_eq!(open(&capture(1, &[])[..23]), Some(NotACapture::Unknown));
    }

    proptest! {
        /// Goal: any bytes are read, whatever they say of their lengths.
        #[test]
        fn any_bytes_are_taken(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            link in prop::sample::select(vec![0u32, 1, 101, 113, 276]),
        ) {
            let _ = Capture::open(&bytes).map(Iterator::count);
            let mut file = capture(link, &[]);
            file.append(&mut bytes);
            let found = Capture::open(&file).unwrap().count();
            prop_assert!(found < 300);
        }
    }
}
