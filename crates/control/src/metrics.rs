//! Counters as Prometheus reads them (its text exposition format, version 0.0.4).

use std::fmt::Write;

use api::VmUsage;

/// The text for one VM. The VM's name is the scraper's to add: it may change.
pub(crate) fn text(usage: &VmUsage, running: bool) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP ringfence_vm_{name} {help}");
        let _ = writeln!(text, "# TYPE ringfence_vm_{name} {kind}");
        let _ = writeln!(text, "ringfence_vm_{name} {value}");
    };
    metric("running", "gauge", "1 while the guest executes.", f64::from(u8::from(running)));
    metric("cpu_seconds_total", "counter", "CPU time of the process.", usage.cpu_seconds);
    metric("wall_seconds_total", "counter", "Time since the process began.", usage.wall_seconds);
    metric("resident_bytes", "gauge", "Resident memory.", usage.resident as f64);
    metric("private_bytes", "gauge", "Resident memory that is not shared.", usage.private as f64);
    let guest = usage.guest_time_ns as f64 / 1e9;
    metric("guest_seconds_total", "counter", "Guest time.", guest);
    let instructions = usage.instructions as f64;
    metric("instructions_total", "counter", "Guest instructions, where counted.", instructions);
    accesses(&mut text, usage);
    text
}

/// Accesses of devices, by device.
fn accesses(text: &mut String, usage: &VmUsage) {
    let _ = writeln!(text, "# HELP ringfence_vm_device_accesses_total Accesses by device.");
    let _ = writeln!(text, "# TYPE ringfence_vm_device_accesses_total counter");
    for bus in ["ports", "mmio"] {
        for entry in usage.vm.get(bus).and_then(|list| list.as_array()).into_iter().flatten() {
            let Some(device) = entry.get("device").and_then(|name| name.as_str()) else { continue };
            for direction in ["reads", "writes"] {
                let count = entry.get(direction).and_then(serde_json::Value::as_u64).unwrap_or(0);
                let _ = writeln!(
                    text,
                    "ringfence_vm_device_accesses_total{{bus=\"{bus}\",device=\"{device}\",\
                     direction=\"{direction}\"}} {count}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_comment_or_a_sample() {
        let usage = VmUsage {
            wall_seconds: 2.5,
            cpu_seconds: 0.25,
            resident: 4096,
            private: 0,
            guest_time_ns: 1_500_000_000,
            instructions: 7,
            vm: serde_json::json!({"ports": [{"device": "pit", "reads": 1, "writes": 2}]}),
        };
        let text = text(&usage, true);
        assert!(text.contains("\nringfence_vm_guest_seconds_total 1.5\n"), "{text}");
        assert!(text.contains("{bus=\"ports\",device=\"pit\",direction=\"writes\"} 2\n"), "{text}");
        for line in text.lines() {
            let sample = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
            assert!(line.starts_with("# ") || sample.is_some(), "{line}");
        }
    }
}
