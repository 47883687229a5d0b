//! `stats` and `hop`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use api::{HopRequest, PauseReport, VmUsage};
use control::Client;
use vms::Store;

use super::args::{HopArgs, StatsArgs};
use super::power;
use crate::report;
use crate::table::{Table, bytes};

/// How often the table is drawn anew.
const PERIOD: Duration = Duration::from_secs(1);
/// Clears the terminal and goes to its first place (ECMA-48 ED and CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// `hop`.
pub fn hop(store: &Store, args: &HopArgs) -> anyhow::Result<()> {
    let vm = store.vm(&args.vm.name)?;
    let _operation = vm.begin("hop")?;
    power::expect_process(&vm)?;
    let request = HopRequest { engine: args.engine.as_str().to_owned() };
    let report: PauseReport = Client::connect(&vm)?.post_json(api::HOP, &request)?;
    if args.json {
        report::print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    Ok(())
}

/// `stats`.
pub fn run(store: &Store, args: &StatsArgs) -> anyhow::Result<()> {
    if args.metrics {
        let [name] = &args.names[..] else { bail!("--metrics is for one VM; name it") };
        let vm = store.vm(name)?;
        power::expect_process(&vm)?;
        return Ok(report::print(&Client::connect(&vm)?.get_text(api::METRICS)?)?);
    }
    let mut before = usages(store, &args.names)?;
    if args.json {
        return Ok(report::print(&(serde_json::to_string_pretty(&before)? + "\n"))?);
    }
    let live = io::stdout().is_terminal() && !args.once;
    if !live {
        return Ok(report::print(&table(&before, &BTreeMap::new()))?);
    }
    loop {
        thread::sleep(PERIOD);
        let now = usages(store, &args.names)?;
        report::print(&format!("{CLEAR}{}", table(&now, &before)))?;
        before = now;
    }
}

/// What each VM that runs has used; those that end meanwhile are left out, unless they were named.
fn usages(store: &Store, names: &[String]) -> anyhow::Result<BTreeMap<String, VmUsage>> {
    let mut usages = BTreeMap::new();
    let all = if names.is_empty() { store.names()? } else { names.to_vec() };
    for name in all {
        let vm = store.vm(&name)?;
        if names.is_empty() && !vm.state().is_ok_and(|state| state.state.is_alive()) {
            continue;
        }
        power::expect_process(&vm)?;
        match Client::connect(&vm).and_then(|client| client.get(api::STATS)) {
            Ok(usage) => drop(usages.insert(name, usage)),
            Err(_) if names.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(usages)
}

/// The table; CPU and instructions are those since `before`, or since the beginning.
fn table(now: &BTreeMap<String, VmUsage>, before: &BTreeMap<String, VmUsage>) -> String {
    let headings = ["NAME", "CPU", "RESIDENT", "PRIVATE", "GUEST TIME", "MIPS"];
    let mut table = Table::new(headings);
    for (name, usage) in now {
        let (mut wall, mut cpu, mut instructions) = (0.0, 0.0, 0);
        if let Some(old) = before.get(name).filter(|old| old.wall_seconds < usage.wall_seconds) {
            (wall, cpu, instructions) = (old.wall_seconds, old.cpu_seconds, old.instructions);
        }
        let period = (usage.wall_seconds - wall).max(1e-3);
        let mips = usage.instructions.saturating_sub(instructions) as f64 / period / 1e6;
        table.row([
            name.clone(),
            format!("{:.1}%", (usage.cpu_seconds - cpu) / period * 100.0),
            bytes(usage.resident),
            bytes(usage.private),
            format!("{:.1} s", usage.guest_time_ns as f64 / 1e9),
            format!("{mips:.1}"),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_was_used_since_the_last_one() {
        let usage = |wall_seconds, cpu_seconds, instructions| VmUsage {
            wall_seconds,
            cpu_seconds,
            resident: 3 << 20,
            private: 1 << 20,
            guest_time_ns: 1_500_000_000,
            instructions,
            vm: serde_json::Value::Null,
        };
        let map = |usage| BTreeMap::from([("vm".to_owned(), usage)]);
        let (before, now) = (map(usage(1.0, 0.5, 1_000_000)), map(usage(2.0, 0.75, 4_000_000)));
        let text = table(&now, &before);
        assert_eq!(text.lines().nth(1), Some("vm    25.0%  3.0 MiB   1.0 MiB  1.5 s       3.0"));
        assert!(table(&now, &BTreeMap::new()).contains("37.5%"), "{text}");
    }
}
