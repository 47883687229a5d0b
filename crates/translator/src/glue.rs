//! The fixed pieces of generated code: entering translated code, leaving it, and moving vector
//! registers.
//!
//! Convention inside translated code: GS base is the [`Context`](crate::context::Context), R15 the
//! present tables, RSP the VMM's own stack (so that signals are safe), the other registers as
//! [`crate::registers`] says; status flags and DF are the guest's.
//!
//! An exit is a call of one of these stubs followed by two words of data: what the exit is about,
//! and where to go on. The stub stores the guest's registers, restores the VMM's and returns to
//! Rust.

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use x86::xsave;

use crate::cache::CodeCache;
use crate::context::at;
use crate::registers::{HOST_RCX_OF_GUEST, HOST_RSP_OF_GUEST, IN_PLACE};

/// Why translated code was left: [`crate::context::Context::exit_kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Exit {
    /// The interpreter is to execute an instruction.
    Interpret = 1,
    /// A direct branch inside the page has no target yet.
    Chain = 2,
    /// A block found the poll word set, before its first instruction.
    Poll = 3,
    /// Control goes to another page whose block is not in the jump table.
    Leave = 4,
}

/// Addresses of the stubs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Glue {
    /// `extern "sysv64" fn(host address)`: runs translated code until an exit.
    pub(crate) enter: u64,
    /// The same, with the guest's vector registers loaded first.
    pub(crate) enter_with_vectors: u64,
    pub(crate) interpret: u64,
    pub(crate) chain: u64,
    pub(crate) poll: u64,
    pub(crate) leave: u64,
    /// Loads the guest's vector registers and goes on behind the call's data, or leaves as
    /// [`Exit::Interpret`].
    pub(crate) load_vectors: u64,
}

impl Glue {
    /// Emits the stubs at the beginning of the cache.
    pub(crate) fn emit(cache: &mut CodeCache) -> Self {
        let mut glue = Self::default();
        let common = cache_append(cache, emit_leave);
        let exit = |cache: &mut CodeCache, kind: Exit| {
            cache_append(cache, |code| {
                dynasm!(code ; .arch x64
                    ; gs mov QWORD [DWORD at::EXIT_KIND], kind as i32
                    ; jmp extern common as usize
                );
            })
        };
        glue.interpret = exit(cache, Exit::Interpret);
        glue.chain = exit(cache, Exit::Chain);
        glue.poll = exit(cache, Exit::Poll);
        glue.leave = exit(cache, Exit::Leave);
        let load = cache_append(cache, emit_vector_load);
        glue.enter = cache_append(cache, |code| emit_enter(code, None));
        glue.enter_with_vectors = cache_append(cache, |code| emit_enter(code, Some(load)));
        let interpret = glue.interpret;
        glue.load_vectors = cache_append(cache, |code| emit_load_vectors(code, load, interpret));
        glue
    }
}

type Code = VecAssembler<X64Relocation>;

fn cache_append(cache: &mut CodeCache, emit: impl FnOnce(&mut Code)) -> u64 {
    let mut code = Code::new(cache.next() as usize);
    emit(&mut code);
    let bytes = code.finalize().expect("the stubs' labels are all defined");
    cache.append(&bytes)
}

fn emit_enter(code: &mut Code, load: Option<u64>) {
    dynasm!(code ; .arch x64
        ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15
        // Six pushes and the return address: the stack is aligned for the calls that follow.
        ; sub rsp, 8
        ; gs mov [DWORD at::HOST_RSP], rsp
        ; gs mov [DWORD at::TEMPORARY], rdi
        ; gs stmxcsr DWORD [DWORD at::HOST_MXCSR]
    );
    if let Some(load) = load {
        dynasm!(code ; .arch x64 ; call extern load as usize);
    }
    dynasm!(code ; .arch x64
        ; gs push QWORD [DWORD at::FLAGS]
        ; popfq
        ; gs mov r15, [DWORD at::TABLES]
    );
    for register in IN_PLACE {
        dynasm!(code ; .arch x64 ; gs mov Rq(register), [DWORD at::gpr(register)]);
    }
    dynasm!(code ; .arch x64
        ; gs mov Rq(HOST_RCX_OF_GUEST), [DWORD at::gpr(1)]
        ; gs mov Rq(HOST_RSP_OF_GUEST), [DWORD at::gpr(4)]
        ; gs jmp QWORD [DWORD at::TEMPORARY]
    );
}

