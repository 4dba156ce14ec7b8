//! The store of a metadata server of its own: a directory.
//!
//! | name | what |
//! | --- | --- |
//! | `metadata/rows` | the store below the log, a redb database |
//! | `metadata/log` | the log ([`super::log`]), with all of its blocks |
//! | `metadata.new/` | what a making that was cut short has left; removed by the next |
//!
//! # Contracts
//!
//! - **Ownership**: the directory is locked while the store is open. It holds nothing else.
//! - **Whole**: a store appears under its name when it is whole and durable, both files at once.
//! - **Damage**: every page and row is looked at when the store is opened. What is damaged is
//!   refused, and nothing is made anew: there is no second copy here.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use thiserror::Error;
use uuid::Uuid;

use super::backend::FixedBackend;
use super::log::checkpoint::Checkpointer;
use super::log::format::{HALVES_OFFSET, Identity, LogHeader};
use super::log::place::{FilePlace, LogPlace, ReadOnlyPlace};
use super::log::{self, LoggedStore};
use super::opening::{catching, failed};
use super::overlay::Overlay;
use super::redb_store::RedbStore;
use super::store::{Store, StoreError};

/// Bytes of a half of a new log: what a commit of the store below applies at a time.
pub const LOG_HALF: u64 = 32 << 20;
const FOLDER: &str = "metadata";
const FOLDER_NEW: &str = "metadata.new";
const ROWS: &str = "rows";
const LOG: &str = "log";

/// Why a directory could not be used as a metadata server's store.
#[derive(Debug, Error)]
pub enum HostedError {
    /// It is a file or device.
    #[error("{0} is not a directory: a metadata server keeps its store in a directory of its own")]
    NotADirectory(PathBuf),
    /// There is no store yet, and things of others are there.
    #[error("{0} holds no metadata store, but other files ({1}): give it a directory of its own")]
    Foreign(PathBuf, String),
    /// There is no store.
    #[error("{0} holds no metadata store")]
    Absent(PathBuf),
    /// Another process has it.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// A part of it has gone.
    #[error(
        "the metadata store in {0} has lost its {1}: bring it back from where it was copied to"
    )]
    Missing(PathBuf, &'static str),
    /// The log is no log, or that of another store.
    #[error("the metadata store in {0} is not usable: {1}; bring rows and log back together")]
    WrongLog(PathBuf, &'static str),
    /// It cannot be read or written.
    #[error("cannot {what} {path}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// The store itself.
    #[error("{0}: {1}")]
    Store(PathBuf, StoreError),
}

/// Opens the store in a directory, which is made where it is absent, and a new store in it where it
/// is empty. Applying runs on a thread.
pub fn open(path: &Path) -> Result<Box<dyn Store>, HostedError> {
    open_with(path, LOG_HALF)
}

/// As [`open`], with `log_half` bytes for each half of a new log.
pub fn open_with(path: &Path, log_half: u64) -> Result<Box<dyn Store>, HostedError> {
    if !path.exists() {
        fs::create_dir_all(path).map_err(io_error("make the directory", path))?;
    }
    let lock = lock(path)?;
    if !path.join(FOLDER).exists() {
        check_empty(path)?;
        make(path, log_half)?;
    }
    let folder = checked_folder(path)?;
    let store_error = |error| HostedError::Store(path.to_owned(), error);
    let rows = folder.join(ROWS);
    let below = catching(|| {
        let mut below = RedbStore::open(file_backend(&rows)?)?;
        below.verify()?;
        Ok(below)
    });
    let below = below.map_err(store_error)?;
    let log = folder.join(LOG);
    let place = FilePlace::open(&log, lock).map_err(io_error("open", &log))?;
    check_log(path, &below, &place)?;
    let applier = Checkpointer::on_thread(below.clone());
    let applier = applier.map_err(io_error("start a thread for", path))?;
    let store = LoggedStore::open(below, place, applier).map_err(store_error)?;
    Ok(Box::new(store))
}

/// The store in a directory to be looked at: as it is, with what its log has. Nothing is written.
pub fn look(path: &Path) -> Result<Box<dyn Store>, HostedError> {
    let lock = lock(path)?;
    if !path.join(FOLDER).exists() {
        return Err(HostedError::Absent(path.to_owned()));
    }
    let folder = checked_folder(path)?;
    let store_error = |error| HostedError::Store(path.to_owned(), error);
    let file = File::open(folder.join(ROWS)).map_err(io_error("read", path))?;
    let len = file.metadata().map_err(io_error("read", path))?.len();
    let below = catching(|| {
        let unwritten = FixedBackend::new(file, 0, len);
        let unwritten = Overlay::new(unwritten).map_err(|error| failed(&error))?;
        let mut below = RedbStore::open(unwritten)?;
        below.verify()?;
        Ok(below)
    });
    let below = below.map_err(store_error)?;
    let log = folder.join(LOG);
    let place = ReadOnlyPlace::open(&log, lock).map_err(io_error("open", &log))?;
    check_log(path, &below, &place)?;
    let store = LoggedStore::open(below.clone(), place, Checkpointer::Inline(below));
    Ok(Box::new(store.map_err(store_error)?))
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> HostedError {
    move |error| HostedError::Io { what, path: path.to_owned(), error }
}

fn file_backend(path: &Path) -> Result<FileBackend, StoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|error| StoreError::Failed(error.to_string()))?;
    FileBackend::new(file).map_err(|error| StoreError::Failed(error.to_string()))
}

