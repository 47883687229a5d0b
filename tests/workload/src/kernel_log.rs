//! Kernel messages that say that something is wrong with the machine or the CPU.

/// Words in such messages.
const COMPLAINTS: [&str; 23] = [
    "BUG",
    "Oops",
    "WARNING: CPU",
    "Call Trace",
    "panic",
    "Fatal",
    "stall",
    "unstable",
    "lockup",
    "blocked for more than",
    "nobody cared",
    "spurious",
    "calibrat",
    "APIC error",
    "ACPI Error",
    "ACPI BIOS",
    "Machine check",
    "invalid opcode",
    "general protection",
    "unchecked MSR",
    "too short",
    "disabling IRQ",
    "missed",
];

/// Messages with such a word that are no complaint, or that a stock kernel has to print here.
const HARMLESS: [&str; 2] = [
    // The clock's frequency is known.
    "Calibrating delay loop (skipped)",
    // What an old, small RTC says of its alarm.
    "rtc_cmos",
];

/// Whether a line of a console is a complaint.
pub fn complains(line: &str) -> bool {
    COMPLAINTS.iter().any(|word| line.contains(word))
        && !HARMLESS.iter().any(|message| line.contains(message))
}

/// The lines of a console that are complaints.
pub fn complaints(text: &str) -> Vec<&str> {
    text.lines().filter(|line| complains(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found() {
        let text = "[    0.1] BUG: x\n[    1.2] Calibrating delay loop (skipped)\nfine\n";
        assert_eq!(complaints(text), ["[    0.1] BUG: x"]);
    }
}
