use std::time::{Duration, Instant};

use super::*;
use crate::frames;

const LONG: Duration = Duration::from_secs(20);

fn mac(last: u8) -> MacAddress {
    MacAddress([0x52, 0x46, 0, 0, 0, last])
}

fn join(folder: &Path, last: u8, vlan: Option<u16>) -> SwitchNet {
    let config = SwitchConfig {
        folder: folder.join("run"),
        leases: folder.join("state"),
        name: "lan".to_owned(),
        mac: mac(last),
        vlan,
        vm: Some(format!("vm{last}")),
        resolv_conf: folder.join("resolv.conf"),
    };
    SwitchNet::start(config).unwrap()
}

fn next(net: &SwitchNet) -> Frame {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(frame) = net.receive() {
            return frame;
        }
        assert!(Instant::now() < deadline, "no frame came");
        thread::sleep(Duration::from_millis(1));
    }
}

fn send(net: &SwitchNet, from: u8, to: MacAddress, content: &[u8]) {
    let mut bytes = frames::other(mac(from), to, 0x88b5, content).to_vec();
    net.send(&mut bytes, Offload::default());
}

/// Waits until frames from `a` arrive at `b`.
fn connected(a: &SwitchNet, from: u8, b: &SwitchNet, to: u8) {
    let deadline = Instant::now() + LONG;
    loop {
        send(a, from, mac(to), b"hello");
        thread::sleep(Duration::from_millis(5));
        if b.receive().is_some() {
            break;
        }
        assert!(Instant::now() < deadline, "they do not find each other");
    }
    while b.receive().is_some() {}
}

#[test]
fn frames_go_where_they_belong() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, c) =
        (join(folder.path(), 1, None), join(folder.path(), 2, None), join(folder.path(), 3, None));
    assert!(a.is_host() && !b.is_host() && !c.is_host());
    connected(&a, 1, &b, 2);
    connected(&b, 2, &c, 3);
    connected(&c, 3, &a, 1);
    send(&b, 2, mac(3), &[7; 60_000]);
    let frame = next(&c);
    assert_eq!((frame.len(), frame.to_vec()[14..].iter().all(|byte| *byte == 7)), (60_014, true));
    send(&c, 3, MacAddress::BROADCAST, b"all");
    assert!(next(&a).to_vec().ends_with(b"all") && next(&b).to_vec().ends_with(b"all"));
    assert!(c.receive().is_none() && a.receive().is_none());
    // Under another's address.
    send(&b, 1, mac(3), b"lie");
    send(&b, 2, mac(3), b"truth");
    assert!(next(&c).to_vec().ends_with(b"truth"));
    assert!(a.counters().iter().any(|c| c.name == "switch_dropped_spoofed" && c.count == 1));
}

#[test]
fn vlans_are_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (join(folder.path(), 1, Some(5)), join(folder.path(), 2, Some(5)));
    let c = join(folder.path(), 3, None);
    connected(&a, 1, &b, 2);
    send(&b, 2, MacAddress::BROADCAST, b"five");
    assert!(next(&a).to_vec().ends_with(b"five"));
    thread::sleep(Duration::from_millis(20));
    assert!(c.receive().is_none());
}

#[test]
fn another_takes_over_when_the_host_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, c) =
        (join(folder.path(), 1, None), join(folder.path(), 2, None), join(folder.path(), 3, None));
    connected(&a, 1, &b, 2);
    connected(&a, 1, &c, 3);
    drop(a);
    connected(&b, 2, &c, 3);
    connected(&c, 3, &b, 2);
    assert!(b.is_host() != c.is_host());
}

#[test]
fn leases_stay_and_ports_have_names() {
    let folder = tempfile::tempdir().unwrap();
    let a = join(folder.path(), 1, None);
    let b = join(folder.path(), 2, None);
    connected(&a, 1, &b, 2);
    let file = leases_file(&folder.path().join("state"), "lan");
    let deadline = Instant::now() + LONG;
    let text = loop {
        let text = fs::read_to_string(&file).unwrap_or_default();
        if text.lines().count() == 2 {
            break text;
        }
        assert!(Instant::now() < deadline, "no leases: {text:?}");
        thread::sleep(Duration::from_millis(5));
    };
    assert!(text.contains("10.0.2.15 52:46:00:00:00:01 vm1"), "{text}");
    drop((a, b));
    // In another order, with the same addresses.
    let b = join(folder.path(), 2, None);
    let a = join(folder.path(), 1, None);
    connected(&a, 1, &b, 2);
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn a_folder_of_others_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    let config = SwitchConfig {
        folder: run,
        leases: folder.path().join("state"),
        name: "lan".to_owned(),
        mac: mac(1),
        vlan: None,
        vm: None,
        resolv_conf: folder.path().join("resolv.conf"),
    };
    let error = SwitchNet::start(config).err().expect("refused").to_string();
    assert!(error.contains("switch lan") && error.contains("run"), "{error}");
}
