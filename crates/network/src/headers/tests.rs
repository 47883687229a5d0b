use super::*;

/// An Ethernet frame with this payload.
fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(kind.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An IPv4 packet of UDP with 4 bytes of payload.
fn packet() -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2];
    bytes.extend([0, 7, 0, 9, 0, 12, 0, 0, 1, 2, 3, 4]);
    fix(&mut bytes);
    bytes
}

/// Sets the checksum of an IPv4 header.
fn fix(bytes: &mut [u8]) {
    bytes[10..12].fill(0);
    let header = usize::from(bytes[0] & 0xf) * 4;
    let value = !(sum(0, &bytes[..header.min(bytes.len())]) as u16);
    bytes[10..12].copy_from_slice(&value.to_be_bytes());
}

fn parse(bytes: &[u8]) -> Result<Headers, Malformed> {
    Headers::parse(bytes, bytes.len())
}

/// An IPv6 packet with the extension headers `extensions`, the first of kind `first`.
fn packet6(first: u8, extensions: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((extensions.len() as u16).to_be_bytes());
    bytes.extend([first, 64]);
    bytes.extend([0xfd; 16]);
    bytes.extend([0xfe; 16]);
    bytes.extend(extensions);
    bytes
}

#[test]
fn headers_are_found_behind_a_tag_or_none() {
    let plain = parse(&frame(ethertype::IPV4, &packet())).unwrap();
    assert_eq!((plain.vlan, plain.payload), (None, 14));
    assert_eq!(plain.ip.unwrap().endpoints().unwrap().0.to_string(), "10.0.2.15:7");
    let mut tagged = vec![0x20, 0x64, 8, 0];
    tagged.extend(packet());
    let tagged = parse(&frame(VLAN, &tagged)).unwrap();
    assert_eq!((tagged.vlan, tagged.payload, tagged.ethertype), (Some(100), 18, ethertype::IPV4));
    assert_eq!(tagged.ip.unwrap().payload, 38);
    assert_eq!(parse(&frame(VLAN, &[0, 1, 8])), Err(Malformed::Ethernet));
    assert_eq!(parse(&[0; 13]), Err(Malformed::Ethernet));
    assert!(parse(&frame(0x1234, &[])).unwrap().ip.is_none());
}

#[test]
fn ipv4_headers_without_sense_are_refused() {
    let changed = |at: usize, value: u8| {
        let mut bytes = packet();
        bytes[at] = value;
        if at != 10 {
            fix(&mut bytes);
        }
        parse(&frame(ethertype::IPV4, &bytes))
    };
    // Version, header lengths, total lengths, checksum.
    for (at, value) in [(0, 0x65), (0, 0x44), (0, 0x4f), (3, 19), (3, 33), (2, 0xff), (10, 0x55)] {
        assert_eq!(changed(at, value), Err(Malformed::Ipv4), "{at} {value:#x}");
    }
    assert_eq!(changed(3, 23), Err(Malformed::Transport), "no room for ports");
    assert_eq!(parse(&frame(ethertype::IPV4, &packet()[..19])), Err(Malformed::Ipv4));
    // A short packet in a frame that is filled up.
    let mut padded = frame(ethertype::IPV4, &packet());
    padded.extend([0; 14]);
    assert_eq!(parse(&padded).unwrap().ip.unwrap().end, 46);
}

#[test]
fn fragments_are_known() {
    let mut bytes = packet();
    bytes[6] = 0x20;
    fix(&mut bytes);
    let first = parse(&frame(ethertype::IPV4, &bytes)).unwrap().ip.unwrap();
    assert_eq!((first.fragment, first.ports), (Some(First(true)), Some((7, 9))));
    bytes[7] = 1;
    fix(&mut bytes);
    let later = parse(&frame(ethertype::IPV4, &bytes)).unwrap().ip.unwrap();
    assert_eq!((later.fragment, later.ports), (Some(First(false)), None));
}

#[test]
fn extension_headers_are_followed() {
    let udp = [0, 7, 0, 9, 0, 8, 0, 0];
    let mut chain = vec![60, 0, 1, 4, 0, 0, 0, 0];
    chain.extend([43, 1]);
    chain.extend([0; 14]);
    chain.extend([17, 0, 0, 0, 0, 0, 0, 0]);
    chain.extend(udp);
    let ip = parse(&frame(ethertype::IPV6, &packet6(0, &chain))).unwrap().ip.unwrap();
    assert_eq!((ip.protocol, ip.payload, ip.ports), (17, 14 + 40 + 32, Some((7, 9))));
    let mut fragment = vec![17, 0, 0, 1, 0, 0, 0, 9];
    fragment.extend(udp);
    let ip = parse(&frame(ethertype::IPV6, &packet6(44, &fragment))).unwrap().ip.unwrap();
    assert_eq!(ip.fragment, Some(First(true)));
    fragment[3] = 0;
    let ip = parse(&frame(ethertype::IPV6, &packet6(44, &fragment))).unwrap().ip.unwrap();
    assert_eq!(ip.fragment, None, "a fragment that is the whole");
}

#[test]
fn extension_headers_without_sense_are_refused() {
    let refused = |first, extensions: &[u8]| {
        assert_eq!(
            parse(&frame(ethertype::IPV6, &packet6(first, extensions))),
            Err(Malformed::Ipv6),
            "{extensions:?}"
        );
    };
    refused(0, &[]);
    refused(0, &[17, 0, 0]);
    refused(0, &[17, 9, 0, 0, 0, 0, 0, 0]);
    refused(44, &[17, 0, 0, 0]);
    refused(0, &[0, 0, 1, 4, 0, 0, 0, 0].repeat(20));
    let mut long = frame(ethertype::IPV6, &packet6(17, &[0; 8]));
    long[18] = 1;
    assert_eq!(parse(&long), Err(Malformed::Ipv6), "longer than the frame");
    assert_eq!(parse(&frame(ethertype::IPV6, &[0x60; 39])), Err(Malformed::Ipv6));
    assert_eq!(parse(&frame(ethertype::IPV6, &packet6(6, &[0, 1]))), Err(Malformed::Transport));
}

#[test]
fn checksums_are_checked() {
    let mut bytes = frame(ethertype::IPV4, &packet());
    let ip = parse(&bytes).unwrap().ip.unwrap();
    assert!(checksum_is_right(&bytes, &ip), "there is none");
    bytes[40] = 1;
    assert!(!checksum_is_right(&bytes, &ip));
    bytes[40] = 0;
    let value = !(sum(pseudo_header(ip.source, ip.destination, 17, 12), &bytes[34..46]) as u16);
    bytes[40..42].copy_from_slice(&value.to_be_bytes());
    assert!(checksum_is_right(&bytes, &ip));
    // Sums over any length are those over 16-bit words, filled up with zeros.
    assert_eq!(sum(0, &[1, 2, 3]), 0x0102 + 0x0300);
    assert_eq!(sum(5, &[0xff; 7]), 0xff05);
}
