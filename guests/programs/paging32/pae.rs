//! PAE paging (4.4).

use crate::scene::*;
use kit::cpu::{self, feature};
use kit::page::{bit, peek, poke};
use kit::trap::vector::{GP, PF};
use kit::{Code, Outcome, Report, snippet32};

pub fn run(t: &mut Report) {
    pointers_are_registers(t);
    pointer_faults(t);
    absent(t);
    pages(t);
    reserved(t);
    no_execute(t);
}

const ADDRESS: u32 = WINDOW + 0x5000;

fn read() -> Code {
    snippet32!("mov eax, [ebx]")
}

/// The pointers are read when CR3 is written, and then not again (4.4.1).
fn pointers_are_registers(t: &mut Report) {
    set64(&PAE_TABLE, 5, data(0) | 3);
    poke(data(0), 0x1234);
    let trap = paged_pae(read()).ebx(ADDRESS).run();
    t.eq("PAE: a page", (trap.outcome(), trap.regs.rax), (Outcome::Done, 0x1234));
    // Clearing it in memory has no effect, even after INVLPG, until CR3 is written.
    let clear = snippet32!("mov dword ptr [ecx], 0", "invlpg [ebx]", "mov eax, [ebx]");
    let pointer = pointers() + 8;
    let trap = paged_pae(clear).ebx(ADDRESS).ecx(pointer).run();
    t.eq(
        "PAE: a pointer changed in memory",
        (trap.outcome(), trap.regs.rax),
        (Outcome::Done, 0x1234),
    );
    reset_pointers();
    let reload =
        snippet32!("mov dword ptr [ecx], 0", "mov eax, cr3", "mov cr3, eax"; "mov eax, [ebx]");
    let got = paged_pae(reload).ebx(ADDRESS).ecx(pointer).outcome();
    t.eq("PAE: and reloaded by MOV CR3", got, Outcome::page(0, ADDRESS.into()));
    reset_pointers();
    for (name, code) in [
        (
            "CR4.PGE",
            snippet32!("mov dword ptr [ecx], 0", "mov eax, cr4", "btc eax, 7", "mov cr4, eax"; "mov eax, [ebx]"),
        ),
        (
            "CR4.PSE",
            snippet32!("mov dword ptr [ecx], 0", "mov eax, cr4", "btc eax, 4", "mov cr4, eax"; "mov eax, [ebx]"),
        ),
        (
            "CR0.CD",
            snippet32!("mov dword ptr [ecx], 0", "mov eax, cr0", "btc eax, 30", "mov cr0, eax"; "mov eax, [ebx]"),
        ),
    ] {
        let got = paged_pae(code).ebx(ADDRESS).ecx(pointer).outcome();
        t.eq(
            format_args!("PAE: and reloaded by a change of {name}"),
            got,
            Outcome::page(0, ADDRESS.into()),
        );
        reset_pointers();
    }
    let other = snippet32!(
        "mov dword ptr [ecx], 0",
        "mov eax, cr4",
        "btc eax, 2",
        "mov cr4, eax",
        "mov eax, [ebx]"
    );
    let trap = paged_pae(other).ebx(ADDRESS).ecx(pointer).run();
    t.eq(
        "PAE: and not by a change of CR4.TSD",
        (trap.outcome(), trap.regs.rax),
        (Outcome::Done, 0x1234),
    );
    reset_pointers();
}

