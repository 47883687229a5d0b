//! Listing VMs, and what is known of one.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use lifecycle::SnapshotTree;
use serde_json::json;
use vms::{Store, VmDir, member};

use super::args::{ListArgs, LogsArgs, Name};
use crate::table::Table;
use crate::{is_closed, report};

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// `ps`.
pub fn ps(store: &Store, args: &ListArgs) -> anyhow::Result<()> {
    store.sweep()?;
    let (vms, damaged) = store.list()?;
    for error in damaged {
        report::error(&error.to_string());
    }
    if args.json {
        report::print(&(serde_json::to_string_pretty(&vms)? + "\n"))?;
        return Ok(());
    }
    let mut table = Table::new(["NAME", "STATE", "PID", "ENGINE", "PLATFORM"]);
    for vm in vms {
        let pid = vm.pid.map(|pid| pid.to_string()).unwrap_or_default();
        let engine = vm.engine.unwrap_or_default();
        table.row([vm.name, vm.state.as_str().to_owned(), pid, engine, vm.platform]);
    }
    Ok(report::print(&table.text())?)
}

/// `inspect`.
pub fn inspect(store: &Store, args: &Name) -> anyhow::Result<()> {
    let vm = store.vm(&args.name)?;
    let (record, state) = (vm.record()?, vm.state()?);
    let tree = SnapshotTree::open(vm.path(member::SNAPSHOTS))?;
    let (snapshots, damaged) = control::list_snapshots(&tree)?;
    damaged.iter().for_each(|text| report::error(text));
    let alive = state.state.is_alive();
    let text = json!({
        "name": vm.name(),
        "state": state.state,
        "pid": state.pid.filter(|_| alive),
        "engine": state.engine,
        "platform": record.platform,
        "created": record.created,
        "started": state.started,
        "ended": state.ended,
        "status": state.status,
        "outcome": state.outcome,
        "options": record.options,
        "folder": record.folder,
        "origin": record.origin,
        "disks": record.disks,
        "current": state.current,
        "snapshots": snapshots,
        "path": vm.public_path(""),
    });
    Ok(report::print(&(serde_json::to_string_pretty(&text)? + "\n"))?)
}

/// `logs`.
pub fn logs(store: &Store, args: &LogsArgs) -> anyhow::Result<()> {
    let vm = store.vm(&args.vm.name)?;
    let (name, older) = match args.messages {
        true => (member::MESSAGES, None),
        false => (member::CONSOLE, Some(member::OLD_CONSOLE)),
    };
    let mut text = Vec::new();
    for file in older.into_iter().chain([name]) {
        append(&vm, file, &mut text)?;
    }
    let text = match args.tail {
        Some(lines) => last_lines(&text, lines),
        None => &text,
    };
    let mut out = io::stdout().lock();
    let mut print = |bytes: &[u8]| match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if is_closed(&error) => Ok(false),
        result => result.map(|()| true),
    };
    if print(text)? && args.follow {
        follow(&vm, name, print)?;
    }
    Ok(())
}

/// Prints what is added to a log until the VM ends or nobody reads.
fn follow(
    vm: &VmDir,
    name: &str,
    mut print: impl FnMut(&[u8]) -> io::Result<bool>,
) -> anyhow::Result<()> {
    let Ok(mut file) = File::open(vm.path(name)) else { return Ok(()) };
    let mut at = file.seek(SeekFrom::End(0)).context("cannot read the log")?;
    loop {
        // Looked at before the log: what an ending VM wrote is not missed.
        let alive = vm.is_alive()?;
        let mut bytes = Vec::new();
        at += file.read_to_end(&mut bytes).context("cannot read the log")? as u64;
        if !print(&bytes)? {
            return Ok(());
        }
        // A log that is full is begun anew under the same name.
        if let Ok(newer) = File::open(vm.path(name))
            && newer.metadata().is_ok_and(|m| m.len() < at)
        {
            (file, at) = (newer, 0);
            continue;
        }
        if !alive {
            return Ok(());
        }
        thread::sleep(LOOK);
    }
}

fn append(vm: &VmDir, file: &str, text: &mut Vec<u8>) -> anyhow::Result<()> {
    match File::open(vm.path(file)) {
        Ok(mut file) => file.read_to_end(text).map(|_| ()).context("cannot read the log"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).context("cannot open the log"),
    }
}

fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    match lines.checked_sub(1).map(|skipped| breaks.nth(skipped)) {
        None => &[],
        Some(None) => text,
        Some(Some((at, _))) => &text[at + 1..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_the_last() {
        let text = b"one\ntwo\nthree\n";
        assert_eq!(last_lines(text, 0), b"");
        assert_eq!(last_lines(text, 1), b"three\n");
        assert_eq!(last_lines(text, 2), b"two\nthree\n");
        assert_eq!(last_lines(text, 9), text);
        assert_eq!(last_lines(b"no end", 1), b"no end");
        assert_eq!(last_lines(b"", 3), b"");
    }
}
