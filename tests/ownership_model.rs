//! The protocol of attaching, leases and takeovers as a model, every state of it looked at: two
//! hosts that reach the same disks, one metadata server, an operator who fences, and a network
//! that loses, repeats, reorders and keeps datagrams for ever.
//!
//! What decides is the server's own code ([`ownership`]); the model moves the messages.

use std::collections::BTreeSet;

use flipside::format::ids::{HostId, Incarnation, PoolId, UnitId};
use flipside::mds::error::Refusal;
use flipside::mds::ownership::{self, ENDLESS, Owner, Start};
use flipside::mds::records::Claim;
use stateright::{Checker, HasDiscoveries, Model, Property};

const ONE_WRITES: &str = "one host writes";
const NONE_LOST: &str = "no acknowledged commit is lost";
const OWNER_KNOWS: &str = "an owner knows every commit";
const ALWAYS: [&str; 3] = [ONE_WRITES, NONE_LOST, OWNER_KNOWS];
const TAKEOVER: &str = "both hosts have committed";
const STOPS: &str = "an owner stops at its lease's end";

const HOSTS: usize = 2;
/// In ticks of the one clock that all go by.
const LEASE: u8 = 2;
/// How much earlier an owner stops.
const MARGIN: u8 = 1;

/// What is on the network; nothing ever leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Attach {
        session: Session,
        fenced: bool,
        after: u8,
        sent: u8,
    },
    /// Refused: this was the last start.
    Stale {
        session: Session,
        last: u8,
    },
    Attached {
        session: Session,
        sent: u8,
    },
    Renew {
        session: Session,
        sent: u8,
    },
    Renewed {
        session: Session,
        sent: u8,
    },
    Harden {
        session: Session,
        commit: u8,
    },
    Hardened {
        session: Session,
        commit: u8,
    },
}

/// A start of a host's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Session {
    host: usize,
    start: u8,
}

/// Who is attached, as the server keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Attachment {
    session: Session,
    lease_ends: u8,
    /// How much of the log it found.
    found: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Server {
    owner: Option<Attachment>,
    last: u8,
    /// Commits that are durable.
    log: Vec<(Session, u8)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Target {
    /// Waits for the answer to its claim, with what it said was the last start.
    asks: Option<(Session, bool, u8)>,
    serves: Option<Session>,
    serves_until: u8,
    starts: u8,
    commits: u8,
    renewals: u8,
    /// A write is on its way to the disks.
    writes: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct World {
    now: u8,
    server: Server,
    targets: [Target; HOSTS],
    /// Whose writes the disks refuse.
    fenced: [bool; HOSTS],
    given_back: bool,
    network: BTreeSet<Message>,
    acknowledged: BTreeSet<(Session, u8)>,
    /// A write arrived at the disks while another host was the owner.
    foreign_write: bool,
    refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Tick,
    Deliver(Message),
    Starts(usize),
    Dies(usize),
    Renews(usize),
    Writes(usize),
    WriteArrives(usize),
    Commits(usize),
    /// The operator, or a reservation, keeps a host's writes out.
    Fences(usize),
    /// The operator lets the fenced host have the disks again, where its target has stopped, and
    /// keeps the other out, whose target does not wait to be attached with what was said before.
    GivesBack,
}

/// What a rule that is left out would allow: the model must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// An ended lease is enough for a takeover.
    LeaseIsEnough,
    /// The server hardens for a session that was replaced.
    StaleHardened,
    /// Another host's pool is granted to who asks.
    TakenUnfenced,
}

struct Protocol {
    flaw: Flaw,
    ticks: u8,
    starts: [u8; HOSTS],
    commits: u8,
    renewals: u8,
}

fn host(number: usize) -> HostId {
    HostId([number as u8 + 1; 16])
}

fn claim(by: usize, fenced: bool) -> Claim {
    let claim = Claim::of(PoolId([7; 16]), UnitId(1), Incarnation(0));
    Claim { host: host(by), incarnation: None, lease_ms: u32::from(LEASE), fenced, ..claim }
}

impl Target {
    /// Whether it may serve: its session's lease has not ended by its clock.
    fn serving(&self, now: u8) -> Option<Session> {
        self.serves.filter(|_| now < self.serves_until)
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::default()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.now < self.ticks {
            actions.push(Action::Tick);
        }
        actions.extend(world.network.iter().copied().map(Action::Deliver));
        for (number, target) in world.targets.iter().enumerate() {
            let down = target.asks.is_none() && target.serves.is_none();
            if !down {
                actions.push(Action::Dies(number));
            } else if target.starts < self.starts[number] {
                actions.push(Action::Starts(number));
            }
            if target.serving(world.now).is_some() {
                if target.renewals < self.renewals {
                    actions.push(Action::Renews(number));
                }
                if !target.writes {
                    actions.push(Action::Writes(number));
                }
                if target.commits < self.commits {
                    actions.push(Action::Commits(number));
                }
            }
            if target.writes {
                actions.push(Action::WriteArrives(number));
            }
            if !world.fenced.contains(&true) {
                actions.push(Action::Fences(number));
            }
        }
        if let Some(fenced) = world.fenced.iter().position(|fenced| *fenced)
            && world.targets[fenced].serving(world.now).is_none()
            && world.targets[1 - fenced].asks.is_none()
            && !world.given_back
        {
            actions.push(Action::GivesBack);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Deliver(message) => self.deliver(&mut world, message),
            Action::Tick => world.now += 1,
            Action::Fences(number) => world.fence(number),
            Action::GivesBack => {
                let fenced = world.fenced.iter().position(|fenced| *fenced)?;
                world.given_back = true;
                world.fenced[fenced] = false;
                world.fence(1 - fenced);
            }
            Action::WriteArrives(number) => {
                world.targets[number].writes = false;
                // Who is fenced is no second writer, whatever the server thinks.
                let owner = world.server.owner.map(|owner| owner.session.host);
                let other = owner.is_some_and(|owner| owner != number && !world.fenced[owner]);
                world.foreign_write |= other && !world.fenced[number];
            }
            Action::Starts(number) => world.start(number),
            Action::Dies(number) => {
                // What it wrote is still on its way.
                let Target { starts, writes, .. } = world.targets[number];
                world.targets[number] = Target { starts, writes, ..Target::default() };
            }
            Action::Writes(number) => world.targets[number].writes = true,
            Action::Renews(number) => {
                world.targets[number].renewals += 1;
                let session = world.targets[number].serves?;
                world.network.insert(Message::Renew { session, sent: world.now });
            }
            Action::Commits(number) => {
                let target = &mut world.targets[number];
                target.commits += 1;
                let (session, commit) = (target.serves?, target.commits);
                world.network.insert(Message::Harden { session, commit });
            }
        }
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_WRITES, |_, world: &World| !world.foreign_write),
            Property::always(NONE_LOST, |_, world: &World| {
                world.acknowledged.iter().all(|commit| world.server.log.contains(commit))
            }),
            Property::always(OWNER_KNOWS, |_, world: &World| {
                let Some(owner) = world.server.owner else { return true };
                world.server.log[owner.found..].iter().all(|(by, _)| *by == owner.session)
            }),
            Property::sometimes(TAKEOVER, |_, world: &World| {
                let hosts: BTreeSet<_> = world.acknowledged.iter().map(|(s, _)| s.host).collect();
                hosts.len() == HOSTS
            }),
            Property::sometimes("a refusal", |_, world: &World| world.refused),
            Property::sometimes(STOPS, |_, world: &World| {
                let ended = |target: &Target| {
                    target.serves.is_some() && target.serving(world.now).is_none()
                };
                world.targets.iter().any(ended)
            }),
        ]
    }
}

