//! Hostile guests and peers of networks: frames without sense, or with a little, and rules.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use backend::{Frame, MacAddress, NetBackend, Offload, Wake};
use network::{Filter, Rules, UserConfig, UserNet};

use crate::Input;

const MAC: MacAddress = MacAddress([0x52, 0x46, 0, 0, 0, 7]);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Ethernet, IPv4 and TCP headers without options.
const TCP_FRAME: usize = 54;
/// Frames in one run.
const FRAMES: usize = 64;

/// A guest sends a user-mode network what the input says. What it sends to others than the network
/// itself goes to a socket that is made for it.
///
/// # Panics
/// When the network panics.
pub fn user_network(data: &[u8]) {
    let mut input = Input::new(data);
    let start = |isolated| {
        let mut config = UserConfig::default();
        config.isolated = isolated;
        UserNet::start(config, None).expect("a network")
    };
    let structured = input.byte() & 1 != 0;
    let net = start(!structured);
    let listener = structured.then(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
    let port = listener.as_ref().map(|l| l.local_addr().expect("bound").port());
    let mut acknowledged = 0;
    for _ in 0..FRAMES {
        if input.is_empty() {
            break;
        }
        let mut frame = match port {
            Some(port) => segment(&mut input, port, acknowledged),
            None => anything(&mut input),
        };
        let offload = if structured {
            Offload { checked: true, ..Offload::default() }
        } else {
            offload(&mut input, frame.len())
        };
        net.send(&mut frame, offload);
        net.sent();
        while let Some(frame) = net.receive() {
            let bytes = frame.to_vec();
            if let Some(sequence) = bytes.get(38..42).filter(|_| bytes.get(23) == Some(&6)) {
                acknowledged =
                    u32::from_be_bytes(sequence.try_into().expect("four")).wrapping_add(1);
            }
        }
    }
}

/// Rules, and frames that they decide about.
///
/// # Panics
/// When the filter panics, or a spoofed frame passes.
pub fn packet_filter(data: &[u8]) {
    let mut input = Input::new(data);
    let rules = match input.byte() % 4 {
        0 => {
            let text = String::from_utf8_lossy(data.get(1..).unwrap_or_default()).into_owned();
            Rules::parse(&text).unwrap_or_default()
        }
        which => Rules::parse(RULES[usize::from(which) - 1]).expect("good rules"),
    };
    let wire = Arc::new(Wire(std::sync::Mutex::default()));
    let filter = Filter::new(Arc::clone(&wire) as _, &rules, MAC, Some(ADDRESS));
    for _ in 0..FRAMES {
        if input.is_empty() {
            break;
        }
        let mut frame = anything(&mut input);
        let offload = offload(&mut input, frame.len());
        if input.byte() & 1 != 0 {
            filter.send(&mut frame, offload);
        } else {
            *wire.0.lock().expect("one thread") =
                Some(Frame { offload, head: Vec::new(), body: frame.into() });
        }
        while filter.receive().is_some() {}
    }
}

const RULES: [&str; 3] = [
    "[[rule]]\nstate = \"new\"\naction = \"reject\"",
    "anti-spoofing = false\n[[rule]]\naction = \"rewrite\"\nrewrite = { source-port = 7, destination = \"10.0.2.9\" }",
    "anti-spoofing = false\n[[rule]]\naction = \"rewrite\"\nrewrite = { source-port = 7, destination = \"::9\" }\n",
];

/// A network that gives the filter one frame.
struct Wire(std::sync::Mutex<Option<Frame>>);

impl NetBackend for Wire {
    fn send(&self, _frame: &mut [u8], _offload: Offload) {}

    fn receive(&self) -> Option<Frame> {
        self.0.lock().expect("one thread").take()
    }

    fn connect(&self, _wake: Wake) {}
}

fn offload(input: &mut Input<'_>, len: usize) -> Offload {
    let choice = input.byte();
    let [start, offset] = [input.byte(), input.byte()];
    let bytes = [choice & 3, choice >> 6, 0, 0, 100, 0, start, 0, offset, 0];
    Offload::from_bytes(bytes, len).unwrap_or_default()
}

/// A frame of the guest to the gateway with headers of the kind that the input says, and anything
/// behind them.
fn anything(input: &mut Input<'_>) -> Vec<u8> {
    let mut frame = vec![0x52, 0x46, 0x0a, 0, 2, 2];
    frame.extend(MAC.0);
    let len = usize::from(input.byte());
    let mut rest: Vec<u8> = (0..len).map(|_| input.byte()).collect();
    match input.byte() % 4 {
        0 => frame.extend([8, 6]),
        1 => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, len as u8, input.byte(), 64]);
            frame.extend([0xfd, 0x52, 0x4e, 0x47, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15]);
            frame.extend([0xfd, 0x52, 0x4e, 0x47, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        }
        2 => {
            let mut header = [
                0x45,
                0,
                0,
                (20 + len) as u8,
                0,
                0,
                0,
                0,
                64,
                input.byte(),
                0,
                0,
                10,
                0,
                2,
                15,
                10,
                0,
                2,
                2,
            ];
            header[2] = ((20 + len) >> 8) as u8;
            if input.byte() < 64 {
                header[16..].fill(0xff);
                rest.splice(..rest.len().min(4), [0, 68, 0, 67]);
            }
            finish(&mut header);
            frame.extend([8, 0]);
            frame.extend(header);
        }
        _ => {}
    }
    frame.extend(rest);
    frame
}

/// A TCP segment to the gateway's `port`.
fn segment(input: &mut Input<'_>, port: u16, acknowledged: u32) -> Vec<u8> {
    let payload = usize::from(input.byte());
    let options = usize::from(input.byte() % 11) * 4;
    let len = TCP_FRAME + options + payload;
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&[0x52, 0x46, 0x0a, 0, 2, 2]);
    frame[6..12].copy_from_slice(&MAC.0);
    frame[12] = 8;
    frame[14..34]
        .copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    frame[16..18].copy_from_slice(&(len as u16 - 14).to_be_bytes());
    finish(&mut frame[14..34]);
    frame[34..36].copy_from_slice(&(1000 + u16::from(input.byte() % 3)).to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    let near = input.pick(&[0, 1, 1, 2, 300, u32::MAX, 1 << 31]);
    frame[38..42].copy_from_slice(&near.to_be_bytes());
    let answer = input.pick(&[acknowledged, acknowledged, acknowledged.wrapping_add(1), 0]);
    frame[42..46].copy_from_slice(&answer.to_be_bytes());
    frame[46] = (20 + options as u8) << 2;
    frame[47] = input.pick(&[2, 2, 16, 16, 17, 18, 4, 20, 24, 255]);
    frame[48..50].copy_from_slice(&input.short().to_be_bytes());
    for byte in &mut frame[TCP_FRAME..TCP_FRAME + options] {
        *byte = input.byte();
    }
    frame
}

/// Sets the checksum of an IPv4 header.
fn finish(header: &mut [u8]) {
    let mut sum = 0_u32;
    for pair in header.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    let sum = (sum & 0xffff) + (sum >> 16);
    let value = !(((sum & 0xffff) + (sum >> 16)) as u16);
    header[10..12].copy_from_slice(&value.to_be_bytes());
}