/// Reserved bits of a pointer that is present: #GP, and nothing changes.
fn pointer_faults(t: &mut Report) {
    let reload = snippet32!("mov eax, cr3", "or dword ptr [ecx], edx", "or [ecx + 4], esi"; "mov cr3, eax", "mov eax, [ebx]");
    let mut table = t.table("PAE: reserved bits of a pointer");
    let width = cpu::physical_bits();
    for bit in 0..64_u32 {
        let reserved = matches!(bit, 1 | 2 | 5..=8) || bit >= width;
        // The directory's own address must stay.
        if !reserved && !matches!(bit, 3 | 4 | 9..=11) {
            continue;
        }
        let value = 1_u64 << bit;
        let mut run = paged_pae(reload).ebx(ADDRESS).ecx(pointers() + 8);
        (run.regs[3], run.regs[4]) = (value as u32, (value >> 32) as u32);
        let expected = if reserved { Outcome::coded(GP, 0) } else { Outcome::Done };
        table.eq(format_args!("bit {bit}"), run.outcome(), expected);
        reset_pointers();
        // An absent pointer may hold anything.
        set_pointer(2, value & !1);
        let load = snippet32!("mov eax, cr3", "mov cr3, eax");
        table.eq(format_args!("bit {bit}, absent"), paged_pae(load).outcome(), Outcome::Done);
        reset_pointers();
    }
    table.finish();
    // The old pointers stay after the fault.
    let handler = snippet32!("mov eax, [ebx]", "int 0xf0");
    kit::legacy::set_gate(GP as u8, handler.start as u32, kit::tables::KERNEL_CODE32, 14, 0);
    let mut run = paged_pae(reload).ebx(ADDRESS).ecx(pointers() + 8);
    run.regs[3] = 2;
    let trap = run.run();
    t.eq("PAE: the registers stay after #GP", (trap.vector, trap.regs.rax), (0xf0, 0x1234));
    kit::legacy::restore_gate(GP as u8);
    reset_pointers();
    let on = snippet32!("mov eax, cr0", "bts eax, 31"; "mov cr0, eax");
    let mut run = paged_pae(on);
    run.cr0 &= !PG;
    set_pointer(3, 0x1000 | 2 | 1);
    t.eq("#GP PAE: turning paging on", run.outcome(), Outcome::coded(GP, 0));
    reset_pointers();
    let pse = snippet32!("or dword ptr [ecx], 2", "mov eax, cr4", "btc eax, 7"; "mov cr4, eax");
    let got = paged_pae(pse).ecx(pointers() + 24).outcome();
    t.eq("#GP PAE: a change of CR4.PGE", got, Outcome::coded(GP, 0));
    reset_pointers();
}

fn absent(t: &mut Report) {
    set_pointer(1, 0);
    let write = snippet32!("mov [ebx], eax");
    t.eq(
        "PAE: absent pointer",
        paged_pae(read()).ebx(ADDRESS).outcome(),
        Outcome::page(0, ADDRESS.into()),
    );
    t.eq(
        "PAE: absent pointer, write",
        paged_pae(write).ebx(ADDRESS).outcome(),
        Outcome::page(2, ADDRESS.into()),
    );
    reset_pointers();
    let beyond = WINDOW + 0x20_0000;
    t.eq(
        "PAE: absent directory entry",
        paged_pae(read()).ebx(beyond).outcome(),
        Outcome::page(0, beyond.into()),
    );
    set64(&PAE_TABLE, 6, 0);
    let hole = WINDOW + 0x6000;
    t.eq("PAE: absent page", paged_pae(read()).ebx(hole).outcome(), Outcome::page(0, hole.into()));
}

fn pages(t: &mut Report) {
    poke(0x40_0000 + 0x1230, 0x1111_2222);
    set64(&PAE_DIRECTORY, 1, 0x40_0083);
    let address = WINDOW + 0x20_1230;
    let trap = paged_pae(read()).ebx(address).run();
    t.eq("PAE: 2 MiB page", (trap.outcome(), trap.regs.rax), (Outcome::Done, 0x1111_2222));
    t.eq("PAE: 2 MiB page: accessed", get64(&PAE_DIRECTORY, 1), 0x40_00a3);
    paged_pae(snippet32!("mov [ebx], eax")).ebx(address).eax(7).run();
    t.eq("PAE: 2 MiB page: dirty", (get64(&PAE_DIRECTORY, 1), peek(0x40_1230)), (0x40_00e3, 7));
    set64(&PAE_TABLE, 5, data(0) | 3);
    paged_pae(snippet32!("mov [ebx], eax")).ebx(ADDRESS).eax(8).run();
    t.eq("PAE: 4 KiB page: dirty", (get64(&PAE_TABLE, 5) & 0x60, peek(data(0))), (0x60, 8));
    // CR4.PSE does not matter.
    let mut run = paged_pae(read()).ebx(address);
    run.cr4 |= PSE;
    t.eq("PAE: CR4.PSE does not matter", run.run().regs.rax, 7);
    // Linear addresses end at 4 GiB.
    let wrap = snippet32!("mov eax, [ebx + 0x7fffffff + 0x40000001]");
    let trap = paged_pae(wrap).ebx(ADDRESS + WINDOW).run();
    t.eq("PAE: addresses wrap at 4 GiB", (trap.outcome(), trap.regs.rax), (Outcome::Done, 8));
}

