//! Locked instructions on words that all processors change (SDM vol. 3A 9.1.2),
//! of every kind and width, also across cache lines and pages.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use kit::smp::{self, Barrier};
use kit::{Frame4K, Global, Report, ZERO_FRAME};

/// Updates of each kind by each processor.
const TIMES: u64 = 1000;
/// Updates across cache lines, for which everything may stand still.
const SPLIT_TIMES: u64 = 100;

static AREA: Global<[Frame4K; 2]> = Global::new([ZERO_FRAME; 2]);
static BARRIER: Barrier = Barrier::new();
static COUNT: AtomicU64 = AtomicU64::new(0);
/// What went wrong inside the work.
static TORN: AtomicU64 = AtomicU64::new(0);
static NEW_BITS: AtomicU64 = AtomicU64::new(0);

/// The word at an offset of the area.
fn word(offset: u64) -> u64 {
    // SAFETY: offsets here lie in the area; alignment does not matter.
    unsafe { ((AREA.addr() + offset) as *const u64).read_unaligned() }
}

/// Runs one instruction on a word of the area so many times, with `{v}` as register operand.
macro_rules! repeat {
    ($times:expr, $offset:expr, $value:expr, $($code:literal),+) => {
        for _ in 0..$times {
            // SAFETY: the operand lies in the area, whose only other users are such instructions.
            unsafe {
                asm!($($code),+, p = in(reg) AREA.addr() + $offset,
                    v = inout(reg) $value => _, options(nostack));
            }
        }
    };
}

pub fn run(t: &mut Report, count: usize) {
    COUNT.store(count as u64, Ordering::Relaxed);
    let n = TIMES * count as u64;
    smp::together(count, simple);
    t.eq("LOCK INC of 8 bits", word(0x00) & 0xff, n & 0xff);
    t.eq("LOCK INC of 16 bits", word(0x40) & 0xffff, n & 0xffff);
    t.eq("LOCK INC of 32 bits", word(0x80), n & 0xffff_ffff);
    t.eq("LOCK INC of 64 bits", word(0xc0), n);
    t.eq("LOCK DEC", word(0x100), n.wrapping_neg());
    t.eq("LOCK ADD, SUB, ADC and SBB", word(0x140), n * 7);
    t.eq("LOCK XADD", word(0x180), n * 3);
    t.eq("LOCK XOR, NOT and NEG in pairs", word(0x1c0), 0);
    t.eq("LOCK OR and AND of single bits", word(0x200), (1 << count) - 1);
    smp::together(count, exchanges);
    t.eq("LOCK CMPXCHG", word(0x240), n);
    t.eq("LOCK CMPXCHG8B", word(0x280), n << 32 | n);
    t.eq("LOCK CMPXCHG16B", [word(0x2c0), word(0x2c8)], [n, !n]);
    t.eq("XCHG as a lock", word(0x300), n);
    smp::together(count, bits);
    t.eq("LOCK BTS takes each bit once", NEW_BITS.load(Ordering::Relaxed), TIMES);
    smp::together(count, splits);
    let n = SPLIT_TIMES * count as u64;
    t.eq("LOCK XADD across cache lines", word(0x7fd), n * 0x1_0000_0001);
    t.eq("LOCK XADD across pages", word(0xffd), n * 0x1_0000_0001);
    t.eq("LOCK INC beside it", [word(0x7f0), word(0xff0), word(0x1010)], [n; 3]);
    t.eq("no operand was torn", TORN.load(Ordering::Relaxed), 0);
}

fn simple(index: usize) {
    BARRIER.wait(COUNT.load(Ordering::Relaxed) as usize);
    repeat!(TIMES, 0x00, 0_u64, "lock inc byte ptr [{p}]", "/* {v} */");
    repeat!(TIMES, 0x40, 0_u64, "lock inc word ptr [{p}]", "/* {v} */");
    repeat!(TIMES, 0x80, 0_u64, "lock inc dword ptr [{p}]", "/* {v} */");
    repeat!(TIMES, 0xc0, 0_u64, "lock inc qword ptr [{p}]", "/* {v} */");
    repeat!(TIMES, 0x100, 0_u64, "lock dec qword ptr [{p}]", "/* {v} */");
    repeat!(
        TIMES,
        0x140,
        9_u64,
        "lock add qword ptr [{p}], {v}",
        "lock sub qword ptr [{p}], 3",
        "stc",
        "lock adc qword ptr [{p}], 1",
        "stc",
        "lock sbb qword ptr [{p}], 0"
    );
    repeat!(TIMES, 0x180, 3_u64, "lock xadd qword ptr [{p}], {v}");
    repeat!(TIMES, 0x1c0, 0x55_u64, "lock xor qword ptr [{p}], {v}");
    repeat!(TIMES & !1, 0x1c0, 0_u64, "lock not qword ptr [{p}]", "/* {v} */");
    repeat!(TIMES, 0x200, 1_u64 << index, "lock or qword ptr [{p}], {v}");
    repeat!(
        TIMES,
        0x200,
        1_u64 << index,
        "not {v}",
        "lock and qword ptr [{p}], {v}",
        "not {v}",
        "lock or qword ptr [{p}], {v}"
    );
}

