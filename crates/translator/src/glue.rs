//! The fixed pieces of generated code: entering translated code, leaving it, moving vector
//! registers, and what is too long to stand in every block.
//!
//! Convention inside translated code: RSP points at the [`Context`](crate::context::Context), R15
//! at the present tables, the other registers are as [`crate::registers`] says; status flags are
//! the guest's and DF is clear.
//!
//! An exit is a call of one of these stubs followed by the number of its record
//! ([`crate::records`]). The stub stores the guest's registers, restores the VMM's and returns to
//! Rust. Inside a stub that was called the context is 8 bytes above RSP.

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use x86::cr::rflags;
use x86::xsave;

use crate::cache::CodeCache;
use crate::context::at;
use crate::mode::CodeMode;
use crate::registers::{HOST_RCX_OF_GUEST, HOST_RSP_OF_GUEST, IN_PLACE};
use crate::strings::{self, Shape};

/// Why translated code was left: [`crate::context::Context::exit_kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Exit {
    /// The interpreter is to execute an instruction.
    Interpret = 1,
    /// The TLB lacks an access, whose address is in R8; nothing of the instruction has happened.
    Miss = 2,
    /// A direct branch inside the page has no target yet.
    Chain = 3,
    /// A block found the poll word set, before its first instruction.
    Poll = 4,
    /// The jump table lacks the target in R8; nothing of the instruction has happened.
    Jump = 5,
}

/// Number of exit kinds plus one: their numbers begin at 1.
pub(crate) const EXIT_KINDS: usize = 6;

/// Addresses of the stubs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Glue {
    /// `extern "sysv64" fn(host address, context)`: runs translated code until an exit.
    pub(crate) enter: u64,
    /// The same, with the guest's vector registers loaded first.
    pub(crate) enter_with_vectors: u64,
    pub(crate) interpret: u64,
    pub(crate) miss: u64,
    pub(crate) chain: u64,
    pub(crate) poll: u64,
    /// Looks at the second entry of the target in R8; leaves when that does not match either.
    pub(crate) jump: u64,
    /// Loads the guest's vector registers and goes on behind the call's record, or leaves as
    /// [`Exit::Interpret`].
    pub(crate) load_vectors: u64,
    /// SYSCALL whose return address is in R8, from CPL 3.
    pub(crate) syscall: u64,
    /// SYSRET to 64-bit code.
    pub(crate) sysret: u64,
    /// POPF of the value in R8 at CPL 0; goes on behind the call's record. The other is for stack
    /// slots of 4 bytes.
    pub(crate) popf: u64,
    pub(crate) popf32: u64,
    /// The image of RFLAGS that PUSHF stores, into RCX; a plain call.
    pub(crate) flags_image: u64,
    /// REP MOVS and REP STOS by operand size, for 64-bit and for 32-bit code; plain calls, see
    /// [`crate::strings`].
    rep_movs: [[u64; 4]; 2],
    rep_stos: [[u64; 4]; 2],
}

