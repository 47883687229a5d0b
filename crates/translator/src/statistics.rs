//! What a vCPU has done, for `--stats`.
//!
//! Where translated code runs, nothing is counted. Exits are counted where they are taken; which
//! instructions they are of is found out when somebody asks, from the records.

use std::cmp::Reverse;
use std::collections::HashMap;

use engine::{ExitSite, VcpuStats};
use iced_x86::Code;

use crate::allow::Access;
use crate::glue::{EXIT_KINDS, Exit};
use crate::records::{Checked, Record, Sharing};

/// Sites that are reported.
const MOST_SITES: usize = 20;

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) translated: u64,
    pub(crate) guest_bytes: u64,
    pub(crate) host_bytes: u64,
    pub(crate) translating_ns: u64,
    pub(crate) cache_drops: u64,
    /// By [`Exit`].
    pub(crate) exits: [u64; EXIT_KINDS],
    pub(crate) resumed: u64,
    pub(crate) interpreted_resumed: u64,
    /// Direct branches that could not be linked, and that were.
    pub(crate) links: [u64; 2],
    misses: Misses,
    pub(crate) tlb_fills: u64,
    pub(crate) groups_split: u64,
    pub(crate) dispatches: u64,
    /// Those of them in kernel code.
    pub(crate) kernel_dispatches: u64,
    pub(crate) interpreted_blocks: u64,
    /// The exits of code that is no more.
    pub(crate) sites: Sites,
}

/// TLB misses by what missed.
#[derive(Default)]
struct Misses {
    read: u64,
    write: u64,
    group: u64,
    string: u64,
}

impl Counters {
    /// A TLB miss of an access; `None` is that of a string instruction.
    pub(crate) fn count_miss(&mut self, checked: Option<Checked>) {
        let misses = &mut self.misses;
        *match checked {
            None => &mut misses.string,
            Some(Checked { group: Sharing::Group | Sharing::ReadFirst, .. }) => &mut misses.group,
            Some(Checked { access: Access::Read, .. }) => &mut misses.read,
            Some(Checked { access: Access::Write, .. }) => &mut misses.write,
        } += 1;
    }

    /// Adds everything to what the interpreter has counted; `records` are those of the code that
    /// there is.
    pub(crate) fn report(&self, records: &[Record], stats: &mut VcpuStats) {
        // Translated code does not count.
        stats.instructions = None;
        let exits = |kind: Exit| self.exits[kind as usize];
        let [links_refused, links_made] = self.links;
        stats.counters.extend([
            ("blocks_translated", self.translated),
            ("guest_bytes_translated", self.guest_bytes),
            ("host_bytes_emitted", self.host_bytes),
            ("translating_ns", self.translating_ns),
            ("code_cache_drops", self.cache_drops),
            ("exits_to_interpreter", exits(Exit::Interpret)),
            ("exits_by_tlb_miss", exits(Exit::Miss)),
            ("exits_by_jump_miss", exits(Exit::Jump)),
            ("exits_to_link", exits(Exit::Chain)),
            ("exits_by_poll", exits(Exit::Poll)),
            ("exits_resumed", self.resumed),
            ("exits_interpreted_and_resumed", self.interpreted_resumed),
            ("links_made", links_made),
            ("links_refused", links_refused),
            ("inline_tlb_misses_read", self.misses.read),
            ("inline_tlb_misses_write", self.misses.write),
            ("inline_tlb_misses_group", self.misses.group),
            ("inline_tlb_misses_string", self.misses.string),
            ("inline_tlb_fills", self.tlb_fills),
            ("groups_split", self.groups_split),
            ("dispatches", self.dispatches),
            ("interpreted_alone", self.interpreted_blocks),
        ]);
        let mut sites = self.sites.clone();
        sites.add(records);
        stats.exit_sites = sites.most();
    }
}

/// How often code was left at instructions of each kind, by exit.
#[derive(Clone, Default)]
pub(crate) struct Sites(HashMap<(Code, u8), u64>);

impl Sites {
    pub(crate) fn add(&mut self, records: &[Record]) {
        for record in records.iter().filter(|record| record.taken != 0) {
            let key = (record.instruction, record.taken_as);
            *self.0.entry(key).or_default() += u64::from(record.taken);
        }
    }

