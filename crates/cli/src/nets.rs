//! `--net` and `--capture`: from their text to networks.

use std::env;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use isolation::{Files, Network};
use lifecycle::network::{
    Capture, CaptureFile, Filter, Forward, Rules, SwitchConfig, SwitchNet, UserConfig, UserNet,
};
use lifecycle::{MacAddress, NetBackend, NetPort};
use rustix::fs::inotify;
use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};

use crate::{args, report};

/// The value of one `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetArg {
    text: String,
    kind: Kind,
    forwards: Vec<Forward>,
    mac: Option<MacAddress>,
    mtu: Option<u16>,
    filter: Option<PathBuf>,
    vlan: Option<u16>,
    isolated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    None,
    User,
    Tap(Option<String>),
    Switch(String),
}

impl NetArg {
    /// Reads the kind of network and its options.
    ///
    /// # Errors
    /// An unknown kind or option, or one that another kind has.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let kind = match parts.next().map(|kind| kind.split_once('=').unwrap_or((kind, ""))) {
            Some(("none", "")) => Kind::None,
            Some(("user", "")) => Kind::User,
            Some(("tap", name)) => Kind::Tap((!name.is_empty()).then(|| name.to_owned())),
            Some(("switch", name)) => Kind::Switch(args::vm_name(name)?),
            _ => return Err("there are user, tap[=NAME], switch=NAME and none".to_owned()),
        };
        let mut net = Self {
            text: text.to_owned(),
            kind,
            forwards: Vec::new(),
            mac: None,
            mtu: None,
            filter: None,
            vlan: None,
            isolated: false,
        };
        for option in parts {
            net.option(option)?;
        }
        Ok(net)
    }

    fn option(&mut self, option: &str) -> Result<(), String> {
        let is_user = self.kind == Kind::User;
        match option.split_once('=') {
            Some(("forward", forward)) if is_user => self.forwards.push(forward.parse()?),
            Some(("mac", mac)) if self.kind != Kind::None => {
                let mac: MacAddress = mac.parse()?;
                if mac.is_multicast() {
                    return Err(format!("{mac} is the address of a group, not of a card"));
                }
                self.mac = Some(mac);
            }
            Some(("filter", file)) if self.kind != Kind::None && !file.is_empty() => {
                self.filter = Some(file.into());
            }
            None if option == "isolated" && is_user => self.isolated = true,
            Some(("vlan", vlan)) if matches!(self.kind, Kind::Switch(_)) => {
                let vlan = vlan.parse().ok().filter(|vlan| (1..4095).contains(vlan));
                self.vlan = Some(vlan.ok_or("a VLAN is from 1 to 4094")?);
            }
            Some(("mtu", mtu)) if is_user => {
                let range = UserConfig::MIN_MTU..=UserConfig::MAX_MTU;
                let wrong = || format!("an MTU is from {} to {}", range.start(), range.end());
                let mtu = mtu.parse().ok().filter(|mtu| range.contains(mtu)).ok_or_else(wrong)?;
                self.mtu = Some(mtu);
            }
            _ => {
                return Err(format!(
                    "{option:?} is no option of this network; see ringfence run --help"
                ));
            }
        }
        Ok(())
    }

    /// The same network without ports of the host that lead to the guest: a copy of a VM cannot have
    /// those that the original has.
    pub fn without_forwards(&self) -> Self {
        Self { forwards: Vec::new(), ..self.clone() }
    }

    /// The option, when this version cannot do what it says.
    pub fn unsupported(&self) -> Option<String> {
        let unsupported = matches!(self.kind, Kind::Tap(_));
        unsupported.then(|| format!("--net {}", self.text))
    }

    /// The network of a card with the address `mac` of the VM called `vm`.
    fn open(
        &self,
        mac: MacAddress,
        vm: Option<&str>,
    ) -> anyhow::Result<Option<Arc<dyn NetBackend>>> {
        Ok(match &self.kind {
            Kind::User => {
                let mut config = UserConfig::default();
                config.forwards.clone_from(&self.forwards);
                config.mtu = self.mtu.unwrap_or(config.mtu);
                config.isolated = self.isolated;
                Some(Arc::new(UserNet::start(config, None)?))
            }
            Kind::Switch(name) => Some(Arc::new(SwitchNet::start(SwitchConfig {
                folder: runtime_folder().join("switches"),
                leases: state_folder()?.join("switches"),
                name: name.clone(),
                mac,
                vlan: self.vlan,
                vm: vm.map(str::to_owned),
                resolv_conf: "/etc/resolv.conf".into(),
            })?)),
            Kind::None | Kind::Tap(_) => None,
        })
    }
}

