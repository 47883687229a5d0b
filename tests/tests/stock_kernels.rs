//! Stock kernels in whole VMs: they boot, find the machine in order, and end as they mean to.
//!
//! Kernels are unpacked here and entered through PVH, which spares the guest the unpacking; one
//! boots as it is shipped, and all do in the ignored tests:
//! `cargo test --release -p ringfence-tests --test stock_kernels -- --ignored`.

use std::sync::Arc;
use std::time::Duration;

use images::initramfs::Builder;
use images::kernels::Flavour;
use interpreter::Interpreter;
use lifecycle::{Outcome, Policy};
use ringfence_tests::stock::{Form, boot_files, boot_files_with, busybox_32bit, skipped};
use ringfence_tests::vm::{Guest, Setup, engine};
use translator::{DirectPolicy, Options, Translator};
use workload::kernel_log::complaints;

/// Some ten times what a boot takes alone: the tests of a run share the host.
const BOOT: Duration = Duration::from_secs(400);

/// Commands whose output shows that programs run as they should.
const WORK: &str = "echo SUM $(seq 1 20000 | md5sum)
echo FLOAT $(awk 'BEGIN { for (i = 1; i < 2000; i++) s += i * 1.5 / (i + 1); printf \"%.9e\", s }')
echo CLOCK $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo EXPRESS $(wc -c </sys/bus/pci/devices/0000:00:01.0/config)
echo MEMORY $(awk '/MemTotal/ { print ($2 > 200000) }' /proc/meminfo)";

const RESULTS: [&str; 4] =
    ["SUM e071f707df7bbeee2a6a1eb48011ddd0", "FLOAT 2.987732448e+03", "EXPRESS 4096", "MEMORY 1"];

/// The same for several vCPUs: all take part, each can be taken out and put back, and programs on
/// all of them compute what they should.
const SHARED_WORK: &str = "echo CPUS $(nproc)
for cpu in /sys/devices/system/cpu/cpu[1-9]*/online; do echo 0 > $cpu; done
echo LEFT $(nproc)
for cpu in /sys/devices/system/cpu/cpu[1-9]*/online; do echo 1 > $cpu; done
echo AGAIN $(nproc)
for part in 1 2 3 4; do (echo PART $(seq 1 20000 | md5sum)) & done
wait";

fn boot(flavour: Flavour, form: Form, script: &str, setup: fn(Setup) -> Setup) -> Option<Guest> {
    let files = boot_files(flavour, form, script)?;
    let plain = Setup::new(engine(), 256, files).cmdline("console=ttyS0");
    Some(setup(plain).start())
}

/// Boots to the end of the script, which has to end in `outcome`; what the guest printed, if there
/// is a kernel.
fn boots(
    flavour: Flavour,
    form: Form,
    last: &str,
    outcome: &Outcome,
    setup: fn(Setup) -> Setup,
) -> Option<String> {
    let script = format!("{WORK}\n{last}");
    let guest = boot(flavour, form, &script, setup)?;
    guest.expect("GUEST-UP", BOOT);
    assert_eq!(guest.end(BOOT), *outcome, "{}", guest.last_lines());
    let text = guest.text();
    for result in RESULTS {
        assert!(text.contains(result), "no {result:?}:\n{}", guest.last_lines());
    }
    let clock = ["CLOCK tsc", "CLOCK kvm-clock"];
    assert!(clock.iter().any(|clock| text.contains(clock)), "{}", guest.last_lines());
    let complaints = complaints(&text);
    assert!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
    Some(text)
}

/// Boots with several vCPUs, as `setup` says and as many as `cpus`.
fn boots_with(cpus: u32, flavour: Flavour, form: Form, setup: fn(Setup) -> Setup) {
    let outcome = Outcome::PoweredOff;
    let Some(text) = boots(flavour, form, SHARED_WORK, &outcome, setup) else { return };
    for line in [format!("CPUS {cpus}"), "LEFT 1".to_owned(), format!("AGAIN {cpus}")] {
        assert!(text.contains(&line), "no {line:?}:\n{text}");
    }
    let parts = text.matches("PART e071f707df7bbeee2a6a1eb48011ddd0").count();
    assert_eq!(parts, 4, "{text}");
}

fn interpreted(setup: Setup) -> Setup {
    Setup { engine: Arc::new(Interpreter::new()), ..setup }
}

fn translated(setup: Setup) -> Setup {
    let translator = Translator::new().expect("a host with BMI2 and AVX2");
    Setup { engine: Arc::new(translator), ..setup }
}

/// All user code is executed by the host CPU itself.
fn executed_directly(setup: Setup) -> Setup {
    let options = Options { direct: DirectPolicy::Always, ..Options::default() };
    let translator = Translator::with_options(options).expect("a host with BMI2 and AVX2");
    Setup { engine: Arc::new(translator), ..setup }
}

#[test]
fn user_code_that_is_executed_directly_boots_the_cloud_kernel() {
    if let Err(e) = translator::direct_execution() {
        return skipped(&e.to_string());
    }
    boots_with(2, Flavour::Cloud, Form::Pvh, |setup| executed_directly(setup).cpus(2));
}

#[test]
fn the_cloud_kernel_boots_as_bzimage() {
    boots(Flavour::Cloud, Form::BzImage, "", &Outcome::PoweredOff, |setup| setup);
}

#[test]
fn the_cloud_kernel_boots_by_pvh() {
    boots(Flavour::Cloud, Form::Pvh, "", &Outcome::PoweredOff, |setup| setup);
}

#[test]
fn the_common_kernel_boots_and_its_reset_ends_the_vm_if_wanted() {
    boots(Flavour::Amd64, Form::Pvh, "reboot -f", &Outcome::Reset, |setup| {
        setup.policy(Policy { no_reboot: true, ..Policy::default() })
    });
}

