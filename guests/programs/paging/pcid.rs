//! Process-context identifiers and INVPCID (SDM vol. 3A 4.10.1, vol. 2A).

use crate::invalidation::{NEW, OLD, VA, change, prime, read};
use kit::cpu::{self, cr0, cr4, feature};
use kit::page::bit;
use kit::trap::vector::*;
use kit::{Mode, Outcome, Report, snippet};

const NO_FLUSH: u64 = 1 << 63;

pub fn run(t: &mut Report) {
    let root = cpu::read_cr3();
    if feature::PCID.offered() {
        rules(t, root);
        tags(t, root);
    } else {
        t.skip("PCID", "not offered");
        let set = cpu::try_write_cr4(cpu::read_cr4() | cr4::PCIDE);
        t.eq("#GP CR4.PCIDE where not offered", set, Some(GP));
    }
    if feature::INVPCID.offered() {
        invpcid_checks(t);
        if feature::PCID.offered() {
            invpcid_types(t, root);
        } else {
            t.skip("INVPCID types", "no PCID");
        }
    } else {
        t.skip("INVPCID", "not offered");
    }
    cpu::write_cr3(root);
    cpu::write_cr4(cpu::read_cr4() & !(cr4::PCIDE | cr4::PGE));
}

fn rules(t: &mut Report, root: u64) {
    t.eq("#GP cr3 bit 63 without PCIDE", cpu::try_write_cr3(root | NO_FLUSH), Some(GP));
    cpu::write_cr3(root | 8);
    let set = cpu::try_write_cr4(cpu::read_cr4() | cr4::PCIDE);
    t.eq("#GP PCIDE with low bits in cr3", set, Some(GP));
    cpu::write_cr3(root);
    cpu::write_cr4(cpu::read_cr4() | cr4::PCIDE);
    cpu::write_cr3(root | 5 | NO_FLUSH);
    t.eq("cr3 reads back without bit 63", cpu::read_cr3(), root | 5);
    let clear = cpu::try_write_cr0(cpu::read_cr0() & !cr0::PG);
    t.eq("#GP clearing PG with PCIDE", clear, Some(GP));
    cpu::write_cr3(root);
    cpu::write_cr4(cpu::read_cr4() & !cr4::PCIDE);
}

fn old_or_new(&value: &u64) -> bool {
    value == OLD || value == NEW
}

fn tags(t: &mut Report, root: u64) {
    cpu::write_cr4(cpu::read_cr4() | cr4::PCIDE);
    cpu::write_cr3(root | 1);
    prime(0);
    cpu::write_cr3(root | 2);
    change(0);
    t.eq("a fresh PCID sees the new entry", read(), NEW);
    cpu::write_cr3(root | 1 | NO_FLUSH);
    t.holds("back without flush: old or new", read(), old_or_new);
    cpu::write_cr3(root | 1);
    t.eq("mov to cr3 flushes its PCID", read(), NEW);
    cpu::write_cr3(root | 1);
    prime(0);
    change(0);
    cpu::write_cr3(root | 1 | NO_FLUSH);
    t.holds("same PCID without flush: old or new", read(), old_or_new);
    kit::page::invlpg(VA);
    t.eq("invlpg acts on the current PCID", read(), NEW);
    cpu::write_cr3(root);
    cpu::write_cr4(cpu::read_cr4() & !cr4::PCIDE);
    prime(0);
    change(0);
    cpu::write_cr4(cpu::read_cr4() | cr4::PCIDE);
    cpu::write_cr4(cpu::read_cr4() & !cr4::PCIDE);
    t.eq("clearing PCIDE flushes", read(), NEW);
}

/// INVPCID with this type and descriptor.
fn invpcid(kind: u64, pcid: u64, address: u64) -> Outcome {
    let code = snippet!("push rdx", "push rcx"; "invpcid rax, [rsp]");
    code.at(Mode::Kernel64).rax(kind).rcx(pcid).rdx(address).outcome()
}

fn invpcid_checks(t: &mut Report) {
    let gp = Outcome::fault(GP);
    t.eq("#GP invpcid type 4", invpcid(4, 0, 0), gp);
    t.eq("#GP invpcid with reserved descriptor bits", invpcid(2, 1 << 12, 0), gp);
    t.eq("#GP invpcid non-canonical", invpcid(0, 0, 1 << 47), gp);
    t.eq("#GP invpcid type 0, PCID 1 without PCIDE", invpcid(0, 1, 0), gp);
    t.eq("#GP invpcid type 1, PCID 1 without PCIDE", invpcid(1, 1, 0), gp);
    t.eq("invpcid type 2 without PCIDE", invpcid(2, 0, 0), Outcome::Done);
    let user = snippet!("invpcid rax, [rsp - 64]").at(Mode::User64).rax(2).outcome();
    t.eq("#GP invpcid in ring 3", user, gp);
    t.eq("#UD invpcid with a register", snippet!(".byte 0x66,0x0f,0x38,0x82,0xc0").k(), {
        Outcome::fault(UD)
    });
    let fault = snippet!("invpcid rax, [rbx]").at(Mode::Kernel64).rax(2).rbx(0x4000_0000);
    t.eq("#PF invpcid descriptor", fault.outcome(), Outcome::page(0, 0x4000_0000));
    prime(0);
    change(0);
    invpcid(0, 0, VA);
    t.eq("invpcid type 0 without PCIDE", read(), NEW);
}

fn invpcid_types(t: &mut Report, root: u64) {
    cpu::write_cr4(cpu::read_cr4() | cr4::PCIDE | cr4::PGE);
    // A translation cached under PCID 1, changed under PCID 2, looked at
    // again under PCID 1 without flushing.
    let stale = |extra: u64, kind: u64, pcid: u64| {
        cpu::write_cr3(root | 1);
        prime(extra);
        cpu::write_cr3(root | 2);
        change(extra);
        invpcid(kind, pcid, VA);
        cpu::write_cr3(root | 1 | NO_FLUSH);
        read()
    };
    t.eq("invpcid 0: one address of another PCID", stale(0, 0, 1), NEW);
    t.holds("invpcid 0: of the wrong PCID", stale(0, 0, 3), old_or_new);
    t.eq("invpcid 1: all of another PCID", stale(0, 1, 1), NEW);
    t.eq("invpcid 2: everything", stale(0, 2, 0), NEW);
    t.eq("invpcid 3: everything not global", stale(0, 3, 0), NEW);
    t.eq("invpcid 2: global too", stale(bit::G, 2, 0), NEW);
    t.holds("invpcid 3: global may stay", stale(bit::G, 3, 0), old_or_new);
    kit::page::invlpg(VA);
    cpu::write_cr3(root);
    cpu::write_cr4(cpu::read_cr4() & !(cr4::PCIDE | cr4::PGE));
}
