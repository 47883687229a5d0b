//! Starting, stopping, pausing and removing VMs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api::RunState;
use control::Client;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vms::{Operation, StateRecord, Store, VmDir, member};

use super::args::{Name, Names, RenameArgs, RmArgs, StartArgs, StopArgs};
use super::each;
use super::spawn::{self, Begin};
use crate::args::EngineArg;
use crate::{report, status};

/// How long a VM that was told to end at once has until its process is killed.
const PATIENCE: Duration = Duration::from_secs(3);
/// The status of a VM whose process was killed, as shells show SIGKILL.
const KILLED: u8 = 137;

/// `start`.
pub fn start(store: &Store, args: &StartArgs) -> anyhow::Result<()> {
    store.sweep()?;
    each(&args.vms.names, |name| {
        let begin = match has_suspended_state(&store.vm(name)?) && !args.fresh {
            true => Begin::Suspended(false),
            false => Begin::Boot,
        };
        start_one(store, name, &begin, args.engine)
    })
}

/// Starts one VM and waits until it runs.
///
/// # Errors
/// What keeps it from running.
pub fn start_one(
    store: &Store,
    name: &str,
    begin: &Begin,
    engine: Option<EngineArg>,
) -> anyhow::Result<()> {
    let vm = store.vm(name)?;
    let operation = vm.begin("start")?;
    expect_no_process(&vm)?;
    if *begin == Begin::Boot {
        forget_suspended_state(&vm)?;
    }
    spawn::start(&operation, begin, engine)?.wait()
}

/// `stop`.
pub fn stop(store: &Store, args: &StopArgs) -> anyhow::Result<()> {
    each(&args.vms.names, |name| {
        let vm = store.vm(name)?;
        let operation = vm.begin("stop")?;
        let state = vm.state()?.state;
        if state == RunState::Suspended {
            bail!("VM {name} is suspended: it has no process; `ringfence resume {name}` goes on");
        }
        if !state.is_alive() {
            return Ok(());
        }
        if state == RunState::Paused {
            // A guest that stands still cannot power off.
            Client::connect(&vm)?.post(api::RESUME)?;
        }
        Client::connect(&vm)?.post(api::POWER_BUTTON)?;
        let patience = Duration::from_secs(args.timeout);
        match wait_for_end(&vm, patience)? {
            true => Ok(()),
            false if args.force => end(&operation),
            false => bail!(
                "VM {name} did not power off within {} s; `ringfence kill {name}` ends it",
                args.timeout
            ),
        }
    })
}

/// `kill`.
pub fn kill(store: &Store, args: &Names) -> anyhow::Result<()> {
    each(&args.names, |name| {
        let vm = store.vm(name)?;
        // A command that waits for this VM must not keep it alive: no turn is taken.
        match vm.is_alive()? {
            true => kill_process(&vm),
            false => bail!("VM {name} is not running"),
        }
    })
}

/// `rm`.
pub fn rm(store: &Store, args: &RmArgs) -> anyhow::Result<()> {
    store.sweep()?;
    each(&args.vms.names, |name| {
        let vm = store.vm(name)?;
        let operation = vm.begin("rm")?;
        if args.force && vm.is_alive()? {
            end(&operation)?;
        }
        Ok(store.remove(&operation)?)
    })
}

/// `rename`.
pub fn rename(store: &Store, args: &RenameArgs) -> anyhow::Result<()> {
    let vm = store.vm(&args.vm.name)?;
    let operation = vm.begin("rename")?;
    Ok(store.rename(&operation, &args.new_name)?)
}

/// `wait`.
pub fn wait(store: &Store, args: &Name) -> anyhow::Result<u8> {
    let vm = store.vm(&args.name)?;
    vm.wait_for_end()?;
    let state = vm.state()?;
    if state.state == RunState::Crashed {
        report::error(&format!(
            "VM {name} crashed; `ringfence logs --messages {name}` shows what its process said",
            name = args.name
        ));
        return Ok(status::FAILURE);
    }
    Ok(state.status.unwrap_or(status::SUCCESS))
}

/// `pause`.
pub fn pause(store: &Store, args: &Names) -> anyhow::Result<()> {
    each(&args.names, |name| {
        let vm = store.vm(name)?;
        let _operation = vm.begin("pause")?;
        expect_process(&vm)?;
        Ok(Client::connect(&vm)?.post(api::PAUSE)?)
    })
}

