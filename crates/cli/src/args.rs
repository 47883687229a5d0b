//! The command line: options, their help and their values.
//!
//! Names and meanings are fixed: they are never changed, only added to. Options whose part of
//! Ringfence does not exist yet are accepted here and refused in [`RunArgs::check_supported`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use lifecycle::Traced;

use crate::disks::DiskArg;
use crate::managed::args::ManagedCommand;
use crate::managed::complete;
use crate::nets::NetArg;
use crate::{size, trace};

const LONG_ABOUT: &str = "\
Ringfence runs virtual machines: stock Linux kernels and their user space, each VM in one \
unprivileged process. It needs neither root nor hardware assistance.

With no image and no kernel, `ringfence run` boots `tiny`, a stock Debian kernel with a busybox \
shell, which is built from the host's package sources on first use.";

const EXAMPLES: &str = "\
Examples:
  ringfence run                              boot `tiny` to its shell
  ringfence run --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0'
  ringfence run --name web --detach          the same in the background, kept
  ringfence console web                      its console
  ringfence image ls                         what images there are
  ringfence doctor                           what this host offers";

/// `ringfence`.
#[derive(Debug, Parser)]
#[command(
    name = "ringfence",
    version,
    about = "Run virtual machines",
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = false
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a VM in this terminal until it ends
    Run(Box<RunArgs>),
    /// List, build and remove images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Say what this host offers and which engine `auto` takes
    Doctor(DoctorArgs),
    /// Managed VMs.
    #[command(flatten)]
    Managed(ManagedCommand),
    /// Print a completion script for a shell
    #[command(long_about = "Print a completion script for a shell.\n\n\
        For bash: ringfence completions bash > ~/.local/share/bash-completion/completions/ringfence")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

const RUN_ABOUT: &str = "\
Run a VM in this terminal until it ends.

The guest's console (its first serial port) is standard input and output. In a terminal, Ctrl-A X \
ends the VM, Ctrl-A Ctrl-A sends Ctrl-A to the guest, and Ctrl-A H shows help. When standard input \
is closed or not a terminal, the VM still runs to its end. Nothing but the guest's output goes to \
standard output; messages go to standard error.";

const RUN_AFTER: &str = "\
SIZE takes K, M, G or T (binary); a bare number is MiB.

Exit status:
  0    the guest powered off, or reset itself with --no-reboot
  1    Ringfence failed; the message says why
  2    wrong usage
  3    the guest triple-faulted; the message has rip, cr3 and vCPU
  130  interrupted (SIGINT) while not in a terminal of its own
  143  ended by SIGTERM: the first presses the power button and waits 10 s, a second ends at once
  With --debug-exit, a guest that writes v to port 0xf4 ends with (v << 1) | 1.

Examples:
  ringfence run
  ringfence run --memory 2G --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0 quiet'
  echo poweroff | ringfence run tiny
  ringfence run --stats stats.json --no-reboot";

const NET_HELP: &str = "\
Network card and what it is connected to [default: user]; repeatable.

  user          the Internet and the host, without any set-up: the guest gets its address by DHCP \
(10.0.2.15), the gateway 10.0.2.2 is the host's loopback
  switch=NAME   a switch with this user's other VMs on it, which is made when there is none: they \
reach each other by name, and the Internet as with `user`
  none          no network card

Options follow, separated by commas:
  forward=tcp:[ADDRESS:]HOSTPORT:GUESTPORT, or udp: a port of the host (of its loopback, unless an \
ADDRESS is given) leads to the guest; of `user`
  vlan=N        a VLAN of its own, without the Internet; of `switch`
  isolated      neither the Internet nor the host can be reached; port forwards work; of `user`
  mac=ADDRESS   Ethernet address of the card
  filter=FILE   rules of a packet filter, in TOML, taken anew whenever the file changes
  mtu=BYTES     largest packet, 1280 to 65520; of `user`";

/// Options of `run`.
#[derive(Clone, Debug, Args)]
#[command(long_about = RUN_ABOUT, after_help = RUN_AFTER)]
pub struct RunArgs {
    /// Image to run: a name or a path [default without --kernel: tiny]
    #[arg(conflicts_with = "kernel", add = ArgValueCompleter::new(complete::images))]
    pub image: Option<String>,

    /// Kernel to boot: a bzImage, an ELF file with a PVH note, or a multiboot kernel
    #[arg(long, value_name = "F")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk for the kernel; the first module of a multiboot kernel
    #[arg(long, value_name = "F")]
    pub initrd: Option<PathBuf>,

    /// Further module for a multiboot kernel, with its arguments; F has no blanks
    #[arg(long = "module", value_name = "F[ ARGS]")]
    pub modules: Vec<String>,

