//! Rights at both levels, for every kind of access, in both modes (4.6).

use crate::scene::*;
use kit::cpu::{feature, flag};
use kit::legacy::Legacy;
use kit::page::poke;
use kit::{Code, Outcome, Report, snippet32};

const ADDRESS: u32 = WINDOW + 0x5000;
const SMEP: u32 = 1 << 20;
const SMAP: u32 = 1 << 21;

pub fn run(t: &mut Report) {
    table(t, "32-bit paging: rights", false);
    table(t, "PAE: rights", true);
    smep_and_smap(t, "32-bit paging", false);
    smep_and_smap(t, "PAE", true);
}

fn run_of(pae: bool, code: Code) -> Legacy {
    if pae { paged_pae(code) } else { paged32(code) }
}

/// Maps [`ADDRESS`] with these flags in the directory and in the table.
fn map(pae: bool, upper: u64, lower: u64) {
    if pae {
        set64(&PAE_DIRECTORY, 0, PAE_TABLE.addr() | upper);
        set64(&PAE_TABLE, 5, data(0) | lower);
    } else {
        set32(&DIRECTORY, WINDOW >> 22, TABLE.addr() as u32 | upper as u32);
        set32(&TABLE, 5, data(0) as u32 | lower as u32);
    }
}

fn table(t: &mut Report, name: &str, pae: bool) {
    let read = snippet32!("mov eax, [ebx]");
    let write = snippet32!("mov [ebx], eax");
    let mut table = t.table(name);
    for (upper, lower) in (0..16_u64).map(|n| (n >> 2 << 1 | 1, (n & 3) << 1 | 1)) {
        let both = upper & lower;
        let (writable, user) = (both & 2 != 0, both & 4 != 0);
        for (ring3, wp) in [(false, false), (false, true), (true, false), (true, true)] {
            for (kind, code) in [(0, read), (2, write)] {
                map(pae, upper, lower);
                let mut run = run_of(pae, code).ebx(ADDRESS);
                if ring3 {
                    run = in_ring3(run);
                }
                run.cr0 = if wp { run.cr0 | WP } else { run.cr0 & !WP };
                let may_write = writable || !ring3 && !wp;
                let allowed = (!ring3 || user) && (kind == 0 || may_write);
                let code = kind | 1 | if ring3 { 4 } else { 0 };
                let expected =
                    if allowed { Outcome::Done } else { Outcome::page(code, ADDRESS.into()) };
                let case =
                    format_args!("upper {upper} lower {lower} ring3 {ring3} WP {wp} kind {kind}");
                table.eq(case, run.outcome(), expected);
            }
        }
    }
    table.finish();
    map(pae, 7, 3);
}

/// A supervisor and the pages of users.
fn smep_and_smap(t: &mut Report, name: &str, pae: bool) {
    kit::real::store(data(0), &[0x40, 0xcd, 0xf0]);
    map(pae, 7, 7);
    if feature::SMEP.offered() {
        let jump = snippet32!("jmp ebx");
        let mut run = run_of(pae, jump).ebx(ADDRESS);
        run.mark = ADDRESS;
        t.eq(format_args!("{name}: a user page executed"), run.run().vector, 0xf0);
        run.cr4 |= SMEP;
        // A fetch is told as one with SMEP, also without PAE.
        t.eq(format_args!("{name}: SMEP"), run.outcome(), Outcome::page(0x11, ADDRESS.into()));
        map(pae, 7, 3);
        t.eq(format_args!("{name}: SMEP and a supervisor page"), run.run().vector, 0xf0);
    } else {
        t.skip(format_args!("{name}: SMEP"), "not offered");
    }
    map(pae, 7, 7);
    if feature::SMAP.offered() {
        let mut run = run_of(pae, snippet32!("mov eax, [ebx]")).ebx(ADDRESS);
        run.cr4 |= SMAP;
        t.eq(format_args!("{name}: SMAP"), run.outcome(), Outcome::page(1, ADDRESS.into()));
        run.eflags |= flag::AC as u32;
        t.eq(format_args!("{name}: SMAP with AC"), run.outcome(), Outcome::Done);
    } else {
        t.skip(format_args!("{name}: SMAP"), "not offered");
    }
    map(pae, 7, 3);
    poke(data(0), 0);
}
