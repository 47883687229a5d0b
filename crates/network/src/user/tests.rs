use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use backend::NetBackend;

use super::testing::{ADDRESS, GATEWAY, Guest, MAC};
use super::*;
use crate::headers::{Headers, ethertype, protocol};

/// A message of a DHCP client.
fn dhcp(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 1, 6, 0, 1, 2, 3, 4];
    bytes.resize(28, 0);
    bytes.extend(MAC.0);
    bytes.resize(236, 0);
    bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
    bytes.extend(options);
    bytes.push(255);
    bytes
}

fn ask_dhcp(guest: &Guest, message: &[u8]) {
    guest.udp(68, "255.255.255.255:67".parse().unwrap(), message);
}

/// The value of an option of a DHCP message.
fn option(message: &[u8], kind: u8) -> Option<&[u8]> {
    let mut rest = message.get(240..)?;
    while let [found, len, more @ ..] = rest {
        let (value, next) = more.split_at_checked((*len).into())?;
        if *found == kind {
            return Some(value);
        }
        rest = next;
    }
    None
}

#[test]
fn a_guest_gets_its_address() {
    let guest = Guest::new();
    ask_dhcp(&guest, &dhcp(1, &[12, 3, b'w', b'e', b'b']));
    let offer = guest.got().packet;
    assert_eq!((&offer[24..28], option(&offer[8..], 53)), (&ADDRESS.octets()[..], Some(&[2][..])));
    let wanted = [[50, 4], [10, 0], [2, 15], [54, 4], [10, 0], [2, 2]].concat();
    ask_dhcp(&guest, &dhcp(3, &wanted));
    let ack = guest.got();
    assert_eq!(ack.headers.destination, MAC);
    let message = &ack.packet[8..];
    assert_eq!(option(message, 53), Some(&[5][..]));
    assert_eq!(option(message, 1), Some(&[255, 255, 255, 0][..]));
    assert_eq!(option(message, 3), Some(&GATEWAY.octets()[..]));
    assert_eq!(option(message, 6), Some(&[10, 0, 2, 3][..]));
    assert_eq!(option(message, 26), Some(&[0xff, 0xf0][..]));
    ask_dhcp(&guest, &dhcp(3, &[50, 4, 10, 0, 2, 99]));
    assert_eq!(option(&guest.got().packet[8..], 53), Some(&[6][..]), "another's address");
    // Its name is known now.
    let query = [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x03web\0\0\x01\0\x01"].concat();
    guest.udp(5000, "10.0.2.3:53".parse().unwrap(), &query);
    assert!(guest.got().packet.ends_with(&ADDRESS.octets()));
}

#[test]
fn dhcp_without_sense_is_dropped() {
    let guest = Guest::new();
    let good = dhcp(1, &[]);
    let mut other = good.clone();
    other[33] = 9;
    let mut magic = good.clone();
    magic[236] = 0;
    for bad in [&good[..100], &good[..240], &magic, &dhcp(99, &[])] {
        ask_dhcp(&guest, bad);
    }
    assert_eq!(guest.count("dropped_bad_transport"), 4);
    ask_dhcp(&guest, &other);
    assert_eq!(guest.count("dhcp_other_sender"), 1);
    // An option beyond the end is none.
    let mut long = dhcp(1, &[12, 200]);
    long.pop();
    ask_dhcp(&guest, &long);
    assert_eq!(option(&guest.got().packet[8..], 53), Some(&[2][..]));
    assert!(guest.has_nothing());
}

#[test]
fn the_gateway_is_found_by_arp() {
    let guest = Guest::new();
    let ask = |target: [u8; 4], sender: MacAddress, operation: u8| {
        let mut content = vec![0, 1, 8, 0, 6, 4, 0, operation];
        content.extend(sender.0);
        content.extend(ADDRESS.octets());
        content.extend([0; 6]);
        content.extend(target);
        let frame = crate::frames::other(MAC, MacAddress::BROADCAST, ethertype::ARP, &content);
        guest.send(&frame);
    };
    ask([10, 0, 2, 2], MAC, 1);
    let reply = guest.next().head;
    assert_eq!((&reply[..6], reply[21], &reply[28..32]), (&MAC.0[..], 2, &[10, 0, 2, 2][..]));
    ask([10, 0, 2, 99], MAC, 1);
    ask([10, 0, 2, 3], MAC, 2);
    assert!(guest.has_nothing());
    for bad in [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[9; 28], &[]] {
        guest.send(&crate::frames::other(MAC, MacAddress::BROADCAST, ethertype::ARP, bad));
    }
    assert_eq!(guest.count("dropped_bad_ethernet"), 3);
}

#[test]
fn ipv6_guests_find_a_router() {
    let guest = Guest::new();
    let all_routers: IpAddr = "ff02::2".parse().unwrap();
    guest.send(&guest.frame(all_routers, protocol::ICMPV6, &[133, 0, 0, 0, 0, 0, 0, 0], &[]));
    let advert = guest.got();
    assert_eq!((advert.packet[0], advert.packet[5]), (134, 0));
    let bytes = advert.frame.to_vec();
    assert!(crate::headers::checksum_is_right(&bytes, &advert.headers.ip.unwrap()));
    let prefix: Ipv6Addr = "fd52:4e47::".parse().unwrap();
    let server: Ipv6Addr = "fd52:4e47::3".parse().unwrap();
    let has = |part: [u8; 16]| advert.packet.windows(16).any(|window| window == part);
    assert!(has(prefix.octets()) && has(server.octets()));
    let gateway: Ipv6Addr = "fd52:4e47::2".parse().unwrap();
    let solicit = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &gateway.octets()].concat();
    guest.send(&guest.frame("ff02::1:ff00:2".parse().unwrap(), protocol::ICMPV6, &solicit, &[]));
    let answer = guest.got();
    assert_eq!((answer.packet[0], &answer.packet[8..24]), (136, &gateway.octets()[..]));
    assert!(answer.packet.ends_with(&guest.plan.mac.0));
}