#[test]
fn the_realtime_kernel_boots() {
    boots(Flavour::Rt, Form::Pvh, "", &Outcome::PoweredOff, |setup| setup);
}

#[test]
fn the_cloud_kernel_boots_on_two_interpreted_vcpus() {
    boots_with(2, Flavour::Cloud, Form::Pvh, |setup| interpreted(setup).cpus(2));
}

#[test]
fn the_cloud_kernel_boots_on_four_interpreted_vcpus() {
    boots_with(4, Flavour::Cloud, Form::Pvh, |setup| interpreted(setup).cpus(4));
}

#[test]
fn the_cloud_kernel_boots_on_two_translated_vcpus() {
    boots_with(2, Flavour::Cloud, Form::Pvh, |setup| translated(setup).cpus(2));
}

#[test]
fn the_cloud_kernel_boots_on_four_translated_vcpus() {
    boots_with(4, Flavour::Cloud, Form::Pvh, |setup| translated(setup).cpus(4));
}

#[test]
#[ignore = "eight boots of large kernels: run in release builds"]
fn large_kernels_boot_on_several_vcpus() {
    for flavour in [Flavour::Amd64, Flavour::Rt] {
        boots_with(2, flavour, Form::Pvh, |setup| interpreted(setup).cpus(2));
        boots_with(4, flavour, Form::Pvh, |setup| interpreted(setup).cpus(4));
        boots_with(2, flavour, Form::Pvh, |setup| translated(setup).cpus(2));
        boots_with(4, flavour, Form::Pvh, |setup| translated(setup).cpus(4));
    }
}

#[test]
#[ignore = "unpacking a large kernel takes the guest long: run in release builds"]
fn the_common_kernel_boots_as_bzimage() {
    boots(Flavour::Amd64, Form::BzImage, "", &Outcome::PoweredOff, |setup| setup);
}

#[test]
#[ignore = "unpacking a large kernel takes the guest long: run in release builds"]
fn the_realtime_kernel_boots_as_bzimage() {
    boots(Flavour::Rt, Form::BzImage, "", &Outcome::PoweredOff, |setup| setup);
}

#[test]
#[ignore = "a 32-bit kernel checks signatures for some ten seconds: run in release builds"]
fn the_32_bit_kernel_boots() {
    boots(Flavour::Pae686, Form::BzImage, "", &Outcome::PoweredOff, interpreted);
}

#[test]
fn the_32_bit_kernel_boots_translated() {
    boots(Flavour::Pae686, Form::BzImage, "", &Outcome::PoweredOff, translated);
}

#[test]
fn the_32_bit_kernel_boots_translated_on_two_vcpus() {
    boots_with(2, Flavour::Pae686, Form::BzImage, |setup| translated(setup).cpus(2));
}

/// 32-bit programs, beside 64-bit ones that exchange data with them.
#[test]
fn a_64_bit_kernel_runs_32_bit_programs() {
    let Some(busybox) = busybox_32bit() else { return };
    let files = Builder::new().file("/busybox32", 0o755, busybox);
    let script = "bb() { /busybox32 \"$@\"; }
echo CLASS $(dd if=/busybox32 bs=1 skip=4 count=1 2>/dev/null | od -An -tu1)
echo SUM $(bb seq 1 20000 | bb md5sum)
echo MIXED $(seq 1 20000 | bb gzip | gunzip | bb sha256sum | cut -c1-16)
echo FLOAT $(bb awk 'BEGIN { for (i = 1; i < 2000; i++) s += i * 1.5 / (i + 1); printf \"%.9e\", s }')
echo SHELL $(bb sh -c 'n=0; while [ $n -lt 2000 ]; do n=$((n + 3)); done; echo $n')";
    let Some(boot) = boot_files_with(Flavour::Cloud, Form::Pvh, files, script) else { return };
    let setup = Setup::new(engine(), 256, boot).cmdline("console=ttyS0");
    let guest = translated(setup).start();
    guest.expect("GUEST-UP", BOOT);
    assert_eq!(guest.end(BOOT), Outcome::PoweredOff, "{}", guest.last_lines());
    let text = guest.text();
    let results = [
        "CLASS 1",
        "SUM e071f707df7bbeee2a6a1eb48011ddd0",
        "MIXED f6351f5ead9a700e",
        "FLOAT 2.987732448e+03",
        "SHELL 2001",
    ];
    for result in results {
        assert!(text.contains(result), "no {result:?}:\n{}", guest.last_lines());
    }
}

#[test]
fn a_kernel_reboots_and_a_forced_triple_fault_ends_it() {
    reboots(|setup| setup.cmdline("console=ttyS0 quiet"));
}

#[test]
fn a_kernel_on_four_vcpus_reboots_and_a_forced_triple_fault_ends_it() {
    reboots(|setup| translated(setup).cmdline("console=ttyS0 quiet").cpus(4));
}

/// The kernel resets by way of ACPI in its first life, and by a triple fault in its second.
fn reboots(setup: fn(Setup) -> Setup) {
    let script = "echo READY $(nproc); read line; eval $line";
    let Some(guest) = boot(Flavour::Cloud, Form::Pvh, script, setup) else { return };
    guest.expect("READY", BOOT);
    let first_life = guest.text().len();
    guest.type_in("reboot -f\n");
    guest.expect_after("READY", first_life, BOOT);
    guest.type_in(
        "echo triple > /sys/kernel/reboot/type; echo 1 > /sys/kernel/reboot/force; reboot -f\n",
    );
    let outcome = guest.end(BOOT);
    assert!(matches!(outcome, Outcome::TripleFault(_)), "{outcome}:\n{}", guest.last_lines());
}
