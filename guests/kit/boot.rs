//! The way from the PVH entry point to 64-bit mode.
//!
//! Entry state ("PVH direct boot"): 32-bit protected mode, flat segments,
//! paging off, EBX = address of the start info. The code here builds the page
//! tables, switches to long mode, and calls `program_main`.
//!
//! Address space afterwards (all with 2 MiB pages, all writable):
//!
//! | addresses | maps | access |
//! | --- | --- | --- |
//! | 0 to 1 GiB | the same physical addresses | supervisor |
//! | 1 to 2 GiB | nothing | |
//! | 2 to 3 GiB ([`USER_BASE`](crate::snippet::USER_BASE)) | 0 to 1 GiB again | user |
//! | 3 to 4 GiB | the same physical addresses (devices), uncached | supervisor |
//!
//! Processor state: CR0 = PG WP NE ET MP PE, CR4 = PAE OSFXSR OSXMMEXCPT,
//! EFER = SCE LME LMA NXE, interrupts off.

use crate::{Frame4K, Global, ZERO_FRAME};
use core::arch::global_asm;

/// Physical address of the PVH start info.
pub static START_INFO: Global<u32> = Global::new(0);

/// What the PVH entry point found: EAX, EBX, CR0, CR4, EFLAGS, and the
/// selectors CS, DS, ES, SS, TR.
pub static ENTRY: Global<[u32; 10]> = Global::new([0; 10]);

/// CR0 as the entry code sets it.
pub const CR0: u64 = 0x8001_0033;
/// CR4 as the entry code sets it.
pub const CR4: u64 = 0x620;
/// EFER as the entry code sets it, without LMA.
pub const EFER: u64 = 0x901;

/// The top-level page table.
pub static PML4: Global<Frame4K> = Global::new(ZERO_FRAME);
static PDPT: Global<Frame4K> = Global::new(ZERO_FRAME);
/// The four page directories for the first 4 GiB; PAE paging can use them too.
pub static PAGE_DIRECTORIES: Global<[Frame4K; 4]> = Global::new([ZERO_FRAME; 4]);
static BOOT_STACK: Global<[Frame4K; 8]> = Global::new([ZERO_FRAME; 8]);

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad pvh_start

    .section .boot, "ax", @progbits
    .code32
    .globl pvh_start
pvh_start:
    mov     esp, offset {stack} + 0x8000
    mov     ebp, ebx
    mov     [{entry}], eax
    mov     [{entry} + 4], ebx
    mov     eax, cr0
    mov     [{entry} + 8], eax
    mov     eax, cr4
    mov     [{entry} + 12], eax
    pushfd
    pop     eax
    mov     [{entry} + 16], eax
    mov     eax, cs
    mov     [{entry} + 20], eax
    mov     eax, ds
    mov     [{entry} + 24], eax
    mov     eax, es
    mov     [{entry} + 28], eax
    mov     eax, ss
    mov     [{entry} + 32], eax
    str     eax
    mov     [{entry} + 36], eax
    cli
    cld

    // Top levels: user and writable everywhere, the last level decides.
    mov     dword ptr [{pml4}], offset {pdpt} + 7
    mov     eax, offset {pd} + 7
    mov     edi, offset {pdpt}
    mov     ecx, 4
2:  mov     [edi], eax
    add     eax, 0x1000
    add     edi, 8
    dec     ecx
    jnz     2b

    // 2 MiB leaves: identity, user alias, devices.
    mov     edi, offset {pd}
    mov     eax, 0x83
    call    fill_directory
    mov     edi, offset {pd} + 0x2000
    mov     eax, 0x87
    call    fill_directory
    mov     edi, offset {pd} + 0x3000
    mov     eax, 0xc0000093
    call    fill_directory

    mov     eax, {cr4}
    mov     cr4, eax
    mov     eax, offset {pml4}
    mov     cr3, eax
    mov     ecx, 0xc0000080
    rdmsr
    or      eax, {efer}
    wrmsr
    mov     eax, {cr0}
    mov     cr0, eax
    lgdt    [boot_gdt_pointer]
    push    8
    mov     eax, offset long_start
    push    eax
    retf

fill_directory:
    mov     ecx, 512
3:  mov     [edi], eax
    mov     dword ptr [edi + 4], 0
    add     eax, 0x200000
    add     edi, 8
    dec     ecx
    jnz     3b
    ret

    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
boot_gdt_pointer:
    .word 23
    .long boot_gdt

    .code64
long_start:
    mov     eax, 0x10
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    xor     eax, eax
    mov     fs, eax
    mov     gs, eax
    fninit
    push    0x1f80
    ldmxcsr [rsp]
    pop     rax
    mov     edi, ebp
    xor     ebp, ebp
    call    program_main
    ud2
    .text
"#,
    entry = sym ENTRY,
    stack = sym BOOT_STACK,
    pml4 = sym PML4,
    pdpt = sym PDPT,
    pd = sym PAGE_DIRECTORIES,
    cr0 = const CR0,
    cr4 = const CR4,
    efer = const EFER,
);
