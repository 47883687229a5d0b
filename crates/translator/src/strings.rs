//! REP MOVS and REP STOS: by chunks that stay inside the pages of both operands, with the host's
//! own string instructions.
//!
//! A block calls the stub with the number of its record in R8. The guest's RCX, RSI and RDI tell
//! at every moment how far the instruction has come, so that it can be left between two chunks:
//! when the TLB lacks a page, and when the poll word is set. Status flags do not change.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use crate::context::at;
use crate::glue::{Code, Exit};
use crate::registers::HOST_RCX_OF_GUEST;

const RSI: u8 = 6;
const RDI: u8 = 7;
const COUNT: u8 = HOST_RCX_OF_GUEST;
const HOST_SOURCE: i32 = at::STRING;
const CHUNK: i32 = at::STRING + 8;
const SAVED_RAX: i32 = at::STRING + 16;

/// What a stub is for.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Operands of `1 << log` bytes.
    pub(crate) log: u8,
    /// For 32-bit code: its count and its pointers have 32 bits.
    pub(crate) bits32: bool,
}

/// REP MOVS.
pub(crate) fn emit_rep_movs(code: &mut Code, shape: Shape, leave: u64) {
    let Shape { log, .. } = shape;
    emit_begin(code, shape);
    dynasm!(code ; .arch x64 ; mov QWORD [rsp + 8 + at::STRING_TARGET], 0);
    emit_locate(code, RSI, at::READ, shape);
    dynasm!(code ; .arch x64
        ; mov [rsp + 8 + HOST_SOURCE], r9
        ; mov QWORD [rsp + 8 + at::STRING_TARGET], 1
    );
    emit_locate(code, RDI, at::WRITE, shape);
    // The chunk ends with the nearer page end: that of the larger offset.
    dynasm!(code ; .arch x64
        ; mov ecx, esi
        ; and ecx, 0xfff
        ; mov eax, edi
        ; and eax, 0xfff
        ; cmp ecx, eax
        ; cmovb ecx, eax
    );
    emit_limit(code, shape);
    dynasm!(code ; .arch x64
        ; mov r8, rsi
        ; mov rax, rdi
        ; mov rsi, [rsp + 8 + HOST_SOURCE]
        ; mov rdi, r9
    );
    match log {
        0 => dynasm!(code ; .arch x64 ; rep movsb),
        1 => dynasm!(code ; .arch x64 ; rep movsw),
        2 => dynasm!(code ; .arch x64 ; rep movsd),
        _ => dynasm!(code ; .arch x64 ; rep movsq),
    }
    dynasm!(code ; .arch x64 ; mov rcx, [rsp + 8 + CHUNK]);
    emit_advance(code, RSI, 8, shape);
    emit_advance(code, RDI, 0, shape);
    emit_end(code, leave, if shape.bits32 { &[COUNT, RSI, RDI] } else { &[] });
}

/// REP STOS.
pub(crate) fn emit_rep_stos(code: &mut Code, shape: Shape, leave: u64) {
    let Shape { log, .. } = shape;
    emit_begin(code, shape);
    dynasm!(code ; .arch x64 ; mov QWORD [rsp + 8 + at::STRING_TARGET], 1);
    emit_locate(code, RDI, at::WRITE, shape);
    dynasm!(code ; .arch x64 ; mov ecx, edi ; and ecx, 0xfff);
    emit_limit(code, shape);
    dynasm!(code ; .arch x64
        ; mov r8, rdi
        ; mov rdi, r9
        ; mov rax, [rsp + 8 + SAVED_RAX]
    );
    match log {
        0 => dynasm!(code ; .arch x64 ; rep stosb),
        1 => dynasm!(code ; .arch x64 ; rep stosw),
        2 => dynasm!(code ; .arch x64 ; rep stosd),
        _ => dynasm!(code ; .arch x64 ; rep stosq),
    }
    dynasm!(code ; .arch x64 ; mov rcx, [rsp + 8 + CHUNK]);
    emit_advance(code, RDI, 8, shape);
    emit_end(code, leave, if shape.bits32 { &[COUNT, RDI] } else { &[] });
}

