//! The table of permissions: entry bits at every level against access kind,
//! privilege, CR0.WP, CR4.SMEP, CR4.SMAP and RFLAGS.AC, compared with a model
//! written from SDM vol. 3A 4.6 and 4.7.

use crate::{FULL, Kind, VA, Walk};
use kit::cpu::{self, cr0, cr4, feature, flag};
use kit::page::{self, bit};
use kit::report::Table;
use kit::{Mode, Outcome, Report};

/// What besides the entries decides about an access.
#[derive(Clone, Copy)]
struct Context {
    mode: Mode,
    wp: bool,
    smep: bool,
    smap: bool,
    ac: bool,
}

/// Error code of the page fault, or `None` if the access is allowed.
fn model(flags: [u64; 4], kind: Kind, c: Context) -> Option<u64> {
    let user_mode = c.mode == Mode::User64;
    let kind_bits = match kind {
        Kind::Read => 0,
        Kind::Write => 2,
        Kind::Fetch => 0x10,
    };
    let error = kind_bits | if user_mode { 4 } else { 0 };
    if flags.iter().any(|f| f & bit::P == 0) {
        return Some(error);
    }
    let user_page = flags.iter().all(|f| f & bit::U != 0);
    let writable = flags.iter().all(|f| f & bit::W != 0);
    let no_execute = flags.iter().any(|f| f & bit::NX != 0);
    let allowed = if user_mode {
        user_page
            && match kind {
                Kind::Read => true,
                Kind::Write => writable,
                Kind::Fetch => !no_execute,
            }
    } else {
        let data = !(user_page && c.smap && !c.ac);
        match kind {
            Kind::Read => data,
            Kind::Write => data && (writable || !c.wp),
            Kind::Fetch => !no_execute && !(user_page && c.smep),
        }
    };
    if allowed { None } else { Some(error | 1) }
}

/// Sets CR0.WP and the CR4 bits of the context.
fn enter(c: Context) {
    let wp = if c.wp { cr0::WP } else { 0 };
    cpu::write_cr0(cpu::read_cr0() & !cr0::WP | wp);
    let smep = if c.smep { cr4::SMEP } else { 0 };
    let smap = if c.smap { cr4::SMAP } else { 0 };
    cpu::write_cr4(cpu::read_cr4() & !(cr4::SMEP | cr4::SMAP) | smep | smap);
}

/// Makes one access and compares outcome, accessed and dirty bits.
fn case(table: &mut Table<'_>, walk: &Walk, flags: [u64; 4], kind: Kind, c: Context) {
    walk.set(flags);
    let got = kind.make(VA, c.mode, if c.ac { flag::AC } else { 0 });
    let expected = match model(flags, kind, c) {
        None => Outcome::Done,
        Some(error) => Outcome::page(error, kind.address(VA)),
    };
    let bits = walk.accessed();
    // A faulting access may leave accessed bits, but never a dirty bit.
    let (bits, expected_bits) = match (expected, kind) {
        (Outcome::Done, Kind::Write) => (bits, 0x1f),
        (Outcome::Done, _) => (bits, 0x0f),
        _ => (bits & 0x10, 0),
    };
    table.eq(
        format_args!(
            "{kind:?} {:?} levels 1-4 {} {} {} {} wp={} smep={} smap={} ac={}",
            c.mode,
            Show(flags[0]),
            Show(flags[1]),
            Show(flags[2]),
            Show(flags[3]),
            c.wp,
            c.smep,
            c.smap,
            c.ac
        ),
        (got, bits),
        (expected, expected_bits),
    );
}

/// Prints entry flags as letters.
struct Show(u64);

impl core::fmt::Display for Show {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let letter = |bit, letter| if self.0 & bit != 0 { letter } else { "-" };
        f.write_str(letter(bit::P, "P"))?;
        f.write_str(letter(bit::W, "W"))?;
        f.write_str(letter(bit::U, "U"))?;
        f.write_str(letter(bit::NX, "X"))
    }
}

