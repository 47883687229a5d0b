//! Names of guests: questions to the name server about them are answered here, and all others by
//! the host's.

use std::net::IpAddr;

use smoltcp::wire::{DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion};

use super::env::Env;
use super::leases::Leases;
use super::plan::DNS;
use super::udp;
use crate::headers::Ip;

/// Bytes of a message's header (RFC 1035 4.1.1).
const HEADER: usize = 12;
/// Flags of an answer (RFC 1035 4.1.1): response, authoritative, recursion available.
const RESPONSE: u16 = 0x8480;
/// The flag that asks for recursion, which an answer repeats.
const RECURSION_DESIRED: u16 = 0x0100;
/// Seconds for which an answer is good.
const TTL: u32 = 5;

/// Answers the datagram of `ip`, in `packet`, if it asks the name server for a guest. Whether it
/// did.
pub(super) fn answer(ip: &Ip, packet: &[u8], leases: &Leases, env: &mut Env) -> bool {
    let Some((guest, server)) = ip.endpoints() else { return false };
    let ours = IpAddr::V4(env.plan.dns) == server.ip() || IpAddr::V6(env.plan.dns6) == server.ip();
    if !ours || server.port() != DNS {
        return false;
    }
    let Some(answer) = packet.get(8..).and_then(|query| reply(query, leases)) else { return false };
    env.counters.count("dns_answered");
    udp::deliver(server, guest, &answer, env);
    true
}

/// The reply to `query`, when it is about a guest.
fn reply(query: &[u8], leases: &Leases) -> Option<Vec<u8>> {
    let message = DnsPacket::new_checked(query).ok()?;
    let is_query = message.opcode() == DnsOpcode::Query
        && !message.flags().contains(DnsFlags::RESPONSE)
        && message.question_count() == 1;
    if !is_query {
        return None;
    }
    let (rest, question) = DnsQuestion::parse(message.payload()).ok()?;
    let question_len = message.payload().len() - rest.len();
    let labels: Option<Vec<&[u8]>> = message.parse_name(question.name).map(Result::ok).collect();
    // A bare name: whatever has a domain is for others to know.
    let [label] = labels?[..] else { return None };
    let address = leases.by_name(std::str::from_utf8(label).ok()?)?;
    let mut reply = Vec::with_capacity(HEADER + question_len + 16);
    reply.extend(&query[..2]);
    let desired = u16::from_be_bytes([query[2], query[3]]) & RECURSION_DESIRED;
    reply.extend((RESPONSE | desired).to_be_bytes());
    // A name that has no address of another kind exists nevertheless.
    let answers = u16::from(question.type_ == DnsQueryType::A);
    for count in [1, answers, 0, 0] {
        reply.extend(count.to_be_bytes());
    }
    reply.extend(&query[HEADER..HEADER + question_len]);
    if answers == 1 {
        // The name of the question, type A, class IN.
        reply.extend([0xc0, HEADER as u8, 0, 1, 0, 1]);
        reply.extend(TTL.to_be_bytes());
        reply.extend([0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use backend::MacAddress;

    use super::*;

    fn query(name: &[u8], kind: u8) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(name);
        bytes.extend([0, kind, 0, 1]);
        bytes
    }

    #[test]
    fn guests_are_known_by_name_and_nobody_else() {
        let mut leases = Leases::new((Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 20)));
        leases.lease(MacAddress([2; 6]), Some("web"));
        let answer = reply(&query(b"\x03Web\0", 1), &leases).unwrap();
        assert_eq!(answer[..12], [0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[answer.len() - 4..], [10, 0, 2, 15]);
        let no_ipv6 = reply(&query(b"\x03web\0", 28), &leases).unwrap();
        assert_eq!((no_ipv6[7], no_ipv6.len()), (0, 12 + 9));
        for other in [&b"\x03web\x03org\0"[..], b"\x03wob\0", b"\0", b"\x03we", b"\xc0\x0c", b""] {
            assert_eq!(reply(&query(other, 1), &leases), None, "{other:?}");
        }
    }
}
