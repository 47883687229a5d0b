//! From the options of `run` to what a VM is made of.

use std::sync::Arc;

use lifecycle::{
    ConsoleOutput, CpuLevel, EngineChoice, MachineSpec, Policy, Selected, TripleFaultPolicy,
    VmConfig,
};

use crate::args::{EngineArg, RunArgs, TripleFaultArg};
use crate::{boot_files, disks, nets, report};

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

/// Opens everything that the VM needs; its console goes to `console`, and `when_full` is called when
/// the host has no space for a disk.
///
/// # Errors
/// One line that names the option or the file.
pub fn config(
    args: &RunArgs,
    console: Arc<dyn ConsoleOutput>,
    purpose: Use,
    when_full: &disks::WhenFull,
) -> anyhow::Result<VmConfig> {
    let spec = spec_of(args);
    // Before files are opened or images built: this needs nothing.
    spec.check()?;
    let engine = select(args)?.engine;
    let disks = disks::open(&args.disks, args.ephemeral, when_full)?;
    let nets = nets::open(&args.nets, args.name.as_deref(), args.capture.as_deref())?;
    let boot = match (boot_files::open(args, &disks), purpose) {
        (Ok(boot), _) => Some(boot),
        (Err(error), Use::Boot) => return Err(error),
        (Err(error), Use::Restore) => {
            report::note(&format!("the guest cannot be reset: {error:#}"));
            None
        }
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