/// Opens the networks, in order; without any `--net`, a user-mode one. Cards without an address get
/// one that depends on the VM's `name`, if it has one. `capture` is a file for all frames.
///
/// # Errors
/// One line that names the network or the file.
pub fn open(
    nets: &[NetArg],
    name: Option<&str>,
    capture: Option<&Arc<CaptureFile>>,
) -> anyhow::Result<Vec<NetPort>> {
    raise_file_limit();
    let default = default_nets();
    let nets = if nets.is_empty() { &default } else { nets };
    let mut ports = Vec::new();
    for (index, net) in nets.iter().enumerate() {
        let mac = net.mac.unwrap_or_else(|| address(name, index));
        let Some(network) = net.open(mac, name)? else { continue };
        let mut backend = filtered(network, net, mac)?;
        if let Some(file) = capture {
            backend = Arc::new(Capture::new(backend, Arc::clone(file)));
        }
        ports.push(NetPort { mac, backend });
    }
    Ok(ports)
}

/// What a VM without any `--net` has.
fn default_nets() -> [NetArg; 1] {
    [NetArg::parse("user").expect("the default")]
}

/// What networks open by name while the VM runs, and whether they make sockets.
pub fn needs(nets: &[NetArg]) -> (Files, Network) {
    let default = default_nets();
    let nets = if nets.is_empty() { &default } else { nets };
    let mut files = Files::default();
    let mut network = Network::Closed;
    for net in nets {
        let reaches_out = match &net.kind {
            Kind::User => !net.isolated || !net.forwards.is_empty(),
            Kind::Switch(_) => {
                files.folders.push(runtime_folder().join("switches"));
                files.folders.extend(state_folder().map(|folder| folder.join("switches")));
                true
            }
            Kind::None | Kind::Tap(_) => false,
        };
        if reaches_out {
            network = Network::Open;
            files.read.push("/etc/resolv.conf".into());
        }
        // The file may be replaced, so it is not enough to have the one that is there now.
        files.read.extend(net.filter.as_deref().map(|rules| folder_of(rules).to_owned()));
    }
    (files, network)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens the file for all frames of the network cards.
///
/// # Errors
/// One line that names the file.
pub fn open_capture(path: &Path) -> anyhow::Result<Arc<CaptureFile>> {
    let file = File::create(path).and_then(CaptureFile::new);
    let file = file.with_context(|| format!("cannot write the capture {}", path.display()))?;
    Ok(Arc::new(file))
}

/// A packet filter before `network`, with the rules that `net` names, or none.
fn filtered(
    network: Arc<dyn NetBackend>,
    net: &NetArg,
    mac: MacAddress,
) -> anyhow::Result<Arc<dyn NetBackend>> {
    let rules = net.filter.as_deref().map(read_rules).transpose()?;
    let lease = (net.kind == Kind::User).then_some(UserConfig::FIRST_GUEST);
    let filter = Arc::new(Filter::new(network, &rules.unwrap_or_default(), mac, lease));
    if let Some(path) = &net.filter {
        watch_rules(path, &filter)
            .with_context(|| format!("cannot watch the rules {}", path.display()))?;
    }
    Ok(filter)
}

fn read_rules(path: &Path) -> anyhow::Result<Rules> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the rules {}", path.display()))?;
    Rules::parse(&text).map_err(|error| anyhow!("in the rules {}, {error}", path.display()))
}

