//! The switch itself: ports, and which address is behind which of them.

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use backend::{Counter, Frame, MacAddress, NetBackend};
use rustix::net::{Shutdown, SocketAddrUnix, SocketFlags, accept_with, bind, listen, shutdown};

use super::wire::{self, Connection};
use super::{Hello, SwitchConfig, leases_file, push};
use crate::counters::Counters;
use crate::headers::ETHERNET;
use crate::queue::FrameQueue;
use crate::{NetworkError, SaveLeases, UserConfig, UserNet};

/// The most ports.
const MAX_PORTS: usize = 256;
/// Ethernet type of a frame with a VLAN tag.
const VLAN: [u8; 2] = [0x81, 0x00];

/// Number of a port.
pub(super) type PortId = u32;

/// The port of the NAT.
const NAT: PortId = 0;

struct Port {
    mac: MacAddress,
    vlan: u16,
    out: Arc<FrameQueue>,
    /// Of a port in another process.
    connection: Option<Arc<Connection>>,
}

/// The switch. Ports have the addresses that they said, so that there is nothing to learn, and
/// nobody can be somebody else.
pub(super) struct Hub {
    ports: Mutex<HashMap<PortId, Port>>,
    nat: UserNet,
    nat_news: Arc<News>,
    counters: Mutex<Counters>,
    listener: OwnedFd,
    path: PathBuf,
    ended: AtomicBool,
}

/// Whether there is something, and a thread that waits for it.
#[derive(Default)]
struct News {
    something: Mutex<bool>,
    came: Condvar,
}

impl News {
    fn tell(&self) {
        *self.something.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.came.notify_one();
    }

    fn wait(&self) {
        let mut something = self.something.lock().unwrap_or_else(PoisonError::into_inner);
        while !*something {
            something = self.came.wait(something).unwrap_or_else(PoisonError::into_inner);
        }
        *something = false;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Makes the switch, which others find at `path`. The caller has its lock.
    pub(super) fn start(path: &Path, config: &SwitchConfig) -> Result<Arc<Self>, NetworkError> {
        let failed = |cause| NetworkError::Switch { name: config.name.clone(), cause };
        // Nobody listens there any more.
        let _ = fs::remove_file(path);
        let listener = wire::socket().and_then(|socket| {
            bind(&socket, &SocketAddrUnix::new(path)?)?;
            listen(&socket, 64)?;
            Ok(socket)
        });
        let listener = listener.map_err(|error| failed(error.into()))?;
        fs::create_dir_all(&config.leases).map_err(failed)?;
        let file = leases_file(&config.leases, &config.name);
        let mut user = UserConfig::default();
        user.leases = fs::read_to_string(&file).unwrap_or_default();
        user.resolv_conf.clone_from(&config.resolv_conf);
        let hub = Arc::new(Self {
            ports: Mutex::default(),
            nat: UserNet::start(user, Some(save_to(file)))?,
            nat_news: Arc::default(),
            counters: Mutex::default(),
            listener,
            path: path.to_owned(),
            ended: AtomicBool::new(false),
        });
        let news = Arc::clone(&hub.nat_news);
        hub.nat.connect(Arc::new(move || news.tell()));
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(work).map_err(failed)
        };
        let (of_nat, of_ports) = (Arc::clone(&hub), Arc::clone(&hub));
        spawn("switch nat", Box::new(move || of_nat.serve_nat()))?;
        spawn("switch", Box::new(move || of_ports.accept()))?;
        Ok(hub)
    }

    /// Ends the switch: all connections end.
    pub(super) fn close(&self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = shutdown(&self.listener, Shutdown::Both);
        let _ = fs::remove_file(&self.path);
        self.nat_news.tell();
        for port in lock(&self.ports).values() {
            if let Some(connection) = &port.connection {
                connection.close();
            }
        }
    }

    /// Adds the port of this process' own guest.
    pub(super) fn add_local(&self, hello: &Hello, out: Arc<FrameQueue>) -> PortId {
        self.add(hello, out, None).unwrap_or(NAT)
    }

    fn add(
        &self,
        hello: &Hello,
        out: Arc<FrameQueue>,
        connection: Option<Arc<Connection>>,
    ) -> Option<PortId> {
        if !hello.name.is_empty() && hello.vlan == 0 {
            self.nat.name(hello.mac, &hello.name);
        }
        let mut ports = lock(&self.ports);
        let id =
            (NAT + 1..).find(|id| !ports.contains_key(id)).filter(|_| ports.len() < MAX_PORTS)?;
        ports.insert(id, Port { mac: hello.mac, vlan: hello.vlan, out, connection });
        Some(id)
    }

