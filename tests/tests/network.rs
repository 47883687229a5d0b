//! Networks: stock kernels with busybox reach the host, and are reached, through a virtio card.
//!
//! Nothing outside of the host is used. What is not to be had is said on standard error.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lifecycle::{EngineChoice, MacAddress, Outcome};
use network::{UserConfig, UserNet};
use ringfence_tests::stock::tiny_boot_files;
use ringfence_tests::vm::{Guest, Setup};

/// Some ten times what it takes alone: the tests of a run share the host.
const LONG: Duration = Duration::from_secs(400);
const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];
const MAC: MacAddress = MacAddress([0x52, 0x46, 0, 0, 0, 1]);

/// Gets an address, and says what it is.
const SET_UP: &str = "ip link set lo up
ip link set eth0 up
udhcpc -i eth0 -n -q -f -x hostname:Tester >/dev/null 2>&1
echo ADDRESS $(ip -4 -o addr show eth0)
echo MTU $(cat /sys/class/net/eth0/mtu)
";

/// A port of the host's loopback that nobody uses.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

fn start(config: UserConfig, script: &str) -> Option<Guest> {
    let boot = tiny_boot_files(&MODULES, &format!("{SET_UP}{script}"))?;
    let net = Arc::new(UserNet::start(config, None).expect("a network"));
    // The engines are not what is tested: the fastest will do.
    let engine = EngineChoice::Auto.select().expect("an engine").engine;
    Some(Setup::new(engine, 256, boot).cmdline("console=ttyS0 quiet").net(MAC, net).start())
}

fn ends(guest: &Guest, lines: &[&str]) {
    assert_eq!(guest.end(LONG), Outcome::PoweredOff, "{}", guest.last_lines());
    let text = guest.text();
    for line in lines {
        assert!(text.contains(line), "no {line:?}:\n{}", guest.last_lines());
    }
}

/// Reads a request up to the empty line.
fn read_request(stream: &mut TcpStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a request");
        request.push(byte[0]);
    }
}

#[test]
fn a_guest_reaches_the_host_and_is_reached() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (port, forwarded) = (server.local_addr().expect("bound").port(), free_port());
    let script = format!(
        "ping -c 1 10.0.2.2 >/dev/null && echo PINGED
nslookup tester 10.0.2.3
echo FROM-GUEST | nc -l -p 80 &
wget -q -O - http://10.0.2.2:{port}/ | md5sum
wait
echo DONE"
    );
    let mut config = UserConfig::default();
    config.forwards.push(format!("tcp:{forwarded}:80").parse().expect("a forward"));
    let Some(guest) = start(config, &script) else { return };
    let host = thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("a connection");
        read_request(&mut stream);
        let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).expect("sent");
        stream.write_all(&body).expect("sent");
        drop(stream);
        let mut text = String::new();
        let mut back = TcpStream::connect(("127.0.0.1", forwarded)).expect("the forward");
        back.read_to_string(&mut text).expect("text");
        text
    });
    ends(
        &guest,
        &[
            "inet 10.0.2.15/24",
            "MTU 65520",
            "PINGED",
            "Address: 10.0.2.15",
            "528fa9619d4121bdc0d9f1954f84395c",
            "DONE",
        ],
    );
    assert_eq!(host.join().expect("the host's side"), "FROM-GUEST\n");
}

#[test]
fn what_a_guest_sends_arrives_whole() {
    const BYTES: usize = 16 << 20;
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("bound").port();
    let script =
        format!("dd if=/dev/zero bs=64k count=256 2>/dev/null | nc 10.0.2.2 {port}\necho SENT");
    let Some(guest) = start(UserConfig::default(), &script) else { return };
    let host = thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("a connection");
        let (mut count, mut buffer) = (0, vec![0; 1 << 16]);
        loop {
            match stream.read(&mut buffer).expect("data") {
                0 => return count,
                len => count += len,
            }
        }
    });
    assert_eq!(host.join().expect("the host's side"), BYTES);
    ends(&guest, &["SENT"]);
}
