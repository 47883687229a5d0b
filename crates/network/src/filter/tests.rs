use std::sync::Arc;

use super::*;
use crate::frames::{self, Route};
use crate::headers::{Headers, checksum_is_right, protocol};

const MAC: MacAddress = MacAddress([0x52, 0x46, 0, 0, 0, 7]);
const PEER: MacAddress = MacAddress([0x52, 0x46, 0, 0, 0, 8]);
const ADDRESS: &str = "10.0.2.15";

/// A network that keeps what it is sent, and has frames for the guest.
#[derive(Default)]
struct Wire {
    sent: Mutex<Vec<Vec<u8>>>,
    frames: Mutex<VecDeque<Frame>>,
}

impl NetBackend for Wire {
    fn send(&self, frame: &mut [u8], _offload: Offload) {
        lock(&self.sent).push(frame.to_vec());
    }

    fn receive(&self) -> Option<Frame> {
        lock(&self.frames).pop_front()
    }

    fn connect(&self, _wake: Wake) {}
}

struct Rig {
    filter: Filter,
    wire: Arc<Wire>,
}

impl Rig {
    fn new(rules: &str) -> Self {
        let wire = Arc::new(Wire::default());
        let rules = Rules::parse(rules).unwrap();
        let filter =
            Filter::new(Arc::clone(&wire) as _, &rules, MAC, Some(ADDRESS.parse().unwrap()));
        Self { filter, wire }
    }

    /// Whether a frame of the guest passes.
    fn out(&self, frame: &Frame) -> bool {
        self.filter.send(&mut frame.to_vec(), frame.offload);
        lock(&self.wire.sent).pop().is_some()
    }

    /// What becomes of a frame for the guest.
    fn incoming(&self, frame: Frame) -> Option<Frame> {
        lock(&self.wire.frames).push_back(frame);
        self.filter.receive()
    }

    fn count(&self, name: &str) -> u64 {
        self.filter.counters().iter().find(|c| c.name == name).map_or(0, |c| c.count)
    }
}

fn packet(number: u8, from: &str, to: &str) -> Frame {
    let (from, to): (std::net::SocketAddr, std::net::SocketAddr) =
        (from.parse().unwrap(), to.parse().unwrap());
    let mut header = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    header.resize(if number == protocol::TCP { 20 } else { 8 }, 0);
    if number == protocol::TCP {
        header[12] = 0x50;
        header[13] = 2;
    } else {
        header[5] = 8;
    }
    let route = Route { from: (MAC, from.ip()), to: (PEER, to.ip()) };
    frames::packet(&route, number, &header, bytes::Bytes::new()).unwrap()
}

fn tcp(from: &str, to: &str) -> Frame {
    packet(protocol::TCP, from, to)
}

fn udp(from: &str, to: &str) -> Frame {
    packet(protocol::UDP, from, to)
}

#[test]
fn the_first_rule_that_fits_decides_and_counts() {
    let rig = Rig::new(
        r#"
default = "drop"
[[rule]]
name = "web"
direction = "out"
protocol = "tcp"
destination = ["192.0.2.0/24", "2001:db8::/32"]
destination-port = [80, "8000-8100"]
action = "allow"
[[rule]]
protocol = "tcp"
destination = "192.0.2.7"
action = "allow"
"#,
    );
    assert!(rig.out(&tcp("10.0.2.15:1", "192.0.2.1:80")));
    assert!(rig.out(&tcp("10.0.2.15:1", "192.0.2.1:8050")));
    assert!(rig.out(&tcp("[fd00::1]:1", "[2001:db8:9::1]:80")));
    assert!(rig.out(&tcp("10.0.2.15:1", "192.0.2.7:22")));
    assert!(!rig.out(&tcp("10.0.2.15:1", "192.0.2.1:81")));
    assert!(!rig.out(&udp("10.0.2.15:1", "192.0.2.1:80")));
    assert!(!rig.out(&tcp("10.0.2.15:1", "192.0.3.1:80")));
    assert_eq!((rig.count("filter_rule_1_web_frames"), rig.count("filter_rule_2_frames")), (3, 1));
    assert_eq!(rig.count("filter_dropped_by_default"), 3);
    assert_eq!(rig.count("filter_rule_2_bytes"), 54);
}

