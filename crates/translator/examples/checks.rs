//! What checking a memory access costs: the software TLB as the translator emits it, and the flat
//! table that could replace it.
//!
//! `cargo run --release -p translator --example checks` prints nanoseconds for each load, the
//! cheapest of some runs, of random loads inside so many pages: each load from where the one before
//! tells (what a load's latency is), and from a list (how many can be under way at once). The
//! sequences:
//!
//! | name | what stands before the load |
//! | --- | --- |
//! | none | nothing: host addresses |
//! | tlb | tag, page and page crossing in one comparison that spares the flags; 40 bytes |
//! | flat | the page's difference between host and guest, from a table as large as the address space; 14 bytes |
//! | flat, aligned | the same, and a branch when the access is not aligned, as it may go on in the next page then; 27 bytes |
//!
//! Without the last, an access across two pages would go on in what happens to follow in guest RAM.
//! docs/translator.md says what came of it.

#![expect(clippy::print_stdout, reason = "it reports on standard output")]

use std::mem::offset_of;
use std::ptr::null_mut;
use std::time::Instant;

use dynasmrt::{AssemblyOffset, DynasmApi, DynasmLabelApi, ExecutableBuffer, dynasm};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Entries of the software TLB.
const TLB_ENTRIES: u64 = 4096;
/// Bits of an address that number its page in one half of the address space.
const PAGE_BITS: u64 = 0x7fff_ffff_f000;
/// Where the guest's pages are, in the linear addresses of a Linux kernel.
const GUEST: u64 = 0xffff_8880_0000_0000;
const LOADS: usize = 1 << 16;
const RUNS: usize = 40;

/// What generated code gets: the first address, the loads to do, the list of addresses, the tables.
/// It gives the last word that it loads.
type Loop = extern "sysv64" fn(u64, u64, *const u64, *const View) -> u64;

/// The tables as generated code finds them.
#[repr(C)]
struct View {
    tags: *const u64,
    addends: *const u64,
    flat: *const u64,
    /// Operands of PEXT: index of the TLB, page number and alignment, index of the flat table,
    /// alignment.
    masks: [u64; 4],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    None,
    Tlb,
    Flat,
    FlatAligned,
}

fn main() {
    let bytes = ((PAGE_BITS >> 12) as usize + 1) * size_of::<u64>();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let flat = unsafe {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        mmap_anonymous(null_mut(), bytes, rights, MapFlags::PRIVATE | MapFlags::NORESERVE)
    };
    let flat = flat.expect("address space for the flat table").cast::<u64>();
    println!("{:<8}{:<16}{:>12}{:>12}", "pages", "check", "chained", "listed");
    for pages in [16, 256, 2048] {
        let memory = Memory::new(pages, flat);
        for check in [Check::None, Check::Tlb, Check::Flat, Check::FlatAligned] {
            let [chained, listed] = [true, false].map(|chained| memory.measure(check, chained));
            println!("{pages:<8}{:<16}{chained:>9.2} ns{listed:>9.2} ns", check.name());
        }
    }
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tlb => "tlb",
            Self::Flat => "flat",
            Self::FlatAligned => "flat, aligned",
        }
    }
}

/// Pages with addresses in them, each of which leads to the next.
struct Memory {
    tags: Vec<u64>,
    addends: Vec<u64>,
    flat: *const u64,
    words: Vec<u64>,
    /// Linear addresses in the order of the chain.
    order: Vec<u64>,
}

impl Memory {
    fn new(pages: usize, flat: *mut u64) -> Self {
        let words = vec![0; pages * 512];
        let addend = (words.as_ptr() as u64).wrapping_sub(GUEST);
        let (mut tags, mut addends) =
            (vec![0; TLB_ENTRIES as usize], vec![0; TLB_ENTRIES as usize]);
        for page in 0..pages as u64 {
            let linear = GUEST + page * 4096;
            let index = (linear >> 12) % TLB_ENTRIES;
            tags[index as usize] = linear.wrapping_neg();
            addends[index as usize] = addend;
            // SAFETY: the table has an entry for each page below 2^47, and this is bits 12 to 46.
            unsafe { flat.add(((linear & PAGE_BITS) >> 12) as usize).write(addend) };
        }
        let mut memory = Self { tags, addends, flat, words, order: Vec::new() };
        memory.link(pages);
        memory
    }