fn exchanges(_: usize) {
    let at = AREA.addr();
    BARRIER.wait(COUNT.load(Ordering::Relaxed) as usize);
    for _ in 0..TIMES {
        // SAFETY: aligned operands in the area, as in `repeat!`; RBX is restored, and
        // no operand.
        unsafe {
            asm!("mov rax, [{p}]", "2:", "lea {v}, [rax + 1]", "lock cmpxchg [{p}], {v}", "jne 2b",
                p = in(reg) at + 0x240, v = out(reg) _, out("rax") _, options(nostack));
            asm!("mov r8, rbx", "xor eax, eax", "xor edx, edx",
                "2:", "lea ebx, [rax + 1]", "lea ecx, [rdx + 1]",
                "lock cmpxchg8b [rdi]", "jne 2b", "mov rbx, r8",
                in("rdi") at + 0x280, out("r8") _,
                out("rax") _, out("rdx") _, out("rcx") _, options(nostack));
            let torn: u64;
            asm!("mov r8, rbx", "xor eax, eax", "xor edx, edx", "xor r9d, r9d",
                "2:", "lea rbx, [rax + 1]", "mov rcx, rbx", "not rcx",
                "lock cmpxchg16b [rdi]", "je 3f",
                // The second half is the complement of the first, or both are 0.
                "mov rcx, rdx", "not rcx", "cmp rcx, rax", "je 2b",
                "mov rcx, rax", "or rcx, rdx", "jz 2b", "inc r9", "jmp 2b",
                "3:", "mov rbx, r8",
                in("rdi") at + 0x2c0, out("r8") _, out("r9") torn,
                out("rax") _, out("rdx") _, out("rcx") _, options(nostack));
            TORN.fetch_add(torn, Ordering::Relaxed);
            // A lock by XCHG around an addition that is not atomic.
            asm!("2:", "mov {v:e}, 1", "xchg [{p} + 8], {v:e}", "test {v:e}, {v:e}", "jz 3f",
                "pause", "jmp 2b",
                "3:", "mov {v}, [{p}]", "inc {v}", "mov [{p}], {v}", "mov dword ptr [{p} + 8], 0",
                p = in(reg) at + 0x300, v = out(reg) _, options(nostack));
        }
    }
}

/// All set the same bits, and count those that were new to them.
fn bits(_: usize) {
    BARRIER.wait(COUNT.load(Ordering::Relaxed) as usize);
    let mut new = 0_u64;
    for bit in 0..TIMES {
        // SAFETY: the bits lie behind 0x400 in the area.
        unsafe {
            asm!("lock bts [{p}], {bit}", "cmc", "adc {new}, 0", p = in(reg) AREA.addr() + 0x400,
                bit = in(reg) bit, new = inout(reg) new, options(nostack));
        }
    }
    NEW_BITS.fetch_add(new, Ordering::Relaxed);
}

fn splits(_: usize) {
    BARRIER.wait(COUNT.load(Ordering::Relaxed) as usize);
    for (offset, beside) in [(0x7fd, 0x7f0), (0xffd, 0xff0)] {
        repeat!(
            SPLIT_TIMES,
            offset,
            0x1_0000_0001_u64,
            "lock xadd qword ptr [{p}], {v}",
            "mov {v}, [{p}]"
        );
        repeat!(SPLIT_TIMES, beside, 0_u64, "lock inc qword ptr [{p}]", "/* {v} */");
    }
    repeat!(SPLIT_TIMES, 0x1010, 0_u64, "lock inc qword ptr [{p}]", "/* {v} */");
}