    /// The most frequent ones, in order.
    fn most(&self) -> Vec<ExitSite> {
        let mut sites: Vec<_> = self.0.iter().map(|(key, count)| (*key, *count)).collect();
        sites.sort_by_key(|((code, kind), count)| (Reverse(*count), *code as u32, *kind));
        sites.truncate(MOST_SITES);
        let site = |((code, kind), count)| ExitSite {
            instruction: describe(code),
            reason: reason(kind),
            count,
        };
        sites.into_iter().map(site).collect()
    }
}

pub(crate) fn reason(kind: u8) -> &'static str {
    const NAMES: [(Exit, &str); EXIT_KINDS - 1] = [
        (Exit::Interpret, "interpret"),
        (Exit::Miss, "tlb miss"),
        (Exit::Chain, "link"),
        (Exit::Poll, "poll"),
        (Exit::Jump, "jump miss"),
    ];
    let name = NAMES.iter().find(|(exit, _)| *exit as u64 == u64::from(kind));
    name.map_or("unknown", |(_, name)| name)
}

/// Mnemonic and kinds of operands of an instruction.
fn describe(code: Code) -> String {
    if code == Code::INVALID {
        return String::new();
    }
    // Names are like `Mov_r64_rm64`, `VEX_Vaddps_xmm_xmm_xmmm128` and `Call_rel32_64`.
    let name = format!("{code:?}").to_lowercase();
    let name = name.strip_prefix("vex_").unwrap_or(&name);
    let name = name.strip_suffix("_64").unwrap_or(name);
    match name.split_once('_') {
        Some((mnemonic, operands)) => format!("{mnemonic} {}", operands.replace('_', ", ")),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use interpreter::Kept;

    use super::*;

    fn record(instruction: Code, taken_as: Exit, taken: u32) -> Record {
        Record {
            offset: 0,
            left: 0,
            straddles: false,
            instruction,
            checked: None,
            retry: 0,
            resume: 0,
            site: 0,
            kept: Kept::NONE,
            taken,
            taken_as: taken_as as u8,
        }
    }

    #[test]
    fn sites_are_summed_up_by_instruction_and_reason() {
        let records = [
            record(Code::Cpuid, Exit::Interpret, 3),
            record(Code::Mov_r64_rm64, Exit::Miss, 4),
            record(Code::Mov_r64_rm64, Exit::Miss, 5),
            record(Code::Mov_r64_rm64, Exit::Interpret, 1),
            record(Code::Hlt, Exit::Interpret, 0),
        ];
        let mut stats = VcpuStats::default();
        let mut counters = Counters::default();
        counters.sites.add(&records[..1]);
        counters.report(&records, &mut stats);
        let sites = stats.exit_sites.iter().map(|s| (s.instruction.as_str(), s.reason, s.count));
        let expected = [
            ("mov r64, rm64", "tlb miss", 9),
            ("cpuid", "interpret", 6),
            ("mov r64, rm64", "interpret", 1),
        ];
        assert!(sites.eq(expected), "{:?}", stats.exit_sites);
    }

    #[test]
    fn no_more_than_twenty_sites_are_reported() {
        let codes = Code::values().take(100).map(|code| record(code, Exit::Poll, 1));
        let mut sites = Sites::default();
        sites.add(&codes.collect::<Vec<_>>());
        assert_eq!(sites.most().len(), MOST_SITES);
    }

    #[test]
    fn instructions_are_described_by_mnemonic_and_operands() {
        assert_eq!(describe(Code::VEX_Vaddps_xmm_xmm_xmmm128), "vaddps xmm, xmm, xmmm128");
        assert_eq!(describe(Code::Call_rel32_64), "call rel32");
        assert_eq!(describe(Code::Hlt), "hlt");
        assert_eq!(describe(Code::INVALID), "");
    }

    #[test]
    fn misses_are_told_apart() {
        let checked = |access, group| Some(Checked { access, len: 8, alignment: 1, group });
        let mut counters = Counters::default();
        for (miss, times) in [
            (checked(Access::Read, Sharing::Alone), 1),
            (checked(Access::Write, Sharing::Alone), 2),
            (checked(Access::Write, Sharing::Group), 3),
            (None, 4),
        ] {
            (0..times).for_each(|_| counters.count_miss(miss));
        }
        let mut stats = VcpuStats::default();
        counters.report(&[], &mut stats);
        let of = |name: &str| stats.counters.iter().find(|(n, _)| n.ends_with(name)).unwrap().1;
        let by_kind = ["misses_read", "misses_write", "misses_group", "misses_string"].map(of);
        assert_eq!(by_kind, [1, 2, 3, 4]);
    }
}
