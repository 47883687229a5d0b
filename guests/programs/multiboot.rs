//! What a multiboot kernel is handed (Multiboot Specification 0.6.96, 3.2 and 3.3): the state at the
//! entry, memory, command line, modules.
//!
//! The command line says how many modules there are (`modules=2`), and the string of each how long
//! it is and what its bytes add up to (`len=5000 sum=637500`). Without, there are none.

#![no_std]
#![no_main]

use core::arch::global_asm;

use kit::page::peek;
use kit::{Report, boot};

kit::program!(main);

// The entry is that of the kit: it keeps what it found.
global_asm!(
    r#"
    .section .boot, "ax", @progbits
    .balign 4
    .long 0x1badb002
    .long 3
    .long -0x1badb002 - 3
    .text
"#
);

const MAGIC: u32 = 0x2bad_b002;
/// Bits of the flags that say what there is.
const MEMORY: u32 = 1 << 0;
const CMDLINE: u32 = 1 << 2;
const MODULES: u32 = 1 << 3;
const MEMORY_MAP: u32 = 1 << 6;
const LOADER_NAME: u32 = 1 << 9;
/// End of the program, from the linker script.
fn image_end() -> u64 {
    unsafe extern "C" {
        static image_end: u8;
    }
    // SAFETY: only the address is taken.
    unsafe { &raw const image_end as u64 }
}

fn word(address: u64) -> u32 {
    peek(address) as u32
}

fn byte(address: u64) -> u8 {
    peek(address) as u8
}

fn main(t: &mut Report) {
    let [eax, ebx, cr0, _, eflags, cs, ds, es, ss, _] = boot::ENTRY.get();
    t.eq("EAX", eax, MAGIC);
    t.eq("CR0 has PE and no PG", cr0 & 0x8000_0001, 1);
    t.eq("VM and IF clear", eflags & 0x2_0200, 0);
    t.that("segments are loaded", cs & !3 != 0 && ds & !3 != 0 && ds == es && ds == ss);
    let info = u64::from(ebx);
    let flags = word(info);
    t.eq("memory sizes and map, for a kernel that asks", flags & (MEMORY | MEMORY_MAP), 0x41);
    memory(t, info);
    let modules = if flags & CMDLINE == 0 { 0 } else { number(word(info + 16), b"modules=") };
    if flags & CMDLINE != 0 {
        let first = byte(u64::from(word(info + 16)));
        t.that("the command line begins with a name", first > b' ');
    }
    if flags & LOADER_NAME != 0 {
        t.that("the boot loader has a name", byte(u64::from(word(info + 64))) != 0);
    }
    let there = if flags & MODULES == 0 { 0 } else { word(info + 20) };
    t.eq("modules", there, modules);
    let mut end = image_end();
    for index in 0..there {
        end = module(t, index, u64::from(word(info + 24)) + 16 * u64::from(index), end);
    }
}

/// Sizes and map agree with each other.
fn memory(t: &mut Report, info: u64) {
    let (lower, upper) = (u64::from(word(info + 4)), u64::from(word(info + 8)));
    t.holds("lower memory, KiB", lower, |kib| (512..=640).contains(kib));
    let (start, len) = (u64::from(word(info + 48)), u64::from(word(info + 44)));
    let mut at = start;
    let mut covered = [false; 2];
    while at < start + len {
        let (base, size, kind) = (peek(at + 4), peek(at + 12), word(at + 20));
        covered[0] |= kind == 1 && base == 0 && size >= lower << 10;
        covered[1] |= kind == 1 && base == 0x10_0000 && size >= upper << 10;
        at += u64::from(word(at)) + 4;
    }
    t.eq("memory map: the list ends where it ends", at, start + len);
    t.eq("memory map: lower and upper memory are in it", covered, [true; 2]);
    t.that("upper memory holds the program", 0x10_0000 + (upper << 10) >= image_end());
}

/// Checks a module that lies from `free` on; returns its end.
fn module(t: &mut Report, index: u32, entry: u64, free: u64) -> u64 {
    let (start, end) = (u64::from(word(entry)), u64::from(word(entry + 4)));
    let string = word(entry + 8);
    t.eq(format_args!("module {index}: a whole page"), start % 4096, 0);
    t.that(format_args!("module {index}: behind what is there"), start >= free);
    t.eq(format_args!("module {index}: bytes"), (end - start) as u32, number(string, b"len="));
    let sum = (start..end).fold(0_u32, |sum, at| sum.wrapping_add(byte(at).into()));
    t.eq(format_args!("module {index}: content"), sum, number(string, b"sum="));
    end
}

/// The number behind ` key` in a string, 0 without.
fn number(string: u32, key: &[u8]) -> u32 {
    let mut at = u64::from(string);
    while byte(at) != 0 {
        let is_key = |(i, b): (usize, &u8)| byte(at + 1 + i as u64) == *b;
        if byte(at) == b' ' && key.iter().enumerate().all(is_key) {
            let digits = (at + 1 + key.len() as u64..).map(byte).take_while(u8::is_ascii_digit);
            return digits.fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
        }
        at += 1;
    }
    0
}