#[test]
fn the_gateway_answers_echo_requests() {
    let guest = Guest::new();
    for (to, request, reply) in [("10.0.2.2", 8, 0), ("10.0.2.3", 8, 0), ("fd52:4e47::2", 128, 129)]
    {
        let to: IpAddr = to.parse().unwrap();
        let number = if to.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        guest.send(&guest.frame(to, number, &[request, 0, 0, 0, 0x12, 0x34, 0, 7], b"content"));
        let got = guest.got();
        assert_eq!(got.packet[0], reply);
        assert_eq!(got.packet[4..], *b"\x12\x34\0\x07content");
        let bytes = got.frame.to_vec();
        assert!(crate::headers::checksum_is_right(&bytes, &got.headers.ip.unwrap()));
    }
}

#[test]
fn datagrams_go_to_the_host_and_back() {
    let guest = Guest::new();
    for (host, as_seen) in
        [("127.0.0.1:0", IpAddr::from(GATEWAY)), ("[::1]:0", "fd52:4e47::2".parse().unwrap())]
    {
        // A host without IPv6 has nothing to show.
        let Ok(socket) = UdpSocket::bind(host) else { continue };
        let port = socket.local_addr().unwrap().port();
        guest.udp(4000, SocketAddr::new(as_seen, port), &[7; 30_000]);
        let mut buffer = [0; 40_000];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], [7; 30_000]);
        socket.send_to(b"back", from).unwrap();
        let got = guest.got();
        let (from, to) = got.headers.ip.unwrap().endpoints().unwrap();
        assert_eq!((from.ip(), from.port(), to.port()), (as_seen, port, 4000));
        assert_eq!(got.packet[8..], *b"back");
        assert!(got.frame.offload.checksum.is_some());
    }
}

#[test]
fn a_port_where_nobody_listens_is_unreachable() {
    let guest = Guest::new();
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    guest.udp(4000, SocketAddr::new(GATEWAY.into(), port), b"x");
    let got = guest.got();
    assert_eq!(got.headers.ip.unwrap().protocol, protocol::ICMP);
    assert_eq!(got.packet[..2], [3, 3]);
    assert_eq!(got.packet[8 + 20..8 + 24], [4000_u16.to_be_bytes(), port.to_be_bytes()].concat());
}

