//! The local APIC in its present mode: registers, priorities, EOI. Run once
//! in xAPIC and once in x2APIC mode.

use crate::{END, Log, clear_log, hook_all, log, log_eoi, logged, unhook_all};
use kit::apic::{self, reg};
use kit::trap::vector::GP;
use kit::trap::{self, Frame};
use kit::{Global, Report, cpu};

pub fn run(t: &mut Report, mode: &str) {
    registers(t, mode);
    one(t, mode);
    order(t, mode);
    nesting(t, mode);
    task_priority(t, mode);
    cr8(t, mode);
    same_vector(t, mode);
    illegal(t, mode);
    software_disable(t, mode);
}

/// ISR bit, IRR bit and PPR, seen by a handler.
static SEEN: Global<(bool, bool, u32)> = Global::new((false, false, 0));

fn registers(t: &mut Report, mode: &str) {
    t.eq(format_args!("{mode}: BSP flag"), cpu::rdmsr(cpu::msr::APIC_BASE) >> 8 & 1, 1);
    let version = apic::read(reg::VERSION);
    t.holds(format_args!("{mode}: version"), version, |v| (0x10..=0x1f).contains(&(v & 0xff)));
    t.holds(format_args!("{mode}: LVT entries"), version >> 16 & 0xff, |n| (3..=6).contains(n));
    t.eq(format_args!("{mode}: SVR"), apic::read(reg::SVR) & 0x1ff, 0x1ff);
    let initial = cpu::cpuid(1, 0).ebx >> 24;
    let id = apic::read(reg::ID);
    let id = if apic::is_x2apic() { id } else { id >> 24 };
    t.eq(format_args!("{mode}: ID as CPUID says"), id, initial);
    apic::write(reg::LVT_ERROR, 0xfd);
    t.eq(format_args!("{mode}: LVT error"), apic::read(reg::LVT_ERROR), 0xfd);
    apic::write(reg::LVT_ERROR, apic::MASKED | 0xfe);
}

fn one(t: &mut Report, mode: &str) {
    const VECTOR: u8 = 0x47;
    fn see(_: &mut Frame) {
        let isr = apic::vector_bit(reg::ISR, VECTOR);
        let irr = apic::vector_bit(reg::IRR, VECTOR);
        SEEN.set((isr, irr, apic::read(reg::PPR)));
        apic::eoi();
    }
    trap::hook(VECTOR, Some(see));
    apic::self_ipi(VECTOR);
    t.that(format_args!("{mode}: IRR while pending"), apic::vector_bit(reg::IRR, VECTOR));
    t.eq(format_args!("{mode}: PPR while pending"), apic::read(reg::PPR), 0);
    cpu::interrupt_window();
    let seen = (true, false, 0x40);
    t.holds(format_args!("{mode}: ISR, IRR, PPR in service"), SEEN.get(), |&(isr, irr, ppr)| {
        (isr, irr, ppr & 0xf0) == seen
    });
    t.eq(format_args!("{mode}: ISR after EOI"), apic::vector_bit(reg::ISR, VECTOR), false);
    t.eq(format_args!("{mode}: TMR of an edge"), apic::vector_bit(reg::TMR, VECTOR), false);
    t.eq(format_args!("{mode}: PPR after EOI"), apic::read(reg::PPR), 0);
    apic::eoi();
    t.eq(format_args!("{mode}: EOI with nothing in service"), apic::read(reg::PPR), 0);
    trap::hook(VECTOR, None);
}

fn order(t: &mut Report, mode: &str) {
    let vectors = [0x51, 0x82, 0x55, 0x93, 0x20, 0xee];
    hook_all(&vectors, log_eoi);
    clear_log();
    for vector in vectors {
        apic::self_ipi(vector);
    }
    for _ in 0..8 {
        cpu::interrupt_window();
    }
    let expected = Log::of(&[0xee, 0x93, 0x82, 0x55, 0x51, 0x20]);
    t.eq(format_args!("{mode}: highest vector first"), logged(), expected);
    unhook_all(&vectors);
}

fn nesting(t: &mut Report, mode: &str) {
    fn outer(frame: &mut Frame) {
        let vector = frame.vector as u16;
        log(vector);
        apic::self_ipi(0x5f);
        apic::self_ipi(0x60);
        apic::self_ipi(0x4f);
        cpu::interrupt_window();
        log(vector + END);
        apic::eoi();
    }
    let inner = [0x4f, 0x5f, 0x60];
    hook_all(&inner, log_eoi);
    trap::hook(0x50, Some(outer));
    clear_log();
    apic::self_ipi(0x50);
    for _ in 0..5 {
        cpu::interrupt_window();
    }
    // 0x5f has the class of 0x50 and waits for its EOI.
    let expected = Log::of(&[0x50, 0x60, 0x50 + END, 0x5f, 0x4f]);
    t.eq(format_args!("{mode}: only a higher class nests"), logged(), expected);
    unhook_all(&inner);
    trap::hook(0x50, None);
}

