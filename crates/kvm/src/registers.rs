//! Between the engine-neutral state and KVM's structures.

use engine::{PendingEvents, Segments, Shadow, VcpuState};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, kvm_debugregs, kvm_dtable,
    kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use lapic::SavedLocalApic;
use x86::cr::rflags;
use x86::segment::{Segment, TableRegister, seg};
use x86::xsave;

/// Interrupt shadows in `kvm_vcpu_events` (KVM_X86_SHADOW_INT_MOV_SS and _STI).
const SHADOW_MOV_SS: u8 = 1;
const SHADOW_STI: u8 = 2;
/// XSTATE_BV of x87, SSE and AVX.
const COMPONENTS: u64 = 7;

pub(crate) fn to_regs(state: &VcpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] =
        state.general.gpr;
    let (rip, rflags) = (state.general.rip, state.general.rflags);
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

pub(crate) fn from_regs(r: &kvm_regs, state: &mut VcpuState) {
    state.general.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    (state.general.rip, state.general.rflags) = (r.rip, r.rflags);
}

fn to_segment(segment: &Segment) -> kvm_segment {
    let bit = |n: u32| (segment.attributes >> n & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind(),
        s: bit(4),
        dpl: segment.dpl(),
        present: bit(7),
        avl: bit(8),
        l: bit(9),
        db: bit(10),
        g: bit(11),
        unusable: 1 - bit(7),
        padding: 0,
    }
}

fn from_segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, n: u32| u16::from(value & 1) << n;
    let present = s.present & !s.unusable;
    let attributes = u16::from(s.type_ & 0xf)
        | bit(s.s, 4)
        | u16::from(s.dpl & 3) << 5
        | bit(present, 7)
        | bit(s.avl, 8)
        | bit(s.l, 9)
        | bit(s.db, 10)
        | bit(s.g, 11);
    Segment { selector: s.selector, base: s.base, limit: s.limit, attributes }
}

fn to_table(table: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

/// The task-priority class is that of the APIC.
pub(crate) fn to_sregs(state: &VcpuState) -> kvm_sregs {
    let Segments { segment, ldtr, tr, gdtr, idtr } = &state.segments;
    kvm_sregs {
        es: to_segment(&segment[seg::ES]),
        cs: to_segment(&segment[seg::CS]),
        ss: to_segment(&segment[seg::SS]),
        ds: to_segment(&segment[seg::DS]),
        fs: to_segment(&segment[seg::FS]),
        gs: to_segment(&segment[seg::GS]),
        ldt: to_segment(ldtr),
        tr: to_segment(tr),
        gdt: to_table(gdtr),
        idt: to_table(idtr),
        cr0: state.control.cr0,
        cr2: state.control.cr2,
        cr3: state.control.cr3,
        cr4: state.control.cr4,
        cr8: u64::from(state.apic.tpr >> 4),
        efer: state.control.efer,
        apic_base: state.apic.base_msr,
        interrupt_bitmap: [0; 4],
    }
}

/// ES, CS, SS, DS, FS and GS.
pub(crate) fn segments(s: &kvm_sregs) -> [Segment; 6] {
    [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(from_segment)
}

pub(crate) fn from_sregs(s: &kvm_sregs, state: &mut VcpuState) {
    let table = |t: &kvm_dtable| TableRegister { base: t.base, limit: t.limit };
    state.segments = Segments {
        segment: segments(s),
        ldtr: from_segment(&s.ldt),
        tr: from_segment(&s.tr),
        gdtr: table(&s.gdt),
        idtr: table(&s.idt),
    };
    let control = &mut state.control;
    (control.cr0, control.cr2, control.cr3, control.cr4) = (s.cr0, s.cr2, s.cr3, s.cr4);
    control.efer = s.efer;
}

pub(crate) fn to_debug(state: &VcpuState) -> kvm_debugregs {
    let debug = &state.debug;
    kvm_debugregs { db: debug.address, dr6: debug.dr6, dr7: debug.dr7, ..Default::default() }
}

pub(crate) fn from_debug(d: &kvm_debugregs, state: &mut VcpuState) {
    (state.debug.address, state.debug.dr6, state.debug.dr7) = (d.db, d.dr6, d.dr7);
}

pub(crate) fn to_xcrs(state: &VcpuState) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = state.control.xcr0;
    xcrs
}

pub(crate) fn from_xcrs(xcrs: &kvm_xcrs, state: &mut VcpuState) {
    if let Some(xcr0) = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|x| x.xcr == 0) {
        state.control.xcr0 = xcr0.value;
    }
}

