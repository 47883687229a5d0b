use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::headers::protocol;
use crate::user::UserConfig;
use crate::user::testing::{GATEWAY, Guest};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const START: u32 = 0xffff_fff0;
const PORT: u16 = 5555;

/// A segment that the guest got.
#[derive(Debug, PartialEq, Eq)]
struct Seg {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    payload: Vec<u8>,
}

/// The guest's end of a connection.
struct Conn<'a> {
    guest: &'a Guest,
    remote: SocketAddr,
    port: u16,
    seq: u32,
    ack: u32,
    window: u16,
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl<'a> Conn<'a> {
    /// Asks for a connection to a port of the host's loopback.
    fn ask(guest: &'a Guest, port: u16) -> Self {
        let remote = SocketAddr::new(GATEWAY.into(), port);
        let mut conn = Self { guest, remote, port: PORT, seq: START, ack: 0, window: 60_000 };
        conn.send_with(SYN, &[2, 4, 5, 0xb4, 1, 3, 3, 0], &[]);
        conn.seq = START.wrapping_add(1);
        conn
    }

    /// An open connection, and the host's end of it.
    fn open(guest: &'a Guest) -> (Self, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut conn = Self::ask(guest, listener.local_addr().unwrap().port());
        let (host, _) = listener.accept().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let syn = conn.got();
        assert_eq!((syn.flags, syn.ack), (SYN | ACK, conn.seq));
        conn.ack = syn.seq.wrapping_add(1);
        conn.send(ACK, &[]);
        assert_eq!(conn.got().window, (512 << 10 >> 4) as u16);
        (conn, host)
    }

    fn send(&self, flags: u8, payload: &[u8]) {
        self.send_with(flags, &[], payload);
    }

    fn send_with(&self, flags: u8, options: &[u8], payload: &[u8]) {
        let mut header = Vec::new();
        header.extend(self.port.to_be_bytes());
        header.extend(self.remote.port().to_be_bytes());
        header.extend(self.seq.to_be_bytes());
        header.extend(self.ack.to_be_bytes());
        header.extend([(20 + options.len() as u8) << 2, flags]);
        header.extend(self.window.to_be_bytes());
        header.extend([0; 4]);
        header.extend(options);
        self.guest.send(&self.guest.frame(self.remote.ip(), protocol::TCP, &header, payload));
    }

    /// Sends data, in order.
    fn data(&mut self, payload: &[u8]) {
        self.send(ACK, payload);
        self.seq = self.seq.wrapping_add(payload.len() as u32);
    }

    fn got(&self) -> Seg {
        let got = self.guest.got();
        let ip = got.headers.ip.unwrap();
        assert_eq!(ip.protocol, protocol::TCP, "{got:?}");
        assert_eq!(ip.endpoints().unwrap().0, self.remote);
        let header = usize::from(got.packet[12] >> 4) * 4;
        Seg {
            seq: number(&got.packet, 4),
            ack: number(&got.packet, 8),
            flags: got.packet[13],
            window: u16::from_be_bytes([got.packet[14], got.packet[15]]),
            payload: got.packet[header..].to_vec(),
        }
    }
}

#[test]
fn both_directions_and_an_orderly_end() {
    let guest = Guest::new();
    let (mut conn, mut host) = Conn::open(&guest);
    conn.data(b"hello");
    let mut buffer = [0; 5];
    host.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"hello");
    assert_eq!(conn.got().ack, conn.seq);
    host.write_all(b"world").unwrap();
    let data = conn.got();
    assert_eq!((data.seq, &data.payload[..]), (conn.ack, &b"world"[..]));
    conn.ack = conn.ack.wrapping_add(5);
    // Half-closed: the host still speaks.
    conn.send(FIN | ACK, &[]);
    conn.seq = conn.seq.wrapping_add(1);
    assert_eq!(conn.got().ack, conn.seq);
    assert_eq!(host.read(&mut buffer).unwrap(), 0);
    host.write_all(b"still").unwrap();
    assert_eq!(conn.got().payload, b"still");
    conn.ack = conn.ack.wrapping_add(5);
    conn.send(ACK, &[]);
    drop(host);
    let fin = conn.got();
    assert_eq!((fin.flags, fin.seq), (FIN | ACK, conn.ack));
    conn.ack = conn.ack.wrapping_add(1);
    conn.send(ACK, &[]);
    guest.wait("the end", |guest| {
        guest.net.shared.nat().counters().iter().any(|c| c.name == "nat_tcp_open" && c.count == 0)
    });
}

