//! Starting the process of a VM.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use vms::{Operation, member};

use crate::args::EngineArg;

/// Where the VM begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Its kernel is booted.
    Boot,
    /// It goes on with its suspended state; true for one that is a copy.
    Suspended(bool),
    /// It goes on from this snapshot.
    Snapshot(String),
}

/// A process that was started and has not said yet that the VM runs.
pub struct Starting {
    child: Child,
    said: BufReader<ChildStdout>,
    name: String,
}

/// Starts the process of a VM that has none.
///
/// # Errors
/// When the host refuses.
pub fn start(
    vm: &Operation<'_>,
    begin: &Begin,
    engine: Option<EngineArg>,
) -> anyhow::Result<Starting> {
    let record = vm.dir().record()?;
    if !record.folder.is_dir() {
        bail!(
            "cannot start VM {}: the folder {} that its files are named from is gone",
            vm.name(),
            record.folder.display()
        );
    }
    let messages = File::create(vm.dir().path(member::MESSAGES));
    let messages = messages.context("cannot write the VM's messages")?;
    // The very program that runs now, also after it was replaced by another version.
    let mut command = Command::new("/proc/self/exe");
    command.arg("vm-process").arg(vm.name());
    match begin {
        Begin::Boot => {}
        Begin::Suspended(is_copy) => {
            command.arg("--suspended").args(is_copy.then_some("--is-copy"));
        }
        Begin::Snapshot(name) => {
            command.arg("--snapshot").arg(name);
        }
    }
    if let Some(engine) = engine {
        command.arg("--engine").arg(engine.as_str());
    }
    command.current_dir(&record.folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(messages);
    let mut child = command.spawn().context("cannot start the VM's process")?;
    let said = child.stdout.take().context("the VM's process has no output")?;
    Ok(Starting { child, said: BufReader::new(said), name: vm.name().to_owned() })
}

impl Starting {
    /// Waits until the VM runs.
    ///
    /// # Errors
    /// What kept it from that.
    pub fn wait(mut self) -> anyhow::Result<()> {
        let mut line = String::new();
        self.said.read_line(&mut line).context("cannot hear the VM's process")?;
        match line.trim_end() {
            "ok" => return Ok(()),
            "" => {}
            error => bail!("cannot start VM {}: {error}", self.name),
        }
        let status = self.child.wait().context("cannot wait for the VM's process")?;
        bail!(
            "cannot start VM {}: its process ended ({status}); see `ringfence logs --messages {}`",
            self.name,
            self.name
        )
    }
}
