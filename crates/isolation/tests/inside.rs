//! What an isolated process can do and cannot: tried from inside, by a process that isolates itself
//! as that of a VM does. Each kind of network needs a process of its own, which this program starts.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;

use isolation::{Done, Files, Network, give_up_privileges, restrict_calls, restrict_files};
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{Resource, getrlimit, setrlimit};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match (args.next().as_deref().and_then(OsStr::to_str), args.next(), args.next()) {
        (Some("isolated"), Some(folder), Some(network)) => {
            let network = if network == "open" { Network::Open } else { Network::Closed };
            inside(Path::new(&folder), network);
            ExitCode::SUCCESS
        }
        _ => outside(),
    }
}

/// Starts a process for each kind of network; they fail by themselves.
fn outside() -> ExitCode {
    for network in ["closed", "open"] {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("secret"), "secret").expect("a file");
        fs::create_dir(folder.path().join("own")).expect("a folder");
        fs::write(folder.path().join("read"), "read").expect("a file");
        std::os::unix::fs::symlink("../secret", folder.path().join("own/link")).expect("a link");
        let this = std::env::current_exe().expect("the program");
        let status = Command::new(this).arg("isolated").arg(folder.path()).arg(network).status();
        let status = status.expect("a process");
        eprintln!("test an_isolated_process_with_network_{network} ... {status}");
        if !status.success() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn inside(folder: &Path, network: Network) {
    let own = folder.join("own");
    let listener = UnixListener::bind(own.join("socket")).expect("a socket");
    let before = File::open(folder.join("secret")).expect("an open file");
    give_up_privileges().expect("no new privileges");
    let files = Files {
        read: vec![folder.join("read"), folder.join("missing")],
        write: Vec::new(),
        folders: vec![own.clone()],
    };
    let files = restrict_files(&files).expect("Landlock");
    // A thread from before the filter is under it all the same.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let early = thread::spawn(move || wait.recv().map(|()| fails_to_execute()));
    let calls = restrict_calls(network).expect("seccomp");
    go.send(()).expect("a thread");

    if calls == Done::Whole {
        early.join().expect("a thread").expect("told");
        fails_to_execute();
        fails_to_connect(network);
        refused("a limit", setrlimit(Resource::Nofile, getrlimit(Resource::Nofile)));
    } else {
        eprintln!("skipped: {calls:?}");
    }
    match files {
        Done::Not(why) => eprintln!("skipped: {why}"),
        Done::Whole => {
            refused("a signal to others", kill(Pid::parent(), Signal::SIGCONT));
            fails_to_open(folder, &own);
        }
        Done::Partly(why) => {
            eprintln!("signals are skipped: {why}");
            fails_to_open(folder, &own);
        }
    }
    still_works(&own, &before, &listener);
}

fn fails_to_execute() {
    refused("a program", Command::new("/bin/true").status());
    refused("a namespace", unshare(CloneFlags::CLONE_NEWUSER));
    refused("tracing another process", ptrace::attach(Pid::parent()));
}

fn fails_to_connect(network: Network) {
    let tcp = TcpListener::bind("127.0.0.1:0");
    if network == Network::Open {
        let tcp = tcp.expect("a socket");
        TcpStream::connect(tcp.local_addr().expect("its address")).expect("a connection");
        return;
    }
    refused("a TCP socket", tcp);
    refused("a UDP socket", UdpSocket::bind("127.0.0.1:0"));
    refused("a Unix socket", UnixStream::connect("/nowhere"));
    refused("a pair of sockets", UnixStream::pair());
}

fn fails_to_open(folder: &Path, own: &Path) {
    let secret = folder.join("secret");
    refused("a file", File::open(&secret));
    refused("a file of the host", File::open("/etc/passwd"));
    refused("another way there", File::open(own.join("../secret")));
    refused("a link out of its folder", File::open(own.join("link")));
    refused("a new file", File::create(folder.join("new")));
    refused("writing what is to be read", File::options().write(true).open(folder.join("read")));
    refused("a folder", fs::read_dir(folder));
    refused("removing", fs::remove_file(&secret));
    refused("moving in", fs::rename(&secret, own.join("secret")));
    assert_eq!(fs::read_to_string(folder.join("read")).expect("readable"), "read");
}

fn still_works(own: &Path, before: &File, listener: &UnixListener) {
    assert_eq!(io::read_to_string(before).expect("what is open stays readable"), "secret");
    fs::write(own.join("new"), "new").expect("a file of its own");
    fs::rename(own.join("new"), own.join("newer")).expect("a new name");
    fs::read_to_string("/proc/self/smaps_rollup").expect("its own statistics");
    File::open("/dev/urandom").expect("random numbers");
    thread::spawn(|| ()).join().expect("a thread");
    listener.set_nonblocking(true).expect("an open socket");
    assert_eq!(listener.accept().expect_err("nobody").kind(), ErrorKind::WouldBlock);
}

fn refused<T>(what: &str, result: Result<T, impl Into<io::Error>>) {
    match result.map(drop).map_err(Into::into) {
        Ok(()) => panic!("{what}: it works from inside"),
        Err(error) => {
            let kind = error.kind();
            // Moving between folders is EXDEV where the right to it is missing.
            let expected = [ErrorKind::PermissionDenied, ErrorKind::CrossesDevices];
            assert!(expected.contains(&kind), "{what}: {error}");
        }
    }
}
