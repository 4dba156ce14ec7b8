//! No bytes make a parser panic: every file of the fuzz corpus, and thousands of mutated copies of
//! each, through the bodies that `make fuzz` runs for as long as one likes.
//!
//! The copies are drawn from a seed, so that a failure here fails everywhere.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

#[path = "fuzz/bodies/mod.rs"]
mod bodies;
#[path = "fuzz/seeds.rs"]
mod seeds;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use bodies::{Body, TARGETS};
use flipside::env::sim::rng::Rng;

/// Mutated copies tried of each target.
const COPIES: u32 = 4000;
/// What parsers stumble over.
const NUMBERS: [u32; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];
/// Where every input of a seed's name begins: those are valid, others need not be.
const SEED_PREFIX: &str = "seed-";

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

/// The files of a target's corpus, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).unwrap_or_else(|_| panic!("{target} has a corpus"));
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Runs a body, and says which input it was that it panicked at.
fn try_one(target: &str, body: Body, from: &str, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| body(input)))
        .unwrap_or_else(|_| panic!("{target} panics at a copy of {from}: {input:02x?}"))
}

/// A copy with a few things wrong.
fn mutated(rng: &mut Rng, files: &[(String, Vec<u8>)], input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.between(1, 4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.bits() as u8),
            2 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            3 if at < bytes.len() => bytes[at] = rng.bits() as u8,
            4 if at + 4 <= bytes.len() => {
                let number = NUMBERS[rng.below(NUMBERS.len() as u64) as usize];
                let little = rng.below(2) == 0;
                let number = if little { number.to_le_bytes() } else { number.to_be_bytes() };
                bytes[at..at + 4].copy_from_slice(&number);
            }
            5 => {
                let len = rng.below(64).min((bytes.len() - at) as u64) as usize;
                bytes.extend_from_within(at..at + len);
            }
            _ => {
                let other = &files[rng.below(files.len() as u64) as usize].1;
                let from = rng.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

/// Goal: nothing in the corpus, and no mutated copy of it, makes a parser panic or breaks what it
/// promises; and the seeds are valid, so that their copies come as far as they can.
#[test]
fn no_bytes_panic() {
    for (target, body) in TARGETS {
        let files = corpus(target);
        for (name, input) in &files {
            let passed = try_one(target, *body, name, input);
            assert!(passed || !name.starts_with(SEED_PREFIX), "{target}: {name} is not valid");
        }
        let mut rng = Rng::new(files.len() as u64);
        for _ in 0..COPIES {
            let (name, input) = &files[rng.below(files.len() as u64) as usize];
            try_one(target, *body, name, &mutated(&mut rng, &files, input));
        }
    }
}

/// Goal: the fuzz targets, their files, the corpora and the list here are the same.
#[test]
fn every_target_is_listed() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let entries = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        let name = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
        entries.map(|entry| name(entry.unwrap().path())).collect()
    };
    assert_eq!(entries("targets"), names);
    assert_eq!(entries("corpus"), names);
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for name in &names {
        assert!(manifest.contains(&format!("\"targets/{name}.rs\"")), "{name} is built");
    }
}

/// Goal: no check at all, but the way to write the seeds again when a format has changed.
#[test]
#[ignore = "writes into the source tree"]
fn write_seeds() {
    for (target, _) in TARGETS {
        fs::create_dir_all(folder(target)).unwrap();
        for (name, bytes) in seeds::of(target) {
            fs::write(folder(target).join(format!("{SEED_PREFIX}{name}")), bytes).unwrap();
        }
    }
}
