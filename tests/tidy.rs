//! The house rules that rustfmt and clippy do not check.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::case_sensitive_file_extension_comparisons, reason = "our own files")]

use std::fs;
use std::path::{Path, PathBuf};

/// The longest file, in lines.
const FILE_LINES_MAX: usize = 800;
/// The longest function, in lines, from its name to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// The longest line, in characters.
const LINE_COLUMNS_MAX: usize = 100;
/// Words for what is not finished.
const UNFINISHED: [&str; 6] = ["TODO", "FIXME", "XXX", "dbg!(", "todo!(", "unimplemented!("];
/// Where `unsafe` may be; an allocator that counts cannot be without it.
const UNSAFE_ROOMS: [&str; 3] = ["src/uring", "src/env/os", "tests/allocations.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `folder` whose name ends in one of `endings`.
fn files(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if entry.is_dir() && !["target", "results", "corpus", "artifacts"].contains(&&*name) {
            files(&entry, endings, found);
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(entry);
        }
    }
}

fn sources(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["src", "tests", "tools", "bench"] {
        files(&root().join(folder), endings, &mut found);
    }
    assert!(!found.is_empty(), "the sources are where they are looked for");
    found.sort();
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().display().to_string();
    found.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

fn report(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}:\n{}", offences.join("\n"));
}

/// The functions of a file that rustfmt has formatted: name, first line, number of lines.
///
/// A function ends at the first line that is a closing brace indented as its first line is.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let Some((before, after)) = trimmed.split_once("fn ") else { continue };
        let qualifier = |word: &str| {
            ["pub", "const", "async", "unsafe", "extern", "\"C\""].contains(&word)
                || word.starts_with("pub(")
        };
        if !before.split_whitespace().all(qualifier) {
            continue;
        }
        let closing = format!("{}}}", &line[..indent]);
        let ends = |line: &&str| {
            **line == closing
                || line.ends_with(';') && line.len() - line.trim_start().len() == indent
        };
        let rest = lines[start..].iter().take_while(|line| !ends(line));
        let one_line = trimmed.ends_with(';') || trimmed.ends_with('}');
        let name = after.split(['(', '<']).next().unwrap().to_owned();
        found.push((name, start + 1, if one_line { 1 } else { rest.count() + 1 }));
    }
    found
}

/// Goal: files can be read in one sitting, functions on one screen, lines without scrolling.
#[test]
fn nothing_is_too_long() {
    let mut offences = Vec::new();
    for (path, text) in sources(&[".rs", ".sh", ".py", ".fio"]) {
        if text.lines().count() > FILE_LINES_MAX {
            offences.push(format!("{path}: {} lines", text.lines().count()));
        }
        for (number, line) in (1..).zip(text.lines()) {
            if line.chars().count() > LINE_COLUMNS_MAX {
                offences.push(format!("{path}:{number}: {} columns", line.chars().count()));
            }
        }
        if path.ends_with(".rs") {
            let long =
                functions(&text).into_iter().filter(|(.., lines)| *lines > FUNCTION_LINES_MAX);
            offences.extend(long.map(|(name, at, n)| format!("{path}:{at}: {name} has {n} lines")));
        }
    }
    report("too long", &offences);
}

/// Goal: nothing is left for later.
#[test]
fn nothing_is_unfinished() {
    let mut offences = Vec::new();
    for (path, text) in sources(&[".rs", ".sh", ".py", ".md", "Makefile"]) {
        for (number, line) in (1..).zip(text.lines()) {
            if path != "tests/tidy.rs" && UNFINISHED.iter().any(|word| line.contains(word)) {
                offences.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    report("unfinished", &offences);
}

/// Goal: `unsafe` stays in the rooms that are there for it.
#[test]
fn unsafe_stays_in_its_rooms() {
    let mut offences = Vec::new();
    for (path, text) in sources(&[".rs"]) {
        if path == "tests/tidy.rs" || UNSAFE_ROOMS.iter().any(|room| path.starts_with(room)) {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap();
            if ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|form| code.contains(form)) {
                offences.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    report("unsafe outside its rooms", &offences);
}

/// Goal: every test says what it is for.
#[test]
fn every_test_opens_with_its_goal() {
    let mut offences = Vec::new();
    for (path, text) in sources(&[".rs"]) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (index, _) in lines.iter().enumerate().filter(|(_, line)| **line == "#[test]") {
            let above = lines[..index].iter().rev();
            let mut above = above.take_while(|l| l.starts_with("///") || l.starts_with("#["));
            if !above.any(|line| line.starts_with("/// Goal: ")) {
                offences.push(format!("{path}:{}", index + 1));
            }
        }
    }
    report("tests without a goal", &offences);
}

/// Goal: the measure of functions works: what is long is seen, whatever stands around it.
#[test]
fn functions_are_measured() {
    let text = "pub(crate) async fn one<T>(\n    a: T,\n) -> T {\n    a\n}\n\nfn two() {}\n\n\
                impl X {\n    fn three(&self) {\n        if y {\n        }\n    }\n}\n";
    let expected = [("one", 1, 5), ("two", 7, 1), ("three", 10, 4)];
    let expected: Vec<_> = expected.map(|(name, at, n)| (name.to_owned(), at, n)).to_vec();
    assert_eq!(functions(text), expected);
}
