//! Repairs of a pool that are cut short by a loss of power, at any call, and begun again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use flipside::check::devices::{self, DeviceFacts};
use flipside::check::finding::{Finding, Mend};
use flipside::check::{identity, mend, region};
use flipside::env::flags::FlagsRegion;
use flipside::env::region::DeviceRegion;
use flipside::env::sim::rng::Rng;
use flipside::env::sim::{Crash, Fault, Faults, Limit, Machine, SimDisk, SimEnv, SimNvram};
use flipside::env::{Env as _, Nvram as _, Region as _};
use flipside::format::layout::Geometry;
use flipside::format::nvram::{self, NvramIdentity, REGION_START};
use flipside::format::superblock::FlagsPlace;
use flipside::journal;
use flipside::journal::inspect::{PageKind, RegionFacts, UnevenPage, inspect, runs};
use flipside::sim::engine::{Engine as _, Running as _, Volume as _};
use flipside::sim::flipside::{Flipside, Serving};
use flipside::unit::Config;

use crate::simulated::{formatted, started};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 20_000_000 };
const BLOCK: u64 = 512;
const EXTENT: u64 = 16 << 10;

/// What `flipside check` looks at, but for the metadata.
struct Examined {
    device: DeviceFacts,
    region: FlagsRegion<DeviceRegion<SimDisk>, SimNvram>,
    facts: RegionFacts,
    findings: Vec<Finding>,
}

async fn examine(env: &SimEnv) -> Examined {
    let disk = env.disk(0);
    let device = devices::look(&disk, env.buffers(), "disk".to_owned()).await;
    let (pool, mut findings) = devices::judge(std::slice::from_ref(&device));
    let superblock = pool.expect("one superblock is good").superblock;
    let region = match superblock.flags {
        FlagsPlace::Nvram { region, len } => {
            let wanted = NvramIdentity { pool: superblock.pool, region, len };
            let copies = journal::identity::copies(env, &env.nvram().unwrap()).await.unwrap();
            assert!(!identity::is_another(&copies, &wanted), "{copies:?}");
            findings.extend(identity::judge(&copies, &wanted, "nvram"));
            FlagsRegion::Nvram(env.nvram().unwrap().part(REGION_START, len))
        }
        FlagsPlace::Device | FlagsPlace::Mds => {
            let span = superblock.layout.regions.unwrap().unit;
            FlagsRegion::Device(DeviceRegion::new(disk, span.offset, span.len))
        }
    };
    let facts = inspect(env, &region, superblock.pool).await.unwrap();
    findings.extend(region::judge(&facts, &superblock, "region").1);
    Examined { device, region, facts, findings }
}

/// What `flipside check --repair` does.
async fn repair(env: SimEnv) {
    let found = examine(&env).await;
    for mend in mend::plan(&found.findings) {
        match mend {
            Mend::Superblock(_) => mend::superblock(&env, &env.disk(0), &found.device).await,
            Mend::Identity => mend::identity(&env, &env.nvram().unwrap()).await,
            _ => mend::page(&env, &found.region, &found.facts, &mend).await,
        }
        .unwrap();
    }
}