    /// Command line for the kernel
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// Disk: a raw or qcow2 image, or a block device
    ///
    /// `overlay` keeps what the guest writes out of F: in FILE, or until the VM ends. `direct` goes
    /// past the host's page cache; `iops` and `bps` limit requests and bytes per second.
    #[arg(
        long = "disk",
        value_name = "F[,readonly][,overlay[=FILE]][,format=raw|qcow2][,direct][,serial=S][,iops=N][,bps=SIZE][,burst=SECONDS]",
        value_parser = DiskArg::parse
    )]
    pub disks: Vec<DiskArg>,

    /// Network card and what it is connected to [default: user]
    #[arg(
        long = "net",
        value_name = "user[,forward=tcp:HOSTPORT:GUESTPORT]|tap[=NAME]|switch=NAME|none",
        value_parser = NetArg::parse,
        long_help = NET_HELP
    )]
    pub nets: Vec<NetArg>,

    /// File for all frames of the network cards, in the form of tcpdump (pcap)
    #[arg(long, value_name = "F")]
    pub capture: Option<PathBuf>,

    /// File with user data for cloud-init, on a disk that is made on the fly (NoCloud)
    #[arg(long, value_name = "F")]
    pub user_data: Option<PathBuf>,

    /// The same with meta data, instead of what Ringfence writes
    #[arg(long, value_name = "F", conflicts_with_all = ["ssh_keys", "hostname"])]
    pub meta_data: Option<PathBuf>,

    /// The same with the configuration of the network
    #[arg(long, value_name = "F")]
    pub network_config: Option<PathBuf>,

    /// File with a public key for ssh, told to the guest as meta data; repeatable
    #[arg(long = "ssh-key", value_name = "F")]
    pub ssh_keys: Vec<PathBuf>,

    /// Host name, told to the guest as meta data
    #[arg(long, value_name = "H")]
    pub hostname: Option<String>,

    /// Memory of the guest
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "512M",
        value_parser = size::parse,
        allow_hyphen_values = true
    )]
    pub memory: u64,

    /// Virtual CPUs, 1 to 64: each is a thread of the host
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cpus: u32,

    /// What executes the guest
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    pub engine: EngineArg,

    /// Kind of machine
    #[arg(long, value_enum, default_value_t = PlatformArg::Pc)]
    pub platform: PlatformArg,

    /// Name of the VM, for messages
    #[arg(long, value_parser = vm_name)]
    pub name: Option<String>,

    /// Keep the VM under its name and run it in the background
    #[arg(long, requires = "name")]
    pub detach: bool,

    /// Keep nothing of what the guest writes to its disks
    #[arg(long)]
    pub ephemeral: bool,

    /// End the VM with status 0 when the guest resets itself
    #[arg(long)]
    pub no_reboot: bool,

    /// What a triple fault does
    #[arg(long, value_enum, default_value_t = TripleFaultArg::Stop)]
    pub triple_fault: TripleFaultArg,

    /// Add the debug-exit device: a write of v to port 0xf4 ends the VM with status (v << 1) | 1
    #[arg(long)]
    pub debug_exit: bool,

    /// Wait for gdb at HOST:PORT, :PORT or a Unix socket's path; the guest starts when gdb says so
    #[arg(long, value_name = "ADDR")]
    pub gdb: Option<debug::Address>,

    /// Leave the VM's process all the rights of its user: for debugging it
    #[arg(long)]
    pub no_isolation: bool,

    /// File for statistics, written as JSON when the VM has ended
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// File for a profile of the guest, as folded stacks, written when the VM has ended
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,

    /// Names for the profile: the guest kernel's System.map or vmlinux
    #[arg(long, value_name = "FILE", requires = "profile")]
    pub profile_symbols: Option<PathBuf>,

    /// Write a line for each event: exits, interrupts, io, msr
    #[arg(long, value_name = "EVENTS", value_parser = trace::parse)]
    pub trace: Option<Traced>,

    /// File for the trace [default: standard error]
    #[arg(long, value_name = "FILE", requires = "trace")]
    pub trace_file: Option<PathBuf>,

    /// What is booted is on the first disk: that of an image.
    #[arg(skip)]
    pub boots_first_disk: bool,
}

/// `--engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    /// The fastest that works here
    Auto,
    /// Hardware assistance through /dev/kvm (experimental)
    Kvm,
    /// Translation to host code
    Translator,
    /// Interpretation: slow, needs nothing of the host
    Interpreter,
}

impl EngineArg {
    /// As it is typed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Translator => "translator",
            Self::Interpreter => "interpreter",
        }
    }
}

/// `--platform`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlatformArg {
    /// A PC
    Pc,
    /// A Xen PVH guest (not supported yet)
    XenPvh,
    /// A Xen paravirtual guest (not supported yet)
    XenPv,
}

/// `--triple-fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TripleFaultArg {
    /// The VM ends with status 3
    Stop,
    /// The guest reboots
    Reset,
}

