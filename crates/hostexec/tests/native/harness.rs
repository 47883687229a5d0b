//! Runs one instruction natively with a complete register state of our choice:
//! the oracle.
//!
//! Two pages: one with the state, one with code that loads all of it (XRSTOR,
//! general registers, status flags), runs the instruction as it is, and saves
//! all of it. Everything is addressed relative to RIP, so that the instruction
//! may use any register. A fault in the instruction continues behind it. The host
//! needs AVX.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use hostexec::{FpuState, STATE_SIZE};
use nix::libc;

const PAGE: usize = 4096;
/// Offsets in the state page.
const GPRS: usize = 1024;
const RFLAGS: usize = GPRS + 128;
const HOST_RSP: usize = RFLAGS + 8;
const HOST_MXCSR: usize = HOST_RSP + 8;
const HOST_FCW: usize = HOST_MXCSR + 4;
/// Memory operands: 512 bytes, with room around them.
const MEMORY: usize = 2048;

/// One native machine for the whole process: signal handlers are global.
static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);
/// Address range of the instruction, and where to continue after a fault.
static START: AtomicUsize = AtomicUsize::new(0);
static RESUME: AtomicUsize = AtomicUsize::new(0);
static FAULT: AtomicI32 = AtomicI32::new(0);

struct Machine {
    base: usize,
    /// Offset of the instruction in the code page.
    slot: usize,
}

/// Registers before and after an instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Registers {
    pub state: FpuState,
    pub gprs: [u64; 16],
    pub rflags: u64,
}

/// Exclusive use of the native machine.
pub struct Native(MutexGuard<'static, Option<Machine>>);

impl Native {
    pub fn lock() -> Self {
        let mut guard = MACHINE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if guard.is_none() {
            install_handlers();
            *guard = Some(Machine::new());
        }
        Self(guard)
    }

    fn machine(&self) -> &Machine {
        self.0.as_ref().expect("made in lock")
    }

    /// Address of the memory operand: 64-byte aligned, 512 bytes and more.
    pub fn memory_address(&self) -> u64 {
        (self.machine().base + MEMORY) as u64
    }

    /// Address of the instruction.
    pub fn instruction_address(&self) -> u64 {
        (self.machine().base + PAGE + self.machine().slot) as u64
    }

    /// The bytes around the memory operand.
    pub fn memory(&mut self) -> &mut [u8; 1024] {
        // SAFETY: within the state page, which lives as long as the process and
        // is used under the lock only.
        unsafe { &mut *((self.machine().base + MEMORY) as *mut [u8; 1024]) }
    }

    /// Runs `bytes`; the signal if they faulted.
    pub fn run(&mut self, bytes: &[u8], registers: &mut Registers) -> Option<i32> {
        let machine = self.machine();
        // SAFETY: state page and code page are mapped readable and writable and
        // used under the lock only. The code saves and restores what the
        // calling convention asks for; the tests choose instructions that
        // access the memory operand only.
        unsafe {
            let base = machine.base as *mut u8;
            let area = registers.state.to_bytes();
            base.copy_from(area.as_ptr(), STATE_SIZE);
            // All components are loaded and saved, initial or not.
            base.add(512).cast::<u64>().write(7);
            base.add(GPRS).cast::<[u64; 16]>().write(registers.gprs);
            base.add(RFLAGS).cast::<u64>().write(registers.rflags & 0x8d5 | 0x202);
            let slot = base.add(PAGE + machine.slot);
            slot.write_bytes(0x90, 16);
            slot.copy_from(bytes.as_ptr(), bytes.len());
            START.store(slot as usize, Ordering::SeqCst);
            RESUME.store(slot as usize + 16, Ordering::SeqCst);
            FAULT.store(0, Ordering::SeqCst);
            let entry: extern "sysv64" fn() = std::mem::transmute(base.add(PAGE));
            entry();
            START.store(0, Ordering::SeqCst);
            let mut area = [0; STATE_SIZE];
            area.as_mut_ptr().copy_from(base, STATE_SIZE);
            registers.state = FpuState::from_bytes(&area).expect("saved by the host");
            registers.gprs = base.add(GPRS).cast::<[u64; 16]>().read();
            registers.rflags = base.add(RFLAGS).cast::<u64>().read() & 0x8d5 | 0x2;
        }
        match FAULT.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal),
        }
    }
}