/// `resume`.
pub fn resume(store: &Store, args: &Names) -> anyhow::Result<()> {
    store.sweep()?;
    each(&args.names, |name| {
        let vm = store.vm(name)?;
        let operation = vm.begin("resume")?;
        match vm.state()?.state {
            RunState::Running => Ok(()),
            RunState::Paused => Ok(Client::connect(&vm)?.post(api::RESUME)?),
            _ if has_suspended_state(&vm) => {
                spawn::start(&operation, &Begin::Suspended(false), None)?.wait()
            }
            state => bail!(
                "VM {name} is {}: there is nothing to go on with; `ringfence start {name}` boots",
                state.as_str()
            ),
        }
    })
}

/// `suspend`.
pub fn suspend(store: &Store, args: &Names) -> anyhow::Result<()> {
    each(&args.names, |name| {
        let vm = store.vm(name)?;
        let _operation = vm.begin("suspend")?;
        expect_process(&vm)?;
        let asked = Client::connect(&vm)?.post_and_wait(api::SUSPEND);
        if let Err(error) = asked {
            // The process may have ended before its answer was on its way.
            wait_for_end(&vm, Duration::from_millis(100))?;
            match vm.state()?.state {
                RunState::Suspended => return Ok(()),
                _ => return Err(error.into()),
            }
        }
        match wait_for_end(&vm, PATIENCE)? {
            true => Ok(()),
            false => bail!("VM {name} is suspended, but its process does not end; kill it"),
        }
    })
}

/// Ends the VM's process; nobody else changes the VM meanwhile.
pub fn end(operation: &Operation<'_>) -> anyhow::Result<()> {
    match operation.dir().is_alive()? {
        true => kill_process(operation.dir()),
        false => Ok(()),
    }
}

/// Ends the VM's process: the VM ends with its disks flushed, or else the process is killed.
fn kill_process(vm: &VmDir) -> anyhow::Result<()> {
    let asked = Client::connect(vm).and_then(|client| client.post(api::KILL));
    if asked.is_ok() && wait_for_end(vm, PATIENCE)? {
        return Ok(());
    }
    let state = vm.state()?;
    let pid = state.pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let pid = pid.context("the VM's process has not said yet which it is; try again")?;
    // Held, the process stays that of its number; the lock then says whether it still is the VM's.
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        && vm.is_alive()?
        && vm.state()?.pid == state.pid
    {
        pidfd_send_signal(&process, Signal::KILL).context("cannot kill the VM's process")?;
    }
    if !wait_for_end(vm, PATIENCE)? {
        bail!("the process of VM {} does not end: the host keeps it", vm.name());
    }
    // It could not say itself how it ended.
    let _run = vm.take_run_lock()?;
    Ok(vm.write_state(&state.ended(RunState::Stopped, KILLED, "its process was killed"))?)
}

/// Whether the VM's process ends within `patience`.
fn wait_for_end(vm: &VmDir, patience: Duration) -> anyhow::Result<bool> {
    let start = Instant::now();
    while vm.is_alive()? {
        if start.elapsed() >= patience {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(true)
}

/// Whether there is state of a suspended VM.
pub fn has_suspended_state(vm: &VmDir) -> bool {
    vm.path(member::SUSPENDED).join("manifest.json").exists()
}

/// Throws the state of a suspended VM away.
pub fn forget_suspended_state(vm: &VmDir) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(vm.path(member::SUSPENDED)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context("cannot remove the suspended state")
        }
        Err(_) => Ok(()),
        Ok(()) => Ok(vm.write_state(&StateRecord::new(RunState::Stopped))?),
    }
}

/// Refuses a VM that has a process.
pub fn expect_no_process(vm: &VmDir) -> anyhow::Result<()> {
    let state = vm.state()?.state;
    if state.is_alive() || vm.is_alive()? {
        let name = vm.name();
        bail!(
            "VM {name} is {} already",
            if state.is_alive() { state.as_str() } else { "starting" }
        );
    }
    Ok(())
}

/// Refuses a VM that has no process.
pub fn expect_process(vm: &VmDir) -> anyhow::Result<()> {
    let state = vm.state()?.state;
    if !state.is_alive() {
        bail!("VM {} is {}: start it first with `ringfence start {0}`", vm.name(), state.as_str());
    }
    Ok(())
}