impl World {
    fn fence(&mut self, number: usize) {
        self.fenced[number] = true;
        self.targets[number].writes = false;
    }

    /// A target is started, by an operator who says what is true: whether the other is fenced.
    fn start(&mut self, number: usize) {
        let start = self.targets[number].starts + 1;
        let session = Session { host: number, start };
        let fenced = self.fenced[1 - number];
        let writes = self.targets[number].writes;
        self.targets[number] =
            Target { asks: Some((session, fenced, 0)), starts: start, writes, ..Target::default() };
        // Only when it knows from whom does it say that it is fenced.
        let first = Message::Attach { session, fenced: false, after: 0, sent: self.now };
        self.network.insert(first);
    }
}

impl Protocol {
    fn deliver(&self, world: &mut World, message: Message) {
        match message {
            Message::Attach { session, fenced, after, sent } => {
                if let Some(answer) = self.attach(world, session, fenced, after, sent) {
                    world.network.insert(answer);
                }
            }
            Message::Stale { session, last } => {
                let target = &mut world.targets[session.host];
                if let Some((asks, fenced, after)) = target.asks
                    && asks == session
                    && after != last
                {
                    if fenced && after != 0 {
                        target.asks = None;
                        return;
                    }
                    target.asks = Some((session, fenced, last));
                    let sent = world.now;
                    world.network.insert(Message::Attach { session, fenced, after: last, sent });
                }
            }
            Message::Attached { session, sent } => {
                let target = &mut world.targets[session.host];
                if target.asks.is_some_and(|(asks, ..)| asks == session) {
                    target.asks = None;
                    target.serves = Some(session);
                    target.serves_until = sent + LEASE - MARGIN;
                }
            }
            Message::Renew { session, sent } => {
                if let Some(owner) = &mut world.server.owner
                    && owner.session == session
                {
                    owner.lease_ends = owner.lease_ends.max(world.now + LEASE);
                    world.network.insert(Message::Renewed { session, sent });
                }
            }
            Message::Renewed { session, sent } => {
                let target = &mut world.targets[session.host];
                if target.serving(world.now) == Some(session) {
                    target.serves_until = target.serves_until.max(sent + LEASE - MARGIN);
                }
            }
            Message::Harden { session, commit } => self.harden(&mut *world, session, commit),
            Message::Hardened { session, commit } => {
                if world.targets[session.host].serving(world.now) == Some(session) {
                    world.acknowledged.insert((session, commit));
                }
            }
        }
    }

