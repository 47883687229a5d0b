//! The translator does what the interpreter does, at every instruction.
//!
//! A stock kernel boots on both in lockstep (`ringfence_tests::lockstep`), and so does every
//! program of `guests/`. Each test has another translator or another pace, and begins at another
//! random point of the boot.
//!
//! `LOCKSTEP_SECONDS` (12) is the host time of each test with the kernel, `LOCKSTEP_SEED` chooses
//! starting points, lengths of steps and times.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{
    CpuBus, Debugging, Engine, EngineError, Kick, StopReason, Vcpu, VcpuConfig, VcpuExit,
    VcpuState, VcpuStats,
};
use images::kernels::Flavour;
use interpreter::Interpreter;
use lifecycle::BootFiles;
use machine::MachineSpec;
use oracle::random::Random;
use ringfence_tests::guests;
use ringfence_tests::lockstep::{Divergence, Lockstep, Plan, Summary};
use ringfence_tests::settings::number;
use ringfence_tests::stock::{Form, boot_files};
use translator::{Options, Translator};

const SEED: u64 = 0x4c6f_636b;
/// Host time of a test unless the environment says otherwise, in seconds.
const SECONDS: u64 = 12;
/// Instructions that a test with the kernel executes at least, also on a loaded host.
const LEAST: u64 = 100_000;
/// MiB of RAM.
const MEMORY: u64 = 128;
/// Instructions of the guest's whole life, about.
const LIFE: u64 = 1_350_000_000;
/// Instructions of a step, at most.
const LONGEST: u64 = 20_000;
/// Code caches of a few blocks and of some thousands, in bytes.
const TINY: usize = 1;
const SMALL: usize = 1 << 20;

/// What the guest does when it is up: processes, pipes, floating point, sleeping.
const SCRIPT: &str = "n=0; while [ $n -lt 20 ]; do n=$((n + 1)); /bin/true; done
echo SUM $(seq 1 20000 | md5sum)
echo FLOAT $(awk 'BEGIN { for (i = 1; i < 2000; i++) s += i * 1.5 / (i + 1); printf \"%.9e\", s }')
sleep 1";

/// From power-on, for the time of a test.
fn plan() -> Plan {
    Plan {
        seed: number("LOCKSTEP_SEED").unwrap_or(SEED),
        skip: 0,
        longest: LONGEST,
        disturb: false,
        limit: Duration::from_secs(number("LOCKSTEP_SECONDS").unwrap_or(SECONDS)),
        least: LEAST,
    }
}

/// The same from a random point of the guest's life, another one for each `number`.
fn from_the_middle(number: u64) -> Plan {
    let plan = plan();
    let skip = Random::new(plan.seed, u64::MAX - number).below(LIFE / 10 * 9);
    Plan { skip, ..plan }
}

/// The same for half as long.
fn half(plan: &Plan) -> Plan {
    Plan { limit: plan.limit / 2, ..plan.clone() }
}

fn translator(cache_bytes: usize) -> Translator {
    with_options(Options { cache_bytes, ..Options::default() })
}

fn with_options(options: Options) -> Translator {
    Translator::with_options(options).expect("a host with BMI2 and AVX2")
}

/// The usual size of a code cache, less than the default.
const USUAL: usize = 64 << 20;

/// A Linux on the interpreter and on `subject`, step by step; nothing where there is no kernel.
#[track_caller]
fn linux(subject: &dyn Engine, plan: &Plan) -> Option<Summary> {
    compared(Flavour::Cloud, subject, plan, |lockstep| lockstep.run(plan))
}

/// The same with a kernel and programs of 32-bit code.
#[track_caller]
fn linux_32bit(subject: &dyn Engine, plan: &Plan) -> Option<Summary> {
    compared(Flavour::Pae686, subject, plan, |lockstep| lockstep.run(plan))
}

/// The same with a subject that runs freely.
#[track_caller]
fn linux_freely(subject: &dyn Engine, plan: &Plan) -> Option<Summary> {
    compared(Flavour::Cloud, subject, plan, |lockstep| lockstep.run_freely(plan))
}

