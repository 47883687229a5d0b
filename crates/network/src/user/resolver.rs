//! The host's name servers.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::plan::DNS;

/// How long what was read stays good.
const FRESH: Duration = Duration::from_secs(5);

/// The host's name servers, by turns.
#[derive(Debug)]
pub(crate) struct Resolver {
    path: PathBuf,
    servers: Vec<SocketAddr>,
    read: Option<Instant>,
    /// Which of them is asked.
    turn: usize,
}

impl Resolver {
    /// Those that the file `path` names, which is read when it is needed.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, servers: Vec::new(), read: None, turn: 0 }
    }

    /// Reads the file again if that was long ago.
    pub(crate) fn refresh(&mut self, now: Instant) {
        if self.read.is_some_and(|read| now.saturating_duration_since(read) < FRESH) {
            return;
        }
        self.read = Some(now);
        let servers = parse(&fs::read_to_string(&self.path).unwrap_or_default());
        if servers != self.servers {
            (self.servers, self.turn) = (servers, 0);
        }
    }

    /// The server to ask.
    pub(crate) fn server(&self) -> Option<SocketAddr> {
        self.servers.get(self.turn % self.servers.len().max(1)).copied()
    }

    /// `server` did not answer: it is another's turn.
    pub(crate) fn failed(&mut self, server: SocketAddr) {
        if self.server() == Some(server) {
            self.turn = self.turn.wrapping_add(1);
        }
    }
}

/// The name servers of a file in the form of resolv.conf(5).
fn parse(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address: IpAddr =
            words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
        Some(SocketAddr::new(address, DNS))
    });
    addresses.take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "# x\nsearch y\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\n").unwrap();
        let mut resolver = Resolver::new(path);
        assert_eq!(resolver.server(), None);
        resolver.refresh(Instant::now());
        let first: SocketAddr = "192.0.2.1:53".parse().unwrap();
        assert_eq!(resolver.server(), Some(first));
        resolver.failed(first);
        assert_eq!(resolver.server(), Some("[2001:db8::1]:53".parse().unwrap()));
        resolver.failed(first);
        assert_eq!(resolver.server(), Some("[2001:db8::1]:53".parse().unwrap()), "it is not asked");
    }
}