#[test]
fn the_host_may_close_first() {
    let guest = Guest::new();
    let (mut conn, mut host) = Conn::open(&guest);
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(conn.got().flags, FIN | ACK);
    conn.ack = conn.ack.wrapping_add(1);
    conn.data(b"more");
    conn.send(FIN | ACK, &[]);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"more");
}

#[test]
fn a_host_that_speaks_first_is_heard() {
    let guest = Guest::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut conn = Conn::ask(&guest, listener.local_addr().unwrap().port());
    // Connection and data come as one event, most of the time.
    let held = guest.net.shared.nat();
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(b"first").unwrap();
    drop(held);
    let syn = conn.got();
    conn.ack = syn.seq.wrapping_add(1);
    conn.send(ACK, &[]);
    assert_eq!(conn.got().payload, b"first");
}

#[test]
fn nobody_listens() {
    let guest = Guest::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let conn = Conn::ask(&guest, port);
    let refusal = conn.got();
    assert_eq!((refusal.flags, refusal.ack), (RST | ACK, conn.seq));
}

#[test]
fn a_segment_of_no_connection_is_refused() {
    let guest = Guest::new();
    let remote = SocketAddr::new(GATEWAY.into(), 9);
    let conn = Conn { guest: &guest, remote, port: 1, seq: 5, ack: 77, window: 0 };
    conn.send(ACK, b"x");
    assert_eq!(conn.got(), Seg { seq: 77, ack: 0, flags: RST, window: 0, payload: vec![] });
    conn.send(RST, &[]);
    assert!(guest.has_nothing());
}

#[test]
fn resets_go_both_ways() {
    let guest = Guest::new();
    let (conn, mut host) = Conn::open(&guest);
    // One that is not in the window is none.
    let stray = Conn { seq: conn.seq.wrapping_sub(100_000), ..Conn { guest: &guest, ..conn } };
    stray.send(RST, &[]);
    host.write_all(b"x").unwrap();
    assert_eq!(stray.got().payload, b"x");
    let conn = Conn { seq: stray.seq.wrapping_add(100_000), ..stray };
    conn.send(RST, &[]);
    let error = host.read(&mut [0; 5]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let (mut conn, host) = Conn::open(&guest);
    // What is not read makes the host's end a reset.
    conn.data(b"unread");
    assert_eq!(conn.got().ack, conn.seq);
    drop(host);
    assert_eq!(conn.got().flags & RST, RST);
}

#[test]
fn what_comes_out_of_order_or_twice_is_asked_for_again() {
    let guest = Guest::new();
    let (mut conn, mut host) = Conn::open(&guest);
    let expected = conn.seq;
    conn.seq = expected.wrapping_add(3);
    conn.send(ACK, b"def");
    assert_eq!(conn.got().ack, expected);
    conn.seq = expected;
    conn.send(ACK, b"abc");
    assert_eq!(conn.got().ack, expected.wrapping_add(3));
    // Sent again, with more behind it.
    conn.send(ACK, b"abcdef");
    assert_eq!(conn.got().ack, expected.wrapping_add(6));
    conn.send(ACK, b"abc");
    assert_eq!(conn.got().ack, expected.wrapping_add(6));
    let mut buffer = [0; 6];
    host.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"abcdef");
}

#[test]
fn what_the_guest_loses_is_sent_again() {
    let guest = Guest::new();
    let (mut conn, mut host) = Conn::open(&guest);
    host.write_all(b"lost").unwrap();
    assert_eq!(conn.got().payload, b"lost");
    // Nothing is acknowledged: by time.
    assert_eq!(conn.got().payload, b"lost");
    conn.ack = conn.ack.wrapping_add(4);
    conn.send(ACK, &[]);
    host.write_all(b"again").unwrap();
    assert_eq!(conn.got().payload, b"again");
    // By three answers that repeat themselves.
    for _ in 0..4 {
        conn.send(ACK, &[]);
    }
    assert_eq!(conn.got().payload, b"again");
    assert_eq!(guest.count("tcp_fast_retransmissions"), 1);
}

#[test]
fn a_guest_without_room_is_waited_for() {
    let guest = Guest::new();
    let (mut conn, mut host) = Conn::open(&guest);
    conn.window = 0;
    conn.send(ACK, &[]);
    host.write_all(&[7; 10_000]).unwrap();
    // It is asked for its window with an old sequence number.
    let probe = conn.got();
    assert_eq!((probe.seq, probe.payload.len()), (conn.ack.wrapping_sub(1), 0));
    conn.window = 4000;
    conn.send(ACK, &[]);
    assert_eq!(conn.got().payload.len(), 4000);
    conn.ack = conn.ack.wrapping_add(4000);
    conn.send(ACK, &[]);
    assert_eq!(conn.got().payload.len(), 4000);
    conn.ack = conn.ack.wrapping_add(4000);
    conn.send(ACK, &[]);
    assert_eq!(conn.got().payload.len(), 2000);
}

