//! How the program fits into a system: installation, completions, manual, sockets that are passed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::nbd_client::Client;
use support::programs::{directory, installed, run};
use support::target::{Service, Target};

const BINARY: &str = env!("CARGO_BIN_EXE_flipside");
const SIZE: u64 = 64 << 20;
const WRONG_USE: i32 = 2;

/// A formatted file with one volume, `vol0`.
fn pool(directory: &Path) -> PathBuf {
    let path = directory.join("pool");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    run(BINARY, arguments!["format", &path]);
    path
}

/// Asserts that the program ends with the code for a wrong command line, saying `words`.
#[track_caller]
fn refused(arguments: &[&OsStr], words: &str) {
    let output = Command::new(BINARY).args(arguments).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(WRONG_USE), "{error}");
    assert!(error.contains(words), "'{words}' is not in: {error}");
}

/// Every file below `directory`, relative to it.
fn files(directory: &Path) -> Vec<String> {
    let found = run("find", arguments![directory, "-type", "f", "-printf", "%P\n"]);
    let mut found: Vec<_> = found.lines().map(str::to_owned).collect();
    found.sort();
    found
}

/// Stops a target as a service manager does; whether it ended well.
fn stop(mut target: Child) -> bool {
    kill(Pid::from_raw(target.id().cast_signed()), Signal::SIGTERM).unwrap();
    target.wait().unwrap().success()
}

/// Goal: each shell gets completions that know the commands and their flags.
#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let text = run(BINARY, arguments!["completions", shell]);
        for word in ["serve", "format", "commit-interval", "settle"] {
            assert!(text.contains(word), "{shell}: no {word}");
        }
    }
    if installed(&["bash"]) {
        let script = r#"source <("$0" completions bash)
            COMP_WORDS=(flipside serve --commit-i) COMP_CWORD=2
            _flipside flipside --commit-i serve; echo "${COMPREPLY[@]}""#;
        let text = run("bash", arguments!["-c", script, BINARY]);
        assert_eq!(text.trim(), "--commit-interval");
    }
}

/// Goal: `make install` puts everything where a system looks for it, and `make uninstall` leaves
/// nothing of it behind.
#[test]
fn everything_is_installed_and_removed() {
    if !installed(&["make"]) {
        return;
    }
    let dir = directory();
    let make = |target: &str| {
        let binary = format!("BINARY={BINARY}");
        let destination = format!("DESTDIR={}", dir.path().display());
        let root = env!("CARGO_MANIFEST_DIR");
        run("make", arguments!["-s", "-C", root, target, binary, destination, "PREFIX=/opt/f"]);
    };
    make("install");
    let found = files(dir.path());
    for name in [
        "bin/flipside",
        "lib/systemd/system/flipside-mds.service",
        "lib/systemd/system/flipside.service",
        "lib/systemd/system/flipside.socket",
        "share/bash-completion/completions/flipside",
        "share/doc/flipside/flipside.toml",
        "share/fish/vendor_completions.d/flipside.fish",
        "share/man/man1/flipside-serve.1",
        "share/man/man1/flipside.1",
        "share/zsh/site-functions/_flipside",
    ] {
        assert!(found.contains(&format!("opt/f/{name}")), "{name} is not in {found:?}");
    }
    let installed_at = dir.path().join("opt/f");
    let text = |name| fs::read_to_string(installed_at.join(name)).unwrap();
    let service = text("lib/systemd/system/flipside.service");
    assert!(service.contains("ExecStart=/opt/f/bin/flipside serve"), "{service}");
    let server = text("lib/systemd/system/flipside-mds.service");
    assert!(server.contains("ExecStart=/opt/f/bin/flipside mds"), "{server}");
    assert!(text("share/man/man1/flipside.1").contains("Exit codes"));
    assert!(text("share/man/man1/flipside-serve.1").contains("ready nbd+unix"));
    make("uninstall");
    assert_eq!(files(dir.path()), [""; 0]);
}

/// Goal: the units are what systemd takes.
#[test]
fn units_are_sound() {
    if !installed(&["systemd-analyze"]) {
        return;
    }
    let dir = directory();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/systemd");
    let own = ["flipside.service", "flipside-mds.service"].map(|name| {
        let service = fs::read_to_string(units.join(name)).unwrap();
        let own = dir.path().join(name);
        // It is looked whether the program is there.
        fs::write(&own, service.replace("/usr/local/bin/flipside", BINARY)).unwrap();
        own
    });
    let socket = dir.path().join("flipside.socket");
    fs::copy(units.join("flipside.socket"), &socket).unwrap();
    run("systemd-analyze", arguments!["verify", "--man=no", &own[0], &own[1], &socket]);
}

