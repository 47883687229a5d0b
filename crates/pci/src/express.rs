//! The PCI Express capability of a root complex integrated endpoint (PCI Express Base 4.0, 7.5.3).
//!
//! Such a function is a part of the root complex: it has no link and no slot, so that their
//! registers are zero. With the capability the function has an extended configuration space, in
//! which there is no capability: it reads as zeros.

use crate::ConfigSpace;

/// Capability id.
const ID: u8 = 0x10;
/// Bytes behind id and link, in version 2 of the structure.
const BODY: usize = 0x3c - 2;

/// Offsets of registers behind id and link.
const CAPABILITIES: usize = 0;
const DEVICE_CAPABILITIES: usize = 0x04 - 2;
const DEVICE_CONTROL: usize = 0x08 - 2;
const DEVICE_CAPABILITIES_2: usize = 0x24 - 2;
const DEVICE_CONTROL_2: usize = 0x28 - 2;

/// Version 2, device type root complex integrated endpoint.
const INTEGRATED_ENDPOINT: u16 = 2 | 9 << 4;
/// Device capabilities: role-based error reporting, which all functions have; payloads of 128 bytes.
const ROLE_BASED_ERRORS: u32 = 1 << 15;
/// Device control: which errors are reported, relaxed ordering, largest read request, no snoop.
const CONTROL_WRITABLE: u16 = 0x000f | 1 << 4 | 1 << 11 | 7 << 12;
/// After a reset: relaxed ordering, no snoop, requests of 512 bytes.
const CONTROL: u16 = 1 << 4 | 1 << 11 | 2 << 12;
/// Device capabilities 2 and device control 2: completion timeouts can be disabled.
const TIMEOUT_DISABLE: u16 = 1 << 4;

impl ConfigSpace {
    /// Makes the function a root complex integrated endpoint: appends the capability, whose offset
    /// this returns, and adds extended configuration space. No error is ever reported.
    ///
    /// # Panics
    /// As [`ConfigSpace::add_capability`].
    pub fn add_express_endpoint(&mut self) -> u8 {
        let mut body = [0; BODY];
        let mut writable = [0; BODY];
        let put = |to: &mut [u8; BODY], at: usize, bytes: &[u8]| {
            to[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(&mut body, CAPABILITIES, &INTEGRATED_ENDPOINT.to_le_bytes());
        put(&mut body, DEVICE_CAPABILITIES, &ROLE_BASED_ERRORS.to_le_bytes());
        put(&mut body, DEVICE_CONTROL, &CONTROL.to_le_bytes());
        put(&mut writable, DEVICE_CONTROL, &CONTROL_WRITABLE.to_le_bytes());
        put(&mut body, DEVICE_CAPABILITIES_2, &TIMEOUT_DISABLE.to_le_bytes());
        put(&mut writable, DEVICE_CONTROL_2, &TIMEOUT_DISABLE.to_le_bytes());
        let link = self.last_link();
        let at = self.add_capability(ID, &body, &writable);
        let start = usize::from(at);
        self.extend(start..start + 2 + BODY, link);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: [1, 2, 3],
        subsystem: (0x1af4, 0x1100),
    };

    #[test]
    fn an_integrated_endpoint_has_no_link_and_an_empty_extended_space() {
        let conventional = || {
            let mut space = ConfigSpace::new(IDENTITY);
            space.add_capability(9, &[0; 14], &[]);
            space
        };
        let mut space = conventional();
        let mut dword = [0; 4];
        space.read(0x100, &mut dword);
        assert_eq!(dword, [0xff; 4], "a conventional function has none");
        let at = space.add_express_endpoint();
        assert_eq!((space.byte(0x34), space.byte(0x41)), (0x40, at));
        assert_eq!(space.dword(at), 0x0092_0010);
        space.write(at.into(), &[0xff; 0x3c]);
        let words: Vec<_> = (0..0x3c).step_by(4).map(|n| space.dword(at + n)).collect();
        let mut expected = [0; 15];
        expected[..3].copy_from_slice(&[0x0092_0010, 0x8000, 0x781f]);
        (expected[9], expected[10]) = (0x10, 0x10);
        assert_eq!(words, expected);
        space.reset();
        assert_eq!(space.dword(at + 8), 0x2810);
        for offset in [0x100, 0xffc] {
            space.write(offset, &[0xff; 4]);
            space.read(offset, &mut dword);
            assert_eq!(dword, [0; 4], "{offset:#x}");
        }
        let mut older = conventional();
        older.write(4, &[4]);
        let saved = older.save();
        assert!(space.restore(&saved), "saved before there was PCI Express");
        assert_eq!(space.save(), saved);
        space.read(0x100, &mut dword);
        assert_eq!(dword, [0xff; 4], "and it stays so");
        space.reset();
        assert_eq!((space.byte(0x34), space.byte(0x41)), (0x40, 0));
    }

    #[test]
    fn extended_space_ends() {
        let mut space = ConfigSpace::new(IDENTITY);
        space.add_express_endpoint();
        let mut dword = [0; 4];
        space.read(0xffe, &mut dword);
        assert_eq!(dword, [0, 0, 0xff, 0xff]);
    }
}