/// Saves RAX and the status flags; the top of the loop.
fn emit_begin(code: &mut Code, shape: Shape) {
    dynasm!(code ; .arch x64
        ; mov [rsp + 8 + at::EXIT_RECORD], r8
        ; mov [rsp + 8 + SAVED_RAX], rax
        ; lahf
        ; seto al
        ; mov [BYTE rsp + 8 + at::TEMPORARY], rax
        ; again:
    );
    match shape.bits32 {
        false => dynasm!(code ; .arch x64 ; test Rq(COUNT), Rq(COUNT)),
        true => dynasm!(code ; .arch x64 ; test Rd(COUNT), Rd(COUNT)),
    }
    dynasm!(code ; .arch x64
        ; jz >done
        ; cmp QWORD [BYTE rsp + 8 + at::POLL], 0
        ; jne >polled
    );
}

/// The host address of the operand at guest register `pointer` into R9; `missed` with the guest's
/// in R8.
fn emit_locate(code: &mut Code, pointer: u8, tags: i32, shape: Shape) {
    match shape.bits32 {
        false => dynasm!(code ; .arch x64 ; mov r8, Rq(pointer)),
        true => dynasm!(code ; .arch x64 ; mov r8d, Rd(pointer)),
    }
    dynasm!(code ; .arch x64
        ; pext r9, r8, [BYTE r15 + at::TLB_INDEX]
        ; mov rcx, [r15 + r9 * 8 + tags]
        ; lea rcx, [rcx + r8 + (1 << shape.log) - 1]
        ; test rcx, -4096
        ; jnz >missed
        ; mov r9, [r15 + r9 * 8 + at::ADDEND]
        ; add r9, r8
    );
}

/// Elements up to the page's end, from the offset in ECX, but not more than are left, into RCX and
/// the chunk's slot; at least 1, since the element there does not cross the page's end.
fn emit_limit(code: &mut Code, shape: Shape) {
    dynasm!(code ; .arch x64
        ; neg ecx
        ; add ecx, 4096
        ; shr ecx, shape.log as i8
    );
    match shape.bits32 {
        false => dynasm!(code ; .arch x64
            ; cmp rcx, Rq(COUNT)
            ; cmova rcx, Rq(COUNT)
            ; sub Rq(COUNT), rcx
        ),
        true => dynasm!(code ; .arch x64
            ; cmp ecx, Rd(COUNT)
            ; cmova ecx, Rd(COUNT)
            ; sub Rd(COUNT), ecx
        ),
    }
    dynasm!(code ; .arch x64 ; mov [rsp + 8 + CHUNK], rcx);
}

/// Guest register `pointer` becomes host register `from` plus the chunk in RCX.
fn emit_advance(code: &mut Code, pointer: u8, from: u8, shape: Shape) {
    match shape.log {
        0 => dynasm!(code ; .arch x64 ; lea Rq(pointer), [Rq(from) + rcx]),
        1 => dynasm!(code ; .arch x64 ; lea Rq(pointer), [Rq(from) + rcx * 2]),
        2 => dynasm!(code ; .arch x64 ; lea Rq(pointer), [Rq(from) + rcx * 4]),
        _ => dynasm!(code ; .arch x64 ; lea Rq(pointer), [Rq(from) + rcx * 8]),
    }
    if shape.bits32 {
        dynasm!(code ; .arch x64 ; mov Rd(pointer), Rd(pointer));
    }
}

/// The bottom of the loop, and its ways out, all with RAX and the flags restored. Of the registers
/// `narrowed` the upper halves become zero at the end, as hosts and the interpreter have it also
/// where nothing is to be done.
fn emit_end(code: &mut Code, leave: u64, narrowed: &[u8]) {
    dynasm!(code ; .arch x64 ; jmp <again ; missed:);
    dynasm!(code ; .arch x64
        ; mov [rsp + 8 + at::LINEAR], r8
        ; mov QWORD [rsp + 8 + at::EXIT_KIND], Exit::Miss as i32
        ; jmp >out
        ; polled:
        ; mov QWORD [rsp + 8 + at::EXIT_KIND], Exit::Poll as i32
        ; out:
    );
    emit_restore(code);
    dynasm!(code ; .arch x64
        ; lea rsp, [rsp + 8]
        ; jmp extern leave as usize
        ; done:
    );
    for register in narrowed {
        dynasm!(code ; .arch x64 ; mov Rd(*register), Rd(*register));
    }
    emit_restore(code);
    dynasm!(code ; .arch x64 ; ret);
}

fn emit_restore(code: &mut Code) {
    dynasm!(code ; .arch x64
        ; mov rax, [BYTE rsp + 8 + at::TEMPORARY]
        // Overflows when OF was set.
        ; add al, 127
        ; sahf
        ; mov rax, [rsp + 8 + SAVED_RAX]
    );
}
