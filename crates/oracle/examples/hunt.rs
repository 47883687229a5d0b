//! Compares an engine with the host CPU on any number of cases, and tells the differences,
//! one example for each group of instructions.
//!
//! `cargo run -p oracle --release --example hunt -- --cases 10000000 --seed 7`

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use engine::Engine;
use oracle::{Finding, Plan, VcpuSubject, WarmSubject, check};

/// Compare an engine with the host CPU.
#[derive(Parser)]
struct Arguments {
    /// How many cases.
    #[arg(long, default_value_t = 100_000)]
    cases: u64,
    /// Where the cases come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first case.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// The engine to compare: interpreter or translator.
    #[arg(long, default_value = "interpreter")]
    engine: String,
    /// Execute each case three times and compare the last, which finds a filled TLB.
    #[arg(long)]
    warm: bool,
    /// Only cases with this instruction.
    #[arg(long)]
    filter: Option<String>,
    /// Stop after this many differing cases.
    #[arg(long, default_value_t = 200)]
    findings: usize,
}

#[allow(clippy::print_stdout)]
fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let only = match &arguments.filter {
        Some(name) => Some(
            iced_x86::Mnemonic::values()
                .find(|m| format!("{m:?}").eq_ignore_ascii_case(name))
                .with_context(|| format!("no instruction is called {name}"))?,
        ),
        None => None,
    };
    let plan = Plan {
        first: arguments.first,
        only,
        findings: arguments.findings,
        ..Plan::new(arguments.seed, arguments.cases)
    };
    let engine: Box<dyn Engine> = match arguments.engine.as_str() {
        "interpreter" => Box::new(interpreter::Interpreter::new()),
        "translator" => Box::new(translator::Translator::new()?),
        other => bail!("there is no engine {other}: choose interpreter or translator"),
    };
    let started = Instant::now();
    let (summary, findings) = match arguments.warm {
        true => check(&plan, || WarmSubject::new(&*engine))?,
        false => check(&plan, || VcpuSubject::new(&*engine))?,
    };
    let mut groups: BTreeMap<String, Vec<&Finding>> = BTreeMap::new();
    for finding in &findings {
        groups.entry(finding.names()).or_default().push(finding);
    }
    for (names, group) in &groups {
        println!("## {names} ({} cases)\n{}", group.len(), group[0]);
    }
    println!("{summary}; {:.1} s", started.elapsed().as_secs_f64());
    if !findings.is_empty() {
        bail!("{} cases differ", findings.len());
    }
    Ok(())
}