    /// A chain through words of all pages in random order.
    fn link(&mut self, pages: usize) {
        let mut random = 88_172_645_463_325_252_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        let mut places: Vec<usize> = (0..pages * 512).collect();
        for at in (1..places.len()).rev() {
            places.swap(at, next(at + 1));
        }
        places.truncate(LOADS);
        for (at, place) in places.iter().enumerate() {
            self.words[*place] = GUEST + places[(at + 1) % places.len()] as u64 * 8;
        }
        self.order = places.iter().map(|place| GUEST + *place as u64 * 8).collect();
    }

    /// Nanoseconds of a load.
    fn measure(&self, check: Check, chained: bool) -> f64 {
        let addend = (self.words.as_ptr() as u64).wrapping_sub(GUEST);
        let code = emit(check, chained, addend);
        // SAFETY: the code that `emit` has made, which keeps to this convention.
        let run: Loop = unsafe { std::mem::transmute(code.ptr(AssemblyOffset(0))) };
        let count = self.order.len() as u64;
        let view = View {
            tags: self.tags.as_ptr(),
            addends: self.addends.as_ptr(),
            flat: self.flat,
            masks: [(TLB_ENTRIES - 1) << 12, !0xfff, PAGE_BITS, 7],
        };
        let time = || {
            let begin = Instant::now();
            std::hint::black_box(run(self.order[0], count, self.order.as_ptr(), &raw const view));
            begin.elapsed().as_nanos() as f64 / count as f64
        };
        (0..RUNS).map(|_| time()).fold(f64::INFINITY, f64::min)
    }
}

/// A loop of loads: RDI address, RSI loads left, RDX list; R11 the view, R12 tags, R13 addends, RBX
/// the flat table, R10 the difference between host and guest addresses.
fn emit(check: Check, chained: bool, addend: u64) -> ExecutableBuffer {
    let mut code = dynasmrt::x64::Assembler::new().expect("memory for code");
    let masks = offset_of!(View, masks) as i8;
    dynasm!(code ; .arch x64
        ; push rbx ; push r12 ; push r13
        ; mov r11, rcx
        ; mov r12, [BYTE r11 + offset_of!(View, tags) as i8]
        ; mov r13, [BYTE r11 + offset_of!(View, addends) as i8]
        ; mov rbx, [BYTE r11 + offset_of!(View, flat) as i8]
        ; mov r10, QWORD addend as i64
        ; again:
    );
    if !chained {
        dynasm!(code ; .arch x64 ; mov rdi, [rdx] ; add rdx, 8);
    }
    dynasm!(code ; .arch x64 ; lea r8, [BYTE rdi + 0]);
    match check {
        Check::None => dynasm!(code ; .arch x64 ; mov rdi, [r8 + r10]),
        Check::Tlb => dynasm!(code ; .arch x64
            ; pext r9, r8, [BYTE r11 + masks]
            ; mov rcx, [r12 + r9 * 8]
            ; lea rcx, [BYTE rcx + r8 + 7]
            ; pext rcx, rcx, [BYTE r11 + masks + 8]
            ; jrcxz >passes
            ; ud2
            ; passes:
            ; mov r9, [r13 + r9 * 8]
            ; mov rdi, [r8 + r9]
        ),
        Check::Flat | Check::FlatAligned => {
            if check == Check::FlatAligned {
                dynasm!(code ; .arch x64
                    ; pext rcx, r8, [BYTE r11 + masks + 24]
                    ; jrcxz >aligned
                    ; ud2
                    ; aligned:
                );
            }
            dynasm!(code ; .arch x64
                ; pext r9, r8, [BYTE r11 + masks + 16]
                ; mov r9, [rbx + r9 * 8]
                ; mov rdi, [r8 + r9]
            );
        }
    }
    dynasm!(code ; .arch x64
        ; dec rsi
        ; jnz <again
        ; mov rax, rdi
        ; pop r13 ; pop r12 ; pop rbx
        ; ret
    );
    code.finalize().expect("no assembler is left")
}