impl Machine {
    fn new() -> Self {
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let (code, slot) = trampoline();
        // SAFETY: the code page is mapped and not in use yet.
        unsafe {
            base.cast::<u8>().add(PAGE).copy_from(code.as_ptr(), code.len());
        }
        Self { base: base as usize, slot }
    }
}

/// The code page up to its end, and the offset of the 16-byte slot in it.
fn trampoline() -> (Vec<u8>, usize) {
    let mut code = Vec::new();
    // push rbx, rbp, r12..r15
    code.extend([0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]);
    rip_relative(&mut code, &[0x48, 0x89, 0x25], HOST_RSP); // mov [], rsp
    rip_relative(&mut code, &[0x0f, 0xae, 0x1d], HOST_MXCSR); // stmxcsr []
    rip_relative(&mut code, &[0xd9, 0x3d], HOST_FCW); // fnstcw []
    code.extend([0xb8, 7, 0, 0, 0, 0x31, 0xd2]); // mov eax, 7; xor edx, edx
    rip_relative(&mut code, &[0x48, 0x0f, 0xae, 0x2d], 0); // xrstor64 []
    rip_relative(&mut code, &[0xff, 0x35], RFLAGS); // push []
    code.push(0x9d); // popfq
    for register in 0..16_u8 {
        rip_relative(&mut code, &gpr_move(0x8b, register), GPRS + 8 * usize::from(register));
    }
    let slot = code.len();
    code.extend([0x90; 16]);
    for register in 0..16_u8 {
        rip_relative(&mut code, &gpr_move(0x89, register), GPRS + 8 * usize::from(register));
    }
    rip_relative(&mut code, &[0x48, 0x8b, 0x25], HOST_RSP); // mov rsp, []
    code.push(0x9c); // pushfq
    rip_relative(&mut code, &[0x8f, 0x05], RFLAGS); // pop []
    code.extend([0xb8, 7, 0, 0, 0, 0x31, 0xd2]);
    rip_relative(&mut code, &[0x48, 0x0f, 0xae, 0x25], 0); // xsave64 []
    code.extend([0xdb, 0xe3]); // fninit
    rip_relative(&mut code, &[0xd9, 0x2d], HOST_FCW); // fldcw []
    rip_relative(&mut code, &[0x0f, 0xae, 0x15], HOST_MXCSR); // ldmxcsr []
    code.extend([0xc5, 0xf8, 0x77]); // vzeroupper
    code.extend([0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);
    (code, slot)
}

fn gpr_move(opcode: u8, register: u8) -> [u8; 3] {
    [if register < 8 { 0x48 } else { 0x4c }, opcode, 0x05 | (register & 7) << 3]
}

/// An instruction with the state page at `offset` as its operand.
fn rip_relative(code: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    code.extend(bytes);
    let next = PAGE + code.len() + 4;
    code.extend((offset as i32 - next as i32).to_le_bytes());
}

fn install_handlers() {
    for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS] {
        // SAFETY: the handler is async-signal-safe (atomics and the context),
        // and runs on the alternate stack that Rust set up for each thread.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
    }
}

extern "C" fn handler(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as usize;
    if rip == START.load(Ordering::SeqCst) && rip != 0 {
        FAULT.store(signal, Ordering::SeqCst);
        registers[libc::REG_RIP as usize] = RESUME.load(Ordering::SeqCst) as i64;
    } else {
        // Not ours: the default action, when the instruction faults again.
        // SAFETY: resets a handler.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}
