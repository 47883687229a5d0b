//! Guests of some bytes: 32-bit code behind the PVH entry of an ELF file, in flat protected mode
//! without an interrupt table.

/// Where the code is loaded and entered.
const ENTRY: u32 = 0x10_0000;

/// Writes `value` to debug-exit: `mov dx, 0xf4; mov al, value; out dx, al; hlt`.
pub fn debug_exit(value: u8) -> Vec<u8> {
    elf(&[0x66, 0xba, 0xf4, 0x00, 0xb0, value, 0xee, 0xf4])
}

/// Powers off through PM1 control.
pub fn power_off() -> Vec<u8> {
    elf(&power_off_code())
}

/// `mov dx, 0x604; mov ax, S5 | SLP_EN; out dx, ax; cli; hlt`.
fn power_off_code() -> Vec<u8> {
    vec![0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xfa, 0xf4]
}

/// Prints `text` on COM1 and powers off.
pub fn print(text: &str) -> Vec<u8> {
    elf(&[print_code(text), power_off_code()].concat())
}

/// `mov dx, 0x3f8`, then `mov al, byte; out dx, al` for each.
fn print_code(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    code.extend(text.bytes().flat_map(|byte| [0xb0, byte, 0xee]));
    code
}

/// Prints `text`, then sleeps for good: `cli; hlt; jmp $-1`.
pub fn print_and_sleep(text: &str) -> Vec<u8> {
    elf(&[print_code(text), vec![0xfa, 0xf4, 0xeb, 0xfd]].concat())
}

/// Prints without end: `mov dx, 0x3f8; mov al, 'y'; out dx, al; jmp $-1`.
pub fn print_for_ever() -> Vec<u8> {
    elf(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'y', 0xee, 0xeb, 0xfd])
}

/// Prints `text`, then loops with interrupts off: `cli; jmp $`.
pub fn print_and_spin(text: &str) -> Vec<u8> {
    elf(&[print_code(text), vec![0xfa, 0xeb, 0xfe]].concat())
}

/// Resets through port 0xcf9: `mov dx, 0xcf9; mov al, 6; out dx, al; hlt`.
pub fn reset() -> Vec<u8> {
    elf(&[0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4])
}

/// Boots three times, counting in memory that is not loaded, then powers off:
/// `inc dword [0x200000]; cmp dword [0x200000], 3; jb reset`.
pub fn boot_three_times() -> Vec<u8> {
    let mut code = vec![0xff, 0x05, 0, 0, 0x20, 0, 0x83, 0x3d, 0, 0, 0x20, 0, 3];
    code.extend([0x72, power_off_code().len() as u8]);
    code.extend(power_off_code());
    code.extend([0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4]);
    elf(&code)
}

/// Raises #UD without an interrupt table: `nop; ud2`.
pub fn triple_fault() -> Vec<u8> {
    elf(&[0x90, 0x0f, 0x0b])
}

/// Prints a dot, then echoes COM1 until a `q`, which powers off.
pub fn echo() -> Vec<u8> {
    let mut code = print_code(".");
    code.extend([
        0x66, 0xba, 0xfd, 0x03, // poll: mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1
        0x74, 0xf7, // jz poll
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0xee, // out dx, al
        0x3c, b'q', // cmp al, 'q'
        0x75, 0xed, // jne poll
    ]);
    code.extend(power_off_code());
    elf(&code)
}

/// Counts the keys that it gets, in memory, and answers each with the letter of the count: `A`, `B`
/// and so on; `q` powers off.
pub fn count_keys() -> Vec<u8> {
    let mut code = print_code(".");
    code.extend([
        0x66, 0xba, 0xfd, 0x03, // poll: mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1
        0x74, 0xf7, // jz poll
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0x3c, b'q', // cmp al, 'q'
        0x74, 0x12, // je off
        0xff, 0x05, 0x00, 0x00, 0x20, 0x00, // inc dword [0x200000]
        0xa0, 0x00, 0x00, 0x20, 0x00, // mov al, [0x200000]
        0x24, 0x1f, // and al, 0x1f
        0x04, b'@', // add al, '@'
        0xee, // out dx, al
        0xeb, 0xdc, // jmp poll
    ]);
    code.extend(power_off_code());
    elf(&code)
}

/// Waits for the power button, prints `off` and powers off: it polls PM1 status, bit 8.
pub fn obey_power_button() -> Vec<u8> {
    let mut code = print_code("up");
    code.extend([
        0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
        0x66, 0xed, // in ax, dx
        0xf6, 0xc4, 0x01, // test ah, 1
        0x74, 0xf9, // jz $-5
    ]);
    code.extend(print_code("off"));
    code.extend(power_off_code());
    elf(&code)
}

/// Jumps to where there is nothing: `mov eax, 0xf0000000; jmp eax`.
pub fn jump_into_nothing() -> Vec<u8> {
    elf(&[0xb8, 0, 0, 0, 0xf0, 0xff, 0xe0])
}

/// A 64-bit ELF file with a PVH entry at `code`.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const CODE: usize = 0x200;
    let mut file = vec![0; CODE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(0x10, &[2, 0, 62, 0, 1]);
    put(0x18, &u64::from(ENTRY).to_le_bytes());
    put(0x20, &0x40_u64.to_le_bytes());
    put(0x34, &[64, 0, 56, 0, 2, 0]);
    let header = |kind: u32, offset: usize, address: u32, len: usize| {
        let mut bytes = [kind.to_le_bytes(), 7_u32.to_le_bytes()].concat();
        for value in [offset, address as usize, address as usize, len, len, 4] {
            bytes.extend((value as u64).to_le_bytes());
        }
        bytes
    };
    put(0x40, &header(1, CODE, ENTRY, code.len()));
    put(0x78, &header(4, 0x100, 0, 20));
    put(0x100, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(0x10c, b"Xen\0");
    put(0x110, &ENTRY.to_le_bytes());
    file.extend(code);
    file
}