pub(crate) fn to_xsave(state: &VcpuState) -> kvm_xsave {
    let mut area = kvm_xsave::default();
    for (word, bytes) in area.region.iter_mut().zip(state.xsave.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    area
}

/// Components beyond those of the profile are dropped: XCR0 cannot have enabled them.
pub(crate) fn from_xsave(area: &kvm_xsave, state: &mut VcpuState) {
    let words = area.region.iter().take(xsave::AREA_SIZE / 4);
    state.xsave = words.flat_map(|word| word.to_le_bytes()).collect();
    let used = u64::from(area.region[xsave::XSTATE_BV / 4]) & COMPONENTS;
    state.xsave[xsave::XSTATE_BV..xsave::AVX_OFFSET].fill(0);
    state.xsave[xsave::XSTATE_BV..xsave::XSTATE_BV + 8].copy_from_slice(&used.to_le_bytes());
    // Software bytes behind the registers, which no instruction writes.
    state.xsave[464..xsave::LEGACY_SIZE].fill(0);
}

pub(crate) fn to_events(events: &PendingEvents) -> kvm_vcpu_events {
    let mut e = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    e.nmi.pending = u8::from(events.nmi);
    e.nmi.masked = u8::from(events.nmi_blocked);
    e.interrupt.shadow = match events.shadow {
        Shadow::None => 0,
        Shadow::Sti => SHADOW_STI,
        Shadow::MovSs => SHADOW_MOV_SS,
    };
    e
}

/// An event whose delivery has not ended is taken back: an exception comes again with its
/// instruction, an interrupt waits in the APIC again, an NMI is pending again.
pub(crate) fn from_events(e: &kvm_vcpu_events, state: &mut VcpuState) {
    let taken_back = e.nmi.injected != 0;
    state.events = PendingEvents {
        event: None,
        nmi: e.nmi.pending != 0 || taken_back,
        nmi_blocked: e.nmi.masked != 0 && !taken_back,
        woken: false,
        shadow: match e.interrupt.shadow {
            0 => Shadow::None,
            shadow if shadow & SHADOW_MOV_SS != 0 => Shadow::MovSs,
            _ => Shadow::Sti,
        },
        debug_trap: 0,
        extint: state.events.extint,
    };
    // A guest that takes an interrupt has IF set, and clear behind the gate: an emulated KVM has
    // been seen to call an interrupt injected whose handler was running.
    let waits = state.general.rflags & rflags::IF != 0;
    if e.interrupt.injected != 0 && e.interrupt.soft == 0 && waits {
        take_back(&mut state.apic, e.interrupt.nr);
    }
}

/// The opposite of `LocalApic::acknowledge`.
fn take_back(apic: &mut SavedLocalApic, vector: u8) {
    let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
    apic.isr[word] &= !bit;
    apic.irr[word] |= bit;
}

/// A state with nothing in it, to be replaced by the first one that is loaded.
pub(crate) fn blank(apic: SavedLocalApic) -> VcpuState {
    VcpuState {
        general: Default::default(),
        segments: Segments::default(),
        control: Default::default(),
        debug: Default::default(),
        xsave: Vec::new(),
        msrs: Vec::new(),
        apic,
        events: PendingEvents::default(),
        tsc: 0,
        run_state: Default::default(),
    }
}