fn lock(path: &Path) -> Result<File, HostedError> {
    if path.exists() && !path.is_dir() {
        return Err(HostedError::NotADirectory(path.to_owned()));
    }
    let folder = File::open(path).map_err(io_error("open", path))?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => Err(HostedError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(io_error("lock", path)(error)),
    }
}

/// Refuses a directory that holds anything but what a making that was cut short has left.
fn check_empty(path: &Path) -> Result<(), HostedError> {
    for entry in fs::read_dir(path).map_err(io_error("read", path))? {
        let name = entry.map_err(io_error("read", path))?.file_name();
        if name != FOLDER_NEW {
            let name = name.to_string_lossy().into_owned();
            return Err(HostedError::Foreign(path.to_owned(), name));
        }
    }
    Ok(())
}

/// Makes an empty store and its log.
fn make(path: &Path, log_half: u64) -> Result<(), HostedError> {
    let new = path.join(FOLDER_NEW);
    let cannot = io_error("make a metadata store in", path);
    if new.exists() {
        fs::remove_dir_all(&new).map_err(&cannot)?;
    }
    fs::create_dir(&new).map_err(&cannot)?;
    let header = LogHeader { identity: Identity(Uuid::new_v4().into_bytes()), half: log_half };
    let copies = [header.encode(), header.encode()].concat();
    assert_eq!(copies.len() as u64, HALVES_OFFSET, "a header's copies are all before the halves");
    FilePlace::create(&new.join(LOG), &copies, header.log_len()).map_err(&cannot)?;
    let rows = new.join(ROWS);
    File::create_new(&rows).map_err(&cannot)?;
    let adopted = file_backend(&rows)
        .and_then(RedbStore::open)
        .and_then(|mut below| log::adopt(&mut below, header.identity));
    adopted.map_err(|error| HostedError::Store(path.to_owned(), error))?;
    let durable = |folder: &Path| File::open(folder).and_then(|folder| folder.sync_all());
    durable(&new).map_err(&cannot)?;
    fs::rename(&new, path.join(FOLDER)).map_err(&cannot)?;
    durable(path).map_err(&cannot)
}

/// The folder with both files, or what is missing.
fn checked_folder(path: &Path) -> Result<PathBuf, HostedError> {
    let folder = path.join(FOLDER);
    for part in [ROWS, LOG] {
        if !folder.join(part).exists() {
            return Err(HostedError::Missing(path.to_owned(), part));
        }
    }
    Ok(folder)
}

