//! Writes to control registers that a processor in 64-bit mode must refuse;
//! one that obeys cannot go on. A program of its own, so that a machine which
//! fails here still completes the others (Intel SDM vol. 3A 2.5, 9.8.5).

#![no_std]
#![no_main]

use kit::Report;
use kit::cpu::{self, Feature, Output, cr0, cr4, feature, msr};
use kit::trap::vector::GP;

kit::program!(main);

fn main(t: &mut Report) {
    let value = cpu::read_cr3();
    let mut table = t.table("#GP CR3 bits beyond the physical width");
    for bit in cpu::physical_bits()..61 {
        let result = cpu::try_write_cr3(value | 1 << bit);
        table.eq(format_args!("bit {bit}"), result, Some(GP));
    }
    table.finish();
    let value = cpu::read_cr0();
    t.eq("#GP CR0.PE cleared with paging on", cpu::try_write_cr0(value & !cr0::PE), Some(GP));
    t.eq("#GP CR0.PG cleared in 64-bit mode", cpu::try_write_cr0(value & !cr0::PG), Some(GP));
    let both = cpu::try_write_cr0(value & !(cr0::PG | cr0::PE));
    t.eq("#GP CR0.PG and PE cleared in 64-bit mode", both, Some(GP));
    t.eq("CR0 unchanged", cpu::read_cr0(), value);
    let value = cpu::read_cr4();
    t.eq("#GP CR4.PAE cleared in long mode", cpu::try_write_cr4(value & !cr4::PAE), Some(GP));
    if feature::LA57.offered() {
        let result = cpu::try_write_cr4(value | 1 << 12);
        t.eq("#GP CR4.LA57 set in long mode", result, Some(GP));
    } else {
        t.skip("#GP CR4.LA57 set in long mode", "not offered");
    }
    reserved(t);
    t.eq("CR4 unchanged", cpu::read_cr4(), value);
    let value = cpu::rdmsr(msr::EFER);
    let result = cpu::try_wrmsr(msr::EFER, value & !(1 << 8));
    t.eq("#GP EFER.LME cleared with paging on", result, Some(GP));
    t.eq("EFER unchanged", cpu::rdmsr(msr::EFER), value);
}

/// CR4 bits that are reserved, or belong to features that are not offered.
fn reserved(t: &mut Report) {
    const FEATURES: [(u32, Feature); 10] = [
        (7, feature::PGE),
        (11, feature::UMIP),
        (13, Feature(1, 0, Output::Ecx, 5)),
        (14, Feature(1, 0, Output::Ecx, 6)),
        (16, feature::FSGSBASE),
        (17, feature::PCID),
        (18, feature::XSAVE),
        (20, feature::SMEP),
        (21, feature::SMAP),
        (23, Feature(7, 0, Output::Ecx, 7)),
    ];
    let value = cpu::read_cr4();
    let mut table = t.table("#GP CR4 bits reserved or not offered");
    let absent = FEATURES.iter().filter(|(_, feature)| !feature.offered()).map(|&(bit, _)| bit);
    for bit in absent.chain([15, 19, 26, 30, 31, 33, 62, 63]) {
        // Bit 19 is Key Locker, bit 26 unassigned; the upper half but LAM
        // (28) and FRED (32) too.
        if bit == 19 && Feature(7, 0, Output::Ecx, 23).offered() {
            continue;
        }
        let result = cpu::try_write_cr4(value | 1 << bit);
        table.eq(format_args!("bit {bit}"), result, Some(GP));
    }
    table.finish();
}