/// Has the filter take the rules whenever the file is written or replaced. Rules with a mistake are
/// told of, and not taken.
fn watch_rules(path: &Path, filter: &Arc<Filter>) -> anyhow::Result<()> {
    let path = path.to_owned();
    let folder = folder_of(&path);
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let changes = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, folder, changes)?;
    let filter = Arc::downgrade(filter);
    let reload = move || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(watch, &mut buffer);
        while let Ok(event) = events.next() {
            let ours = event.file_name().map(|name| name.to_bytes())
                == path.file_name().map(|name| name.as_encoded_bytes());
            let Some(filter) = filter.upgrade() else { return };
            if ours {
                match read_rules(&path) {
                    Ok(rules) => filter.replace(&rules),
                    Err(error) => report::note(&format!("{error:#}; the old rules stay")),
                }
            }
        }
    };
    thread::Builder::new().name("filter rules".to_owned()).spawn(reload)?;
    Ok(())
}

/// Where sockets and locks are, which go with the user's session.
fn runtime_folder() -> PathBuf {
    match env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("ringfence"),
        None => env::temp_dir().join(format!("ringfence-{}", getuid().as_raw())),
    }
}

/// Where is what stays.
fn state_folder() -> anyhow::Result<PathBuf> {
    let of = |name: &str| env::var_os(name).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = of("XDG_STATE_HOME").or_else(|| Some(of("HOME")?.join(".local/state")));
    Ok(folder
        .context("neither XDG_STATE_HOME nor HOME is set: there is no place for leases")?
        .join("ringfence"))
}

/// Every connection of a guest is an open file, and the usual limit is 1,024.
fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Without it there are fewer connections.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// The address of card `index` of the VM called `name`: the same for each run; of a VM without a
/// name, another one each time.
fn address(name: Option<&str>, index: usize) -> MacAddress {
    let hash = match name {
        // FNV-1a: it has to stay the same for ever.
        Some(name) => name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }),
        None => RandomState::new().hash_one(index),
    };
    let [a, b, c, d, ..] = hash.wrapping_add(index as u64).to_le_bytes();
    // Locally administered (IEEE 802).
    MacAddress([0x52, 0x46, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_kind() {
        let net = NetArg::parse("user,forward=tcp:2222:22,forward=udp:5353:53,mtu=1500").unwrap();
        assert_eq!((net.forwards.len(), net.mtu), (2, Some(1500)));
        let net = NetArg::parse("user,mac=52:46:00:00:00:01").unwrap();
        assert_eq!(net.mac, Some(MacAddress([0x52, 0x46, 0, 0, 0, 1])));
        for bad in [
            "",
            "bridge",
            "switch",
            "switch=a/b",
            "switch=a,vlan=0",
            "user,vlan=5",
            "none,mac=52:46:00:00:00:01",
            "user,mac=ff:ff:ff:ff:ff:ff",
            "user,mtu=1279",
            "user,mtu=65521",
            "user,forward=80:80",
            "user=x",
            "tap,forward=tcp:1:2",
            "user,color=red",
        ] {
            assert!(NetArg::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_named_vm_keeps_its_addresses() {
        assert_eq!(address(Some("web"), 0), address(Some("web"), 0));
        assert_ne!(address(Some("web"), 0), address(Some("web"), 1));
        assert_ne!(address(Some("web"), 0), address(Some("wob"), 0));
        assert!(!address(None, 0).is_multicast());
    }

    #[test]
    fn rules_with_a_mistake_are_named_with_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules.toml");
        let arg = NetArg::parse(&format!("user,filter={}", path.display())).unwrap();
        let refused = || match open(std::slice::from_ref(&arg), None, None) {
            Ok(_) => panic!("it was opened"),
            Err(error) => format!("{error:#}"),
        };
        assert!(refused().contains("rules.toml"));
        fs::write(&path, "\n[[rule]]\naction = \"explode\"").unwrap();
        assert!(refused().contains("rules.toml, line 3, column 10"), "{}", refused());
    }

    #[test]
    fn none_is_no_card() {
        let open = |text: &str| open(&[NetArg::parse(text).unwrap()], None, None).unwrap();
        assert!(open("none").is_empty());
        assert_eq!(open("user,mac=52:46:00:00:00:01")[0].mac.to_string(), "52:46:00:00:00:01");
    }
}