#[test]
fn a_slow_host_closes_the_window_and_opens_it_again() {
    let guest = Guest::new();
    let (mut conn, mut host) = Conn::open(&guest);
    let block = vec![9; 60_000];
    let mut sent = 0;
    // As much as fits into the host's buffers and ours, and not a byte more.
    let last = loop {
        conn.data(&block);
        sent += block.len();
        let answer = conn.got();
        assert!(sent < 64 << 20, "the window never closes");
        if u32::from(answer.window) << 4 < 60_000 {
            break answer;
        }
    };
    let acked = sent - conn.seq.wrapping_sub(last.ack) as usize;
    let mut buffer = vec![0; acked];
    host.read_exact(&mut buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 9));
    let update = conn.got();
    assert!(u32::from(update.window) << 4 >= 60_000, "{}", update.window);
}

#[test]
fn large_segments_are_to_be_cut_for_the_guest() {
    let guest = Guest::new();
    let (conn, mut host) = Conn::open(&guest);
    host.write_all(&[1; 30_000]).unwrap();
    let mut len = 0;
    let mut cuts = Vec::new();
    while len < 30_000 {
        let frame = guest.next();
        len += frame.body.len();
        cuts.push((frame.body.len(), frame.offload.segmentation.map(|cut| cut.size)));
    }
    assert!(cuts.iter().all(|(len, cut)| (*len > 1460) == (*cut == Some(1460))), "{cuts:?}");
    assert_eq!(conn.remote.ip(), IpAddr::from(GATEWAY));
}

#[test]
fn connections_to_a_forwarded_port_reach_the_guest() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forwards = vec![format!("tcp:{free}:80").parse().unwrap()];
    let guest = Guest::with(UserConfig { forwards, ..UserConfig::default() });
    guest.send(&guest.frame(GATEWAY.into(), protocol::ICMP, &[8, 0, 0, 0, 0, 0, 0, 0], &[]));
    guest.got();
    let mut host = TcpStream::connect(("127.0.0.1", free)).unwrap();
    let syn = guest.got();
    let (remote, to) = syn.headers.ip.unwrap().endpoints().unwrap();
    assert_eq!((to.port(), syn.packet[13]), (80, SYN));
    let ack = number(&syn.packet, 4).wrapping_add(1);
    let mut conn = Conn { guest: &guest, remote, port: 80, seq: START, ack, window: 60_000 };
    conn.send_with(SYN | ACK, &[2, 4, 5, 0xb4], &[]);
    conn.seq = START.wrapping_add(1);
    assert_eq!((conn.got().ack, conn.got_nothing()), (conn.seq, true));
    host.write_all(b"GET").unwrap();
    assert_eq!(conn.got().payload, b"GET");
    conn.ack = conn.ack.wrapping_add(3);
    conn.data(b"OK");
    let mut buffer = [0; 2];
    host.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"OK");
}

impl Conn<'_> {
    fn got_nothing(&self) -> bool {
        self.guest.has_nothing()
    }
}

#[test]
fn options_without_sense_are_refused() {
    let guest = Guest::new();
    let remote = SocketAddr::new(GATEWAY.into(), 9);
    let conn = Conn { guest: &guest, remote, port: 1, seq: 5, ack: 0, window: 0 };
    for bad in [[2, 9, 0, 0], [2, 0, 0, 0], [3, 1, 0, 0], [8, 40, 0, 0]] {
        conn.send_with(SYN, &bad, &[]);
    }
    assert_eq!(guest.count("dropped_bad_transport"), 4);
    let short = guest.frame(
        remote.ip(),
        protocol::TCP,
        &[[0; 12].as_slice(), &[0x40, 2, 0, 0, 0, 0, 0, 0]].concat(),
        &[],
    );
    guest.send(&short);
    assert_eq!(guest.count("dropped_bad_transport"), 5);
    assert!(guest.has_nothing());
}

#[test]
fn a_reset_of_the_guest_ends_everything() {
    use backend::NetBackend;
    let guest = Guest::new();
    let (_conn, mut host) = Conn::open(&guest);
    guest.net.reset();
    let error = host.read(&mut [0; 5]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