impl Glue {
    /// Emits the stubs at the beginning of the cache.
    pub(crate) fn emit(cache: &mut CodeCache) -> Self {
        let mut glue = Self::default();
        let leave = append(cache, emit_leave);
        let common = append(cache, |code| emit_take_record(code, leave));
        let exit = |cache: &mut CodeCache, kind: Exit| {
            append(cache, |code| {
                dynasm!(code ; .arch x64
                    ; mov QWORD [rsp + 8 + at::EXIT_KIND], kind as i32
                    ; jmp extern common as usize
                );
            })
        };
        glue.interpret = exit(cache, Exit::Interpret);
        glue.miss = exit(cache, Exit::Miss);
        glue.chain = exit(cache, Exit::Chain);
        glue.poll = exit(cache, Exit::Poll);
        let jump = exit(cache, Exit::Jump);
        glue.jump = append(cache, |code| emit_second_entry(code, jump));
        let load = append(cache, emit_vector_load);
        glue.enter = append(cache, |code| emit_enter(code, None));
        glue.enter_with_vectors = append(cache, |code| emit_enter(code, Some(load)));
        let interpret = glue.interpret;
        glue.load_vectors = append(cache, |code| emit_load_vectors(code, load, interpret));
        glue.syscall = append(cache, |code| emit_syscall(code, interpret));
        glue.sysret = append(cache, |code| emit_sysret(code, interpret));
        glue.popf = append(cache, |code| emit_popf(code, interpret, false));
        glue.flags_image = append(cache, emit_flags_image);
        for (bits32, log) in [false, true].into_iter().flat_map(|b| (0..4).map(move |l| (b, l))) {
            let (width, size) = (usize::from(bits32), usize::from(log));
            let shape = Shape { log, bits32 };
            glue.rep_movs[width][size] =
                append(cache, |code| strings::emit_rep_movs(code, shape, leave));
            glue.rep_stos[width][size] =
                append(cache, |code| strings::emit_rep_stos(code, shape, leave));
        }
        glue.popf32 = append(cache, |code| emit_popf(code, interpret, true));
        glue
    }

    /// The stub of REP MOVS with operands of `1 << log` bytes.
    pub(crate) fn rep_movs(&self, mode: CodeMode, log: u8) -> u64 {
        self.rep_movs[usize::from(mode.bits32)][usize::from(log)]
    }

    /// The stub of REP STOS with operands of `1 << log` bytes.
    pub(crate) fn rep_stos(&self, mode: CodeMode, log: u8) -> u64 {
        self.rep_stos[usize::from(mode.bits32)][usize::from(log)]
    }

    /// The stub of POPF.
    pub(crate) fn popf(&self, mode: CodeMode) -> u64 {
        if mode.bits32 { self.popf32 } else { self.popf }
    }

    /// Whether a stub of REP MOVS is at `address`.
    pub(crate) fn is_rep_movs(&self, address: u64) -> bool {
        self.rep_movs.as_flattened().contains(&address)
    }

    /// Whether a stub of REP STOS is at `address`.
    pub(crate) fn is_rep_stos(&self, address: u64) -> bool {
        self.rep_stos.as_flattened().contains(&address)
    }
}

pub(crate) type Code = VecAssembler<X64Relocation>;

fn append(cache: &mut CodeCache, emit: impl FnOnce(&mut Code)) -> u64 {
    let mut code = Code::new(cache.next() as usize);
    emit(&mut code);
    let bytes = code.finalize().expect("the stubs' labels are all defined");
    cache.append(&bytes)
}

fn emit_enter(code: &mut Code, load: Option<u64>) {
    dynasm!(code ; .arch x64
        ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15
        ; mov [rsi + at::HOST_RSP], rsp
        ; stmxcsr DWORD [rsi + at::HOST_MXCSR]
        ; mov rsp, rsi
        ; mov [rsp + at::ENTER_AT], rdi
    );
    if let Some(load) = load {
        dynasm!(code ; .arch x64
            ; mov r8, [rsp + at::VECTORS]
            ; call extern load as usize
            ; mov QWORD [rsp + at::VECTORS_MISSING], 0
        );
    }
    dynasm!(code ; .arch x64
        ; push QWORD [rsp + at::FLAGS]
        ; popfq
        ; mov r15, [rsp + at::TABLES]
    );
    for register in IN_PLACE {
        dynasm!(code ; .arch x64 ; mov Rq(register), [rsp + at::gpr(register)]);
    }
    dynasm!(code ; .arch x64
        ; mov Rq(HOST_RCX_OF_GUEST), [rsp + at::gpr(1)]
        ; mov Rq(HOST_RSP_OF_GUEST), [rsp + at::gpr(4)]
        ; jmp QWORD [rsp + at::ENTER_AT]
    );
}

/// Reads the number of the record behind the call of an exit stub.
fn emit_take_record(code: &mut Code, leave: u64) {
    dynasm!(code ; .arch x64
        ; mov [rsp + 8 + at::LINEAR], r8
        ; mov rcx, [rsp]
        ; mov ecx, [rcx]
        ; mov [rsp + 8 + at::EXIT_RECORD], rcx
        ; lea rsp, [rsp + 8]
        ; jmp extern leave as usize
    );
}