/// Goal: a socket that a service manager opened is served, in place of a socket of its own, and
/// stays when the target ends; who connected before the target ran is served too.
#[test]
fn passed_sockets_are_served() {
    let dir = directory();
    let device = pool(dir.path());
    let socket = dir.path().join("passed.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // As systemd has it with NonBlocking=.
    listener.set_nonblocking(true).unwrap();
    // The shell is the manager: the process that it becomes has the number that it names.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS
        exec \"$0\" \"$@\"";
    for round in 0..2u8 {
        let early = socket.clone();
        let early = std::thread::spawn(move || Client::unix(&early, "vol0").unwrap());
        let mut target = Command::new("sh")
            .args(["-c", script, BINARY, "serve", "--control"])
            .arg(dir.path().join("control.sock"))
            .arg(&device)
            .stdin(OwnedFd::from(listener.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(target.stdout.take().unwrap()).lines();
        let ready = lines.next().unwrap().unwrap();
        let expected = format!("ready nbd+unix:///vol0?socket={}", socket.display());
        assert_eq!(ready, expected);
        let mut client = early.join().unwrap();
        assert_eq!(client.read(0, 4096).unwrap(), vec![round; 4096]);
        client.write(0, &[round + 1; 4096]).unwrap();
        drop(client);
        assert!(stop(target));
        assert!(lines.next().is_none(), "no other socket was opened");
        assert!(socket.exists());
    }
}

/// Goal: a configuration file says what the flags do, the command line goes before it, and a wrong
/// one is refused with its name; so is a wrong filter of the log.
#[test]
fn a_file_configures() {
    let dir = directory();
    let device = pool(dir.path());
    let config = dir.path().join("flipside.toml");
    let (socket, control) = (dir.path().join("file.sock"), dir.path().join("control.sock"));
    let text = format!(
        "devices = ['{}']\nlisten = 'unix:{}'\ncontrol = '{}'\nsocket-mode = '666'\n\
         slow-io = '2s'\nlog = 'debug'\n",
        device.display(),
        socket.display(),
        control.display(),
    );
    fs::write(&config, &text).unwrap();
    let mut target = Command::new(BINARY)
        .args(arguments!["serve", "--config", &config, "--socket-mode", "640"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = target.stderr.take().unwrap();
    let mut lines = BufReader::new(target.stdout.take().unwrap()).lines();
    let ready = lines.next().unwrap().unwrap();
    assert_eq!(ready, format!("ready nbd+unix:///vol0?socket={}", socket.display()));
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "the command line goes before the file");
    assert!(stop(target));
    let mut logged = String::new();
    log.read_to_string(&mut logged).unwrap();
    assert!(logged.contains("DEBUG"), "{logged}");
    let recovery = logged.lines().find(|line| line.contains("recovered")).unwrap();
    for part in ["recovered pool", "in use", "groups=", "pairs=", "told=", "took_us="] {
        assert!(recovery.contains(part), "{part} in: {recovery}");
    }
    for (line, words) in [
        ("lisen = 'tcp:0'", "flipside.toml: unknown key 'lisen'"),
        ("settle = 'never'", "'never'"),
        ("socket-mode = 660", "flipside.toml: socket-mode: expected a text"),
    ] {
        let text = text.replace("socket-mode = '666'\n", "") + line;
        fs::write(&config, text).unwrap();
        refused(arguments!["serve", "--config", &config], words);
    }
    refused(arguments!["serve", "--config", dir.path().join("absent")], "absent: No such file");
    refused(arguments!["--log", "loud", "status"], "flipside::unit=debug");
}

/// Goal: what takes longer than allowed is warned about, with its stage and the disk.
#[test]
fn slow_operations_are_warned_about() {
    let dir = directory();
    let device = pool(dir.path());
    let mut service = Service::new(dir.path(), &device);
    let warned = |target: &Target, stage: &str| {
        let line = |line: &&str| line.contains("slow I/O") && line.contains(stage);
        target.log().lines().any(|text| line(&text))
    };
    service.arguments = vec!["--slow-io".to_owned(), "never".to_owned()];
    let target = service.serve();
    target.connect("vol0").write(0, &vec![1; 1 << 20]).unwrap();
    assert!(!warned(&target, "stage"), "{}", target.log());
    assert!(target.stop().success());
    service.arguments = vec!["--slow-io".to_owned(), "1us".to_owned()];
    let target = service.serve();
    let mut client = target.connect("vol0");
    client.write(0, &vec![1; 1 << 20]).unwrap();
    client.flush().unwrap();
    for stage in ["client write", "client flush", "disk write", &*device.to_string_lossy()] {
        assert!(warned(&target, stage), "no {stage} in {}", target.log());
    }
    drop(client);
    assert!(target.stop().success());
}

/// Goal: exit codes are documented where they are looked for.
#[test]
fn exit_codes_are_documented() {
    for arguments in [arguments!["--help"], arguments!["serve", "--help"]] as [&[_]; 2] {
        let help = run(BINARY, arguments);
        assert!(help.contains("Exit codes:") && help.contains("\n  2  "), "{help}");
    }
}