/// Destroys one copy of each of most pages that are there twice, a superblock, and a copy of the
/// NVRAM's identity where there is one.
async fn damage(env: SimEnv, seed: u64) {
    let found = examine(&env).await;
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    let mut rng = Rng::new(seed);
    let layout = found.facts.header.as_ref().map(|(_, layout)| *layout);
    let mut garbage = env.buffers().acquire(8192).await;
    garbage.as_mut_slice().fill(0xa5);
    let mut damaged = 0;
    for kind in [PageKind::Header, PageKind::Status, PageKind::Home] {
        let runs = runs(kind, layout.as_ref());
        for page in 0..runs.count {
            let uneven = |(of, at): &(PageKind, UnevenPage)| *of == kind && at.index == page;
            if found.facts.uneven.iter().any(uneven) || rng.chance(300_000) {
                continue;
            }
            let copy = rng.below(2) as usize;
            let at = runs.copies[copy] + u64::from(page) * runs.page as u64;
            found.region.persist(vec![(at, garbage.view(0..runs.page))]).await.unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 5, "{damaged} pages");
    if let Some(nvram) = env.nvram() {
        let at = rng.below(2) * nvram::LEN as u64;
        nvram.persist(vec![(at, garbage.view(0..nvram::LEN))]).await.unwrap();
    }
    let [first, second] = found.device.copies[0].as_ref().unwrap().layout.superblocks();
    let at = if rng.chance(500_000) { first } else { second };
    let head = DeviceRegion::new(env.disk(0), at, 4096);
    head.persist(vec![(0, garbage.view(0..4096))]).await.unwrap();
}

/// Rounds of writes to a volume, each of them settled, so that its home is written.
async fn work(serving: Serving) {
    let volume = serving.volumes()[0].clone();
    for round in 1..=3 {
        for block in (0..64).step_by(round) {
            let bytes = vec![round as u8; BLOCK as usize];
            volume.write(block * BLOCK, bytes, false).await.unwrap();
        }
        volume.flush().await.unwrap();
        serving.settle().await.unwrap();
    }
    serving.shutdown().await.unwrap();
}

/// Runs something on the machine until its end, or until a crash at a call.
fn run<F: Future<Output = ()> + 'static>(
    machine: &mut Machine,
    call: Option<u64>,
    what: impl FnOnce(SimEnv) -> F,
) -> bool {
    let torn = Faults::none().with(Fault::TornSector, 1_000_000).with(Fault::TornLine, 1_000_000);
    let env = machine.boot(torn);
    env.crash_in(call);
    let ended = env.run(LIMIT, what(env.clone())).is_ok();
    machine.halt(&env, Crash::Power);
    ended
}

/// Wherever a repair is cut short, and again in the next one, the one after that leaves nothing to
/// be mended, and everything is there that was.
pub fn cut_short_anywhere() {
    for (seed, nvram) in [(1, false), (2, true)] {
        let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).unwrap();
        let engine = Flipside::plain(geometry, 200, 40, 4 * EXTENT, Config::default());
        let engine = if nvram { engine.with_nvrams(&[0], Some(0)) } else { engine };
        let mut machine = formatted(&engine, seed, LIMIT);
        let (env, serving) = started(&mut machine, &engine, LIMIT);
        env.run(LIMIT, work(serving)).unwrap();
        machine.halt(&env, Crash::Power);
        assert!(run(&mut machine, None, |env| damage(env, seed)));
        let mut cut = 0;
        for call in 0.. {
            let mut other = Machine::new(seed, &engine.shape());
            other.insert(machine.media(), seed << 32 | call);
            let whole = run(&mut other, Some(call), repair);
            run(&mut other, Some(call / 2), repair);
            assert!(run(&mut other, None, repair));
            let well = |env: SimEnv| async move {
                let findings = examine(&env).await.findings;
                assert!(findings.is_empty(), "call {call}: {findings:?}");
            };
            assert!(run(&mut other, None, well));
            is_all_there(&mut other, &engine.fork());
            if whole {
                break;
            }
            cut += 1;
        }
        assert!(cut > 20, "only {cut} calls were cut short");
    }
}

fn is_all_there(machine: &mut Machine, engine: &Flipside) {
    let (env, serving) = started(machine, engine, LIMIT);
    env.run(LIMIT, async move {
        let volume = serving.volumes()[0].clone();
        let found = volume.read(0, 64 * BLOCK as usize).await.unwrap();
        for (block, bytes) in found.chunks_exact(BLOCK as usize).enumerate() {
            let last = (1..=3).filter(|round| block % round == 0).max().unwrap();
            assert!(bytes.iter().all(|byte| *byte == last as u8), "block {block}");
        }
        serving.check().unwrap();
    })
    .unwrap();
}
