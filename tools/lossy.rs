//! A bad network between targets and a metadata server: a UDP proxy that loses, repeats, reorders
//! and delays, in both directions, by a seed.
//!
//! `lossy --listen A --to B` prints `ready udp://A`, and passes on what comes. Each address that
//! asks is given a socket of its own towards the server, so that the server sees as many peers as
//! there are. One thread, nothing but the standard library; what it draws follows from the seed
//! and from the order of the datagrams alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;

/// The largest datagram there is, in bytes.
const DATAGRAM_BYTES_MAX: usize = 65536;
/// How long nothing is looked at when nothing is there.
const PAUSE: Duration = Duration::from_micros(100);
/// The most clients at a time; those that were silent longest go first.
const CLIENTS_MAX: usize = 256;
/// How much later a datagram leaves that is to be overtaken by others.
const REORDER_DELAY: Duration = Duration::from_millis(2);

/// Passes datagrams on as a bad network does.
#[derive(Parser)]
struct Args {
    /// Where clients come to
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// Where the server is
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    #[command(flatten)]
    weather: Weather,
    /// What all is drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How bad it is.
#[derive(clap::Args, Clone, Debug)]
pub struct Weather {
    /// How many datagrams never arrive
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = share)]
    pub loss: f64,
    /// How many arrive twice
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = share)]
    pub repeat: f64,
    /// How many are overtaken by later ones
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = share)]
    pub reorder: f64,
    /// How long each takes
    #[arg(long, value_name = "TIME..TIME", default_value = "0..0", value_parser = delays)]
    pub delay: RangeInclusive<Duration>,
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    let share = number.map_err(|error| error.to_string())? / 100.0;
    (0.0..=1.0).contains(&share).then_some(share).ok_or_else(|| "from 0% to 100%".to_owned())
}

fn delays(text: &str) -> Result<RangeInclusive<Duration>, String> {
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let (least, most) = (delay(least)?, delay(most)?);
    (least <= most).then_some(least..=most).ok_or_else(|| "the first is the longer one".to_owned())
}

fn delay(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let micros = match text.get(number.len()..) {
        Some("us") => 1,
        Some("ms") => 1000,
        Some("s") => 1_000_000,
        Some("") if number == "0" => 0,
        _ => return Err("a time is a whole number with us, ms or s, as in 5ms".to_owned()),
    };
    number.parse::<u64>().map(|n| Duration::from_micros(n * micros)).map_err(|e| e.to_string())
}

/// Numbers that look random and follow from a seed: SplitMix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn happens(&mut self, share: f64) -> bool {
        self.unit() < share
    }
}

impl Weather {
    /// How long each copy of a datagram takes; none where it is lost.
    fn strike(&self, draws: &mut Draws) -> Vec<Duration> {
        // All are drawn for each, so that one setting does not change what another one does.
        let (lost, twice) = (draws.happens(self.loss), draws.happens(self.repeat));
        let late = draws.happens(self.reorder);
        let span = self.delay.end().saturating_sub(*self.delay.start());
        let mut copy = |late: bool| {
            let extra = if late { REORDER_DELAY + *self.delay.end() } else { Duration::ZERO };
            *self.delay.start() + span.mul_f64(draws.unit()) + extra
        };
        let copies = [copy(late), copy(true)];
        let count = usize::from(!lost) + usize::from(twice && !lost);
        copies[..count].to_vec()
    }
}

/// Who asks, and the socket that the server knows it by.
struct Client {
    socket: UdpSocket,
    heard: Instant,
}

/// A datagram under way; the earliest, and of those the first that came, is the greatest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    leaves: Reverse<(Instant, u64)>,
    client: SocketAddr,
    to_server: bool,
    bytes: Vec<u8>,
}

/// What became of the datagrams.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    taken: u64,
    passed: u64,
    lost: u64,
    repeated: u64,
}

/// The proxy, which does nothing but in its steps.
pub struct Proxy {
    /// Where clients come to.
    pub front: UdpSocket,
    server: SocketAddr,
    weather: Weather,
    draws: Draws,
    clients: BTreeMap<SocketAddr, Client>,
    under_way: BinaryHeap<UnderWay>,
    counts: Counts,
}

impl Proxy {
    /// A proxy that listens at one address and passes on to the other.
    pub fn new(listen: &str, to: &str, weather: Weather, seed: u64) -> Result<Self> {
        let front = UdpSocket::bind(listen).with_context(|| listen.to_owned())?;
        front.set_nonblocking(true)?;
        let server = to.to_socket_addrs().with_context(|| to.to_owned())?.next();
        Ok(Proxy {
            front,
            server: server.with_context(|| format!("{to} has no address"))?,
            weather,
            draws: Draws(seed),
            clients: BTreeMap::new(),
            under_way: BinaryHeap::new(),
            counts: Counts::default(),
        })
    }

    /// Takes what is there and passes on what is due; says whether there was anything.
    pub fn step(&mut self) -> Result<bool> {
        let mut bytes = vec![0; DATAGRAM_BYTES_MAX];
        let now = Instant::now();
        let mut busy = false;
        while let Some((count, client)) = passing(self.front.recv_from(&mut bytes))? {
            busy = true;
            self.know(client, now)?;
            self.take(client, true, &bytes[..count], now);
        }
        let clients: Vec<SocketAddr> = self.clients.keys().copied().collect();
        for client in clients {
            while let Some(count) = passing(self.clients[&client].socket.recv(&mut bytes))? {
                busy = true;
                self.take(client, false, &bytes[..count], now);
            }
        }
        while self.under_way.peek().is_some_and(|first| first.leaves.0.0 <= now) {
            busy = true;
            let Some(due) = self.under_way.pop() else { break };
            self.pass(&due)?;
        }
        Ok(busy)
    }

