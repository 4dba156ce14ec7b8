//! A small blocking NBD client: each call by itself, or many requests on the way at once.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Error numbers of the protocol.
pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const EOVERFLOW: u32 = 75;
pub const ENOTSUP: u32 = 95;
pub const ESHUTDOWN: u32 = 108;

/// Commands.
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

/// Flags of commands.
pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;
pub const PAYLOAD_LEN: u16 = 32;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;
const OPT_EXTENDED_HEADERS: u32 = 11;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;

/// A socket of either kind.
pub trait Stream: Read + Write + Send {
    /// A bound for every blocking call.
    fn timeout(&self, timeout: Duration);
    /// Ends both directions.
    fn end(&self);
}

impl Stream for UnixStream {
    fn timeout(&self, timeout: Duration) {
        self.set_read_timeout(Some(timeout)).expect("a time");
        self.set_write_timeout(Some(timeout)).expect("a time");
    }
    fn end(&self) {
        let _ = self.shutdown(std::net::Shutdown::Both);
    }
}

impl Stream for TcpStream {
    fn timeout(&self, timeout: Duration) {
        self.set_nodelay(true).expect("a TCP socket");
        self.set_read_timeout(Some(timeout)).expect("a time");
        self.set_write_timeout(Some(timeout)).expect("a time");
    }
    fn end(&self) {
        let _ = self.shutdown(std::net::Shutdown::Both);
    }
}

/// What went wrong: the connection, or the request.
#[derive(Debug)]
pub enum Error {
    /// The connection is of no use any more.
    Connection(io::Error),
    /// The server answered with this number.
    Refused(u32),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl Error {
    /// The number the server answered with.
    pub fn errno(&self) -> Option<u32> {
        if let Self::Refused(errno) = self { Some(*errno) } else { None }
    }
}

/// A reply to one of several requests on the way.
#[derive(Debug)]
pub struct Reply {
    /// Which request it answers.
    pub cookie: u64,
    /// The data of a read (empty for all else), or the error number.
    pub result: Result<Vec<u8>, u32>,
}

/// What a client asks for in the handshake.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Framing {
    Simple,
    Structured,
    Extended,
}

/// A connection in transmission.
pub struct Client {
    stream: Box<dyn Stream>,
    framing: Framing,
    size: u64,
    flags: u16,
    next_cookie: u64,
    /// Reads on the way and their lengths.
    reads: HashMap<u64, u32>,
    /// With extended headers: the requests on the way and their offsets.
    offsets: HashMap<u64, u64>,
}

impl Client {
    /// Connects to an export behind a unix socket, with structured replies.
    pub fn unix(path: &Path, export: &str) -> io::Result<Self> {
        Self::begin(Box::new(UnixStream::connect(path)?), export, true)
    }

    /// The same with simple replies.
    pub fn unix_simple(path: &Path, export: &str) -> io::Result<Self> {
        Self::begin(Box::new(UnixStream::connect(path)?), export, false)
    }

    /// Connects over TCP, with structured replies.
    pub fn tcp(port: u16, export: &str) -> io::Result<Self> {
        Self::begin(Box::new(TcpStream::connect(("127.0.0.1", port))?), export, true)
    }

    /// Connects to an export behind a unix socket, with block status.
    pub fn unix_status(path: &Path, export: &str) -> io::Result<Self> {
        let stream = Box::new(UnixStream::connect(path)?);
        Self::shake_hands(stream, export, Framing::Structured, true)
    }

    /// The same with extended headers.
    pub fn unix_extended(path: &Path, export: &str) -> io::Result<Self> {
        let stream = Box::new(UnixStream::connect(path)?);
        Self::shake_hands(stream, export, Framing::Extended, true)
    }

    /// Does the handshake on a fresh connection.
    pub fn begin(stream: Box<dyn Stream>, export: &str, structured: bool) -> io::Result<Self> {
        let framing = if structured { Framing::Structured } else { Framing::Simple };
        Self::shake_hands(stream, export, framing, false)
    }