/// Common end of all exits: kind and record are in the context.
fn emit_leave(code: &mut Code) {
    dynasm!(code ; .arch x64
        ; pushfq
        ; pop QWORD [rsp + at::FLAGS]
    );
    for register in IN_PLACE {
        dynasm!(code ; .arch x64 ; mov [rsp + at::gpr(register)], Rq(register));
    }
    dynasm!(code ; .arch x64
        ; mov [rsp + at::gpr(1)], Rq(HOST_RCX_OF_GUEST)
        ; mov [rsp + at::gpr(4)], Rq(HOST_RSP_OF_GUEST)
        ; mov QWORD [rsp + at::VECTORS_WERE_LOADED], 0
        ; cmp QWORD [rsp + at::VECTORS_MISSING], 0
        ; jne >stored
        ; mov rax, [rsp + at::VECTORS]
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
    dynasm!(code ; .arch x64 ; vzeroupper ; jmp >control ; clear: ; vpxor xmm0, xmm0, xmm0);
    for part in 0..8_i32 {
        let upper = xsave::AVX_OFFSET as i32 + part * 32;
        dynasm!(code ; .arch x64 ; vmovdqu [rax + upper], ymm0);
    }
    dynasm!(code ; .arch x64
        ; control:
        ; stmxcsr DWORD [rax + xsave::MXCSR as i32]
        ; ldmxcsr DWORD [rsp + at::HOST_MXCSR]
        ; mov QWORD [rsp + at::VECTORS_MISSING], 1
        ; mov QWORD [rsp + at::VECTORS_WERE_LOADED], 1
        ; stored:
        ; mov rsp, [rsp + at::HOST_RSP]
        ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx
        ; ret
    );
}

/// Loads the vector registers from their area, whose address is in R8; changes the flags.
///
/// Upper halves are only written when one is not zero: a register whose upper half has been
/// written slows every SSE instruction down, as long as VZEROUPPER does not clean it.
fn emit_vector_load(code: &mut Code) {
    dynasm!(code ; .arch x64 ; vmovdqu ymm0, [r8 + xsave::AVX_OFFSET as i32]);
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
        ; ret
    );
}

/// Called from a block before its first vector instruction, with a record behind the call.
fn emit_load_vectors(code: &mut Code, load: u64, interpret: u64) {
    dynasm!(code ; .arch x64
        ; mov rcx, [rsp + 8 + at::VECTORS_ALLOWED]
        ; jrcxz >refused
        ; mov r8, [rsp + 8 + at::VECTORS]
        ; pushfq
        ; call extern load as usize
        ; popfq
        ; mov QWORD [rsp + 8 + at::VECTORS_MISSING], 0
        ; pop rcx
        ; lea rcx, [rcx + 4]
        ; jmp rcx
        ; refused:
        ; jmp extern interpret as usize
    );
}

/// Compares the target in R8 with the first of its jump entries, in the tables of R15: R9 becomes
/// the entry's index, RCX zero when it matches. Changes no flags.
pub(crate) fn compare_first_entry(code: &mut Code) {
    dynasm!(code ; .arch x64
        ; mov r9d, 0
        ; crc32 r9, r8
        ; pdep r9, r9, [BYTE r15 + at::JUMP_INDEX]
        ; mov rcx, [r15 + r9 * 8 + at::JUMP_TAG]
        ; lea rcx, [rcx + r8]
    );
}

/// The same with the second entry, from the first, whose index is in R9.
fn compare_second_entry(code: &mut Code) {
    dynasm!(code ; .arch x64
        // Inverts the lowest bit of the entry's number, at bit 2, without touching flags.
        ; mov ecx, 4
        ; pext rcx, r9, rcx
        ; not rcx
        ; lea r9, [r9 + rcx * 8 + 12]
        ; mov rcx, [r15 + r9 * 8 + at::JUMP_TAG]
        ; lea rcx, [rcx + r8]
    );
}