#[test]
fn datagrams_to_a_forwarded_port_reach_the_guest() {
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("udp:{free}:53").parse().unwrap();
    let guest = Guest::with(UserConfig { forwards: vec![forward], ..UserConfig::default() });
    // The guest is known when it has sent something.
    guest.send(&guest.frame(GATEWAY.into(), protocol::ICMP, &[8, 0, 0, 0, 0, 0, 0, 0], &[]));
    guest.got();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.send_to(b"question", ("127.0.0.1", free)).unwrap();
    let got = guest.got();
    let (from, to) = got.headers.ip.unwrap().endpoints().unwrap();
    assert_eq!((from.ip(), to), (GATEWAY.into(), SocketAddr::new(ADDRESS.into(), 53)));
    guest.udp(53, from, b"answer");
    let mut buffer = [0; 100];
    let (len, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.port()), (&b"answer"[..], free));
    let taken = UserConfig { forwards: vec![forward], ..UserConfig::default() };
    let error = UserNet::start(taken, None).err().expect("the port is taken").to_string();
    assert!(error.contains(&forward.to_string()), "{error}");
}

#[test]
fn what_cannot_leave_is_dropped_and_counted() {
    let guest = Guest::new();
    for to in [
        "127.0.0.1:9",
        "0.1.2.3:9",
        "169.254.169.254:80",
        "224.0.0.1:9",
        "240.0.0.1:9",
        "[::1]:9",
        "[::ffff:1.2.3.4]:9",
    ] {
        guest.udp(4000, to.parse().unwrap(), b"x");
    }
    assert_eq!(guest.count("dropped_unroutable"), 7);
    assert!(guest.has_nothing());
    guest.udp(4000, "10.0.2.77:9".parse().unwrap(), b"x");
    assert_eq!(guest.got().packet[..2], [3, 1], "no such station");
    guest.udp(4000, "10.0.2.3:99".parse().unwrap(), b"x");
    assert_eq!(guest.got().packet[..2], [3, 3], "no such service");
}

#[test]
fn malformed_frames_are_dropped_and_counted() {
    let guest = Guest::new();
    guest.send_bytes(&[0; 5]);
    let good = guest.frame(GATEWAY.into(), protocol::UDP, &[0, 1, 0, 2, 0, 8, 0, 0], &[]).to_vec();
    let mut short = good.clone();
    short.truncate(30);
    guest.send_bytes(&short);
    let mut length = guest.frame(GATEWAY.into(), protocol::UDP, &[0, 1, 0, 2, 0, 99, 0, 0], &[]);
    guest.send(&length);
    length.head.truncate(20);
    guest.send_bytes(&length.head);
    let mut checksum = good.clone();
    checksum[40] ^= 0x55;
    guest.send_bytes(&checksum);
    let mut spoofed = good.clone();
    spoofed[6] |= 1;
    guest.send_bytes(&spoofed);
    let unknown = guest.frame(GATEWAY.into(), 99, &[0; 8], &[]);
    guest.send(&unknown);
    let tcp = guest.frame(GATEWAY.into(), protocol::TCP, &[0; 20], &[]);
    guest.net.send(&mut tcp.to_vec(), tcp.offload);
    let counted = |name: &str| guest.count(name);
    assert_eq!(counted("dropped_bad_ethernet"), 1);
    assert_eq!(counted("dropped_bad_ipv4"), 2);
    assert_eq!(counted("dropped_bad_transport"), 2);
    assert_eq!(counted("dropped_bad_checksum"), 1);
    assert_eq!(counted("dropped_not_for_us"), 1);
    // A checksum over zeros is no checksum of protocol 99 either.
    assert_eq!(counted("dropped_unknown_protocol") + counted("dropped_bad_checksum"), 2);
    assert!(guest.has_nothing());
    assert!(Headers::parse(&good, good.len()).is_ok());
}

#[test]
fn leases_are_given_to_whoever_keeps_them() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let save = move |text: &str| drop(sender.send(text.to_owned()));
    let net = UserNet::start(UserConfig::default(), Some(Box::new(save))).unwrap();
    let guest = Guest { net, plan: Plan::default() };
    ask_dhcp(&guest, &dhcp(1, &[]));
    guest.got();
    guest.net.shared.wake();
    let text = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(text, format!("{ADDRESS} {MAC} -\n"));
    assert_eq!(guest.net.mtu(), Some(65_520));
}

#[test]
fn an_isolated_guest_reaches_nobody() {
    let guest = Guest::with(UserConfig { isolated: true, ..UserConfig::default() });
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    for to in [SocketAddr::new(GATEWAY.into(), port), "192.0.2.1:80".parse().unwrap()] {
        guest.udp(4000, to, b"x");
        assert_eq!(guest.got().packet[..2], [3, 3], "{to}");
    }
    ask_dhcp(&guest, &dhcp(1, &[]));
    assert_eq!(option(&guest.got().packet[8..], 53), Some(&[2][..]));
}