    fn attach(
        &self,
        world: &mut World,
        session: Session,
        fenced: bool,
        after: u8,
        sent: u8,
    ) -> Option<Message> {
        let server = &mut world.server;
        if server.owner.is_some_and(|owner| owner.session == session) {
            return Some(Message::Attached { session, sent });
        }
        let owner = server.owner.map(|owner| Owner {
            host: host(owner.session.host),
            left_ms: u64::from(owner.lease_ends.saturating_sub(world.now)),
        });
        assert!(owner.is_none_or(|owner| owner.left_ms != ENDLESS));
        let ended = owner.is_some_and(|owner| owner.left_ms == 0);
        let claim = claim(session.host, fenced);
        let last = (server.last > 0).then(|| Incarnation(u32::from(server.last)));
        let asked = Start::After(Incarnation(u32::from(after)));
        match ownership::may_attach(owner, last, asked, &claim) {
            Ok(_) => {}
            Err((Refusal::StaleIncarnation, _)) => {
                return Some(Message::Stale { session, last: server.last });
            }
            Err(_) if self.flaw == Flaw::LeaseIsEnough && ended => {}
            Err(_) if self.flaw == Flaw::TakenUnfenced => {}
            Err(_) => {
                world.refused = true;
                return None;
            }
        }
        server.last += 1;
        let (lease_ends, found) = (world.now + LEASE, server.log.len());
        server.owner = Some(Attachment { session, lease_ends, found });
        Some(Message::Attached { session, sent })
    }

    fn harden(&self, world: &mut World, session: Session, commit: u8) {
        let server = &mut world.server;
        let current = server.owner.is_some_and(|owner| owner.session == session);
        if !current && self.flaw != Flaw::StaleHardened {
            return;
        }
        if !server.log.contains(&(session, commit)) {
            let earlier = server.log.iter().filter(|(by, _)| *by == session).count();
            if usize::from(commit) != earlier + 1 {
                return;
            }
            server.log.push((session, commit));
        }
        world.network.insert(Message::Hardened { session, commit });
    }
}

/// Looks at every state; the properties that are decided, and how many states there are.
fn look(protocol: Protocol) -> (BTreeSet<&'static str>, usize) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // A flaw is looked for until it is found; what is sound, to its last state.
    let until = match protocol.flaw {
        Flaw::None => HasDiscoveries::All,
        _ => HasDiscoveries::AnyFailures,
    };
    let checked = protocol.checker().threads(threads).finish_when(until).spawn_bfs().join();
    (checked.discoveries().into_keys().collect(), checked.unique_state_count())
}

const SOUND: Protocol =
    Protocol { flaw: Flaw::None, ticks: 1, starts: [1, 1], commits: 1, renewals: 0 };

/// Goal: over every order, loss and repetition of the messages, deaths and fences included, one
/// host writes, no acknowledged commit is lost, and every owner knows all commits.
///
/// `FLIPSIDE_STATES=all` looks at larger worlds, too.
#[test]
fn every_state_is_sound() {
    let small = [
        Protocol { ..SOUND },
        Protocol { ticks: 2, renewals: 1, commits: 0, ..SOUND },
        Protocol { starts: [2, 1], commits: 0, ..SOUND },
    ];
    let large = [
        Protocol { ticks: 2, renewals: 1, ..SOUND },
        Protocol { starts: [2, 1], ..SOUND },
        Protocol { ticks: 3, renewals: 1, ..SOUND },
    ];
    let all = std::env::var_os("FLIPSIDE_STATES").is_some();
    for protocol in small.into_iter().chain(large.into_iter().filter(|_| all)) {
        let Protocol { ticks, starts, commits, renewals, .. } = protocol;
        let (found, states) = look(protocol);
        println!(
            "{states} states: {ticks} ticks, {starts:?} starts, {commits} commits each, \
             {renewals} renewals"
        );
        let broken: Vec<_> = ALWAYS.iter().filter(|name| found.contains(*name)).collect();
        assert!(broken.is_empty(), "broken: {broken:?}");
        assert!(found.contains("a refusal") && found.contains(STOPS), "{found:?}");
        assert!(commits == 0 || found.contains(TAKEOVER), "{found:?}");
    }
}

/// Goal: a rule that is left out is noticed, by the property that it is there for.
#[test]
fn flaws_are_noticed() {
    for (flaw, broken) in [
        (Flaw::LeaseIsEnough, ONE_WRITES),
        (Flaw::TakenUnfenced, ONE_WRITES),
        (Flaw::StaleHardened, OWNER_KNOWS),
    ] {
        let (found, _) = look(Protocol { flaw, ticks: 2, ..SOUND });
        assert!(found.contains(broken), "{flaw:?}: {found:?}");
    }
}