/// Jumps to the target of the entry whose index is in R9.
pub(crate) fn jump_to_entry(code: &mut Code) {
    dynasm!(code ; .arch x64
        ; mov rcx, [r15 + r9 * 8 + at::JUMP_PAGE]
        ; mov [BYTE rsp + at::PAGE], rcx
        ; jmp QWORD [r15 + r9 * 8 + at::JUMP_HOST]
    );
}

/// Finds one of the entries of the target in R8, or goes on at the label `missed`.
fn find_target(code: &mut Code) {
    compare_first_entry(code);
    dynasm!(code ; .arch x64 ; jrcxz >found);
    compare_second_entry(code);
    dynasm!(code ; .arch x64 ; jrcxz >found ; jmp >missed ; found:);
}

/// Called from a block after the first entry did not match, with a record behind the call.
fn emit_second_entry(code: &mut Code, jump: u64) {
    compare_second_entry(code);
    dynasm!(code ; .arch x64
        ; jrcxz >found
        ; jmp extern jump as usize
        ; found:
        ; pop rcx
        ; lea rcx, [rcx + 4]
        ; jmp rcx
    );
}

/// The guest's status flags, without changing them, in RCX.
fn take_status_flags(code: &mut Code) {
    dynasm!(code ; .arch x64
        ; pushfq
        ; pop rcx
        ; pext rcx, rcx, [BYTE r15 + at::STATUS_FLAGS]
        ; pdep rcx, rcx, [BYTE r15 + at::STATUS_FLAGS]
    );
}

/// SYSCALL where it only clears flags (SDM vol. 2, SYSCALL): the image of RFLAGS goes to R11, the
/// return address to RCX; the segments follow when the interpreter is told the level.
fn emit_syscall(code: &mut Code, interpret: u64) {
    dynasm!(code ; .arch x64
        ; mov rcx, [rsp + 8 + at::SYSCALL_PLAIN]
        ; jrcxz >slow
        ; jmp >plain
        ; slow:
        ; jmp extern interpret as usize
        ; plain:
        ; mov [BYTE rsp + 8 + at::TEMPORARY], r8
        ; mov r15, [rsp + 8 + at::TABLES_SUPERVISOR]
        ; mov r8, [rsp + 8 + at::SYSCALL_TARGET]
    );
    find_target(code);
    dynasm!(code ; .arch x64 ; lea rsp, [rsp + 8]);
    take_status_flags(code);
    dynasm!(code ; .arch x64
        // The flags have been taken and will be cleared.
        ; add rcx, [rsp + at::OTHER_FLAGS]
        ; add rcx, [rsp + at::IF]
        ; add rcx, [rsp + at::AC]
        ; mov [BYTE rsp + at::slot(11)], rcx
        ; mov Rq(HOST_RCX_OF_GUEST), [BYTE rsp + at::TEMPORARY]
        ; xor ecx, ecx
        ; mov [rsp + at::IF], rcx
        ; mov [rsp + at::AC], rcx
        ; mov [rsp + at::LEVEL], rcx
        ; mov [rsp + at::TABLES], r15
        ; inc QWORD [rsp + at::SYSTEM_CALLS]
        // 0 + 1 leaves all status flags clear.
        ; add ecx, 1
    );
    jump_to_entry(code);
    dynasm!(code ; .arch x64
        ; missed:
        ; mov r15, [rsp + 8 + at::TABLES]
        ; jmp <slow
    );
}