#[test]
fn sources_are_the_guests_own() {
    let rig = Rig::new("");
    assert!(rig.out(&udp("10.0.2.15:1", "10.0.2.2:2")));
    assert!(rig.out(&udp("0.0.0.0:68", "255.255.255.255:67")));
    assert!(!rig.out(&udp("10.0.2.16:1", "10.0.2.2:2")));
    let mut other = udp("10.0.2.15:1", "10.0.2.2:2");
    other.head[11] = 99;
    assert!(!rig.out(&other));
    let arp = |sender: [u8; 4]| {
        let content = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MAC.0, &sender, &[0; 10]].concat();
        frames::other(MAC, MacAddress::BROADCAST, 0x806, &content)
    };
    assert!(rig.out(&arp([10, 0, 2, 15])) && rig.out(&arp([0; 4])));
    assert!(!rig.out(&arp([10, 0, 2, 2])));
    assert_eq!(rig.count("filter_dropped_spoofed"), 3);
    rig.filter.replace(&Rules::parse("anti-spoofing = false").unwrap());
    assert!(rig.out(&other));
}

#[test]
fn a_lease_is_seen() {
    let rig = Rig::new("");
    let mut message = vec![0; 240];
    message[16..20].copy_from_slice(&[10, 0, 2, 99]);
    message[28..34].copy_from_slice(&MAC.0);
    message.extend([0, 54, 4, 1, 2, 3, 4, 53, 1, 5, 255]);
    let header = [0, 67, 0, 68, 1, 3, 0, 0];
    let route = Route {
        from: (PEER, "10.0.2.2".parse().unwrap()),
        to: (MAC, "10.0.2.99".parse().unwrap()),
    };
    let frame = frames::packet(&route, protocol::UDP, &header, message.into()).unwrap();
    assert!(rig.incoming(frame).is_some());
    assert!(rig.out(&udp("10.0.2.99:1", "10.0.2.2:2")));
    assert!(!rig.out(&udp("10.0.2.15:1", "10.0.2.2:2")));
}

#[test]
fn answers_to_what_was_allowed_come_in() {
    let rig = Rig::new(
        "default = \"drop\"
[[rule]]
direction = \"out\"
action = \"allow\"
[[rule]]
state = \"established\"
action = \"allow\"",
    );
    assert!(rig.incoming(tcp("192.0.2.1:80", "10.0.2.15:1")).is_none());
    assert!(rig.out(&tcp("10.0.2.15:1", "192.0.2.1:80")));
    assert!(rig.incoming(tcp("192.0.2.1:80", "10.0.2.15:1")).is_some());
    assert!(rig.incoming(tcp("192.0.2.1:81", "10.0.2.15:1")).is_none());
}

#[test]
fn what_is_rejected_is_answered() {
    let rig = Rig::new("[[rule]]\ndestination-port = 25\naction = \"reject\"");
    assert!(!rig.out(&tcp("10.0.2.15:1", "192.0.2.1:25")));
    let reset = rig.filter.receive().unwrap();
    let headers = Headers::parse(&reset.head, reset.len()).unwrap();
    let (from, to) = headers.ip.unwrap().endpoints().unwrap();
    assert_eq!((from.to_string(), to.port(), headers.destination), ("192.0.2.1:25".into(), 1, MAC));
    assert_eq!((reset.head[47], &reset.head[42..46]), (4 | 16, &[0, 0, 0, 1][..]));
    assert!(!rig.out(&udp("10.0.2.15:1", "192.0.2.1:25")));
    let error = rig.filter.receive().unwrap();
    assert_eq!((error.head[23], &error.head[34..36]), (protocol::ICMP, &[3, 3][..]));
    // From outside, the answer goes there.
    assert!(rig.incoming(tcp("192.0.2.1:1", "10.0.2.15:25")).is_none());
    assert_eq!(lock(&rig.wire.sent).len(), 1);
}