/// Refuses what is not the whole log of that store.
fn check_log(path: &Path, below: &RedbStore, log: &impl LogPlace) -> Result<(), HostedError> {
    let wrong = |text| HostedError::WrongLog(path.to_owned(), text);
    let store_error = |error| HostedError::Store(path.to_owned(), error);
    let header = log::header_at(log).map_err(store_error)?;
    let header = header.ok_or_else(|| wrong("its log is damaged or no log"))?;
    let applied = log::applied_by(below).map_err(store_error)?;
    let applied = applied.ok_or_else(|| wrong("its rows are those of a store without a log"))?;
    if applied.identity != header.identity {
        return Err(wrong("the log is that of another store"));
    }
    let len = log.length().map_err(io_error("read the log in", path))?;
    if len == header.log_len() { Ok(()) } else { Err(wrong("its log is cut off")) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, PermissionsExt};

    use super::*;
    use crate::mds::store::{Changes, Table};

    const HALF: u64 = 64 << 10;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mds");
        (folder, path)
    }

    fn opened(path: &Path) -> Result<Box<dyn Store>, String> {
        open_with(path, HALF).map_err(|error| error.to_string())
    }

    fn put(store: &mut dyn Store, number: u32) {
        let row = ((Table::Pairs, number.to_be_bytes().to_vec()), Some(vec![number as u8; 3000]));
        store.commit(&Changes::from([row])).unwrap();
    }

    fn numbers(store: &dyn Store) -> Vec<u32> {
        let rows = store.range(Table::Pairs, &[], 10_000).unwrap();
        rows.into_iter().map(|(key, _)| u32::from_be_bytes(key.try_into().unwrap())).collect()
    }

    /// Goal: a directory is made, holds what is put into it through many changes of halves on the
    /// thread, and has it when opened again and when looked at, which changes no byte.
    #[test]
    fn made_filled_and_opened_again() {
        let (_folder, path) = folder();
        let mut store = opened(&path).unwrap();
        for number in 0..100 {
            put(&mut *store, number);
        }
        assert!(store.bytes_written() >= 100 * 4096);
        let all: Vec<u32> = (0..100).collect();
        assert_eq!(numbers(&*store), all);
        drop(store);
        let bytes = || [ROWS, LOG].map(|name| fs::read(path.join(FOLDER).join(name)).unwrap());
        let before = bytes();
        let store = look(&path).unwrap();
        assert_eq!(numbers(&*store), all);
        drop(store);
        assert!(bytes() == before, "looking has written");
        assert_eq!(numbers(&*opened(&path).unwrap()), all);
    }

    /// Goal: one process at a time; the error names the directory.
    #[test]
    fn in_use() {
        let (_folder, path) = folder();
        let store = opened(&path).unwrap();
        assert!(matches!(open(&path), Err(HostedError::InUse(of)) if of == path));
        assert!(matches!(look(&path), Err(HostedError::InUse(_))));
        drop(store);
        opened(&path).unwrap();
    }

    /// Goal: what is not a store of ours is refused and left alone; a making that was cut short is
    /// begun again.
    #[test]
    fn what_is_not_ours() {
        let (_folder, path) = folder();
        fs::create_dir(&path).unwrap();
        assert!(matches!(look(&path), Err(HostedError::Absent(_))));
        fs::create_dir(path.join(FOLDER_NEW)).unwrap();
        fs::write(path.join(FOLDER_NEW).join(ROWS), "half").unwrap();
        fs::write(path.join("letter"), "dear").unwrap();
        assert!(matches!(open(&path), Err(HostedError::Foreign(_, name)) if name == "letter"));
        assert!(matches!(open(&path.join("letter")), Err(HostedError::NotADirectory(_))));
        fs::remove_file(path.join("letter")).unwrap();
        opened(&path).unwrap();
        assert!(!path.join(FOLDER_NEW).exists());
    }

    /// Goal: a part that is missing, cut off, damaged or another store's is refused as that.
    #[test]
    fn parts_that_do_not_fit() {
        let (_one, first) = folder();
        let (_two, second) = folder();
        for path in [&first, &second] {
            put(&mut *opened(path).unwrap(), 7);
        }
        let file = |path: &Path, name: &str| path.join(FOLDER).join(name);
        let (log, rows) = (file(&first, LOG), file(&first, ROWS));
        let kept = fs::read(&log).unwrap();
        let refused = |text: &str| {
            let error = opened(&first).map(|_| ()).unwrap_err();
            assert!(error.contains(text) && error.contains(first.to_str().unwrap()), "{error}");
        };
        fs::copy(file(&second, LOG), &log).unwrap();
        refused("another store");
        fs::write(&log, &kept[..kept.len() - 4096]).unwrap();
        refused("cut off");
        fs::write(&log, &kept).unwrap();
        let writer = OpenOptions::new().write(true).open(&log).unwrap();
        writer.write_all_at(&[0xEE; 64], 0).unwrap();
        drop(opened(&first).unwrap());
        writer.write_all_at(&[0xEE; 64], 4096).unwrap();
        refused("damaged or no log");
        fs::write(&log, &kept).unwrap();
        fs::rename(&log, first.join("elsewhere")).unwrap();
        refused("lost its log");
        fs::rename(first.join("elsewhere"), &log).unwrap();
        fs::write(&rows, vec![0xEE; 1 << 20]).unwrap();
        refused("damaged");
        fs::remove_file(&rows).unwrap();
        refused("lost its rows");
    }

    /// Goal: a directory that cannot be written is an error and no panic.
    #[test]
    fn a_directory_that_cannot_be_written() {
        let (_folder, path) = folder();
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
        let writable = File::create(path.join("probe")).is_ok();
        let opened = opened(&path).map(drop);
        // Root may write anywhere: then there is nothing to refuse but the probe.
        let expected = if writable { "other files" } else { "cannot make" };
        assert!(opened.unwrap_err().contains(expected));
    }
}