/// Common end of all exits; on the stack is the address of the exit's data.
fn emit_leave(code: &mut Code) {
    dynasm!(code ; .arch x64
        ; gs mov [DWORD at::LINEAR], r8
        ; gs pop QWORD [DWORD at::EXIT_DATA]
        ; pushfq
        ; gs pop QWORD [DWORD at::FLAGS]
        ; cld
    );
    for register in IN_PLACE {
        dynasm!(code ; .arch x64 ; gs mov [DWORD at::gpr(register)], Rq(register));
    }
    dynasm!(code ; .arch x64
        ; gs mov [DWORD at::gpr(1)], Rq(HOST_RCX_OF_GUEST)
        ; gs mov [DWORD at::gpr(4)], Rq(HOST_RSP_OF_GUEST)
        ; gs mov QWORD [DWORD at::VECTORS_WERE_LOADED], 0
        ; gs cmp QWORD [DWORD at::VECTORS_MISSING], 0
        ; jne >stored
        ; gs mov rax, [DWORD at::VECTORS]
    );
    for register in 0..16_u8 {
        let n = i32::from(register);
        dynasm!(code ; .arch x64 ; vmovdqu [rax + xsave::XMM as i32 + n * 16], Rx(register));
    }
    // XINUSE tells whether any upper half is other than zero.
    dynasm!(code ; .arch x64
        ; mov r8, rax
        ; mov ecx, 1
        ; xgetbv
        ; test eax, x86::cr::xcr0::AVX as i32
        ; mov rax, r8
        ; jz >clear
    );
    for register in 0..16_u8 {
        let upper = xsave::AVX_OFFSET as i32 + i32::from(register) * 16;
        dynasm!(code ; .arch x64 ; vextracti128 [rax + upper], Ry(register), 1);
    }
    dynasm!(code ; .arch x64 ; jmp >control ; clear: ; vpxor xmm0, xmm0, xmm0);
    for register in 0..16_i32 {
        let upper = xsave::AVX_OFFSET as i32 + register * 16;
        dynasm!(code ; .arch x64 ; vmovdqu [rax + upper], xmm0);
    }
    dynasm!(code ; .arch x64 ; control:);
    dynasm!(code ; .arch x64
        ; stmxcsr DWORD [rax + xsave::MXCSR as i32]
        ; gs ldmxcsr DWORD [DWORD at::HOST_MXCSR]
        ; vzeroupper
        ; gs mov QWORD [DWORD at::VECTORS_MISSING], 1
        ; gs mov QWORD [DWORD at::VECTORS_WERE_LOADED], 1
        ; stored:
        ; gs mov rsp, [DWORD at::HOST_RSP]
        ; add rsp, 8
        ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx
        ; ret
    );
}

/// Loads the vector registers from their area; changes R8 and the flags.
///
/// Upper halves are only written when one is not zero: a register whose upper half has been
/// written slows every SSE instruction down, as long as VZEROUPPER does not clean it.
fn emit_vector_load(code: &mut Code) {
    dynasm!(code ; .arch x64
        ; gs mov r8, [DWORD at::VECTORS]
        ; vmovdqu ymm0, [r8 + xsave::AVX_OFFSET as i32]
    );
    for part in 1..8_i32 {
        dynasm!(code ; .arch x64 ; vpor ymm0, ymm0, [r8 + xsave::AVX_OFFSET as i32 + part * 32]);
    }
    dynasm!(code ; .arch x64 ; vptest ymm0, ymm0 ; vzeroupper);
    for register in 0..16_u8 {
        let n = i32::from(register);
        dynasm!(code ; .arch x64 ; movdqu Rx(register), [r8 + xsave::XMM as i32 + n * 16]);
    }
    dynasm!(code ; .arch x64 ; jz >clean);
    for register in 0..16_u8 {
        let upper = xsave::AVX_OFFSET as i32 + i32::from(register) * 16;
        dynasm!(code ; .arch x64 ; vinserti128 Ry(register), Ry(register), [r8 + upper], 1);
    }
    dynasm!(code ; .arch x64
        ; clean:
        ; ldmxcsr DWORD [r8 + xsave::MXCSR as i32]
        ; gs mov QWORD [DWORD at::VECTORS_MISSING], 0
        ; ret
    );
}

/// Called from a block before its first vector instruction, with exit data behind the call.
fn emit_load_vectors(code: &mut Code, load: u64, interpret: u64) {
    dynasm!(code ; .arch x64
        ; gs mov rcx, [DWORD at::VECTORS_ALLOWED]
        ; jrcxz >refused
        ; pushfq
        ; call extern load as usize
        ; popfq
        ; pop rcx
        ; lea rcx, [rcx + 8]
        ; jmp rcx
        ; refused:
        ; jmp extern interpret as usize
    );
}