fn task_priority(t: &mut Report, mode: &str) {
    let vectors = [0x3f, 0x40, 0x4f, 0x50];
    hook_all(&vectors, log_eoi);
    for (tpr, expected) in [
        (0x40, &[0x50u16][..]),
        (0x4f, &[0x50]),
        (0x30, &[0x50, 0x4f, 0x40]),
        (0xf0, &[]),
        (0x00, &[0x50, 0x4f, 0x40, 0x3f]),
    ] {
        clear_log();
        apic::write(reg::TPR, tpr);
        for vector in vectors {
            apic::self_ipi(vector);
        }
        for _ in 0..5 {
            cpu::interrupt_window();
        }
        t.eq(format_args!("{mode}: TPR {tpr:#x} lets in"), logged(), Log::of(expected));
        t.eq(format_args!("{mode}: PPR with TPR {tpr:#x}"), apic::read(reg::PPR), tpr);
        apic::write(reg::TPR, 0);
        for _ in 0..5 {
            cpu::interrupt_window();
        }
        t.eq(format_args!("{mode}: all after TPR {tpr:#x}"), crate::LOG_LEN.get(), 4);
    }
    unhook_all(&vectors);
    // Task priority and service of the same class: PPR is the TPR.
    fn see(_: &mut Frame) {
        apic::write(reg::TPR, 0x35);
        SEEN.set((false, false, apic::read(reg::PPR)));
        apic::write(reg::TPR, 0);
        apic::eoi();
    }
    trap::hook(0x32, Some(see));
    apic::self_ipi(0x32);
    cpu::interrupt_window();
    trap::hook(0x32, None);
    t.eq(format_args!("{mode}: PPR of TPR 0x35, ISR 0x32"), SEEN.get().2, 0x35);
}

fn cr8(t: &mut Report, mode: &str) {
    cpu::write_cr8(5);
    t.eq(format_args!("{mode}: CR8 sets TPR"), apic::read(reg::TPR), 0x50);
    apic::write(reg::TPR, 0x7c);
    t.eq(format_args!("{mode}: TPR sets CR8"), cpu::read_cr8(), 7);
    t.eq(format_args!("{mode}: #GP CR8 = 16"), cpu::try_write_cr8(16), Some(GP));
    cpu::write_cr8(0);
}

/// One request of a vector waits while another is in service.
fn same_vector(t: &mut Report, mode: &str) {
    const VECTOR: u8 = 0x66;
    trap::hook(VECTOR, Some(log_eoi));
    clear_log();
    apic::self_ipi(VECTOR);
    apic::self_ipi(VECTOR);
    for _ in 0..3 {
        cpu::interrupt_window();
    }
    t.eq(format_args!("{mode}: two requests, one interrupt"), logged(), Log::of(&[0x66]));

    fn again(frame: &mut Frame) {
        log(frame.vector as u16);
        if crate::LOG_LEN.get() < 3 {
            apic::self_ipi(VECTOR);
            apic::self_ipi(VECTOR);
            cpu::interrupt_window();
        }
        log(frame.vector as u16 + END);
        apic::eoi();
    }
    trap::hook(VECTOR, Some(again));
    clear_log();
    apic::self_ipi(VECTOR);
    for _ in 0..4 {
        cpu::interrupt_window();
    }
    let expected = Log::of(&[0x66, 0x66 + END, 0x66, 0x66 + END]);
    t.eq(format_args!("{mode}: a request in service waits for EOI"), logged(), expected);
    trap::hook(VECTOR, None);
}

/// Vectors 0 to 15 are errors, not interrupts.
fn illegal(t: &mut Report, mode: &str) {
    trap::hook(0xfd, Some(log_eoi));
    trap::hook(5, Some(log_eoi));
    apic::write(reg::ESR, 0);
    apic::write(reg::ESR, 0);
    t.eq(format_args!("{mode}: ESR clear"), apic::read(reg::ESR), 0);
    apic::write(reg::LVT_ERROR, 0xfd);
    clear_log();
    apic::self_ipi(5);
    for _ in 0..3 {
        cpu::interrupt_window();
    }
    t.eq(format_args!("{mode}: illegal vector: error interrupt"), logged(), Log::of(&[0xfd]));
    apic::write(reg::ESR, 0);
    let esr = apic::read(reg::ESR);
    t.holds(format_args!("{mode}: illegal vector: ESR"), esr, |e| e & 0x60 != 0 && e & !0x60 == 0);
    apic::write(reg::LVT_ERROR, apic::MASKED | 0xfe);
    trap::hook(0xfd, None);
    trap::hook(5, None);
}

/// SVR bit 8 clear: all LVT entries masked, no interrupt accepted.
fn software_disable(t: &mut Report, mode: &str) {
    const VECTOR: u8 = 0x71;
    trap::hook(VECTOR, Some(log_eoi));
    clear_log();
    apic::write(reg::LVT_ERROR, 0xfd);
    apic::write(reg::SVR, 0xff);
    let masked = apic::read(reg::LVT_ERROR) & apic::MASKED;
    t.eq(format_args!("{mode}: disabling masks the LVT"), masked, apic::MASKED);
    apic::write(reg::LVT_ERROR, 0xfd);
    let masked = apic::read(reg::LVT_ERROR) & apic::MASKED;
    t.eq(format_args!("{mode}: disabled, the LVT stays masked"), masked, apic::MASKED);
    apic::self_ipi(VECTOR);
    cpu::interrupt_window();
    t.eq(format_args!("{mode}: disabled, no interrupt"), logged(), Log::of(&[]));
    apic::enable();
    cpu::interrupt_window();
    clear_log();
    apic::self_ipi(VECTOR);
    cpu::interrupt_window();
    t.eq(format_args!("{mode}: enabled again"), logged(), Log::of(&[VECTOR.into()]));
    trap::hook(VECTOR, None);
}