/// SYSRET to 64-bit code at a canonical address in the lower half, with flags that need no care.
fn emit_sysret(code: &mut Code, interpret: u64) {
    dynasm!(code ; .arch x64
        ; mov rcx, [rsp + 8 + at::SYSRET_ENABLED]
        ; jrcxz >slow
        ; pext rcx, Rq(HOST_RCX_OF_GUEST), [BYTE r15 + at::UPPER_HALF]
        ; jrcxz >canonical
        ; slow:
        ; jmp extern interpret as usize
        ; canonical:
        ; mov r8, [BYTE rsp + 8 + at::slot(11)]
        ; pext rcx, r8, [BYTE r15 + at::STEADY_FLAGS]
        ; pdep rcx, rcx, [BYTE r15 + at::STEADY_FLAGS]
        ; mov r9, [rsp + 8 + at::NOT_OTHER_FLAGS]
        ; lea rcx, [rcx + r9 + 1]
        ; jrcxz >steady
        ; jmp <slow
        ; steady:
        ; mov rcx, [rsp + 8 + at::HELD]
        ; mov r9, [BYTE rsp + 8 + at::POLL]
        ; lea rcx, [rcx + r9]
        ; jrcxz >free
        ; jmp <slow
        ; free:
        ; mov r15, [rsp + 8 + at::TABLES_USER]
        ; mov r8, Rq(HOST_RCX_OF_GUEST)
    );
    find_target(code);
    dynasm!(code ; .arch x64
        ; lea rsp, [rsp + 8]
        ; mov [rsp + at::TABLES], r15
        ; mov QWORD [rsp + at::LEVEL], 3
        ; mov QWORD [rsp + at::AC], 0
        ; mov rcx, [BYTE rsp + at::slot(11)]
        ; mov r8d, ecx
        ; and r8d, rflags::IF as i32
        ; mov [rsp + at::IF], r8
        ; and ecx, rflags::ARITHMETIC as i32
        ; push rcx
        ; popfq
    );
    jump_to_entry(code);
    dynasm!(code ; .arch x64
        ; missed:
        ; mov r15, [rsp + 8 + at::TABLES]
        ; jmp <slow
    );
}

/// POPF of a value that differs from the present flags in no more than arithmetic flags and IF,
/// while no event waits.
fn emit_popf(code: &mut Code, interpret: u64, bits32: bool) {
    dynasm!(code ; .arch x64
        ; pext rcx, r8, [BYTE r15 + at::STEADY_FLAGS]
        ; pdep rcx, rcx, [BYTE r15 + at::STEADY_FLAGS]
        ; mov r9, [rsp + 8 + at::NOT_OTHER_FLAGS]
        ; lea rcx, [rcx + r9 + 1]
        ; mov r9, [rsp + 8 + at::AC]
        ; not r9
        ; lea rcx, [rcx + r9 + 1]
        ; jrcxz >steady
        ; slow:
        ; jmp extern interpret as usize
        ; steady:
        ; mov rcx, [rsp + 8 + at::HELD]
        ; mov r9, [BYTE rsp + 8 + at::POLL]
        ; lea rcx, [rcx + r9]
        ; jrcxz >free
        ; jmp <slow
        ; free:
        ; mov ecx, r8d
        ; and ecx, rflags::IF as i32
        ; mov [rsp + 8 + at::IF], rcx
        ; and r8d, rflags::ARITHMETIC as i32
        ; add QWORD [rsp], 4
        ; push r8
        ; popfq
    );
    match bits32 {
        false => dynasm!(code ; .arch x64
            ; lea Rq(HOST_RSP_OF_GUEST), [Rq(HOST_RSP_OF_GUEST) + 8]
        ),
        true => dynasm!(code ; .arch x64
            ; lea Rd(HOST_RSP_OF_GUEST), [Rq(HOST_RSP_OF_GUEST) + 4]
        ),
    }
    dynasm!(code ; .arch x64 ; ret);
}

fn emit_flags_image(code: &mut Code) {
    take_status_flags(code);
    dynasm!(code ; .arch x64
        ; mov r8, [rsp + 8 + at::OTHER_FLAGS]
        ; lea rcx, [rcx + r8]
        ; mov r8, [rsp + 8 + at::IF]
        ; lea rcx, [rcx + r8]
        ; mov r8, [rsp + 8 + at::AC]
        ; lea rcx, [rcx + r8]
        ; ret
    );
}
