//! What a VM costs the host in memory beyond the guest's own: a guest that sleeps, and one that works.
//!
//! The mappings of the process and of its children are added up as the kernel tells them
//! (`/proc/PID/smaps`, proc(5)): guest RAM and the code cache are files in memory with names of
//! their own; of all else, what is private and has no file counts.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::Common;
use super::machines::{Bench, Machine};
use super::report::{median, print_table, write_json};

/// What the guests do, and what their `/init` is told.
const LOADS: [(&str, &str); 2] = [("idle", "do=idle"), ("busy", "do=bench SCALE=1000")];

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Resident {
    guest_ram: u64,
    code_cache: u64,
    private: u64,
}

/// Medians of one machine with one load, in MiB.
#[derive(Serialize)]
struct Row {
    machine: String,
    load: &'static str,
    guest_ram: f64,
    code_cache: f64,
    private: f64,
}

/// Measures `seconds` after the guest is up.
pub fn run(common: &Common, seconds: u32) -> Result<()> {
    let bench = Bench::prepare(common)?;
    let wait = Duration::from_secs(seconds.into());
    let mut rows = Vec::new();
    for machine in bench.guests() {
        let Machine::Ringfence { .. } = machine else {
            eprintln!("note: {} does not tell guest RAM from its own; left out", machine.name());
            continue;
        };
        for (load, arguments) in LOADS {
            let mut runs = Vec::new();
            for round in 1..=common.runs {
                eprintln!("run {round} of {}: {}, {load}", common.runs, machine.name());
                runs.push(measure(&bench, machine, arguments, wait)?);
            }
            rows.push(summary(machine.name(), load, &runs));
        }
    }
    print(&rows);
    write_json(common.json.as_deref(), &rows)
}

fn measure(bench: &Bench, machine: &Machine, arguments: &str, wait: Duration) -> Result<Resident> {
    let mut command = bench.command(machine, arguments, 1)?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut guest = Guest(child.context("cannot start ringfence")?);
    let mut lines = BufReader::new(guest.0.stdout.take().context("standard output is a pipe")?);
    let mut line = Vec::new();
    while !String::from_utf8_lossy(&line).contains("GUEST-UP") {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            bail!("{} ended before its guest was up", machine.name());
        }
    }
    // What the guest prints from now on has to be read by somebody.
    thread::spawn(move || lines.lines().map_while(Result::ok).count());
    thread::sleep(wait);
    let own = guest.0.id();
    let mut sum = Resident::default();
    for process in children(own)?.into_iter().chain([own]) {
        let smaps = fs::read_to_string(format!("/proc/{process}/smaps"));
        add(&mut sum, &smaps.context("cannot read what the host tells of the process")?);
    }
    Ok(sum)
}

/// The processes that `process` has started.
fn children(process: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let list = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
    }
    Ok(found)
}

/// Adds the mappings of one process. Guest RAM and the code cache are shared: each page counts
/// where it is touched first.
fn add(sum: &mut Resident, smaps: &str) {
    let mut name = "";
    let mut of_this = Resident::default();
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["Rss:", size, "kB"] if name.contains("ringfence-ram") => {
                of_this.guest_ram += number(size);
            }
            ["Rss:", size, "kB"] if name.contains("ringfence-code") => {
                of_this.code_cache += number(size);
            }
            ["Anonymous:", size, "kB"] if !name.contains("ringfence-") => {
                of_this.private += number(size);
            }
            [key, ..] if key.ends_with(':') => {}
            [_range, _rights, _offset, _device, _inode, ref path @ ..] => {
                name = path.first().copied().unwrap_or("");
            }
            _ => {}
        }
    }
    sum.guest_ram = sum.guest_ram.max(of_this.guest_ram);
    sum.code_cache = sum.code_cache.max(of_this.code_cache);
    sum.private += of_this.private;
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

fn summary(machine: String, load: &'static str, runs: &[Resident]) -> Row {
    let of = |part: fn(&Resident) -> u64| {
        median(&runs.iter().map(|run| part(run) as f64 / 1024.0).collect::<Vec<_>>())
    };
    let (guest_ram, code_cache) = (of(|run| run.guest_ram), of(|run| run.code_cache));
    Row { machine, load, guest_ram, code_cache, private: of(|run| run.private) }
}

fn print(rows: &[Row]) {
    let header = ["MiB", "guest", "touched guest RAM", "code cache", "other private memory"];
    let mut table = vec![header.map(String::from).to_vec()];
    for Row { machine, load, guest_ram, code_cache, private } in rows {
        let sizes = [guest_ram, code_cache, private].map(|size| format!("{size:.1}"));
        table.push([machine.clone(), (*load).to_owned()].into_iter().chain(sizes).collect());
    }
    print_table(&table);
}

/// A guest that is ended when the value goes.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        let text = "7f00-7f10 rw-s 00000000 00:01 5   /memfd:ringfence-ram (deleted)\n\
                    Size:   40 kB\nRss:    32 kB\nAnonymous:   0 kB\n\
                    7f10-7f20 r-xs 00000000 00:01 6   /memfd:ringfence-code (deleted)\n\
                    Rss:    8 kB\nAnonymous:   0 kB\nVmFlags: rd ex\n\
                    7f20-7f30 rw-p 00000000 00:00 0 \nRss:   24 kB\nAnonymous:  20 kB\n\
                    7f30-7f40 rw-p 00000000 08:01 9   /lib/libc.so.6\nRss: 9 kB\nAnonymous: 4 kB\n";
        let mut sum = Resident::default();
        add(&mut sum, text);
        assert_eq!(sum, Resident { guest_ram: 32, code_cache: 8, private: 24 });
        add(&mut sum, text);
        assert_eq!(sum, Resident { guest_ram: 32, code_cache: 8, private: 48 });
    }
}
