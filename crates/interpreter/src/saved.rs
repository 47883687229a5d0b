//! Between the CPU's registers and the engine-neutral [`VcpuState`].

use engine::{Control, Debug, General, PendingEvents, RunState, Segments, VcpuState};
use hostexec::FpuState;
use x86::cr::{cr0, cr4, dr, efer, rflags, xcr0};
use x86::is_canonical;
use x86::paging::PCID_MASK;

use crate::cpu::{Bus, Cpu};

impl Cpu {
    /// The whole state at an instruction boundary.
    pub(crate) fn save(&mut self, bus: Bus<'_>) -> VcpuState {
        let tsc = self.tsc(bus);
        VcpuState {
            general: General { gpr: self.general(), rip: self.rip(), rflags: self.rflags() },
            segments: Segments {
                segment: self.segment,
                ldtr: self.ldtr,
                tr: self.tr,
                gdtr: self.gdtr,
                idtr: self.idtr,
            },
            control: Control {
                cr0: self.cr0,
                cr2: self.cr2,
                cr3: self.cr3,
                cr4: self.cr4,
                efer: self.efer,
                xcr0: self.xcr0,
                pdptr: self.pdptr,
            },
            debug: Debug { address: self.dr, dr6: self.dr6, dr7: self.dr7 },
            xsave: self.fpu.to_bytes().to_vec(),
            msrs: self.msrs.save(),
            apic: self.apic.save(tsc),
            events: PendingEvents {
                event: None,
                nmi: self.nmi_pending,
                nmi_blocked: self.nmi_blocked,
                woken: self.woken,
                shadow: self.shadow,
                debug_trap: self.debug_trap,
                extint: self.mailbox.extint(),
            },
            tsc,
            run_state: self.run_state,
        }
    }

    /// Replaces the whole state; an error names what cannot be.
    pub(crate) fn restore(&mut self, state: &VcpuState, bus: Bus<'_>) -> Result<(), String> {
        self.check(state)?;
        let fpu = FpuState::from_bytes(&state.xsave).map_err(|e| e.to_string())?;
        self.msrs.restore(&state.msrs)?;
        self.apic.restore(&state.apic, state.tsc).map_err(|e| e.to_string())?;
        self.fpu = fpu;
        self.set_general(&state.general.gpr);
        self.set_rip(state.general.rip);
        self.segment = state.segments.segment;
        (self.ldtr, self.tr) = (state.segments.ldtr, state.segments.tr);
        (self.gdtr, self.idtr) = (state.segments.gdtr, state.segments.idtr);
        let Control { cr0, cr2, cr3, cr4, efer, xcr0, pdptr } = state.control.clone();
        (self.cr0, self.cr2, self.cr3, self.cr4) = (cr0, cr2, cr3, cr4);
        (self.efer, self.xcr0, self.pdptr) = (efer, xcr0, pdptr);
        self.dr = state.debug.address;
        self.dr6 = state.debug.dr6 & dr::DR6_WRITABLE | dr::DR6_FIXED;
        self.dr7 = state.debug.dr7 & dr::DR7_WRITABLE | dr::DR7_FIXED;
        self.set_rflags(state.general.rflags);
        let PendingEvents { event: _, nmi, nmi_blocked, woken, shadow, debug_trap, extint: _ } =
            state.events.clone();
        (self.nmi_pending, self.nmi_blocked, self.shadow) = (nmi, nmi_blocked, shadow);
        self.woken = woken;
        self.debug_trap = debug_trap & dr::DR6_WRITABLE;
        self.run_state = state.run_state;
        self.shutdown = state.run_state == RunState::Shutdown;
        (self.raised, self.stop, self.repeating) = (None, None, false);
        self.tsc_offset = 0;
        self.tsc_offset = state.tsc.wrapping_sub(self.tsc(bus));
        self.tlb.flush_all();
        let pcid = if cr4 & cr4::PCIDE != 0 { (cr3 & PCID_MASK) as u16 } else { 0 };
        self.tlb.select_pcid(pcid);
        self.mailbox.publish(self.apic.destination());
        self.refresh();
        self.attention = true;
        Ok(())
    }

    /// Refuses what no CPU of this profile can hold. What passes cannot make the interpreter
    /// misbehave, however odd it is for the guest.
    fn check(&self, state: &VcpuState) -> Result<(), String> {
        let control = &state.control;
        let paging = control.cr0 & cr0::PG != 0;
        let long = control.efer & efer::LMA != 0;
        let beyond = !((1_u64 << self.profile.physical_bits()) - 1);
        let supported = u64::from(self.profile.cpuid(0xd, 0).eax);
        let avx_alone = control.xcr0 & (xcr0::SSE | xcr0::AVX) == xcr0::AVX;
        let rules = [
            (control.cr0 & !cr0::ALL == 0, "cr0 has unknown bits"),
            (!paging || control.cr0 & cr0::PE != 0, "cr0 has paging without protection"),
            (control.cr4 & !self.cr4_allowed() == 0, "cr4 has bits that the CPU profile lacks"),
            (control.cr3 & beyond == 0, "cr3 is beyond the physical address width"),
            (
                control.efer & !(efer::SCE | efer::LME | efer::LMA | efer::NXE) == 0,
                "efer has unknown bits",
            ),
            (
                long == (paging && control.efer & efer::LME != 0),
                "efer.lma contradicts cr0.pg and efer.lme",
            ),
            (!long || control.cr4 & cr4::PAE != 0, "long mode without cr4.pae"),
            (control.cr4 & cr4::PCIDE == 0 || long, "cr4.pcide outside long mode"),
            (control.xcr0 & !supported == 0, "xcr0 has states that the CPU profile lacks"),
            (control.xcr0 & xcr0::X87 != 0 && !avx_alone, "xcr0 is inconsistent"),
            (state.general.rflags & !(rflags::ALL | rflags::FIXED) == 0, "rflags has unknown bits"),
            (
                state.general.rflags & rflags::VM == 0 || control.cr0 & cr0::PE != 0 && !long,
                "rflags.vm outside legacy protected mode",
            ),
            (!long || is_canonical(state.general.rip), "rip is not canonical"),
            (state.events.event.is_none(), "an event is half delivered"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err((*broken).to_owned()),
            None => Ok(()),
        }
    }
}
