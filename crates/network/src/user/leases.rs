//! Which guest has which address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use backend::MacAddress;

/// The longest name of a guest (RFC 1035 2.3.4).
const MAX_NAME: usize = 63;

/// Leases by Ethernet address. A lease stays for as long as there are addresses; then the guest
/// that asked for its longest ago loses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leases {
    range: (Ipv4Addr, Ipv4Addr),
    by_mac: BTreeMap<MacAddress, Lease>,
    /// Counts requests, to know which lease is the oldest.
    clock: u64,
    changed: bool,
}

/// What a guest has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    /// What it calls itself, in lower case.
    pub(crate) name: Option<String>,
    used: u64,
}

impl Leases {
    /// Leases of the addresses from `range.0` to `range.1`, both included.
    pub(crate) fn new(range: (Ipv4Addr, Ipv4Addr)) -> Self {
        Self { range, by_mac: BTreeMap::new(), clock: 0, changed: false }
    }

    /// The address of the guest with `mac`, which calls itself `name`.
    pub(crate) fn lease(&mut self, mac: MacAddress, name: Option<&str>) -> Option<Ipv4Addr> {
        self.clock += 1;
        let name = name.and_then(valid_name);
        if let Some(lease) = self.by_mac.get_mut(&mac) {
            lease.used = self.clock;
            if name.is_some() && lease.name != name {
                (lease.name, self.changed) = (name, true);
            }
            return Some(lease.address);
        }
        let address = self.free().or_else(|| self.push_out())?;
        self.by_mac.insert(mac, Lease { address, name, used: self.clock });
        self.changed = true;
        Some(address)
    }

    fn free(&self) -> Option<Ipv4Addr> {
        let taken: BTreeSet<u32> =
            self.by_mac.values().map(|lease| lease.address.to_bits()).collect();
        let (first, last) = (self.range.0.to_bits(), self.range.1.to_bits());
        (first..=last).find(|address| !taken.contains(address)).map(Ipv4Addr::from_bits)
    }

    fn push_out(&mut self) -> Option<Ipv4Addr> {
        let (mac, _) = self.by_mac.iter().min_by_key(|(_, lease)| lease.used)?;
        let mac = *mac;
        self.by_mac.remove(&mac).map(|lease| lease.address)
    }

    /// The address of the guest that calls itself `name`, in whatever case.
    pub(crate) fn by_name(&self, name: &str) -> Option<Ipv4Addr> {
        let name = valid_name(name)?;
        let found = self.by_mac.values().filter(|lease| lease.name.as_deref() == Some(&name));
        found.max_by_key(|lease| lease.used).map(|lease| lease.address)
    }

    /// What guest `mac` is called, and what its address is.
    #[cfg(test)]
    pub(crate) fn get(&self, mac: MacAddress) -> Option<&Lease> {
        self.by_mac.get(&mac)
    }

    /// As lines of address, Ethernet address and name, when that has changed since it was last
    /// asked.
    pub(crate) fn take_changed(&mut self) -> Option<String> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let line = |(mac, lease): (&MacAddress, &Lease)| {
            format!("{} {mac} {}\n", lease.address, lease.name.as_deref().unwrap_or("-"))
        };
        Some(self.by_mac.iter().map(line).collect())
    }

    /// Adds the leases of `text`, in the form of [`Leases::take_changed`]; lines that are none are
    /// left out.
    pub(crate) fn load(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(address), Some(mac), Some(name)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let (Ok(address), Ok(mac)) = (address.parse(), mac.parse()) else { continue };
            let inside = (self.range.0..=self.range.1).contains(&address);
            let taken = self.by_mac.values().any(|lease| lease.address == address);
            if inside && !taken {
                let lease = Lease { address, name: valid_name(name), used: 0 };
                self.by_mac.insert(mac, lease);
            }
        }
    }
}

/// A name that can be one of a station (RFC 1123 2.1), in lower case.
fn valid_name(name: &str) -> Option<String> {
    let name = name.trim_end_matches('\0');
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let good = (1..=MAX_NAME).contains(&name.len()) && name.chars().all(allowed) && name != "-";
    good.then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddress {
        MacAddress([2, 0, 0, 0, 0, last])
    }

    fn leases(count: u8) -> Leases {
        Leases::new((Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 14 + count)))
    }

    #[test]
    fn a_guest_keeps_its_address() {
        let mut leases = leases(2);
        let first = leases.lease(mac(1), Some("Web")).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 0, 2, 15));
        assert_ne!(leases.lease(mac(2), None), Some(first));
        assert_eq!(leases.lease(mac(1), None), Some(first));
        assert_eq!(leases.by_name("wEb"), Some(first));
        assert_eq!(
            leases.lease(mac(3), None),
            Some(Ipv4Addr::new(10, 0, 2, 16)),
            "the oldest goes"
        );
    }

    #[test]
    fn leases_are_text_and_back() {
        let mut old = leases(9);
        old.lease(mac(1), Some("a"));
        old.lease(mac(2), Some("not a name"));
        let text = old.take_changed().unwrap();
        assert_eq!(old.take_changed(), None);
        let mut new = leases(9);
        new.load(&format!("nonsense\n1.2.3.4 {} x\n{text}", mac(7)));
        assert_eq!(new.by_name("a"), old.by_name("a"));
        assert_eq!(new.lease(mac(2), None), old.lease(mac(2), None));
        assert!(new.get(mac(7)).is_none());
    }
}
