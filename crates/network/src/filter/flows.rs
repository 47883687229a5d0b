//! Which flows were allowed, and what was rewritten in them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Flows of one generation: there are two.
const GENERATION: usize = 8192;
/// A generation that is older makes room for a new one.
const AGE: Duration = Duration::from_secs(300);

/// A flow in one direction: protocol, from whom, to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) protocol: u8,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
}

impl Flow {
    pub(super) fn reversed(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }
}

/// Bounded memory of flows: those that were used in this generation or in the last.
pub(super) struct Flows<T> {
    young: HashMap<Flow, T>,
    old: HashMap<Flow, T>,
    since: Instant,
}

impl<T: Copy> Flows<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), since: now }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }

    /// What is known of `flow`, which is used now.
    pub(super) fn get(&mut self, flow: Flow, now: Instant) -> Option<T> {
        if let Some(known) = self.young.get(&flow) {
            return Some(*known);
        }
        let known = self.old.remove(&flow)?;
        self.insert(flow, known, now);
        Some(known)
    }

    pub(super) fn insert(&mut self, flow: Flow, known: T, now: Instant) {
        let over = now.saturating_duration_since(self.since) >= AGE;
        if self.young.len() >= GENERATION || over {
            self.old = std::mem::take(&mut self.young);
            self.since = now;
        }
        self.young.insert(flow, known);
    }
}
