//! Flows: by number, as events of the host name them, and by the addresses in a packet.

use std::collections::HashMap;
use std::net::SocketAddr;

/// The two ends of a flow as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// Flows of one kind.
pub(super) struct Table<T> {
    flows: HashMap<u32, T>,
    by_key: HashMap<FlowKey, u32>,
    next: u32,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { flows: HashMap::new(), by_key: HashMap::new(), next: 0 }
    }
}

impl<T> Table<T> {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// The number of the next flow. Numbers are not used again soon, so that an event that is late
    /// does not reach another flow.
    pub(super) fn next_id(&mut self) -> u32 {
        loop {
            self.next = self.next.wrapping_add(1);
            if !self.flows.contains_key(&self.next) {
                return self.next;
            }
        }
    }

    pub(super) fn insert(&mut self, id: u32, key: FlowKey, flow: T) {
        self.flows.insert(id, flow);
        self.by_key.insert(key, id);
    }

    pub(super) fn find(&self, key: FlowKey) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.flows.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: u32, key: FlowKey) -> Option<T> {
        self.by_key.remove(&key);
        self.flows.remove(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.flows.iter().map(|(id, flow)| (*id, flow))
    }

    pub(super) fn clear(&mut self) {
        self.flows.clear();
        self.by_key.clear();
    }
}