    fn know(&mut self, client: SocketAddr, now: Instant) -> Result<()> {
        if let Some(known) = self.clients.get_mut(&client) {
            known.heard = now;
            return Ok(());
        }
        if self.clients.len() >= CLIENTS_MAX {
            let silent = self.clients.iter().min_by_key(|(_, known)| known.heard);
            let silent = silent.map(|(address, _)| *address);
            silent.map(|address| self.clients.remove(&address));
        }
        let any = if self.server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(self.server)?;
        socket.set_nonblocking(true)?;
        self.clients.insert(client, Client { socket, heard: now });
        Ok(())
    }

    fn take(&mut self, client: SocketAddr, to_server: bool, bytes: &[u8], now: Instant) {
        let copies = self.weather.strike(&mut self.draws);
        self.counts.taken += 1;
        self.counts.lost += u64::from(copies.is_empty());
        self.counts.repeated += u64::from(copies.len() > 1);
        for (copy, takes) in (0..).zip(copies) {
            let leaves = Reverse((now + takes, 2 * self.counts.taken + copy));
            self.under_way.push(UnderWay { leaves, client, to_server, bytes: bytes.to_vec() });
        }
    }

    fn pass(&mut self, due: &UnderWay) -> Result<()> {
        let Some(client) = self.clients.get(&due.client) else { return Ok(()) };
        let sent = if due.to_server {
            client.socket.send(&due.bytes)
        } else {
            self.front.send_to(&due.bytes, due.client)
        };
        self.counts.passed += u64::from(passing(sent)?.is_some());
        Ok(())
    }
}

/// What a socket did; none where there is nothing, no room, or nobody at the other end.
fn passing<T>(done: io::Result<T>) -> Result<Option<T>> {
    use io::ErrorKind::{ConnectionRefused, Interrupted, WouldBlock};
    match done {
        Ok(done) => Ok(Some(done)),
        Err(e) if [ConnectionRefused, Interrupted, WouldBlock].contains(&e.kind()) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut proxy = Proxy::new(&args.listen, &args.to, args.weather, args.seed)?;
    println!("ready udp://{}", proxy.front.local_addr()?);
    loop {
        if !proxy.step()? {
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weather(loss: f64, repeat: f64, reorder: f64, most: Duration) -> Weather {
        Weather { loss, repeat, reorder, delay: Duration::ZERO..=most }
    }

    /// Goal: shares and orders are those that were asked for, and the same for a seed.
    #[test]
    fn the_weather_is_as_ordered() {
        let most = Duration::from_millis(5);
        let of = |seed| {
            let (mut draws, weather) = (Draws(seed), weather(0.1, 0.2, 0.05, most));
            (0..10_000).map(|_| weather.strike(&mut draws)).collect::<Vec<_>>()
        };
        let struck = of(7);
        assert_eq!(struck, of(7));
        assert_ne!(struck, of(8));
        let count = |copies: usize| struck.iter().filter(|s| s.len() == copies).count();
        assert!((900..1100).contains(&count(0)) && (1650..1950).contains(&count(2)));
        let late = struck.iter().filter(|s| s.first().is_some_and(|first| *first > most)).count();
        assert!((350..550).contains(&late));
        assert_eq!(weather(0.0, 0.0, 0.0, Duration::ZERO).strike(&mut Draws(1)).len(), 1);
    }

    /// Goal: datagrams of several clients reach the server and the answers reach the one who
    /// asked, as often as the counts say, in good and bad weather.
    #[test]
    fn datagrams_pass_both_ways() {
        for weather in [
            weather(0.0, 0.0, 0.0, Duration::ZERO),
            weather(0.2, 0.2, 0.2, Duration::from_millis(2)),
        ] {
            let server = UdpSocket::bind("127.0.0.1:0").unwrap();
            server.set_nonblocking(true).unwrap();
            let to = server.local_addr().unwrap().to_string();
            let good = weather.loss == 0.0;
            let mut proxy = Proxy::new("127.0.0.1:0", &to, weather, 3).unwrap();
            let at = proxy.front.local_addr().unwrap();
            let clients = [0u8, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
            for client in &clients {
                client.set_nonblocking(true).unwrap();
            }
            let (mut asked, mut answered) = (0, 0);
            for round in 0..200u8 {
                for (name, client) in (0u8..).zip(&clients) {
                    client.send_to(&[name, round], at).unwrap();
                }
                let mut bytes = [0; 10];
                while proxy.step().unwrap() || !proxy.under_way.is_empty() {
                    while let Some((count, from)) = passing(server.recv_from(&mut bytes)).unwrap() {
                        asked += 1;
                        server.send_to(&bytes[..count], from).unwrap();
                    }
                    for (name, client) in (0u8..).zip(&clients) {
                        while passing(client.recv(&mut bytes)).unwrap().is_some() {
                            answered += 1;
                            assert_eq!(bytes[0], name, "an answer to somebody else");
                        }
                    }
                }
            }
            let Counts { taken, passed, lost, repeated } = proxy.counts;
            assert_eq!((asked + answered, passed), (passed, taken - lost + repeated));
            assert_eq!((taken - asked, good), (400, (lost, repeated) == (0, 0)));
        }
    }

    /// Goal: what is said on the command line is what is meant.
    #[test]
    fn arguments_are_read() {
        assert_eq!(
            (share("1%"), share("0.5"), share("101%").is_err()),
            (Ok(0.01), Ok(0.005), true)
        );
        assert_eq!(delays("0..5ms"), Ok(Duration::ZERO..=Duration::from_millis(5)));
        assert_eq!(delays("10us"), Ok(Duration::from_micros(10)..=Duration::from_micros(10)));
        assert!(delays("5ms..1ms").is_err() && delays("5").is_err());
    }
}
