//! A switch between one user's VMs, without root and without a daemon.
//!
//! Whoever comes first makes the switch ([`hub`]) in its own process and keeps a lock; the others
//! connect to its Unix socket. When its process ends, the kernel releases the lock, and one of the
//! others takes its place: connections between VMs survive that, those through the NAT do not. The
//! leases are kept in a file.
//!
//! Messages on the socket are those of a `SOCK_SEQPACKET`: one hello with the port's address, VLAN
//! and name, then frames, each with the header that TAP devices use.

mod hub;
#[cfg(test)]
mod tests;
mod wire;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backend::{Counter, Frame, MacAddress, NetBackend, Offload, Wake};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

use crate::NetworkError;
use crate::queue::FrameQueue;
use hub::{Hub, PortId};
use wire::Connection;

/// How long a VM waits for a switch that is just being made.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a frame waits for room on its way to a VM.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(20);

/// Which switch, and as whom.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// Folder of sockets and locks, which only this user can enter.
    pub folder: PathBuf,
    /// Folder of leases, which stay.
    pub leases: PathBuf,
    /// The switch's name, which is that of a file.
    pub name: String,
    /// Address of the guest's card: frames with another source are dropped.
    pub mac: MacAddress,
    /// VLAN, 1 to 4094; the NAT, DHCP and names are in none.
    pub vlan: Option<u16>,
    /// Under which name others find this VM, besides what its guest says to DHCP.
    pub vm: Option<String>,
    /// The host's name servers.
    pub resolv_conf: PathBuf,
}

/// What a port says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hello {
    mac: MacAddress,
    vlan: u16,
    name: String,
}

/// A switch, as one VM is connected to it.
pub struct SwitchNet {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    config: SwitchConfig,
    hello: Hello,
    /// Frames for this VM's guest.
    out: Arc<FrameQueue>,
    role: Mutex<Role>,
    ended: AtomicBool,
    /// Times that the switch was lost and found again.
    moves: AtomicU64,
    dropped: AtomicU64,
}

/// How this VM takes part.
enum Role {
    Nobody,
    Host { hub: Arc<Hub>, port: PortId, _lock: File },
    Guest(Arc<Connection>),
}

