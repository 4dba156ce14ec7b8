//! The plans in `tests/regressions`: a few actions each that showed a fault once.
//!
//! One file for each, named by what it showed (a mutant, by its name); lines that begin with `#`
//! say more, the others are the plan as [`Plan`] reads it. `tests/plans.rs` runs all of them on
//! healthy code; `make mutants` tries whether each still shows its mutant, and
//! `FLIPSIDE_RECORD=1 make mutants` writes them anew: a plan's seed means something else where the
//! simulator draws engines and faults in another way.

use std::path::PathBuf;

use flipside::sim::plan::Plan;

/// How many salts a plan is tried with: completions and crashes come as they may in any version.
const SALTS: u64 = 100;

/// A plan that showed a fault.
pub struct Regression {
    /// What it showed.
    pub name: String,
    plan: Plan,
}

impl Regression {
    /// The plan as it was recorded, and then as often as `more` says with other salts.
    pub fn tries(&self, more: u64) -> impl Iterator<Item = Plan> {
        let others = (1..=more).map(|salt| Plan { salt, ..self.plan.clone() });
        std::iter::once(self.plan.clone()).chain(others)
    }

    /// As often as it takes a plan at most to show its fault again.
    #[allow(dead_code, reason = "for mutants alone")]
    pub fn all_tries(&self) -> impl Iterator<Item = Plan> {
        self.tries(SALTS)
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/regressions")
}

/// All that are recorded.
pub fn all() -> Vec<Regression> {
    let mut paths: Vec<_> = folder()
        .read_dir()
        .expect("a folder of plans")
        .map(|entry| entry.expect("a file in it").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "plan"))
        .collect();
    paths.sort();
    paths.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> Regression {
    let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).expect("a file that can be read");
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let plan = lines.join("\n").parse();
    Regression { plan: plan.unwrap_or_else(|why| panic!("{name}: {why}")), name }
}

/// Keeps a plan, and what it shows.
#[allow(dead_code, reason = "for mutants alone")]
pub fn record(name: &str, what: &str, plan: &Plan) {
    let text = plan.to_string().replace(';', ";\n").replace(':', " : ").replace(',', ", ");
    let text = format!("# {what}\n{text}\n");
    std::fs::write(folder().join(name).with_extension("plan"), text).expect("a writable folder");
}
