//! `flipside bench` and `flipside tune`: what they print, and what they refuse. How fast anything
//! is is not tested.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use assert_cmd::Command;
use flipside::load::case::STANDARD;
use flipside::load::{Direction, Flush};
use serde_json::Value;

const SIZE: u64 = 256 << 20;
const FAILED: i32 = 1;
const PATIENCE: Duration = Duration::from_secs(120);

/// What the command prints when it ends with that code.
fn prints(arguments: &[&str], code: i32) -> (String, String) {
    let mut command = Command::cargo_bin("flipside").unwrap();
    let ended = command.args(arguments).timeout(PATIENCE).assert().code(code);
    let output = ended.get_output();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn device(directory: &Path) -> String {
    let path = directory.join("device");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    path.to_str().unwrap().to_owned()
}

fn number(of: &Value) -> f64 {
    of.as_f64().unwrap_or_else(|| panic!("{of} is no number"))
}

/// Goal: every case is measured on both sides, bytes written are counted where there are any, and
/// the data of each is written once: with the flags on the device, and in NVRAM, which is removed.
#[test]
fn every_case_is_measured_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let (device, nvram) = (device(directory.path()), directory.path().join("nvram"));
    let nvram = nvram.to_str().unwrap();
    for flags in [&[][..], &["--nvram", nvram, "--force"]] {
        let plain = ["bench", "--json", "--time", "50ms", "--rounds", "1", &device];
        let (printed, _) = prints(&[&plain, flags].concat(), 0);
        let report: Value = serde_json::from_str(&printed).unwrap();
        let cases = report["cases"].as_array().unwrap();
        assert_eq!(cases.len(), STANDARD.len());
        for (case, row) in STANDARD.iter().zip(cases) {
            assert_eq!(row["name"], case.name);
            for side in ["alone", "engine"] {
                assert!(number(&row[side]["iops"]) > 0.0, "{row}");
            }
            assert_eq!(row.get("written").is_some(), case.direction == Direction::Write, "{row}");
            if case.flush == Flush::Never && case.direction == Direction::Write {
                let data = number(&row["written"]["data"]);
                assert!((data - 1.0).abs() < 0.01, "{row}");
            }
        }
        assert!(!fs::exists(nvram).unwrap());
    }
}

/// Goal: a case is chosen by its name or the start of it, and a name that is none is refused with
/// those that there are.
#[test]
fn cases_are_chosen_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let device = device(directory.path());
    let plain = ["bench", "--time", "20ms", "--rounds", "1", "--force", &device, "--case"];
    let (printed, _) = prints(&[&plain[..], &["write-flush-*"]].concat(), 0);
    let rows = printed.lines().filter(|line| line.trim_start().starts_with("write-flush-"));
    assert_eq!(rows.count(), 4, "{printed}");
    assert!(!printed.contains("random-"), "{printed}");
    let (_, said) = prints(&[&plain[..], &["no-such-case"]].concat(), FAILED);
    assert!(said.contains("random-write-qd32"), "{said}");
}

/// Goal: a device that holds a pool is refused by both, unchanged, unless forced.
#[test]
fn what_holds_something_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let device = device(directory.path());
    prints(&["format", &device], 0);
    let before = fs::read(&device).unwrap();
    for command in ["bench", "tune"] {
        let (_, said) = prints(&[command, &device], FAILED);
        assert!(said.contains("--force"), "{said}");
        assert!(fs::read(&device).unwrap() == before);
    }
    // Not even where the device may be used up: NVRAM that is there may be another pool's.
    let nvram = directory.path().join("nvram");
    fs::write(&nvram, "of another pool").unwrap();
    let path = nvram.to_str().unwrap();
    let (_, said) = prints(&["bench", "--force", "--nvram", path, &device], FAILED);
    assert!(said.contains("is there already"), "{said}");
    assert!(fs::read(&device).unwrap() == before);
    assert_eq!(fs::read(&nvram).unwrap(), b"of another pool");
}

/// Goal: tuning measures the device, the engine and polling, and says something for people and for
/// programs.
#[test]
fn tuning_advises() {
    let directory = tempfile::tempdir().unwrap();
    let device = device(directory.path());
    let (printed, _) = prints(&["tune", "--json", "--time", "20ms", &device], 0);
    let report: Value = serde_json::from_str(&printed).unwrap();
    let count = |phase: &str| report[phase].as_array().unwrap().len();
    assert_eq!(["alone", "engine", "polling"].map(count), [6, 6, 2]);
    assert!(number(&report["poll_us"]) >= 10.0 && report["advice"].is_array());
    let (printed, _) = prints(&["tune", "--force", "--time", "20ms", &device], 0);
    assert!(printed.contains("random-read-qd1"), "{printed}");
}