    /// Waits for ports.
    fn accept(self: &Arc<Self>) {
        while !self.ended.load(Ordering::Relaxed) {
            let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC) else {
                // It was shut down, or there are no files left: ports may try again.
                thread::sleep(super::PAUSE);
                continue;
            };
            let Ok(connection) = Connection::new(socket) else { continue };
            let hub = Arc::clone(self);
            let serve = move || hub.serve_port(&Arc::new(connection));
            // Without a thread the port is closed, and tries again.
            let _ = thread::Builder::new().name("switch port in".to_owned()).spawn(serve);
        }
    }

    /// Takes the frames of a port in another process, until it ends.
    fn serve_port(self: &Arc<Self>, connection: &Arc<Connection>) {
        let Some(hello) = connection.hello() else { return };
        let out: Arc<FrameQueue> = Arc::default();
        let news: Arc<News> = Arc::default();
        let told = Arc::clone(&news);
        out.connect(Arc::new(move || told.tell()));
        let Some(id) = self.add(&hello, Arc::clone(&out), Some(Arc::clone(connection))) else {
            return;
        };
        let ended = Arc::new(AtomicBool::new(false));
        let (to, over, woken) = (Arc::clone(connection), Arc::clone(&ended), Arc::clone(&news));
        let deliver = move || {
            while !over.load(Ordering::Relaxed) {
                match out.pop() {
                    // A port that takes nothing for long loses it.
                    Some(frame) => drop(to.send_frame(&frame)),
                    None => woken.wait(),
                }
            }
        };
        let writer = thread::Builder::new().name("switch port out".to_owned()).spawn(deliver);
        if writer.is_ok() {
            while let Some(frame) = connection.receive() {
                self.forward(id, &frame);
                self.sent();
            }
        }
        lock(&self.ports).remove(&id);
        connection.close();
        ended.store(true, Ordering::Relaxed);
        news.tell();
    }

    /// Takes the frames of the NAT.
    fn serve_nat(&self) {
        while !self.ended.load(Ordering::Relaxed) {
            while let Some(frame) = self.nat.receive() {
                self.forward(NAT, &frame);
            }
            self.nat_news.wait();
        }
    }

    /// The NAT may answer what it put off.
    pub(super) fn sent(&self) {
        self.nat.sent();
    }

    /// Takes a frame of port `from` to where it belongs.
    pub(super) fn forward(&self, from: PortId, frame: &Frame) {
        let headers = frame.headers();
        let (Some(to), Some(source)) = (address(headers, 0), address(headers, 6)) else {
            return lock(&self.counters).count("dropped_bad_ethernet");
        };
        let ports = lock(&self.ports);
        let vlan = match ports.get(&from) {
            Some(port) if port.mac != source => {
                drop(ports);
                return lock(&self.counters).count("dropped_spoofed");
            }
            Some(port) => port.vlan,
            None if from == NAT => 0,
            None => return,
        };
        // Tags are the switch's to give.
        if headers.get(ETHERNET - 2..ETHERNET) == Some(&VLAN) {
            drop(ports);
            return lock(&self.counters).count("dropped_tagged");
        }
        let others = ports.iter().filter(|(id, port)| **id != from && port.vlan == vlan);
        let targets: Vec<Arc<FrameQueue>> = others
            .filter(|(_, port)| to.is_multicast() || port.mac == to)
            .map(|(_, port)| Arc::clone(&port.out))
            .collect();
        drop(ports);
        if from != NAT && vlan == 0 && (to.is_multicast() || targets.is_empty()) {
            let mut bytes = frame.to_vec();
            self.nat.send(&mut bytes, frame.offload);
        }
        for target in targets {
            if !push(&target, frame.clone()) {
                lock(&self.counters).count("dropped_queue_full");
            }
        }
    }

    /// What was counted.
    pub(super) fn counters(&self) -> Vec<Counter> {
        let mut all = lock(&self.counters).list("switch_");
        let ports = lock(&self.ports).len() as u64;
        all.push(Counter { name: "switch_ports".to_owned(), count: ports });
        all.extend(self.nat.counters());
        all
    }
}

fn address(frame: &[u8], at: usize) -> Option<MacAddress> {
    frame.get(..ETHERNET)?.get(at..at + 6)?.first_chunk().copied().map(MacAddress)
}

/// Writes leases to `file`, anew each time.
fn save_to(file: PathBuf) -> SaveLeases {
    Box::new(move |text| {
        let new = file.with_extension("leases.new");
        // Without the file, leases last as long as the switch.
        let _ = fs::write(&new, text).and_then(|()| fs::rename(&new, &file));
    })
}