    fn shake_hands(
        mut stream: Box<dyn Stream>,
        export: &str,
        framing: Framing,
        status: bool,
    ) -> io::Result<Self> {
        stream.timeout(Duration::from_secs(100));
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        require(&greeting[..16] == b"NBDMAGICIHAVEOPT", "greeting")?;
        stream.write_all(&3u32.to_be_bytes())?;
        for (asked, what) in
            [(Framing::Structured, OPT_STRUCTURED_REPLY), (Framing::Extended, OPT_EXTENDED_HEADERS)]
        {
            if framing >= asked {
                option(&mut *stream, what, &[])?;
                require(option_reply(&mut *stream)?.0 == REP_ACK, "the framing")?;
            }
        }
        if status {
            set_context(&mut *stream, export)?;
        }
        let mut go = (export.len() as u32).to_be_bytes().to_vec();
        go.extend_from_slice(export.as_bytes());
        go.extend_from_slice(&[0, 1, 0, 3]);
        option(&mut *stream, OPT_GO, &go)?;
        let (mut size, mut flags) = (0, 0);
        loop {
            let (kind, data) = option_reply(&mut *stream)?;
            match kind {
                REP_INFO if data[..2] == [0, 0] => {
                    size = u64::from_be_bytes(data[2..10].try_into().expect("8 bytes"));
                    flags = u16::from_be_bytes(data[10..12].try_into().expect("2 bytes"));
                }
                REP_INFO => {}
                REP_ACK => break,
                other => return Err(io::Error::other(format!("GO was answered {other:#x}"))),
            }
        }
        let (reads, offsets) = (HashMap::new(), HashMap::new());
        Ok(Self { stream, framing, size, flags, next_cookie: 1, reads, offsets })
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the export offers.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// The socket, to send what no client should.
    pub fn raw(&mut self) -> &mut dyn Stream {
        &mut *self.stream
    }

    /// Sends a request and does not wait; its cookie.
    pub fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> io::Result<u64> {
        let extended = self.framing == Framing::Extended;
        let flags = if extended && !payload.is_empty() { flags | PAYLOAD_LEN } else { flags };
        self.send_long(command, flags, offset, length.into(), payload)
    }

    /// The same with a length that may be beyond 32 bits, and no flag but those given.
    pub fn send_long(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if command == READ {
            self.reads.insert(cookie, length as u32);
        }
        let mut message = if self.framing == Framing::Extended {
            self.offsets.insert(cookie, offset);
            extended_header(command, flags, cookie, offset, length)
        } else {
            header(command, flags, cookie, offset, length.try_into().expect("32 bits"))
        };
        message.extend_from_slice(payload);
        self.stream.write_all(&message)?;
        Ok(cookie)
    }

    /// The next reply, to whichever request.
    pub fn receive(&mut self) -> io::Result<Reply> {
        match self.u32()? {
            0x6744_6698 if self.framing < Framing::Extended => {
                let error = self.u32()?;
                let cookie = self.u64()?;
                let length = self.reads.remove(&cookie);
                if error != 0 {
                    return Ok(Reply { cookie, result: Err(error) });
                }
                let structured = self.framing == Framing::Structured;
                require(length.is_none() || !structured, "a structured reply to a read")?;
                let data = self.bytes(length.unwrap_or(0) as usize)?;
                Ok(Reply { cookie, result: Ok(data) })
            }
            0x668e_33ef if self.framing == Framing::Structured => self.chunk(),
            0x6e8a_278c if self.framing == Framing::Extended => self.chunk(),
            other => Err(io::Error::other(format!("{other:#x} where a reply begins"))),
        }
    }

    /// Sends a request and waits for its reply; for when nothing else is on the way.
    pub fn call(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let cookie = self.send(command, flags, offset, length, payload)?;
        self.answer(cookie)
    }

    /// The same with a length that may be beyond 32 bits, and no flag but those given.
    pub fn call_long(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let cookie = self.send_long(command, flags, offset, length, payload)?;
        self.answer(cookie)
    }

    /// The reply to the only request on the way.
    fn answer(&mut self, cookie: u64) -> Result<Vec<u8>, Error> {
        let reply = self.receive()?;
        require(reply.cookie == cookie, "the reply's cookie")?;
        reply.result.map_err(Error::Refused)
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, Error> {
        self.call(READ, 0, offset, length, &[])
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.call(WRITE, 0, offset, data.len() as u32, data).map(drop)
    }

    /// Writes durably.
    pub fn write_fua(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.call(WRITE, FUA, offset, data.len() as u32, data).map(drop)
    }

    /// Makes completed writes durable.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.call(FLUSH, 0, 0, 0, &[]).map(drop)
    }

    /// Gives a range up.
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), Error> {
        self.call(TRIM, 0, offset, length, &[]).map(drop)
    }

    /// Zeroes a range.
    pub fn write_zeroes(&mut self, offset: u64, length: u32, flags: u16) -> Result<(), Error> {
        self.call(WRITE_ZEROES, flags, offset, length, &[]).map(drop)
    }