/// `image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images
    Ls {
        /// Print JSON: an array of objects
        #[arg(long)]
        json: bool,
    },
    /// Build an image anew
    #[command(long_about = "Build an image anew from the packages that the host's package \
        sources offer; no root needed.\n\nThe images go to $RINGFENCE_IMAGES, or below the user's \
        cache folder. `debian` needs mmdebstrap; all options are for it.")]
    Build(BuildArgs),
    /// Make an image of a disk image of another program
    #[command(
        long_about = "Make an image of a disk image: raw, qcow2, VMDK (in one file), VHD, or \
        an OVA archive with one disk.\n\nThe content is copied; `ringfence run NAME` boots it by \
        its own boot configuration."
    )]
    Import {
        /// The disk image
        file: PathBuf,
        /// Name of the image [default: that of the file]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Remove images
    Rm {
        /// Their names
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

/// Options of `image build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Which one: `tiny` (a kernel with a shell) or `debian` (a whole system on a disk)
    pub image: String,

    /// Release of Debian, such as `bookworm` [default: the host's]
    #[arg(long, value_name = "S")]
    pub suite: Option<String>,

    /// Size of the disk; only what is in use takes space [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub size: Option<u64>,

    /// Package to be installed besides
    #[arg(long = "package", value_name = "P")]
    pub packages: Vec<String>,

    /// File with a public key that root can log in with by ssh
    #[arg(long = "ssh-key", value_name = "F")]
    pub ssh_keys: Vec<PathBuf>,

    /// Host name of the guest [default: debian]
    #[arg(long, value_name = "H")]
    pub hostname: Option<String>,

    /// Format of the disk image [default: raw]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// The bytes of the disk
    Raw,
    /// QEMU copy on write
    Qcow2,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON: an array of {check, ok, detail}
    #[arg(long)]
    pub json: bool,
}

impl RunArgs {
    /// Refuses what later versions will do.
    ///
    /// # Errors
    /// One line that names the option.
    pub fn check_supported(&self) -> anyhow::Result<()> {
        let unsupported = [
            self.nets.iter().find_map(NetArg::unsupported),
            match self.platform {
                PlatformArg::Pc => None,
                PlatformArg::XenPvh => Some("--platform xen-pvh".to_owned()),
                PlatformArg::XenPv => Some("--platform xen-pv".to_owned()),
            },
        ];
        match unsupported.into_iter().flatten().next() {
            Some(option) => anyhow::bail!(
                "{option} is not supported by this version of ringfence; leave it out"
            ),
            None => Ok(()),
        }
    }
}

/// A name of a VM, or of something else that becomes the name of a file.
///
/// # Errors
/// What such names have.
pub fn vm_name(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts_well && text.len() <= 63 && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("a name has 1 to 63 letters, digits, '.', '_' or '-', and begins with a letter or digit"
        .to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run_args(args: &[&str]) -> RunArgs {
        let all = ["ringfence", "run"].iter().chain(args);
        match Cli::try_parse_from(all).expect("valid").command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let args = run_args(&[]);
        assert_eq!((args.memory, args.cpus), (512 << 20, 1));
        assert_eq!(args.engine, EngineArg::Auto);
        assert_eq!(args.triple_fault, TripleFaultArg::Stop);
        assert!(args.check_supported().is_ok());
    }

    #[test]
    fn every_option_of_the_design_is_accepted() {
        let args = run_args(&[
            "--kernel",
            "k",
            "--initrd",
            "i",
            "--module",
            "m a b",
            "--module",
            "n",
            "--cmdline",
            "-x console=ttyS0",
            "--disk",
            "d,readonly",
            "--net",
            "user,forward=tcp:1:2",
            "--memory",
            "1G",
            "--cpus",
            "4",
            "--engine",
            "kvm",
            "--platform",
            "xen-pvh",
            "--name",
            "vm-1",
            "--ephemeral",
            "--no-reboot",
            "--triple-fault",
            "reset",
            "--debug-exit",
            "--gdb",
            "localhost:1",
            "--stats",
            "s",
        ]);
        assert_eq!(args.modules.len(), 2);
        assert_eq!(args.cmdline.as_deref(), Some("-x console=ttyS0"));
        assert!(args.check_supported().is_err());
        assert_eq!(run_args(&["tiny"]).image.as_deref(), Some("tiny"));
    }

    #[test]
    fn what_is_to_come_is_refused_by_name() {
        for (args, named) in [
            (&["--net", "none", "--net", "tap"][..], "--net tap"),
            (&["--platform", "xen-pv"], "--platform xen-pv"),
        ] {
            let error = run_args(args).check_supported().unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
        assert!(run_args(&["--net", "none"]).check_supported().is_ok());
        assert!(run_args(&["--disk", "d,overlay,format=qcow2"]).check_supported().is_ok());
    }

    #[test]
    fn names_of_vms() {
        assert!(vm_name("web-1.A_").is_ok());
        for name in ["", "-x", ".x", "a/b", "a b", "ä", &"a".repeat(64)] {
            assert!(vm_name(name).is_err(), "{name}");
        }
    }
}
