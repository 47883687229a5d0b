//! From the options of `run` to what a VM is made of.

use std::sync::Arc;

use lifecycle::network::CaptureFile;
use lifecycle::{
    ConsoleOutput, CpuLevel, Disk, EngineChoice, MachineSpec, Policy, Selected, TripleFaultPolicy,
    VmConfig,
};

use crate::args::{EngineArg, RunArgs, TripleFaultArg};
use crate::boot_files::{self, Boot};
use crate::{cloud, disks, nets, report};

/// What the VM is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its kernel is booted.
    Boot,
    /// It is restored: it needs its kernel only to be reset, and does without where the kernel has
    /// gone.
    Restore,
}

/// Finds out whether this host can make such a VM, as far as can be without opening files.
///
/// # Errors
/// One line that names the option.
pub fn check(args: &RunArgs) -> anyhow::Result<()> {
    args.check_supported()?;
    spec_of(args).check()?;
    select(args)?;
    Ok(())
}

/// What is opened before the process gives up to open files, and is needed by name no more.
pub struct OpenFiles {
    purpose: Use,
    /// None where it is on a disk.
    boot: Option<Boot>,
    /// What cloud-init is told.
    cloud: Option<Arc<dyn Disk>>,
    capture: Option<Arc<CaptureFile>>,
}

/// Opens what the VM boots, unless that is on a disk, and the file for its frames.
///
/// # Errors
/// One line that names the option or the file.
pub fn open_files(args: &RunArgs, purpose: Use) -> anyhow::Result<OpenFiles> {
    // Before files are opened or images built: this needs nothing.
    spec_of(args).check()?;
    let boot = if args.boots_first_disk { None } else { open_boot(args, &[], purpose)? };
    let cloud = cloud::disk(args)?;
    let capture = args.capture.as_deref().map(nets::open_capture).transpose()?;
    Ok(OpenFiles { purpose, boot, cloud, capture })
}

fn open_boot(
    args: &RunArgs,
    disks: &[Arc<dyn Disk>],
    purpose: Use,
) -> anyhow::Result<Option<Boot>> {
    match (boot_files::open(args, disks), purpose) {
        (Ok(boot), _) => Ok(Some(boot)),
        (Err(error), Use::Boot) => Err(error),
        (Err(error), Use::Restore) => {
            report::note(&format!("the guest cannot be reset: {error:#}"));
            Ok(None)
        }
    }
}

/// Opens the disks and networks, and picks the engine; the VM's console goes to `console`, and
/// `when_full` is called when the host has no space for a disk.
///
/// # Errors
/// One line that names the option or the file.
pub fn config(
    args: &RunArgs,
    files: OpenFiles,
    console: Arc<dyn ConsoleOutput>,
    when_full: &disks::WhenFull,
) -> anyhow::Result<VmConfig> {
    let spec = spec_of(args);
    let engine = select(args)?.engine;
    let mut disks = disks::open(&args.disks, args.ephemeral, when_full)?;
    disks.extend(files.cloud);
    let nets = nets::open(&args.nets, args.name.as_deref(), files.capture.as_ref())?;
    let boot = match args.boots_first_disk {
        true => open_boot(args, &disks, files.purpose)?,
        false => files.boot,
    };
    let (boot, cmdline) = boot.map(|boot| (boot.files, boot.cmdline)).unzip();
    Ok(VmConfig {
        spec: MachineSpec { cmdline: cmdline.unwrap_or_default(), ..spec },
        engine,
        boot,
        console,
        disks,
        nets,
        policy: policy_of(args),
    })
}

fn select(args: &RunArgs) -> anyhow::Result<Selected> {
    let selected = engine_of(args.engine).select()?;
    if args.engine == EngineArg::Auto && selected.engine.name() == "interpreter" {
        report::note(&format!("running on the slow interpreter: {}", selected.reason));
    }
    Ok(selected)
}

fn spec_of(args: &RunArgs) -> MachineSpec {
    MachineSpec {
        cpus: args.cpus,
        cpu: CpuLevel::Portable,
        debug_exit: args.debug_exit,
        ..MachineSpec::new(args.memory)
    }
}

fn engine_of(arg: EngineArg) -> EngineChoice {
    match arg {
        EngineArg::Auto => EngineChoice::Auto,
        EngineArg::Kvm => EngineChoice::Kvm,
        EngineArg::Translator => EngineChoice::Translator,
        EngineArg::Interpreter => EngineChoice::Interpreter,
    }
}

fn policy_of(args: &RunArgs) -> Policy {
    let triple_fault = match args.triple_fault {
        TripleFaultArg::Stop => TripleFaultPolicy::Stop,
        TripleFaultArg::Reset => TripleFaultPolicy::Reset,
    };
    Policy { no_reboot: args.no_reboot, triple_fault, ..Policy::default() }
}