    /// The status of a range: lengths and flags.
    pub fn status(
        &mut self,
        flags: u16,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(u32, u32)>, Error> {
        let payload = self.call(BLOCK_STATUS, flags, offset, length, &[])?;
        let word = |at: &[u8]| u32::from_be_bytes(at[..4].try_into().expect("4 bytes"));
        Ok(payload[4..].chunks(8).map(|run| (word(run), word(&run[4..]))).collect())
    }

    /// The same with extended headers: of the bytes and the context in a payload, where one is
    /// given.
    pub fn status_long(
        &mut self,
        flags: u16,
        offset: u64,
        length: u64,
        filter: Option<&[u8]>,
    ) -> Result<Vec<(u64, u64)>, Error> {
        let payload = match filter {
            Some(filter) => {
                let (flags, length) = (flags | PAYLOAD_LEN, filter.len() as u64);
                self.call_long(BLOCK_STATUS, flags, offset, length, filter)?
            }
            None => self.call_long(BLOCK_STATUS, flags, offset, length, &[])?,
        };
        let word = |at: &[u8]| u64::from_be_bytes(at[..8].try_into().expect("8 bytes"));
        require(
            word(&payload) == (1 << 32) | ((payload.len() as u64 - 8) / 16),
            "context and count",
        )?;
        Ok(payload[8..].chunks(16).map(|run| (word(run), word(&run[8..]))).collect())
    }

    /// Says farewell and waits for the server to close.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send(DISC, 0, 0, 0, &[])?;
        require(self.stream.read(&mut [0])? == 0, "nothing after the farewell")
    }

    fn chunk(&mut self) -> io::Result<Reply> {
        let word = self.u32()?;
        require(word >> 16 == 1, "one chunk a reply")?;
        let cookie = self.u64()?;
        let extended = self.framing == Framing::Extended;
        if extended {
            require(Some(self.u64()?) == self.offsets.remove(&cookie), "the request's offset")?;
        }
        let length = if extended { self.u64()? } else { self.u32()?.into() };
        let payload = self.bytes(length as usize)?;
        let wanted = self.reads.remove(&cookie);
        let result = match word & 0xffff {
            0 => Ok(Vec::new()),
            1 => Ok(payload[8..].to_vec()),
            5 if !extended => Ok(payload),
            6 if extended => Ok(payload),
            0x8001 => Err(u32::from_be_bytes(payload[..4].try_into().expect("4 bytes"))),
            other => return Err(io::Error::other(format!("a chunk of type {other}"))),
        };
        if let (Ok(data), Some(wanted)) = (&result, wanted) {
            require(data.len() == wanted as usize, "as much data as was asked for")?;
        }
        Ok(Reply { cookie, result })
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.stream.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

/// Selects `base:allocation` for an export.
fn set_context(stream: &mut dyn Stream, export: &str) -> io::Result<()> {
    let mut data = Vec::new();
    for text in [export, "base:allocation"] {
        data.extend_from_slice(&(text.len() as u32).to_be_bytes());
        data.extend_from_slice(text.as_bytes());
        if data.len() == 4 + export.len() {
            data.extend_from_slice(&1u32.to_be_bytes());
        }
    }
    option(stream, OPT_SET_META_CONTEXT, &data)?;
    require(option_reply(stream)?.0 == REP_META_CONTEXT, "a metadata context")?;
    require(option_reply(stream)?.0 == REP_ACK, "the end of contexts")
}

/// A request's header.
pub fn header(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut header = 0x2560_9513u32.to_be_bytes().to_vec();
    header.extend_from_slice(&flags.to_be_bytes());
    header.extend_from_slice(&command.to_be_bytes());
    header.extend_from_slice(&cookie.to_be_bytes());
    header.extend_from_slice(&offset.to_be_bytes());
    header.extend_from_slice(&length.to_be_bytes());
    header
}

/// The same with extended headers.
pub fn extended_header(command: u16, flags: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut header = 0x21e4_1c71u32.to_be_bytes().to_vec();
    header.extend_from_slice(&flags.to_be_bytes());
    header.extend_from_slice(&command.to_be_bytes());
    for number in [cookie, offset, length] {
        header.extend_from_slice(&number.to_be_bytes());
    }
    header
}

/// Sends an option.
pub fn option(stream: &mut dyn Stream, option: u32, data: &[u8]) -> io::Result<()> {
    let mut message = OPTION_MAGIC.to_vec();
    message.extend_from_slice(&option.to_be_bytes());
    message.extend_from_slice(&(data.len() as u32).to_be_bytes());
    message.extend_from_slice(data);
    stream.write_all(&message)
}

/// The next reply to an option: its type and data.
pub fn option_reply(stream: &mut dyn Stream) -> io::Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    require(header[..8] == 0x0003_e889_0455_65a9u64.to_be_bytes(), "an option reply")?;
    let mut data = vec![0; word(16) as usize];
    stream.read_exact(&mut data)?;
    Ok((word(12), data))
}

fn require(holds: bool, what: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other(format!("expected: {what}"))) }
}
