//! What a sandbox does with small programs, and what they cannot do.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use direct::{DirectError, Handle, Mapping, Rights, Sandbox, Stop, UserState};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x7f12_3456_7000;
/// Places of the pages in guest RAM.
const CODE_AT: u64 = 0x3000;
const DATA_AT: u64 = 0x5000;

struct Program {
    ram: OwnedFd,
    sandbox: Sandbox,
    handle: Arc<Handle>,
    state: UserState,
    vectors: [u8; x86::xsave::AREA_SIZE],
}

/// A sandbox with `code` at [`CODE`] and a page of data; `None`, with the reason printed, where the
/// host does not allow it.
fn program(code: &[u8]) -> Option<Program> {
    let ram = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&ram, 0x10_000).unwrap();
    pwrite(&ram, code, CODE_AT).unwrap();
    let handle = Arc::new(Handle::default());
    let mut sandbox = match Sandbox::new(ram.as_fd(), Arc::clone(&handle)) {
        Ok(sandbox) => sandbox,
        Err(e) => {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            // Past the test harness; nobody to tell when standard error is closed.
            let _ = writeln!(std::io::stderr(), "skipped: {test}: {e}");
            return None;
        }
    };
    let code = Mapping { linear: CODE, offset: CODE_AT, rights: Rights::Execute };
    let data = Mapping { linear: DATA, offset: DATA_AT, rights: Rights::Write };
    sandbox.map([code, data]).unwrap();
    let state = UserState { rip: CODE, rflags: 0x202, ..UserState::default() };
    let mut vectors = [0; x86::xsave::AREA_SIZE];
    vectors[..2].copy_from_slice(&x86::xsave::FCW_INIT.to_le_bytes());
    vectors[24..28].copy_from_slice(&x86::xsave::MXCSR_INIT.to_le_bytes());
    Some(Program { ram, sandbox, handle, state, vectors })
}

impl Program {
    fn run(&mut self) -> Stop {
        self.sandbox.run(&mut self.state, &mut self.vectors, || true).unwrap()
    }
}

#[test]
fn a_system_call_stops_and_does_not_happen() {
    // mov eax, 60; mov edi, 7; syscall: exit
    let code = [0xb8, 60, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05];
    let Some(mut program) = program(&code) else { return };
    assert_eq!(program.run(), Stop::SystemCall);
    let state = program.state;
    assert_eq!((state.gpr[0], state.gpr[7], state.rip), (60, 7, CODE + 12));
    assert_eq!(state.gpr[1], CODE + 12, "RCX is what SYSCALL leaves");
}

#[test]
fn memory_and_vector_registers_are_the_guests() {
    // mov rax, DATA; add qword [rax], 5; paddd xmm1, xmm1; int3
    let mut code = vec![0x48, 0xb8];
    code.extend(DATA.to_le_bytes());
    code.extend([0x48, 0x83, 0x00, 5, 0x66, 0x0f, 0xfe, 0xc9, 0xcc]);
    let Some(mut program) = program(&code) else { return };
    pwrite(&program.ram, &37_u64.to_le_bytes(), DATA_AT).unwrap();
    program.vectors[x86::xsave::XMM + 16] = 21;
    assert_eq!(program.run(), Stop::Breakpoint);
    let mut found = [0; 8];
    pread(&program.ram, &mut found, DATA_AT).unwrap();
    assert_eq!(u64::from_le_bytes(found), 42);
    assert_eq!(program.vectors[x86::xsave::XMM + 16], 42);
    assert_eq!(program.vectors[x86::xsave::XSTATE_BV], 0, "the header stays zero");
}

#[test]
fn what_is_not_mapped_stops_with_its_address() {
    // mov rax, [0x1234_5000]; int3
    let code = [0x48, 0x8b, 0x04, 0x25, 0, 0x50, 0x34, 0x12, 0xcc];
    let Some(mut program) = program(&code) else { return };
    assert_eq!(program.run(), Stop::Access(0x1234_5000));
    assert_eq!(program.state.rip, CODE);
    let page = Mapping { linear: 0x1234_5000, offset: DATA_AT, rights: Rights::Read };
    program.sandbox.map([page]).unwrap();
    assert_eq!(program.run(), Stop::Breakpoint);
    program.sandbox.unmap([CODE]).unwrap();
    program.state.rip = CODE;
    assert_eq!(program.run(), Stop::Access(CODE));
    program.sandbox.unmap_all().unwrap();
    program.state.rip = DATA;
    assert_eq!(program.run(), Stop::Access(DATA));
}

