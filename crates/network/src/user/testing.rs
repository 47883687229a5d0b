//! A guest of a user-mode network, made of frames.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use backend::{Frame, MacAddress, NetBackend, Offload};
use bytes::Bytes;

use super::plan::Plan;
use super::{UserConfig, UserNet};
use crate::frames::{self, Route};
use crate::headers::{Headers, protocol};

pub(super) const MAC: MacAddress = MacAddress([0x52, 0x46, 0, 0, 0, 0x77]);
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const LONG: Duration = Duration::from_secs(20);

pub(super) struct Guest {
    pub(super) net: UserNet,
    pub(super) plan: Plan,
}

/// What a guest got above IP.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) headers: Headers,
    pub(super) frame: Frame,
    /// From the header above IP on.
    pub(super) packet: Vec<u8>,
}

impl Guest {
    pub(super) fn new() -> Self {
        Self::with(UserConfig::default())
    }

    pub(super) fn with(config: UserConfig) -> Self {
        let plan = Plan { mtu: config.mtu, ..Plan::default() };
        Self { net: UserNet::start(config, None).unwrap(), plan }
    }

    /// A frame of this guest with a packet to `to`.
    pub(super) fn frame(&self, to: IpAddr, number: u8, header: &[u8], body: &[u8]) -> Frame {
        let from = match to {
            IpAddr::V4(_) => ADDRESS.into(),
            IpAddr::V6(_) => "fd52:4e47::15".parse().unwrap(),
        };
        let route = Route { from: (MAC, from), to: (self.plan.mac, to) };
        frames::packet(&route, number, header, Bytes::copy_from_slice(body)).unwrap()
    }

    pub(super) fn send(&self, frame: &Frame) {
        self.net.send(&mut frame.to_vec(), frame.offload);
        self.net.sent();
    }

    pub(super) fn send_bytes(&self, bytes: &[u8]) {
        self.net.send(&mut bytes.to_vec(), Offload::default());
        self.net.sent();
    }

    pub(super) fn udp(&self, from: u16, to: SocketAddr, payload: &[u8]) {
        let len = 8 + payload.len() as u16;
        let header = [from.to_be_bytes(), to.port().to_be_bytes(), len.to_be_bytes(), [0; 2]];
        self.send(&self.frame(to.ip(), protocol::UDP, &header.concat(), payload));
    }

    /// The next frame.
    pub(super) fn next(&self) -> Frame {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(frame) = self.net.receive() {
                return frame;
            }
            assert!(Instant::now() < deadline, "no frame came");
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// The next packet.
    pub(super) fn got(&self) -> Got {
        let frame = self.next();
        let bytes = frame.to_vec();
        let headers = Headers::parse(&bytes, bytes.len()).expect("a good frame");
        let ip = headers.ip.expect("a packet");
        Got { headers, packet: bytes[ip.payload..ip.end].to_vec(), frame }
    }

    pub(super) fn has_nothing(&self) -> bool {
        self.net.receive().is_none()
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        self.net.shared.nat().count(name)
    }

    pub(super) fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what} did not come");
            thread::sleep(Duration::from_micros(200));
        }
    }
}
