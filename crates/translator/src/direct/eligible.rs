//! Which pages of code may be executed directly: those with few instructions that do something else
//! on the host than in the guest without a fault that would tell. The sandbox stops at these few by
//! the CPU's breakpoints.
//!
//! This is about equivalence, not about safety: what such an instruction can find out is what any
//! program of the host can. So the page is decoded in sequence, and code that hides an instruction
//! inside another one gets away with it.

use ::direct::MOST_WATCHED;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};

/// The places in a page, in bytes, that the sandbox has to stop at; `None` when they are more than
/// [`MOST_WATCHED`].
pub(crate) fn stops(page: &[u8; 4096]) -> Option<Vec<u16>> {
    let mut stops = Vec::new();
    if !may_differ(page) {
        return Some(stops);
    }
    // The first instruction may have begun on the page before; decoding falls into step soon.
    let mut at = 0;
    while at < page.len() {
        let mut decoder = Decoder::with_ip(64, &page[at..], 0, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if differs(instruction.mnemonic()) {
            stops.push(at as u16);
        }
        if stops.len() > MOST_WATCHED {
            return None;
        }
        at += if instruction.is_invalid() { 1 } else { instruction.len() };
    }
    Some(stops)
}

/// Whether a byte sequence is there that such an instruction begins with, behind its prefixes.
fn may_differ(page: &[u8; 4096]) -> bool {
    page.windows(2)
        .any(|pair| matches!(pair, [0x0f, 0x00 | 0x01 | 0x02 | 0x03 | 0x34 | 0xae | 0xc7]))
}

/// Whether the instruction sees the host's system registers, its processor number, its descriptors
/// or the vector registers that only it has.
fn differs(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Xgetbv
            | M::Rdpid
            | M::Sysenter
            | M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xrstor
            | M::Xrstor64
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(at: usize, code: &[u8]) -> [u8; 4096] {
        let mut page = [0x90; 4096];
        page[at..at + code.len()].copy_from_slice(code);
        page
    }

    #[test]
    fn pages_that_would_see_the_host_are_found() {
        let instructions: [&[u8]; 6] = [
            &[0x0f, 0x01, 0xd0],       // xgetbv
            &[0x0f, 0xc7, 0x21],       // xsavec [rcx]
            &[0x0f, 0xae, 0x29],       // xrstor [rcx]
            &[0xf3, 0x0f, 0xc7, 0xf8], // rdpid rax
            &[0x0f, 0x03, 0xc0],       // lsl eax, eax
            &[0x0f, 0x01, 0x00],       // sgdt [rax]
        ];
        for code in instructions {
            assert_eq!(stops(&page(1000, code)), Some(vec![1000]), "{code:x?}");
        }
    }

    #[test]
    fn harmless_neighbours_and_data_are_not() {
        let instructions: [&[u8]; 5] = [
            &[0x0f, 0xc7, 0xf0],                         // rdrand eax
            &[0x0f, 0xae, 0xf0],                         // mfence
            &[0x0f, 0xc7, 0x09],                         // cmpxchg8b [rcx]
            &[0x48, 0xc7, 0xc0, 0x0f, 0x01, 0xd0, 0x00], // mov rax, 0xd0010f
            &[0xe8, 0x0f, 0xc7, 0x21, 0x00],             // call
        ];
        for code in instructions {
            assert_eq!(stops(&page(1000, code)), Some(Vec::new()), "{code:x?}");
        }
    }

    #[test]
    fn pages_with_more_than_the_cpu_has_breakpoints_are_refused() {
        let code = [0x0f, 0x01, 0xd0].repeat(MOST_WATCHED + 1);
        assert_eq!(stops(&page(0, &code[3..])).map(|stops| stops.len()), Some(MOST_WATCHED));
        assert_eq!(stops(&page(0, &code)), None);
    }
}
