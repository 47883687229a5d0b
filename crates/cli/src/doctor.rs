//! `ringfence doctor`: what this host offers.

use std::fs::{self, OpenOptions};
use std::io;

use lifecycle::{CpuLevel, EngineChoice, KvmOffer, direct_execution, host, kvm_features};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::report;

/// One thing that was looked at.
#[derive(Serialize)]
struct Check {
    check: &'static str,
    ok: bool,
    detail: String,
}

/// Looks at the host and prints what there is.
///
/// # Errors
/// When the result cannot be printed.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let checks = [
        engine(),
        cpu(),
        memory(),
        kvm(),
        check("kvm features", kvm_features()),
        translator(),
        check("direct execution", direct_execution()),
        check("isolation", isolation::offer()),
        user_namespaces(),
        tap(),
        ksm(),
        huge_pages(),
    ];
    let text = if args.json {
        serde_json::to_string_pretty(&checks)? + "\n"
    } else {
        checks
            .iter()
            .map(|c| format!("{:4} {:16} {}\n", if c.ok { "ok" } else { "no" }, c.check, c.detail))
            .collect()
    };
    Ok(report::print(&text)?)
}

fn check(check: &'static str, found: Result<String, String>) -> Check {
    let ok = found.is_ok();
    Check { check, ok, detail: found.unwrap_or_else(|cause| cause) }
}

fn engine() -> Check {
    let selected = EngineChoice::Auto.select();
    let found = selected
        .map(|s| format!("`--engine auto` takes the {}: {}", s.engine.name(), s.reason))
        .map_err(|e| e.to_string());
    check("engine", found)
}

fn cpu() -> Check {
    let found = CpuLevel::Portable.profile().map(|profile| {
        let (level, vendor) = (profile.name(), profile.vendor());
        format!("guests see an x86-64-{level} {vendor:?} CPU at {} MHz", profile.tsc_khz() / 1000)
    });
    check("cpu", found.map_err(|e| e.to_string()))
}

fn memory() -> Check {
    let found = host::memory().map(|bytes| format!("{} MiB of RAM and swap", bytes >> 20));
    check("memory", found.map_err(|e| e.to_string()))
}

fn kvm() -> Check {
    let offer = KvmOffer::of_this_host();
    let found = match offer {
        KvmOffer::Hardware(..) | KvmOffer::Emulated(_) => Ok(offer.to_string()),
        KvmOffer::Unusable(_) => Err(offer.to_string()),
    };
    check("kvm", found)
}

fn translator() -> Check {
    let found = EngineChoice::Translator.select();
    check(
        "translator",
        found.map(|_| "the CPU has BMI2 and AVX2".to_owned()).map_err(|e| e.to_string()),
    )
}

fn tap() -> Check {
    check("tap", open("/dev/net/tun", "`--net tap` comes with a later version"))
}

fn open(path: &str, but: &str) -> Result<String, String> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(format!("{path} may be opened; {but}")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(format!("{path} is not there")),
        Err(e) => Err(format!("{path} is there, but cannot be opened: {e}")),
    }
}

fn user_namespaces() -> Check {
    let number = |path| read(path).and_then(|text| text.parse::<u64>().ok());
    let most = number("/proc/sys/user/max_user_namespaces").unwrap_or(0);
    let allowed = number("/proc/sys/kernel/unprivileged_userns_clone").unwrap_or(1);
    let found = match (most, allowed) {
        (0, _) => Err("the kernel allows none".to_owned()),
        (_, 0) => Err("only for root: kernel.unprivileged_userns_clone is 0".to_owned()),
        (most, _) => Ok(format!("up to {most}")),
    };
    check("user namespaces", found)
}

fn ksm() -> Check {
    let found = match read("/sys/kernel/mm/ksm/run").as_deref() {
        Some("1") => Ok("equal pages are merged".to_owned()),
        Some(_) => Err("off: /sys/kernel/mm/ksm/run is not 1".to_owned()),
        None => Err("the kernel has none".to_owned()),
    };
    check("ksm", found)
}

fn huge_pages() -> Check {
    let found = match read("/sys/kernel/mm/transparent_hugepage/enabled") {
        Some(text) if text.contains("[never]") => Err("transparent huge pages are off".to_owned()),
        Some(text) => {
            let mode = text.split(['[', ']']).nth(1).unwrap_or("on").to_owned();
            Ok(format!("transparent huge pages: {mode}"))
        }
        None => Err("the kernel has no transparent huge pages".to_owned()),
    };
    check("huge pages", found)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