/// The flags that bit pattern `bits` stands for.
fn flags_of(bits: u64) -> u64 {
    let pick = |index: u64, flag| if bits >> index & 1 != 0 { flag } else { 0 };
    pick(0, bit::P) | pick(1, bit::W) | pick(2, bit::U) | pick(3, bit::NX)
}

const MODES: [Mode; 2] = [Mode::Kernel64, Mode::User64];

pub fn run(t: &mut Report) {
    let walk = Walk::new();
    one_level(t, &walk);
    spread_write(t, &walk);
    spread_execute(t, &walk);
    enter(Context { mode: Mode::Kernel64, wp: true, smep: false, smap: false, ac: false });
    toggles(t, &walk);
    dirty(t, &walk);
    if feature::PKU.offered() && cpu::read_cr4() & (1 << 22) == 0 {
        walk.set([FULL | 15 << 59, FULL, FULL, FULL]);
        let got = Kind::Read.make(VA, Mode::User64, 0);
        t.eq("protection key ignored without CR4.PKE", got, Outcome::Done);
    }
}

/// Every combination of the four bits at one level, the others permissive,
/// in every context.
fn one_level(t: &mut Report, walk: &Walk) {
    if !feature::SMEP.offered() {
        t.skip("permissions with SMEP", "not offered");
    }
    if !feature::SMAP.offered() {
        t.skip("permissions with SMAP", "not offered");
    }
    let mut table = t.table("permissions at one level");
    for setting in 0..8u64 {
        let [wp, smep, smap] = [0, 1, 2].map(|i| setting >> i & 1 != 0);
        if smep && !feature::SMEP.offered() || smap && !feature::SMAP.offered() {
            continue;
        }
        for (mode, ac) in [(Mode::Kernel64, false), (Mode::Kernel64, true), (Mode::User64, false)] {
            let c = Context { mode, wp, smep, smap, ac };
            enter(c);
            for level in 0..4 {
                for bits in 0..16 {
                    let mut flags = [FULL; 4];
                    flags[level] = flags_of(bits);
                    for kind in Kind::ALL {
                        case(&mut table, walk, flags, kind, c);
                    }
                }
            }
        }
    }
    table.finish();
}

/// W and U in every distribution over the levels, for data accesses.
fn spread_write(t: &mut Report, walk: &Walk) {
    let mut table = t.table("write and user bits over all levels");
    for wp in [false, true] {
        for mode in MODES {
            let c = Context { mode, wp, smep: false, smap: false, ac: false };
            enter(c);
            for pattern in 0..256u64 {
                let flags = [0, 1, 2, 3].map(|level| {
                    flags_of(1 | (pattern >> level & 1) << 1 | (pattern >> (4 + level) & 1) << 2)
                });
                case(&mut table, walk, flags, Kind::Read, c);
                case(&mut table, walk, flags, Kind::Write, c);
            }
        }
    }
    table.finish();
}

/// NX and U in every distribution over the levels, for fetches.
fn spread_execute(t: &mut Report, walk: &Walk) {
    let mut table = t.table("execute and user bits over all levels");
    for smep in [false, true] {
        if smep && !feature::SMEP.offered() {
            continue;
        }
        for mode in MODES {
            let c = Context { mode, wp: true, smep, smap: false, ac: false };
            enter(c);
            for pattern in 0..256u64 {
                let flags = [0, 1, 2, 3].map(|level| {
                    flags_of(3 | (pattern >> level & 1) << 2 | (pattern >> (4 + level) & 1) << 3)
                });
                case(&mut table, walk, flags, Kind::Fetch, c);
            }
        }
    }
    table.finish();
}