#[track_caller]
fn compared(
    flavour: Flavour,
    subject: &dyn Engine,
    plan: &Plan,
    run: impl FnOnce(&Lockstep<'_>) -> Result<Summary, Box<Divergence>>,
) -> Option<Summary> {
    let form = if flavour.is_32bit() { Form::BzImage } else { Form::Pvh };
    boot_files(flavour, form, SCRIPT)?;
    let boot = || boot_files(flavour, form, SCRIPT).expect("they were there before");
    let mut spec = MachineSpec::new(MEMORY << 20);
    "console=ttyS0".clone_into(&mut spec.cmdline);
    let lockstep = Lockstep { spec, boot: &boot, reference: &Interpreter::new(), subject };
    let summary = run(&lockstep).unwrap_or_else(|found| panic!("{plan:?}\n{found}"));
    eprintln!(
        "seed {}, {} instructions skipped, {} executed in {} steps, {} aligned, {:?}",
        plan.seed, plan.skip, summary.instructions, summary.steps, summary.aligned, summary.end
    );
    assert!(summary.instructions >= LEAST, "too slow to show anything: {summary:?}");
    if let Some(end) = &summary.end {
        assert_eq!(*end, VcpuExit::Stop(StopReason::PowerOff), "{}", summary.console);
    }
    Some(summary)
}

#[test]
fn a_boot_is_the_same() {
    linux(&translator(USUAL), &plan());
}

#[test]
fn programs_are_the_same() {
    linux(&translator(USUAL), &Plan { skip: LIFE / 10 * 9, ..plan() });
}

#[test]
fn a_code_cache_of_a_few_blocks_changes_nothing() {
    let Some(summary) = linux(&translator(TINY), &from_the_middle(1)) else { return };
    let drops = summary.counters.iter().find(|(name, _)| *name == "code_cache_drops");
    assert!(drops.is_some_and(|(_, drops)| *drops > 100), "{drops:?}");
}

#[test]
fn blocks_of_one_instruction_change_nothing() {
    let options = Options { cache_bytes: USUAL, longest_block: 1, ..Options::default() };
    linux(&with_options(options), &from_the_middle(7));
}

#[test]
fn code_that_becomes_stale_changes_nothing() {
    linux(&translator(USUAL), &Plan { disturb: true, ..from_the_middle(2) });
}

#[test]
fn stopping_after_few_instructions_changes_nothing() {
    linux(&translator(USUAL), &Plan { longest: 16, ..from_the_middle(3) });
}

#[test]
fn running_freely_changes_nothing() {
    linux_freely(&translator(USUAL), &from_the_middle(5));
}

#[test]
fn running_freely_in_a_small_cache_changes_nothing() {
    linux_freely(&translator(SMALL), &Plan { disturb: true, ..from_the_middle(6) });
}

#[test]
fn a_32_bit_boot_is_the_same() {
    linux_32bit(&translator(USUAL), &half(&plan()));
}

#[test]
fn a_32_bit_kernel_with_stale_code_is_the_same() {
    let plan = Plan { disturb: true, ..half(&from_the_middle(8)) };
    linux_32bit(&translator(SMALL), &plan);
}

#[test]
fn a_32_bit_kernel_running_freely_is_the_same() {
    let plan = half(&from_the_middle(9));
    compared(Flavour::Pae686, &translator(USUAL), &plan, |lockstep| lockstep.run_freely(&plan));
}

/// All of the above in turn, from other points, for `LOCKSTEP_MINUTES` (30).
#[test]
#[ignore = "takes half an hour, or as long as LOCKSTEP_MINUTES says"]
fn nothing_changes_for_a_long_time() {
    let minutes = number("LOCKSTEP_MINUTES").unwrap_or(30);
    let deadline = Instant::now() + Duration::from_secs(60 * minutes);
    for turn in 100.. {
        let plan = from_the_middle(turn);
        // From another point, other steps.
        let plan = Plan { seed: plan.seed.wrapping_add(turn), ..plan };
        let done = match turn % 9 {
            0 => linux(&translator(USUAL), &plan),
            1 => linux(&translator(TINY), &plan),
            2 => linux(&translator(USUAL), &Plan { disturb: true, ..plan }),
            3 => linux(&translator(SMALL), &Plan { longest: 16, ..plan }),
            4 => linux(
                &with_options(Options {
                    cache_bytes: SMALL,
                    longest_block: 1,
                    ..Options::default()
                }),
                &plan,
            ),
            5 => linux_freely(&translator(USUAL), &plan),
            6 => linux_32bit(&translator(USUAL), &plan),
            7 => linux_32bit(&translator(SMALL), &Plan { disturb: true, ..plan }),
            _ => linux_freely(&translator(SMALL), &Plan { disturb: true, ..plan }),
        };
        if done.is_none() || Instant::now() >= deadline {
            return;
        }
    }
}

/// The test of the test: an engine that agrees with itself, at any pace.
#[test]
fn the_interpreter_is_the_same_as_itself() {
    let plan = Plan { disturb: true, ..from_the_middle(4) };
    linux(&Interpreter::new(), &Plan { limit: plan.limit / 4, ..plan });
}

/// An interpreter whose vCPU, after some time, changes a bit of RBX again and again.
struct Wrong;

struct WrongVcpu {
    vcpu: Box<dyn Vcpu>,
    runs: u32,
}

impl Engine for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        let vcpu = Interpreter::new().create_vcpu(config)?;
        Ok(Box::new(WrongVcpu { vcpu, runs: 0 }))
    }
}