#[test]
fn instructions_that_would_tell_of_the_host_stop() {
    // cpuid; rdtsc; rdtscp; hlt; in al, dx; mov rax, cr0
    let instructions: [&[u8]; 6] =
        [&[0x0f, 0xa2], &[0x0f, 0x31], &[0x0f, 0x01, 0xf9], &[0xf4], &[0xec], &[0x0f, 0x20, 0xc0]];
    for code in instructions {
        let Some(mut program) = program(code) else { return };
        assert_eq!(program.run(), Stop::Fault, "{code:x?}");
        assert_eq!(program.state.rip, CODE);
    }
}

#[test]
fn it_stops_before_instructions_that_are_watched() {
    // inc eax; inc eax; inc eax; inc eax; int3
    let code = [0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xcc];
    let Some(mut program) = program(&code) else { return };
    program.sandbox.watch(&[CODE + 2, CODE + 6]).unwrap();
    assert_eq!((program.run(), program.state.gpr[0]), (Stop::Watched, 1));
    assert_eq!(program.state.rip, CODE + 2);
    program.state.rip = CODE + 4;
    assert_eq!((program.run(), program.state.gpr[0]), (Stop::Watched, 2));
    assert_eq!(program.state.rip, CODE + 6);
    program.sandbox.watch(&[CODE + 4]).unwrap();
    assert_eq!((program.run(), program.state.gpr[0]), (Stop::Breakpoint, 3));
    program.state.rip = CODE;
    assert_eq!((program.run(), program.state.rip), (Stop::Watched, CODE + 4));
    program.sandbox.watch(&[]).unwrap();
    assert_eq!((program.run(), program.state.gpr[0]), (Stop::Breakpoint, 7));
}

#[test]
fn an_endless_loop_is_interrupted() {
    let Some(mut program) = program(&[0xeb, 0xfe]) else { return };
    let handle = Arc::clone(&program.handle);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        handle.interrupt();
    });
    assert_eq!(program.run(), Stop::Interrupted);
    assert_eq!(program.state.rip, CODE);
    thread.join().unwrap();
}

#[test]
fn an_interrupt_before_it_runs_is_not_lost_between_the_look_and_the_start() {
    let Some(mut program) = program(&[0xeb, 0xfe]) else { return };
    let handle = Arc::clone(&program.handle);
    let look_then_interrupt = || {
        handle.interrupt();
        true
    };
    let stop = program.sandbox.run(&mut program.state, &mut program.vectors, look_then_interrupt);
    assert_eq!(stop.unwrap(), Stop::Interrupted);
}

#[test]
fn other_segments_are_noticed() {
    // mov eax, 0x2b; mov ds, eax; int3
    let Some(mut program) = program(&[0xb8, 0x2b, 0, 0, 0, 0x8e, 0xd8, 0xcc]) else { return };
    assert_eq!(program.run(), Stop::Segments);
}

#[test]
fn nothing_of_this_process_is_left_there() {
    static SECRET: u64 = 42;
    let address = &raw const SECRET as u64;
    // mov rax, imm64; mov rax, [rax]
    let mut code = vec![0x48, 0xb8];
    code.extend(address.to_le_bytes());
    code.extend([0x48, 0x8b, 0x00]);
    let Some(mut program) = program(&code) else { return };
    assert_eq!(program.run(), Stop::Access(address));
}

#[test]
fn a_process_that_was_killed_is_an_error() {
    let Some(mut program) = program(&[0xeb, 0xfe]) else { return };
    let kill = || {
        let own = std::process::id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{}/children", gettid()));
        for pid in children.unwrap().split_whitespace() {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        true
    };
    let stop = program.sandbox.run(&mut program.state, &mut program.vectors, kill);
    assert!(matches!(stop, Err(DirectError::Killed { .. } | DirectError::Refused { .. })));
}

fn gettid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}
