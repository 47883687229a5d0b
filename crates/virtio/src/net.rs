//! The network device (virtio 1.2, 5.1).
//!
//! One receive and one transmit queue. Checksums and segmentation of TCP are left to the other side
//! in both directions, so that guest and network exchange frames of up to 64 KiB; a driver that
//! does not want that gets what it can take ([`software`]). Received frames may be spread over
//! several buffers (5.1.6.3.1).
//!
//! A frame for which the guest has no room waits; the network behind holds back the others.

mod software;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backend::{Counter, Frame, MAX_FRAME, MacAddress, NetBackend, Offload};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use crate::{Chain, DeviceError, DeviceKind, Dma, Requests, VirtioDevice};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Entries of the queues.
const QUEUES: [u16; 2] = [512, 256];
/// Bytes of the header before each frame (5.1.6), with its number of buffers.
const HEADER: usize = Offload::LEN + 2;
/// Frames that are sent before the other queue has its turn.
const TURN: usize = 32;

/// Offsets in the configuration structure (5.1.4).
mod config {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const PAIRS: usize = 8;
    pub(super) const MTU: usize = 10;
    pub(super) const LEN: usize = 12;
}

/// A network card.
pub struct Net {
    backend: Arc<dyn NetBackend>,
    config: [u8; config::LEN],
    mtu: bool,
    /// Frames on their way to the guest, for which it had no room.
    waiting: Mutex<VecDeque<Frame>>,
    /// Where frames of the guest are put together.
    sending: Mutex<Vec<u8>>,
    /// The driver has reset the card, which its thread has not heard of yet.
    was_reset: AtomicBool,
    counters: Arc<NetCounters>,
}

/// What network cards count.
#[derive(Debug, Default)]
pub struct NetCounters {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    oversized: AtomicU64,
    bad_header: AtomicU64,
    no_room: AtomicU64,
}

impl NetCounters {
    /// All of them by name.
    pub fn list(&self) -> Vec<Counter> {
        let all = [
            ("sent", &self.sent),
            ("sent_bytes", &self.sent_bytes),
            ("received", &self.received),
            ("received_bytes", &self.received_bytes),
            ("dropped_oversized", &self.oversized),
            ("dropped_bad_offload", &self.bad_header),
            ("dropped_no_room", &self.no_room),
        ];
        let count = |(name, value): (&str, &AtomicU64)| Counter {
            name: name.to_owned(),
            count: value.load(Ordering::Relaxed),
        };
        all.map(count).into()
    }
}

fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether feature `bit` is among `features`.
fn has(features: u64, bit: u32) -> bool {
    features >> bit & 1 != 0
}

impl Net {
    /// The front end of `backend`, with the Ethernet address `mac`.
    pub fn new(backend: Arc<dyn NetBackend>, mac: MacAddress) -> Self {
        let mut fields = [0; config::LEN];
        let mut put = |at: usize, bytes: &[u8]| fields[at..at + bytes.len()].copy_from_slice(bytes);
        put(config::MAC, &mac.0);
        put(config::STATUS, &(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        put(config::PAIRS, &1_u16.to_le_bytes());
        let mtu = backend.mtu();
        put(config::MTU, &mtu.unwrap_or(0).to_le_bytes());
        Self {
            backend,
            config: fields,
            mtu: mtu.is_some(),
            waiting: Mutex::default(),
            sending: Mutex::new(vec![0; MAX_FRAME]),
            was_reset: AtomicBool::new(false),
            counters: Arc::default(),
        }
    }

    /// What the card counts.
    pub fn counters(&self) -> Arc<NetCounters> {
        Arc::clone(&self.counters)
    }

    fn serve_transmit(&self, requests: &mut Requests<'_>) -> Result<(), DeviceError> {
        for _ in 0..TURN {
            let Some(chain) = requests.take() else {
                self.backend.sent();
                return Ok(());
            };
            self.transmit(&chain, requests.dma())?;
            requests.finish(chain.head, 0);
        }
        self.backend.sent();
        requests.come_again();
        Ok(())
    }

    /// Sends a frame, or drops what is none.
    fn transmit(&self, chain: &Chain, dma: &Dma) -> Result<(), DeviceError> {
        let mut reader = chain.reader(dma);
        let mut header = [0; HEADER];
        reader.read(&mut header).map_err(|_| DeviceError)?;
        let len = reader.left();
        let mut buffer = lock(&self.sending);
        let Some(frame) = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len)) else {
            add(&self.counters.oversized, 1);
            return Ok(());
        };
        reader.read(frame).map_err(|_| DeviceError)?;
        let (offload, _) = header.split_first_chunk().expect("the header is longer");
        match Offload::from_bytes(*offload, frame.len()) {
            Some(offload) => {
                add(&self.counters.sent, 1);
                add(&self.counters.sent_bytes, frame.len());
                self.backend.send(frame, offload);
            }
            None => add(&self.counters.bad_header, 1),
        }
        Ok(())
    }

