//! Memory as instructions see it: linear addresses, checked, translated, then RAM or a device.
//!
//! The fast way is one TLB comparison. Everything else is in the slow way: page walks, canonical
//! and alignment checks, accesses across two pages, devices, data breakpoints, pages that somebody
//! watches. An access that spans two pages checks both before it changes anything.

use device::Answer;
use memory::{Gpa, RamOffset, Scalar};
use paging::Kind;
use x86::cr::{cr0, rflags};
use x86::exception::{Exception, vector};
use x86::is_canonical;
use x86::segment::{Segment, seg};

use crate::cpu::{Bus, Cpu, Raised, Step};
use crate::tlb::{Mode, Use};

const PAGE: u64 = 4096;

/// A linear address, and whether it was reached through SS: then it faults with #SS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear {
    pub(crate) address: u64,
    pub(crate) stack: bool,
}

impl Linear {
    /// An address of a descriptor table or the like.
    pub(crate) const fn system(address: u64) -> Self {
        Self { address, stack: false }
    }

    pub(crate) const fn plus(self, bytes: u64) -> Self {
        Self { address: self.address.wrapping_add(bytes), ..self }
    }
}

/// Where a page of an access lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Ram(RamOffset),
    Device(u64),
}

impl Cpu {
    /// Reads an integer.
    #[inline(always)]
    pub(crate) fn read<W: Scalar>(&mut self, bus: Bus<'_>, at: Linear) -> Result<u64, Raised> {
        if let Some(page) = self.tlb.lookup(self.mode, Use::Read, at.address)
            && at.address % PAGE <= PAGE - W::BYTES
            && !self.careful
        {
            return Ok(self.ram.load::<W>(RamOffset(page + at.address % PAGE)).to_u64());
        }
        self.read_slow(bus, at, W::BYTES, self.mode)
    }

    /// Writes the low bytes of `value`.
    #[inline(always)]
    pub(crate) fn write<W: Scalar>(&mut self, bus: Bus<'_>, at: Linear, value: u64) -> Step {
        if let Some(page) = self.tlb.lookup(self.mode, Use::Write, at.address)
            && at.address % PAGE <= PAGE - W::BYTES
            && !self.careful
        {
            let to = RamOffset(page + at.address % PAGE);
            if self.ram.is_quiet(to) {
                self.ram.store::<W>(to, W::from_u64(value));
                return Ok(());
            }
        }
        self.write_slow(bus, at, W::BYTES, value, self.mode)
    }