impl Shared {
    fn role(&self) -> MutexGuard<'_, Role> {
        self.role.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the switch, or connects to it.
    fn join(&self) -> Result<Role, NetworkError> {
        let failed =
            |cause: io::Error| NetworkError::Switch { name: self.config.name.clone(), cause };
        let folder = &self.config.folder;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder).map_err(failed)?;
        check_owner(folder).map_err(failed)?;
        let path = |suffix: &str| folder.join(format!("{}.{suffix}", self.config.name));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lock = File::options().create(true).truncate(false).write(true).open(path("lock"));
            let lock = lock.map_err(failed)?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let hub = Hub::start(&path("sock"), &self.config)?;
                let port = hub.add_local(&self.hello, Arc::clone(&self.out));
                return Ok(Role::Host { hub, port, _lock: lock });
            }
            match Connection::connect(&path("sock"), &self.hello) {
                Ok(connection) => return Ok(Role::Guest(Arc::new(connection))),
                // It is being made, or was just left.
                Err(_) if Instant::now() < deadline && !self.ended.load(Ordering::Relaxed) => {
                    thread::sleep(PAUSE);
                }
                Err(cause) => return Err(failed(cause)),
            }
        }
    }

    /// Takes what comes from the switch, and finds it again when it is lost.
    fn serve(&self) {
        while !self.ended.load(Ordering::Relaxed) {
            let connection = match &*self.role() {
                // Frames come by themselves.
                Role::Host { .. } => return,
                Role::Guest(connection) => Some(Arc::clone(connection)),
                Role::Nobody => None,
            };
            if let Some(connection) = connection {
                while let Some(frame) = connection.receive() {
                    if !push(&self.out, frame) {
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            *self.role() = Role::Nobody;
            self.moves.fetch_add(1, Ordering::Relaxed);
            match self.join() {
                Ok(role) => *self.role() = role,
                Err(_) => thread::sleep(PATIENCE),
            }
            if self.ended.load(Ordering::Relaxed) {
                *self.role() = Role::Nobody;
            }
        }
    }
}

/// Adds a frame to a queue, after waiting a moment for room: whoever sends goes no faster than who
/// receives, but does not wait for one that stands still.
fn push(queue: &FrameQueue, frame: Frame) -> bool {
    let deadline = Instant::now() + WAIT_FOR_ROOM;
    while !queue.has_room() && Instant::now() < deadline {
        thread::sleep(Duration::from_micros(50));
    }
    queue.push(frame)
}

impl SwitchNet {
    /// Connects to the switch, which is made if there is none.
    ///
    /// # Errors
    /// [`NetworkError::Switch`], [`NetworkError::Host`].
    pub fn start(config: SwitchConfig) -> Result<Self, NetworkError> {
        let name = config.vm.clone().unwrap_or_default();
        let hello = Hello { mac: config.mac, vlan: config.vlan.unwrap_or(0), name };
        let shared = Arc::new(Shared {
            config,
            hello,
            out: Arc::default(),
            role: Mutex::new(Role::Nobody),
            ended: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let role = shared.join()?;
        *shared.role() = role;
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("switch port".to_owned())
            .spawn(move || served.serve())
            .map_err(|cause| NetworkError::Host { action: "start a thread", cause })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Whether the switch is in this process.
    pub fn is_host(&self) -> bool {
        matches!(*self.shared.role(), Role::Host { .. })
    }
}

impl NetBackend for SwitchNet {
    fn mtu(&self) -> Option<u16> {
        Some(crate::UserConfig::MAX_MTU)
    }

    fn send(&self, frame: &mut [u8], offload: Offload) {
        let role = self.shared.role();
        match &*role {
            Role::Host { hub, port, .. } => {
                let (hub, port) = (Arc::clone(hub), *port);
                drop(role);
                let body = Bytes::copy_from_slice(frame);
                hub.forward(port, &Frame { offload, head: Vec::new(), body });
            }
            Role::Guest(connection) => {
                let connection = Arc::clone(connection);
                drop(role);
                if !connection.send(frame, offload) {
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Role::Nobody => {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn sent(&self) {
        let hub = match &*self.shared.role() {
            Role::Host { hub, .. } => Some(Arc::clone(hub)),
            _ => None,
        };
        if let Some(hub) = hub {
            hub.sent();
        }
    }

    fn receive(&self) -> Option<Frame> {
        self.shared.out.pop()
    }

    fn connect(&self, wake: Wake) {
        self.shared.out.connect(wake);
    }

    fn reset(&self) {
        self.shared.out.clear();
    }

    fn counters(&self) -> Vec<Counter> {
        let (mut all, hosts) = match &*self.shared.role() {
            Role::Host { hub, .. } => (hub.counters(), 1),
            _ => (Vec::new(), 0),
        };
        let own = [
            ("switch_host", hosts),
            ("switch_moves", self.shared.moves.load(Ordering::Relaxed)),
            ("switch_dropped", self.shared.dropped.load(Ordering::Relaxed)),
        ];
        all.extend(own.map(|(name, count)| Counter { name: name.to_owned(), count }));
        all
    }
}

impl Drop for SwitchNet {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let role = std::mem::replace(&mut *self.shared.role(), Role::Nobody);
        match &role {
            Role::Guest(connection) => connection.close(),
            Role::Host { hub, .. } => hub.close(),
            Role::Nobody => {}
        }
        drop(role);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Refuses a folder that others could have made, or can enter.
fn check_owner(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    if ours && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the folder {} is not this user's alone; remove it, or make it so",
        folder.display()
    )))
}

/// The file of a switch's leases.
fn leases_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.leases"))
}
