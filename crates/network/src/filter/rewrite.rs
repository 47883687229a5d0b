//! Other addresses in a frame, with the checksums that follow from them (RFC 1624).

use std::net::{IpAddr, SocketAddr};

use backend::Offload;

use crate::headers::{Headers, protocol, sum};

/// Writes other addresses and ports into the frame with `headers`, all of which are in `bytes`.
/// `false`, and nothing is changed, where that cannot be.
pub(super) fn apply(
    bytes: &mut [u8],
    headers: &Headers,
    (from, to): (SocketAddr, SocketAddr),
    offload: Offload,
) -> bool {
    let Some(ip) = headers.ip else { return false };
    let same_family = from.is_ipv4() == ip.source.is_ipv4() && to.is_ipv4() == ip.source.is_ipv4();
    let checksum = ip.payload
        + match ip.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            _ => return false,
        };
    if !same_family || ip.fragment.is_some() || bytes.len() < checksum + 2 {
        return false;
    }
    let (at, len) =
        if ip.source.is_ipv4() { (headers.payload + 12, 8) } else { (headers.payload + 8, 32) };
    let ports = ip.payload..ip.payload + 4;
    let addresses = at..at + len;
    let old_addresses = sum(0, &bytes[addresses.clone()]);
    let old_ports = sum(0, &bytes[ports.clone()]);
    bytes[addresses.clone()].copy_from_slice(&[octets(from.ip()), octets(to.ip())].concat());
    bytes[ports.start..ports.start + 2].copy_from_slice(&from.port().to_be_bytes());
    bytes[ports.start + 2..ports.end].copy_from_slice(&to.port().to_be_bytes());
    let new_addresses = sum(0, &bytes[addresses]);
    let new_ports = sum(0, &bytes[ports]);
    if ip.source.is_ipv4() {
        let header = headers.payload + 10;
        update(bytes, header, !old_addresses & 0xffff, new_addresses, true);
    }
    let none = ip.protocol == protocol::UDP && bytes[checksum..checksum + 2] == [0, 0];
    if offload.checksum.is_some() {
        // The field has the sum of the pseudo header, as it is; ports are summed up later.
        update(bytes, checksum, !old_addresses & 0xffff, new_addresses, false);
    } else if !none {
        let old = sum(old_addresses, &(old_ports as u16).to_be_bytes());
        let new = sum(new_addresses, &(new_ports as u16).to_be_bytes());
        update(bytes, checksum, !old & 0xffff, new, true);
    }
    true
}

/// Replaces a part of what is summed up at `at`: `not_old` is the complement of the old part's sum.
fn update(bytes: &mut [u8], at: usize, not_old: u32, new: u32, complemented: bool) {
    let field = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let value = if complemented { !field } else { field };
    let all = sum(u32::from(value) + not_old + new, &[]) as u16;
    let field = if complemented { !all } else { all };
    bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