impl Vcpu for WrongVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<VcpuExit, EngineError> {
        self.runs += 1;
        if self.runs >= 4 {
            let mut state = self.vcpu.save(bus)?;
            state.general.gpr[3] ^= 1 << 40;
            self.vcpu.restore(&state, bus)?;
        }
        self.vcpu.run(bus)
    }

    fn set_budget(&mut self, instructions: Option<u64>) {
        self.vcpu.set_budget(instructions);
    }

    fn set_debugging(&mut self, debugging: Debugging) {
        self.vcpu.set_debugging(debugging);
    }

    fn save(&mut self, bus: &dyn CpuBus) -> Result<VcpuState, EngineError> {
        self.vcpu.save(bus)
    }

    fn restore(&mut self, state: &VcpuState, bus: &dyn CpuBus) -> Result<(), EngineError> {
        self.vcpu.restore(state, bus)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.vcpu.kicker()
    }

    fn stats(&self) -> VcpuStats {
        self.vcpu.stats()
    }
}

#[test]
fn a_wrong_engine_is_found_out() {
    let boot = || BootFiles::from_bytes(elf("exceptions"), None).expect("an ELF file");
    let mut spec = MachineSpec::new(MEMORY << 20);
    spec.debug_exit = true;
    let lockstep = Lockstep { spec, boot: &boot, reference: &Interpreter::new(), subject: &Wrong };
    let plan = Plan { longest: 2000, limit: Duration::from_secs(300), ..plan() };
    for found in [lockstep.run(&plan), lockstep.run_freely(&plan)] {
        let text = found.expect_err("it is wrong").to_string();
        assert!(
            ["rbx", "memory", "the reference"].iter().any(|word| text.contains(word)),
            "{text}"
        );
    }
}

mod program {
    include!(concat!(env!("OUT_DIR"), "/each_program.rs"));

    each_program!(super::program);
}

/// A program of `guests/` on the interpreter and on the translator, to its end.
#[track_caller]
fn program(name: &str) {
    let boot = || BootFiles::from_bytes(elf(name), None).expect("an ELF file with a PVH note");
    let mut spec = MachineSpec::new(MEMORY << 20);
    spec.debug_exit = true;
    let subject = translator(USUAL);
    let lockstep =
        Lockstep { spec, boot: &boot, reference: &Interpreter::new(), subject: &subject };
    // These end by themselves; the time is only there so that a test ends.
    let plan = Plan { longest: 2000, limit: Duration::from_secs(300), ..plan() };
    let summary = lockstep.run(&plan).unwrap_or_else(|found| panic!("{plan:?}\n{found}"));
    let success = VcpuExit::Stop(StopReason::DebugExit { value: 0 });
    assert_eq!(summary.end, Some(success), "{}", summary.console);
}

/// The file of a program of `guests/`.
fn elf(name: &str) -> Vec<u8> {
    let (_, path) = guests::all().iter().find(|(program, _)| *program == name).expect("a program");
    std::fs::read(path).expect("the build script has built it")
}
