//! User-mode networking: guests reach the host's world, and nothing of the host needs to be set up.
//!
//! Connections and datagrams of guests end here and go on in sockets of the host, as those of any
//! program of the user. To the guests this is a router with DHCP, a name server, IPv4 and IPv6
//! (see [`plan`] for the addresses). Frames are taken on the thread that brings them; a thread of
//! the network's own waits for the host's sockets.
//!
//! | part | |
//! | --- | --- |
//! | `nat` | takes frames and events, and knows the other parts |
//! | `env` | the way to the guests, the host's events, the time |
//! | `neighbours`, `dhcp`, `leases`, `names` | addresses, names and where guests are |
//! | `tcp`, `udp`, `icmp` | what guests exchange with others |
//! | `forward` | ports of the host that lead to a guest |
//! | `resolver` | the host's name servers |
//!
//! Invariants:
//! - What guests and peers make it keep is bounded: the number of flows of each kind, the bytes of
//!   each connection, the frames on their way to a guest.
//! - Nothing blocks, and nothing is done while nothing happens.

mod dhcp;
mod env;
mod forward;
mod icmp;
mod leases;
mod names;
mod nat;
mod neighbours;
mod plan;
mod resolver;
mod sockets;
mod table;
mod tcp;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod udp;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backend::{Counter, Frame, MacAddress, NetBackend, Offload, Wake};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

pub use forward::{Forward, Transport};
use nat::Nat;
use plan::Plan;

use crate::NetworkError;
use crate::queue::FrameQueue;

/// Events that are taken from the host at once.
const EVENTS: usize = 256;

/// Called with the text of the leases whenever they have changed.
pub type SaveLeases = Box<dyn Fn(&str) + Send>;

/// What a user-mode network is to be.
#[derive(Clone, Debug)]
pub struct UserConfig {
    /// Ports of the host that lead to the first guest.
    pub forwards: Vec<Forward>,
    /// The largest IP packet in bytes inside the network, 1280 to 65,520.
    pub mtu: u16,
    /// Where the host's name servers are named, in the form of resolv.conf(5).
    pub resolv_conf: PathBuf,
    /// Whether guests reach nothing but the network itself: neither the host nor the Internet.
    pub isolated: bool,
    /// Leases of earlier, as [`SaveLeases`] got them.
    pub leases: String,
    plan: Plan,
}

impl Default for UserConfig {
    fn default() -> Self {
        let plan = Plan::default();
        Self {
            forwards: Vec::new(),
            mtu: plan.mtu,
            resolv_conf: "/etc/resolv.conf".into(),
            isolated: false,
            leases: String::new(),
            plan,
        }
    }
}

impl UserConfig {
    /// The address that the first guest gets.
    pub const FIRST_GUEST: Ipv4Addr = plan::FIRST_GUEST;
    /// The smallest MTU: IPv6 demands it (RFC 8200 5).
    pub const MIN_MTU: u16 = 1280;
    /// The largest MTU: what a virtio network card can say, less what some drivers add.
    pub const MAX_MTU: u16 = 65_520;
}

/// A user-mode network. Dropping it ends all connections.
pub struct UserNet {
    shared: Arc<Shared>,
    mtu: u16,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    nat: Mutex<Nat>,
    out: Arc<FrameQueue>,
    /// Makes the thread look around.
    wake: OwnedFd,
    /// Until when the thread sleeps, in nanoseconds since `start`; with the network's lock held.
    sleeps_until: Mutex<Option<Instant>>,
    ended: AtomicBool,
}

impl Shared {
    fn nat(&self) -> MutexGuard<'_, Nat> {
        self.nat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It fails when there is a wake-up under way already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Wakes the thread if it would sleep beyond what is due.
    fn check_sleep(&self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        let mut until = self.sleeps_until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_none_or(|until| until > deadline) {
            *until = Some(deadline);
            drop(until);
            self.wake();
        }
    }
}

impl UserNet {
    /// Starts a network as `config` says; `save` gets the leases when they change.
    ///
    /// # Errors
    /// [`NetworkError::Forward`] for a port that cannot be had, [`NetworkError::Host`].
    pub fn start(config: UserConfig, save: Option<SaveLeases>) -> Result<Self, NetworkError> {
        let failed = |cause| NetworkError::Host { action: "start a network", cause };
        let mtu = config.mtu.clamp(UserConfig::MIN_MTU, UserConfig::MAX_MTU);
        let config =
            UserConfig { plan: Plan { mtu, isolated: config.isolated, ..config.plan }, ..config };
        let out = Arc::new(FrameQueue::default());
        let nat = Nat::new(&config, Arc::clone(&out))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|error| failed(error.into()))?;
        nat.watch_wake(&wake).map_err(|error| failed(error.into()))?;
        let events = nat.events().map_err(failed)?;
        let shared = Arc::new(Shared {
            nat: Mutex::new(nat),
            out,
            wake,
            sleeps_until: Mutex::new(None),
            ended: AtomicBool::new(false),
        });
        let room = Arc::downgrade(&shared);
        shared.out.on_room(Arc::new(move || {
            if let Some(shared) = room.upgrade() {
                shared.wake();
            }
        }));
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("user network".to_owned())
            .spawn(move || serve(&served, &events, save.as_deref()))
            .map_err(failed)?;
        Ok(Self { shared, mtu, thread: Some(thread) })
    }
}

impl UserNet {
    /// The guest with `mac` is called `name`, and gets an address now.
    pub fn name(&self, mac: MacAddress, name: &str) {
        self.shared.nat().name(mac, name);
        // So that the lease is saved.
        self.shared.wake();
    }
}

/// The network's thread.
fn serve(shared: &Shared, events: &OwnedFd, save: Option<&(dyn Fn(&str) + Send)>) {
    let mut ready = Vec::with_capacity(EVENTS);
    while !shared.ended.load(Ordering::Relaxed) {
        let deadline = {
            let nat = shared.nat();
            let deadline = nat.deadline();
            *shared.sleeps_until.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
            deadline
        };
        ready.clear();
        let timeout = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        // Interrupted by a signal, it looks around as well.
        let _ = epoll::wait(events, spare_capacity(&mut ready), timeout.as_ref());
        let mut nat = shared.nat();
        nat.now();
        if ready.iter().any(|event| event.data.u64() == 0) {
            let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
        }
        for event in &ready {
            nat.event(*event);
        }
        nat.tick();
        nat.answer();
        let leases = save.and_then(|_| nat.take_changed_leases());
        drop(nat);
        if let (Some(save), Some(leases)) = (save, leases) {
            save(&leases);
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    // A little late rather than a little early, which would be for nothing.
    let duration = duration + Duration::from_millis(1);
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}

impl NetBackend for UserNet {
    fn mtu(&self) -> Option<u16> {
        Some(self.mtu)
    }

    fn send(&self, frame: &mut [u8], offload: Offload) {
        let mut nat = self.shared.nat();
        nat.now();
        nat.frame(frame, offload);
        let deadline = nat.deadline();
        drop(nat);
        self.shared.check_sleep(deadline);
    }

    fn sent(&self) {
        self.shared.nat().answer();
    }

    fn receive(&self) -> Option<Frame> {
        self.shared.out.pop()
    }

    fn connect(&self, wake: Wake) {
        self.shared.out.connect(wake);
    }

    fn reset(&self) {
        self.shared.nat().reset();
        self.shared.out.clear();
    }

    fn counters(&self) -> Vec<Counter> {
        self.shared.nat().counters()
    }
}

impl Drop for UserNet {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