    /// Replaces an integer by `change` of it and returns the old one; atomically when `locked`.
    /// `change` may be called several times.
    #[inline(always)]
    pub(crate) fn update<W: Scalar>(
        &mut self,
        bus: Bus<'_>,
        at: Linear,
        locked: bool,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Raised> {
        if let Some(page) = self.tlb.lookup(self.mode, Use::Write, at.address)
            && at.address % PAGE <= PAGE - W::BYTES
            && !self.careful
        {
            let to = RamOffset(page + at.address % PAGE);
            if self.ram.is_quiet(to) && (!locked || at.address.is_multiple_of(W::BYTES)) {
                return Ok(self.update_ram::<W>(to, locked, change));
            }
        }
        self.update_slow::<W>(bus, at, locked, change)
    }

    #[inline(always)]
    fn update_ram<W: Scalar>(
        &mut self,
        to: RamOffset,
        locked: bool,
        change: impl Fn(u64) -> u64,
    ) -> u64 {
        let mut old = self.ram.load::<W>(to);
        if !locked {
            self.ram.store::<W>(to, W::from_u64(change(old.to_u64())));
            return old.to_u64();
        }
        loop {
            let new = W::from_u64(change(old.to_u64()));
            match self.ram.compare_exchange::<W>(to, old, new) {
                Ok(_) => return old.to_u64(),
                Err(found) => old = found,
            }
        }
    }

    #[cold]
    fn update_slow<W: Scalar>(
        &mut self,
        bus: Bus<'_>,
        at: Linear,
        locked: bool,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Raised> {
        self.check_alignment(at, W::BYTES, self.mode)?;
        // Both pages must be writable before anything is read: a locked or plain update that
        // faults does so as a write.
        let places = self.locate(at, W::BYTES, Use::Write, self.mode)?;
        if let (Place::Ram(to), None) = places
            && at.address.is_multiple_of(W::BYTES)
        {
            self.begin_write(to);
            let old = self.update_ram::<W>(to, locked, change);
            self.ram.mark_dirty(to);
            self.note_data_access(at, W::BYTES, false);
            self.note_data_access(at, W::BYTES, true);
            return Ok(old);
        }
        if locked {
            self.update_alone::<W>(bus, at, change)
        } else {
            self.update_in_steps::<W>(bus, at, change)
        }
    }

    /// The same by a read and a write, which can fault no more.
    pub(crate) fn update_in_steps<W: Scalar>(
        &mut self,
        bus: Bus<'_>,
        at: Linear,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Raised> {
        let old = self.read_slow(bus, at, W::BYTES, self.mode)?;
        self.write_slow(bus, at, W::BYTES, change(old), self.mode)?;
        Ok(old)
    }

    /// Reads an integer of `size` bytes with supervisor rights: descriptor tables, TSS.
    pub(crate) fn read_system(&mut self, bus: Bus<'_>, at: u64, size: u64) -> Result<u64, Raised> {
        let at = self.system_linear(at);
        self.read_slow(bus, at, size, Mode::Supervisor)
    }

    /// Writes with supervisor rights: busy and accessed bits of descriptors, TSS.
    pub(crate) fn write_system(&mut self, bus: Bus<'_>, at: u64, size: u64, value: u64) -> Step {
        let at = self.system_linear(at);
        self.write_slow(bus, at, size, value, Mode::Supervisor)
    }

    /// Checks that `len` bytes (at most a page) of a system structure could be written.
    pub(crate) fn check_system_write(&mut self, at: u64, len: u64) -> Step {
        let at = self.system_linear(at);
        self.locate(at, len, Use::Write, Mode::Supervisor).map(|_| ())
    }

    /// Outside long mode linear addresses have 32 bits.
    fn system_linear(&self, at: u64) -> Linear {
        Linear::system(if self.long_mode() { at } else { at & 0xffff_ffff })
    }

    /// Reads `to.len()` bytes (at most a page).
    pub(crate) fn read_bytes(&mut self, bus: Bus<'_>, at: Linear, to: &mut [u8]) -> Step {
        let len = to.len() as u64;
        let (first, second) = self.locate(at, len, Use::Read, self.mode)?;
        let (head, tail) = to.split_at_mut(head_len(at, len));
        self.read_place(bus, first, head);
        if let Some(second) = second {
            self.read_place(bus, second, tail);
        }
        self.note_data_access(at, len, false);
        Ok(())
    }

    /// Writes `from.len()` bytes (at most a page); nothing when any byte faults.
    pub(crate) fn write_bytes(&mut self, bus: Bus<'_>, at: Linear, from: &[u8]) -> Step {
        let len = from.len() as u64;
        let (first, second) = self.locate(at, len, Use::Write, self.mode)?;
        let (head, tail) = from.split_at(head_len(at, len));
        self.write_place(bus, first, head);
        if let Some(second) = second {
            self.write_place(bus, second, tail);
        }
        self.note_data_access(at, len, true);
        Ok(())
    }

    /// Compares and exchanges 16 aligned bytes, atomically where they are RAM; gives what was
    /// there. They are always written.
    pub(crate) fn exchange_pair(
        &mut self,
        bus: Bus<'_>,
        at: Linear,
        expected: u128,
        new: u128,
    ) -> Result<u128, Raised> {
        let (place, _) = self.locate(at, 16, Use::Write, self.mode)?;
        if let Place::Ram(to) = place {
            self.begin_write(to);
            let found = self.ram.compare_exchange_pair(to, expected, new);
            self.ram.mark_dirty(to);
            self.note_data_access(at, 16, true);
            return Ok(found);
        }
        let mut data = [0; 16];
        self.read_bytes(bus, at, &mut data)?;
        let found = u128::from_le_bytes(data);
        let stored = if found == expected { new } else { found };
        self.write_bytes(bus, at, &stored.to_le_bytes())?;
        Ok(found)
    }

    /// Checks that an integer of `size` bytes could be written, without writing it.
    pub(crate) fn probe_write(&mut self, at: Linear, size: u64) -> Step {
        self.check_alignment(at, size, self.mode)?;
        self.check_writable(at, size)
    }

    /// Checks that `len` bytes (at most a page) could be written whatever their alignment, without
    /// writing them.
    pub(crate) fn check_writable(&mut self, at: Linear, len: u64) -> Step {
        self.locate(at, len, Use::Write, self.mode).map(|_| ())
    }

    #[cold]
    pub(crate) fn read_slow(
        &mut self,
        bus: Bus<'_>,
        at: Linear,
        size: u64,
        mode: Mode,
    ) -> Result<u64, Raised> {
        self.check_alignment(at, size, mode)?;
        let mut data = [0; 8];
        let (first, second) = self.locate(at, size, Use::Read, mode)?;
        let (head, tail) = data[..size as usize].split_at_mut(head_len(at, size));
        self.read_place(bus, first, head);
        if let Some(second) = second {
            self.read_place(bus, second, tail);
        }
        self.note_data_access(at, size, false);
        Ok(u64::from_le_bytes(data))
    }

    #[cold]
    pub(crate) fn write_slow(
        &mut self,
        bus: Bus<'_>,
        at: Linear,
        size: u64,
        value: u64,
        mode: Mode,
    ) -> Step {
        self.check_alignment(at, size, mode)?;
        let data = value.to_le_bytes();
        let (first, second) = self.locate(at, size, Use::Write, mode)?;
        let (head, tail) = data[..size as usize].split_at(head_len(at, size));
        self.write_place(bus, first, head);
        if let Some(second) = second {
            self.write_place(bus, second, tail);
        }
        self.note_data_access(at, size, true);
        Ok(())
    }

    /// The place of an access and, when it spans two pages, that of its second part.
    fn locate(
        &mut self,
        at: Linear,
        len: u64,
        usage: Use,
        mode: Mode,
    ) -> Result<(Place, Option<Place>), Raised> {
        let one_page = at.address % PAGE + len <= PAGE;
        if !one_page && self.long_mode() && !is_canonical(at.address.wrapping_add(len - 1)) {
            return self.fault(if at.stack { Exception::SS0 } else { Exception::GP0 });
        }
        let first = self.translate(at, usage, mode)?;
        if one_page {
            return Ok((first, None));
        }
        let mut next = Linear { address: (at.address | (PAGE - 1)).wrapping_add(1), ..at };
        // Offsets of 32-bit code wrap around; tables and stacks of long mode lie anywhere.
        if !self.is_64bit() && at.address <= 0xffff_ffff {
            next.address &= 0xffff_ffff;
        }
        let second = self.translate(next, usage, mode)?;
        Ok((first, Some(second)))
    }

    /// Translates one address, through the TLB or by a walk that fills it.
    #[inline(always)]
    pub(crate) fn translate(
        &mut self,
        at: Linear,
        usage: Use,
        mode: Mode,
    ) -> Result<Place, Raised> {
        if let Some(page) = self.tlb.lookup(mode, usage, at.address) {
            return Ok(Place::Ram(RamOffset(page + at.address % PAGE)));
        }
        self.translate_by_walk(at, usage, mode)
    }

    #[cold]
    fn translate_by_walk(&mut self, at: Linear, usage: Use, mode: Mode) -> Result<Place, Raised> {
        if self.long_mode() && !is_canonical(at.address) {
            return self.fault(if at.stack { Exception::SS0 } else { Exception::GP0 });
        }
        let access = paging::Access {
            kind: match usage {
                Use::Read => Kind::Read,
                Use::Write => Kind::Write,
                Use::Fetch => Kind::Fetch,
            },
            user: mode == Mode::User,
            smap_override: mode == Mode::SupervisorAc,
        };
        let found = match paging::walk(&self.ram, &self.paging, at.address, access) {
            Ok(found) => found,
            Err(fault) => {
                return self.fault(Exception::page_fault(at.address, fault.code));
            }
        };
        let page = found.gpa & !(PAGE - 1);
        if self.apic.mmio_window() == Some(page) {
            return Ok(Place::Device(found.gpa));
        }
        let reached = self.ram.is_reached(Gpa(page), usage == Use::Write);
        let Some(ram) = self.ram.translate(Gpa(page), PAGE).filter(|_| reached) else {
            return Ok(Place::Device(found.gpa));
        };
        if usage == Use::Write {
            self.note_writer(ram);
        }
        self.tlb.fill(mode, usage, at.address, &found, ram.0);
        Ok(Place::Ram(RamOffset(ram.0 + at.address % PAGE)))
    }

    fn read_place(&mut self, bus: Bus<'_>, place: Place, to: &mut [u8]) {
        match place {
            Place::Ram(from) => self.ram.read_at(from, to),
            Place::Device(gpa) => {
                for (index, part) in to.chunks_mut(8).enumerate() {
                    self.read_device(bus, gpa + index as u64 * 8, part);
                }
            }
        }
    }

    fn write_place(&mut self, bus: Bus<'_>, place: Place, from: &[u8]) {
        match place {
            Place::Ram(to) => {
                self.begin_write(to);
                self.ram.write_at(to, from);
                self.ram.mark_dirty(to);
            }
            Place::Device(gpa) => {
                for (index, part) in from.chunks(8).enumerate() {
                    self.write_device(bus, gpa + index as u64 * 8, part);
                }
            }
        }
    }

    /// Declares a write to a page of RAM; when it held code, the present block may be stale.
    pub(crate) fn begin_write(&mut self, to: RamOffset) {
        if self.ram.prepare_write(to) {
            self.counters.code_writes += 1;
            self.leave_block = true;
            // They look before they execute what follows a serializing instruction.
            self.rendezvous.alert_others(self.index);
        }
    }

    /// Fetches code from a device, bytewise by pieces that it accepts.
    pub(crate) fn fetch_device(&mut self, bus: Bus<'_>, gpa: u64, to: &mut [u8]) {
        self.read_place(bus, Place::Device(gpa), to);
    }

    fn read_device(&mut self, bus: Bus<'_>, gpa: u64, to: &mut [u8]) {
        self.counters.mmio_accesses += 1;
        if self.apic.mmio_window() == Some(gpa & !(PAGE - 1)) {
            let now = self.tsc(bus);
            self.read_apic(gpa % PAGE, to, now);
            return;
        }
        // A device cannot fault a memory access: nobody there reads as all-ones.
        if let Answer::StopAfterInstruction((), cause) = bus.mmio_read(gpa, to) {
            self.stop = Some(cause);
            self.leave_block = true;
        }
    }

    fn write_device(&mut self, bus: Bus<'_>, gpa: u64, from: &[u8]) {
        self.counters.mmio_accesses += 1;
        if self.apic.mmio_window() == Some(gpa & !(PAGE - 1)) {
            self.write_apic(bus, gpa % PAGE, from);
            return;
        }
        if let Answer::StopAfterInstruction((), cause) = bus.mmio_write(gpa, from) {
            self.stop = Some(cause);
            self.leave_block = true;
        }
    }

    /// #AC for an operand of vector or x87 instructions that is not aligned to `alignment`.
    pub(crate) fn check_operand_alignment(&mut self, at: Linear, alignment: u64) -> Step {
        self.check_alignment(at, alignment, self.mode)
    }

    /// #AC for a misaligned access at CPL 3 with CR0.AM and RFLAGS.AC.
    fn check_alignment(&mut self, at: Linear, size: u64, mode: Mode) -> Step {
        let on =
            mode == Mode::User && self.cr0 & cr0::AM != 0 && self.system_flags & rflags::AC != 0;
        if !on || at.address.is_multiple_of(size) || !size.is_power_of_two() {
            return Ok(());
        }
        if self.long_mode() && !is_canonical(at.address) {
            return self.fault(if at.stack { Exception::SS0 } else { Exception::GP0 });
        }
        self.fault(Exception::AC0)
    }

    /// Linear address of `size` bytes at `offset` of segment register `index`, checked as SDM
    /// vol. 3A 5.3 (limit), 5.5 (type) say; in 64-bit code only FS and GS have a base, and nothing
    /// has a limit.
    #[inline(always)]
    pub(crate) fn segmented(
        &mut self,
        index: usize,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<Linear, Raised> {
        let segment = &self.segment[index];
        if segment.spans_all() && offset <= 0x1_0000_0000 - size && !self.is_64bit() {
            let address = segment.base.wrapping_add(offset) & 0xffff_ffff;
            return Ok(Linear { address, stack: index == seg::SS });
        }
        self.segmented_slow(index, offset, size, write)
    }

    /// The same where the segment is not just 4 GiB of writable data.
    fn segmented_slow(
        &mut self,
        index: usize,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<Linear, Raised> {
        let stack = index == seg::SS;
        let segment = self.segment[index];
        if self.is_64bit() {
            let base = if index >= seg::FS { segment.base } else { 0 };
            return Ok(Linear { address: base.wrapping_add(offset), stack });
        }
        let usable = if !self.protected_mode() {
            true
        } else if write {
            segment.present() && segment.is_writable()
        } else {
            segment.present() && segment.is_readable()
        };
        if !usable || !self.in_limit(&segment, offset, size) {
            let null = !segment.present() && self.protected_mode();
            let vector = if stack && !null { vector::SS } else { vector::GP };
            return self.fault(Exception::with_code(vector, 0));
        }
        Ok(Linear { address: segment.base.wrapping_add(offset) & 0xffff_ffff, stack })
    }

    /// Whether `size` bytes at `offset` lie inside `segment`. Outside protected mode the direction
    /// of growth does not count.
    #[inline(always)]
    pub(crate) fn in_limit(&self, segment: &Segment, offset: u64, size: u64) -> bool {
        if self.protected_mode() {
            segment.contains(offset, size)
        } else {
            offset.saturating_add(size - 1) <= u64::from(segment.limit)
        }
    }
}

/// How many bytes of the access lie in its first page.
fn head_len(at: Linear, len: u64) -> usize {
    len.min(PAGE - at.address % PAGE) as usize
}
