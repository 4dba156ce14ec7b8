//! temp
use flipside::format::layout::Geometry;
use flipside::sim::action::Action;
use flipside::sim::engine::Zeroing;
use flipside::sim::exhaustive::*;
use flipside::sim::flipside::Flipside;
use std::time::Instant;

#[test]
fn measure() {
    let n = |k: &str, d: u64| std::env::var(k).ok().map_or(d, |v| v.parse().unwrap());
    let block = n("BLOCK", 512) as u32;
    let geometry = Geometry::new(block, (block * 8).max(16 << 10)).unwrap();
    let e = geometry.blocks_per_extent() * 4;
    let (x, y, z) = (e - 8..e - 4, e - 4..e, e..e + 4);
    let w =
        |range: &std::ops::Range<u32>, fua| Action::Write { volume: 0, range: range.clone(), fua };
    let t = |range: std::ops::Range<u32>| Action::Zero {
        volume: 0,
        range,
        how: Zeroing::Trim,
        fua: false,
    };
    let prelude = if n("USED", 0) == 1 {
        vec![w(&(x.start..z.end), false), Action::Commit, w(&y, false)]
    } else {
        vec![]
    };
    let scope = Scope {
        engine: Flipside::small(geometry, n("NVRAM", 0) == 1),
        prelude,
        depth: n("DEPTH", 0) as u32,
        images_max: 4096,
        sample: n("SAMPLE", 64),
        nested_max: n("NESTED", 64),
    };
    let actions = vec![
        w(&x, false),
        w(&y, false),
        w(&z, false),
        w(&(y.start..z.end), false),
        w(&(y.start + 1..y.end - 1), false),
        w(&(x.start + 2..y.end - 2), false),
        w(&(y.start + 2..z.end - 2), false),
        w(&y, true),
        w(&z, true),
        w(&(y.start..z.end), true),
        t(y.clone()),
        t(z.clone()),
        t(y.start..z.end),
        Action::Flush(0),
        Action::Settle,
    ];
    let mut ex = Explorer::new(scope).unwrap();
    println!("start {}", ex.counts);
    let t0 = Instant::now();
    let all = sequences(&actions, n("MOST", 2) as usize);
    for (i, s) in all.iter().enumerate() {
        if i % n("EVERY", 1) as usize != 0 {
            continue;
        }
        let before = ex.counts.recovered;
        let t1 = Instant::now();
        for at_once in [false, true] {
            let case = Case { actions: s.clone(), at_once, schedule: n("SCHEDULE", 0) };
            if let Err(why) = ex.look(&case) {
                panic!("{why}")
            }
        }
        if i < 20 || i % 50 == 0 {
            println!(
                "{i} {:.1?} {} {:.1?}",
                t0.elapsed(),
                ex.counts.recovered - before,
                t1.elapsed()
            )
        }
    }
    println!("{} in {:.1?}", ex.counts, t0.elapsed());
}