    fn serve_receive(&self, requests: &mut Requests<'_>) -> Result<(), DeviceError> {
        let mut waiting = lock(&self.waiting);
        loop {
            if waiting.is_empty() {
                let Some(frame) = self.backend.receive() else { return Ok(()) };
                software::adapt(frame, requests.features(), &mut waiting);
            }
            while let Some(frame) = waiting.front() {
                if !self.deliver(frame, requests)? {
                    return Ok(());
                }
                waiting.pop_front();
            }
        }
    }

    /// Gives the guest a frame, if it has room for it now.
    fn deliver(&self, frame: &Frame, requests: &mut Requests<'_>) -> Result<bool, DeviceError> {
        let needed = (HEADER + frame.len()) as u64;
        let mergeable = has(requests.features(), VIRTIO_NET_F_MRG_RXBUF);
        let mut chains: Vec<Chain> = Vec::new();
        let mut room = 0;
        while room < needed {
            let taken = chains.len() as u16;
            if taken != 0 && !mergeable {
                // It is too large for this driver's buffers.
                requests.untake(taken);
                add(&self.counters.no_room, 1);
                return Ok(true);
            }
            let Some(chain) = requests.take() else {
                requests.untake(taken);
                return Ok(false);
            };
            room += chain.writer(requests.dma()).left();
            chains.push(chain);
        }
        let done = scatter(frame, &chains, requests.dma())?;
        add(&self.counters.received, 1);
        add(&self.counters.received_bytes, frame.len());
        requests.finish_all(&done);
        Ok(true)
    }
}

/// Writes a frame with its header to `chains`, which have room for it; returns what was written to
/// each.
fn scatter(frame: &Frame, chains: &[Chain], dma: &Dma) -> Result<Vec<(u16, u32)>, DeviceError> {
    let mut header = [0; HEADER];
    header[..Offload::LEN].copy_from_slice(&frame.offload.to_bytes());
    header[Offload::LEN..].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    let mut parts = [&header[..], &frame.head, &frame.body];
    let mut done = Vec::with_capacity(chains.len());
    for chain in chains {
        let mut writer = chain.writer(dma);
        let mut written = 0;
        for part in &mut parts {
            let len = writer.left().min(part.len() as u64) as usize;
            let (now, later) = part.split_at(len);
            writer.write(now).map_err(|_| DeviceError)?;
            *part = later;
            written += len as u32;
        }
        done.push((chain.head, written));
    }
    Ok(done)
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind { id: VIRTIO_ID_NET as u16, class: [2, 0, 0], name: "virtio-net" }
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
        ];
        let mtu = u64::from(self.mtu) << VIRTIO_NET_F_MTU;
        always.iter().fold(mtu, |bits, bit| bits | 1 << bit)
    }

    fn queues(&self) -> &'static [u16] {
        &QUEUES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn execute(
        &self,
        queue: usize,
        chain: &Chain,
        dma: &Dma,
        _features: u64,
    ) -> Result<u32, DeviceError> {
        // Received frames are spread over requests, which is for `serve` to do.
        match queue {
            TRANSMIT => self.transmit(chain, dma).map(|()| 0),
            _ => Err(DeviceError),
        }
    }

    fn serve(&self, queue: usize, requests: &mut Requests<'_>) -> Result<(), DeviceError> {
        if self.was_reset.swap(false, Ordering::Relaxed) {
            lock(&self.waiting).clear();
            self.backend.reset();
        }
        match queue {
            RECEIVE => self.serve_receive(requests),
            _ => self.serve_transmit(requests),
        }
    }

    fn connect(&self, wake: Arc<dyn Fn() + Send + Sync>) {
        self.backend.connect(wake);
    }

    fn reset(&self) {
        // The caller may be the card's thread, in the middle of a frame.
        self.was_reset.store(true, Ordering::Relaxed);
    }
}
