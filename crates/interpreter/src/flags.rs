//! The arithmetic flags, kept as the values that they are computed from.
//!
//! Most flags are overwritten unread. An operation therefore leaves its result and its carry
//! vector here, which takes a few stores, and a flag is extracted when somebody asks. Any
//! combination of flags can be represented, so POPF and SAHF need no special case.

use x86::cr::rflags::{AF, CF, OF, PF, SF, ZF};

/// CF, PF, AF, ZF, SF and OF in unevaluated form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    /// Carry vector, its most significant bit at bit 63: CF is bit 63, OF is bit 63 xor bit 62.
    carry: u64,
    /// AF is bit 3: the carry out of the low nibble.
    aux: u64,
    /// ZF is set when this is zero.
    zero: u64,
    /// SF is bit 63.
    sign: u64,
    /// PF is set when this byte has an even number of ones.
    parity: u8,
}

impl Default for Flags {
    fn default() -> Self {
        Self { carry: 0, aux: 0, zero: 1, sign: 0, parity: 1 }
    }
}

impl Flags {
    /// After an addition of `bits`-bit numbers, also with carry in; `r` is truncated to `bits`.
    #[inline(always)]
    pub(crate) fn add(&mut self, bits: u32, a: u64, b: u64, r: u64) {
        let carries = (a & b) | ((a | b) & !r);
        self.set(bits, carries, r);
    }

    /// After `a - b`, also with borrow in.
    #[inline(always)]
    pub(crate) fn sub(&mut self, bits: u32, a: u64, b: u64, r: u64) {
        let borrows = (!a & b) | ((!a | b) & r);
        self.set(bits, borrows, r);
    }

    /// After AND, OR, XOR, TEST: CF and OF clear; AF, undefined, is clear as on hardware.
    #[inline(always)]
    pub(crate) fn logic(&mut self, bits: u32, r: u64) {
        self.set(bits, 0, r);
    }

    /// After INC (`a + 1`): CF stays.
    #[inline(always)]
    pub(crate) fn inc(&mut self, bits: u32, a: u64, r: u64) {
        let cf = self.cf();
        self.add(bits, a, 1, r);
        self.set_cf(cf);
    }

    /// After DEC (`a - 1`): CF stays.
    #[inline(always)]
    pub(crate) fn dec(&mut self, bits: u32, a: u64, r: u64) {
        let cf = self.cf();
        self.sub(bits, a, 1, r);
        self.set_cf(cf);
    }

    #[inline(always)]
    fn set(&mut self, bits: u32, carries: u64, r: u64) {
        let up = 64 - bits;
        self.carry = carries << up;
        self.aux = carries;
        self.set_result(bits, r);
    }

    /// ZF, SF and PF of a result, the others unchanged.
    #[inline(always)]
    pub(crate) fn set_result(&mut self, bits: u32, r: u64) {
        let up = 64 - bits;
        self.zero = r << up;
        self.sign = r << up;
        self.parity = r as u8;
    }

    #[inline(always)]
    pub(crate) fn cf(&self) -> bool {
        (self.carry as i64) < 0
    }

    #[inline(always)]
    pub(crate) fn of(&self) -> bool {
        ((self.carry ^ self.carry << 1) as i64) < 0
    }

    #[inline(always)]
    pub(crate) fn zf(&self) -> bool {
        self.zero == 0
    }

    #[inline(always)]
    pub(crate) fn sf(&self) -> bool {
        (self.sign as i64) < 0
    }

    #[inline(always)]
    pub(crate) fn pf(&self) -> bool {
        self.parity.count_ones() & 1 == 0
    }

    #[inline(always)]
    pub(crate) fn af(&self) -> bool {
        self.aux & 8 != 0
    }

    pub(crate) fn set_cf(&mut self, cf: bool) {
        self.set_cf_of(cf, self.of());
    }

    #[inline(always)]
    pub(crate) fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.carry = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }

    pub(crate) fn set_of(&mut self, of: bool) {
        self.set_cf_of(self.cf(), of);
    }

    pub(crate) fn set_zf(&mut self, zf: bool) {
        self.zero = u64::from(!zf);
    }

    pub(crate) fn set_af(&mut self, af: bool) {
        self.aux = u64::from(af) << 3;
    }

    /// The six flags at their places in RFLAGS.
    pub(crate) fn pack(&self) -> u64 {
        let bit = |set: bool, mask: u64| if set { mask } else { 0 };
        bit(self.cf(), CF)
            | bit(self.pf(), PF)
            | bit(self.af(), AF)
            | bit(self.zf(), ZF)
            | bit(self.sf(), SF)
            | bit(self.of(), OF)
    }

    /// Takes the six flags from their places in RFLAGS.
    pub(crate) fn unpack(rflags: u64) -> Self {
        let (cf, of) = (rflags & CF != 0, rflags & OF != 0);
        Self {
            carry: u64::from(cf) << 63 | u64::from(cf ^ of) << 62,
            aux: if rflags & AF != 0 { 8 } else { 0 },
            zero: u64::from(rflags & ZF == 0),
            sign: if rflags & SF != 0 { 1 << 63 } else { 0 },
            parity: u8::from(rflags & PF == 0),
        }
    }

    /// Condition `cc`, numbered as in Jcc opcodes (SDM vol. 1 appendix B).
    #[inline(always)]
    pub(crate) fn condition(&self, cc: u8) -> bool {
        let met = match cc >> 1 & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        met != (cc & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives_packing() {
        for pattern in 0..64_u64 {
            let spread = [CF, PF, AF, ZF, SF, OF];
            let rflags = spread
                .iter()
                .enumerate()
                .filter(|(i, _)| pattern >> i & 1 != 0)
                .fold(0, |all, (_, flag)| all | flag);
            assert_eq!(Flags::unpack(rflags).pack(), rflags);
        }
    }

    #[test]
    fn eight_bit_sums_and_differences_match_the_definition() {
        let mut flags = Flags::default();
        for a in 0..=255_u64 {
            for b in 0..=255_u64 {
                let sum = (a + b) & 0xff;
                flags.add(8, a, b, sum);
                let signed = i16::from(a as u8 as i8) + i16::from(b as u8 as i8);
                assert_eq!(flags.cf(), a + b > 255);
                assert_eq!(flags.of(), !(-128..=127).contains(&signed));
                assert_eq!(flags.af(), (a & 15) + (b & 15) > 15);
                assert_eq!((flags.zf(), flags.sf()), (sum == 0, sum >= 128));
                let difference = a.wrapping_sub(b) & 0xff;
                flags.sub(8, a, b, difference);
                let signed = i16::from(a as u8 as i8) - i16::from(b as u8 as i8);
                assert_eq!(flags.cf(), a < b);
                assert_eq!(flags.of(), !(-128..=127).contains(&signed));
                assert_eq!(flags.af(), a & 15 < b & 15);
            }
        }
    }

    #[test]
    fn inc_and_dec_keep_carry() {
        let mut flags = Flags::unpack(CF);
        flags.inc(8, 0x7f, 0x80);
        assert!(flags.cf() && flags.of() && flags.sf());
        flags.dec(8, 1, 0);
        assert!(flags.cf() && !flags.of() && flags.zf());
    }
}