#[test]
fn a_rate_is_kept() {
    let rig = Rig::new("[[rule]]\naction = \"rate-limit\"\nrate = 1\nburst = 100");
    assert!(rig.out(&tcp("10.0.2.15:1", "192.0.2.1:25")));
    assert!(!rig.out(&tcp("10.0.2.15:1", "192.0.2.1:25")), "54 and 54 are more than 100");
}

/// The same frame with its checksum completed.
fn completed(frame: &Frame) -> Frame {
    let mut head = frame.head.clone();
    let partial = frame.offload.checksum.unwrap();
    let start = usize::from(partial.start);
    let value = !(crate::headers::sum(0, &head[start..]) as u16);
    let at = start + usize::from(partial.offset);
    head[at..at + 2].copy_from_slice(&value.to_be_bytes());
    Frame { head, ..Frame::default() }
}

#[test]
fn addresses_are_rewritten_and_answers_back() {
    let rules = "[[rule]]\ndestination-port = 80\naction = \"rewrite\"
rewrite = { destination = \"192.0.2.9\", destination-port = 8080 }";
    for complete in [false, true] {
        let rig = Rig::new(rules);
        let frame = tcp("10.0.2.15:1", "192.0.2.1:80");
        let frame = if complete { completed(&frame) } else { frame };
        let mut bytes = frame.to_vec();
        rig.filter.send(&mut bytes, frame.offload);
        let changed = Frame { head: bytes, ..frame };
        let whole = if complete { changed } else { completed(&changed) };
        let headers = Headers::parse(&whole.head, whole.len()).unwrap();
        let ip = headers.ip.unwrap();
        assert_eq!(ip.endpoints().unwrap().1.to_string(), "192.0.2.9:8080");
        assert!(checksum_is_right(&whole.head, &ip), "complete: {complete}");
        let back = rig.incoming(tcp("192.0.2.9:8080", "10.0.2.15:1")).unwrap();
        let headers = Headers::parse(&back.head, back.len()).unwrap();
        assert_eq!(headers.ip.unwrap().endpoints().unwrap().0.to_string(), "192.0.2.1:80");
        assert!(checksum_is_right(&completed(&back).head, &headers.ip.unwrap()));
    }
    let rig = Rig::new("[[rule]]\naction = \"rewrite\"\nrewrite = { destination = \"::1\" }");
    assert!(!rig.out(&tcp("10.0.2.15:1", "192.0.2.1:80")), "another family");
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (text, place, message) in [
        ("default = 5", (1, 11), "wanted string"),
        ("[[rule]]\naction = \"explode\"", (2, 10), "explode"),
        ("[[rule]]\naction = \"drop\"\nsource = \"10.0.0.0/33\"", (3, 10), "10.0.0.0/33"),
        ("[[rule]]\naction = \"drop\"\ndestination-port = [1, 70000]", (3, 20), "65535"),
        ("\n[[rule]]\nacton = \"drop\"", (3, 1), "acton"),
        ("[[rule]]\naction = \"rate-limit\"", (1, 1), "rate"),
        ("[[rule]]\nname = \"x\"", (1, 1), "action"),
        ("[[rule]", (1, 8), ""),
        ("[[rule]]\naction = \"rate-limit\"\nrate = \"9999999G\"", (3, 8), "amount"),
    ] {
        let error = Rules::parse(text).unwrap_err();
        assert_eq!((error.line, error.column), place, "{text}: {error}");
        assert!(error.message.contains(message), "{error}");
    }
}