/// Control register changes act at once on translations already in use.
fn toggles(t: &mut Report, walk: &Walk) {
    walk.set([bit::P | bit::U, FULL, FULL, FULL]);
    let write = || Kind::Write.make(VA, Mode::Kernel64, 0);
    let fault = Outcome::page(3, Kind::Write.address(VA));
    t.eq("read-only with WP", write(), fault);
    cpu::write_cr0(cpu::read_cr0() & !cr0::WP);
    t.eq("read-only after clearing WP", write(), Outcome::Done);
    cpu::write_cr0(cpu::read_cr0() | cr0::WP);
    t.eq("read-only after setting WP", write(), fault);
    if feature::SMAP.offered() {
        walk.set([FULL; 4]);
        let read = |flags| Kind::Read.make(VA, Mode::Kernel64, flags);
        t.eq("user page without SMAP", read(0), Outcome::Done);
        cpu::write_cr4(cpu::read_cr4() | cr4::SMAP);
        let fault = Outcome::page(1, Kind::Read.address(VA));
        t.eq("user page after setting SMAP", read(0), fault);
        t.eq("user page after setting AC", read(flag::AC), Outcome::Done);
        t.eq("user page after clearing AC", read(0), fault);
        let stac = kit::snippet!("stac", "mov al, [rbx]", "clac"; "mov al, [rbx]");
        let got = stac.at(Mode::Kernel64).rbx(VA + crate::SPOT).outcome();
        t.eq("stac opens, clac closes", got, fault);
        t.eq("#UD stac in ring 3", kit::snippet!("stac").u(), Outcome::fault(6));
        cpu::write_cr4(cpu::read_cr4() & !cr4::SMAP);
    }
    if feature::SMEP.offered() {
        walk.set([FULL; 4]);
        let fetch = || Kind::Fetch.make(VA, Mode::Kernel64, 0);
        t.eq("user fetch without SMEP", fetch(), Outcome::Done);
        cpu::write_cr4(cpu::read_cr4() | cr4::SMEP);
        t.eq("user fetch after setting SMEP", fetch(), Outcome::page(0x11, VA));
        cpu::write_cr4(cpu::read_cr4() & !cr4::SMEP);
        t.eq("user fetch after clearing SMEP", fetch(), Outcome::Done);
    }
}

/// The dirty bit is set by the first write after a read, and only then.
fn dirty(t: &mut Report, walk: &Walk) {
    walk.set([FULL; 4]);
    t.eq("fresh entries", walk.accessed(), 0);
    Kind::Read.make(VA, Mode::User64, 0);
    t.eq("read sets A at every level", walk.accessed(), 0x0f);
    Kind::Write.make(VA, Mode::User64, 0);
    t.eq("write after read sets D", walk.accessed(), 0x1f);
    let upper = walk.0[1].get() | walk.0[2].get() | walk.0[3].get();
    t.eq("D only in the leaf", upper & bit::D, 0);
    walk.0[0].set(walk.0[0].get() & !(bit::A | bit::D));
    page::invlpg(VA);
    Kind::Write.make(VA, Mode::Kernel64, 0);
    t.eq("A and D again after clearing", walk.accessed(), 0x1f);
    walk.set([FULL; 4]);
    // A compare-and-exchange that fails writes the old value back.
    let code = kit::snippet!("mov eax, 0x7777", "lock cmpxchg [rbx], ecx");
    code.at(Mode::User64).rbx(VA + crate::SPOT).run();
    t.eq("failing lock cmpxchg sets D", walk.accessed(), 0x1f);
    walk.set([FULL; 4]);
    kit::snippet!("lock add dword ptr [rbx], 0").at(Mode::User64).rbx(VA + crate::SPOT).run();
    t.eq("lock add sets D", walk.accessed(), 0x1f);
    walk.set([FULL; 4]);
    kit::snippet!("prefetchw [rbx]", "prefetcht0 [rbx]").at(Mode::User64).rbx(VA).run();
    t.eq("prefetch sets no D", walk.accessed() & 0x10, 0);
    walk.set([FULL & !bit::P, FULL, FULL, FULL]);
    let before = walk.0[0].get();
    Kind::Write.make(VA, Mode::Kernel64, 0);
    t.eq("an absent entry stays untouched", walk.0[0].get(), before);
    walk.set([FULL; 4]);
}