fn reserved(t: &mut Report) {
    let width = cpu::physical_bits();
    let mut table = t.table("PAE: reserved bits of entries");
    let fault = |address: u32| Outcome::page(9, address.into());
    for bit in 12..63_u32 {
        let above = bit >= width;
        // A table outside memory reads as whatever: only what must fault is looked at.
        if above {
            set64(&PAE_DIRECTORY, 0, PAE_TABLE.addr() | 7 | 1 << bit);
            let got = paged_pae(read()).ebx(ADDRESS).outcome();
            table.eq(format_args!("directory entry, bit {bit}"), got, fault(ADDRESS));
            set64(&PAE_DIRECTORY, 0, PAE_TABLE.addr() | 7);
            set64(&PAE_TABLE, 5, data(0) | 3 | 1 << bit);
            let got = paged_pae(read()).ebx(ADDRESS).outcome();
            table.eq(format_args!("table entry, bit {bit}"), got, fault(ADDRESS));
        }
        if above || (13..21).contains(&bit) {
            let large = WINDOW + 0x20_0000;
            set64(&PAE_DIRECTORY, 1, 0x40_0083 | 1 << bit);
            let got = paged_pae(read()).ebx(large).outcome();
            table.eq(format_args!("2 MiB page, bit {bit}"), got, fault(large));
        }
    }
    table.finish();
    set64(&PAE_TABLE, 5, data(0) | 3);
    set64(&PAE_DIRECTORY, 1, 0);
}

fn no_execute(t: &mut Report) {
    if !feature::NX.offered() {
        return t.skip("PAE: no-execute", "not offered");
    }
    // A whole instruction and the INT that ends a run.
    kit::real::store(data(0), &[0x40, 0xcd, 0xf0]);
    let jump = snippet32!("jmp ebx");
    let run = || {
        let mut run = paged_pae(jump).ebx(ADDRESS);
        run.mark = ADDRESS;
        run
    };
    set64(&PAE_TABLE, 5, data(0) | 3);
    t.eq("PAE: executable page", run().run().vector, 0xf0);
    set64(&PAE_TABLE, 5, data(0) | 3 | bit::NX);
    t.eq("PAE: no-execute page", run().outcome(), Outcome::page(0x11, ADDRESS.into()));
    let trap = paged_pae(read()).ebx(ADDRESS).run();
    t.eq("PAE: no-execute page can be read", trap.outcome(), Outcome::Done);
    set64(&PAE_TABLE, 5, data(0) | 3);
    set64(&PAE_DIRECTORY, 0, PAE_TABLE.addr() | 7 | bit::NX);
    t.eq("PAE: no-execute directory entry", run().outcome(), Outcome::page(0x11, ADDRESS.into()));
    // Without EFER.NXE the bit is reserved.
    let off = snippet32!("mov ecx, 0xc0000080", "rdmsr", "btr eax, 11", "wrmsr"; "mov eax, [ebx]");
    let trap = paged_pae(off).ebx(ADDRESS).run();
    let efer = cpu::rdmsr(cpu::msr::EFER);
    cpu::wrmsr(cpu::msr::EFER, efer | 1 << 11);
    t.eq("PAE: NX without NXE is reserved", trap.outcome(), Outcome::page(9, ADDRESS.into()));
    // Nor does a fetch show as one then.
    let off = snippet32!("mov ecx, 0xc0000080", "rdmsr", "btr eax, 11", "wrmsr", "jmp ebx");
    set64(&PAE_DIRECTORY, 0, PAE_TABLE.addr() | 7);
    set64(&PAE_TABLE, 5, 0);
    let trap = paged_pae(off).ebx(ADDRESS).run();
    cpu::wrmsr(cpu::msr::EFER, efer | 1 << 11);
    t.eq("PAE: a fetch without NXE", (trap.vector, trap.error, trap.cr2), (PF, 0, ADDRESS.into()));
    set64(&PAE_TABLE, 5, data(0) | 3);
}
