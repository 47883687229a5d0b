//! Blocks that must pass, and blocks that must not: one for each rule, each but a step away from
//! one that passes.

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use interpreter::Kept;

use super::*;
use crate::context::at;
use crate::dump::Workbench;
use crate::glue::Code as Host;
use crate::mode::CodeMode;
use crate::translate::{MAX_INSTRUCTIONS, Request};

/// Translates code at the beginning of a page, in all ways, and checks it.
fn accept(bench: &mut Workbench, code: &[u8]) {
    let mut page = [0x90; 4096];
    page[..code.len()].copy_from_slice(code);
    for variant in 0..16 {
        let [user, plain, counts, bits32] = [1, 2, 4, 8].map(|bit| variant & bit != 0);
        let mode = CodeMode { user, bits32 };
        let request = Request { start: 0, mode, plain, counts, longest: MAX_INSTRUCTIONS };
        let Some(block) = bench.translate(&page, request) else { continue };
        demand(&bench.candidate(&block));
    }
}

#[test]
fn a_group_whose_first_access_is_interpreted_is_split() {
    let mut bench = Workbench::new().unwrap();
    // mov ch, [rbx]; mov eax, [rbx + 4]; ret
    accept(&mut bench, &[0x8a, 0x2b, 0x8b, 0x43, 0x04, 0xc3]);
    // mov eax, [rbx]; add ch, [rsi]; mov [rbx + 4], eax; ret
    accept(&mut bench, &[0x8b, 0x03, 0x02, 0x2e, 0x89, 0x43, 0x04, 0xc3]);
}

#[test]
fn an_exchange_with_a_repeat_prefix_does_not_become_pause() {
    let mut bench = Workbench::new().unwrap();
    // rep xchg r9, rax; ret
    accept(&mut bench, &[0xf3, 0x49, 0x91, 0xc3]);
}

#[test]
fn random_code_passes() {
    let mut bench = Workbench::new().unwrap();
    let mut seed = 1_u64;
    for _ in 0..10_000 {
        let mut code = [0; 96];
        for byte in &mut code {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (seed >> 33) as u8;
        }
        accept(&mut bench, &code);
    }
}

/// Instructions of every kind that is translated, with all registers and many forms of operands:
/// opcodes in all combinations with ModRM and SIB bytes.
#[test]
fn every_opcode_with_every_operand_passes() {
    let mut bench = Workbench::new().unwrap();
    let prefixes: [&[u8]; 9] = [
        &[],
        &[0x48],
        &[0x4d],
        &[0x66],
        &[0x0f],
        &[0x48, 0x0f],
        &[0x4f, 0x0f],
        &[0x66, 0x0f],
        &[0xf3, 0x4c, 0x0f],
    ];
    for prefix in prefixes {
        for opcode in 0..=255 {
            let mut code = Vec::new();
            for modrm in (0..=255).step_by(7) {
                code.extend_from_slice(prefix);
                code.extend([opcode, modrm, 0x24, 8, 0, 0, 0, 0]);
            }
            accept(&mut bench, &code);
        }
    }
}

/// What comes of a block with the records 0 and 1 that `emit` makes.
fn outcome(emit: impl FnOnce(&mut Host, &Glue)) -> Result<(), Violation> {
    outcome_with_record(|code, glue, _| emit(code, glue))
}

/// The same, with the records' `retry` and, for record 0, `resume`: offsets, at first 0.
fn outcome_with_record(emit: impl FnOnce(&mut Host, &Glue, &mut Record)) -> Result<(), Violation> {
    let bench = Workbench::new().unwrap();
    let mut code = VecAssembler::new(bench.base as usize);
    let mut record = Record {
        offset: 0,
        left: 0,
        straddles: false,
        instruction: Code::INVALID,
        checked: None,
        retry: 0,
        resume: 0,
        site: 0,
        kept: Kept::NONE,
        taken: 0,
        taken_as: 0,
    };
    emit(&mut code, &bench.glue, &mut record);
    record.retry += bench.base;
    if record.resume != 0 {
        record.resume += bench.base;
    }
    check(&Candidate {
        host: &code.finalize().unwrap(),
        base: bench.base,
        body: 0,
        records: &[record, Record { resume: 0, ..record }],
        first_record: 0,
        glue: &bench.glue,
    })
}

/// The same block with its end.
fn with_end(emit: impl FnOnce(&mut Host, &Glue)) -> Result<(), Violation> {
    outcome(|code, glue| {
        emit(code, glue);
        end(code, glue);
    })
}

#[track_caller]
fn allow(emit: impl FnOnce(&mut Host, &Glue)) {
    with_end(emit).expect("the block keeps all rules");
}

#[track_caller]
fn refuse(rule: &str, emit: impl FnOnce(&mut Host, &Glue)) {
    refused(rule, with_end(emit));
}

#[track_caller]
fn refused(rule: &str, outcome: Result<(), Violation>) {
    let violation = outcome.expect_err("the block breaks a rule");
    assert!(violation.rule.contains(rule), "another rule: {violation}");
}

fn end(code: &mut Host, glue: &Glue) {
    dynasm!(code ; .arch x64 ; call extern glue.interpret as usize ; .u32 1);
}

/// Checks `last + 1` bytes at R8, as blocks do.
fn pass(code: &mut Host, glue: &Glue, tags: i32, last: i32) {
    pass_by(code, glue, tags, last, at::PAGE_NUMBER);
}

fn pass_by(code: &mut Host, glue: &Glue, tags: i32, last: i32, mask: i8) {
    dynasm!(code ; .arch x64
        ; pext r9, r8, [BYTE r15 + at::TLB_INDEX]
        ; mov rcx, [r15 + r9 * 8 + tags]
        ; lea rcx, [rcx + r8 + last]
        ; pext rcx, rcx, [BYTE r15 + mask]
        ; jrcxz >hit
        ; call extern glue.miss as usize
        ; .u32 0
        ; hit:
        ; mov r9, [r15 + r9 * 8 + at::ADDEND]
    );
}

/// A check of 16 bytes at RBX.
fn pass_rbx(code: &mut Host, glue: &Glue, tags: i32) {
    dynasm!(code ; .arch x64 ; mov r8, rbx);
    pass(code, glue, tags, 15);
}

macro_rules! code {
    ($code:ident ; $($t:tt)*) => { dynasm!($code ; .arch x64 ; $($t)*) };
}

#[test]
fn memory_is_checked_before_it_is_accessed() {
    const UNCHECKED: &str = "an address that has not been checked";
    allow(|c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov rax, [rbx + r9 + 8]);
    });
    refuse(UNCHECKED, |c, _| code!(c ; mov rax, [rbx]));
    refuse(UNCHECKED, |c, _| code!(c ; mov rax, [rbx + r9]));
    refuse(UNCHECKED, |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov rax, [rbx + r10]);
    });
    refuse("the addend of a page that has not been checked", |c, _| {
        code!(c
            ; mov r8, rbx
            ; pext r9, r8, [BYTE r15 + at::TLB_INDEX]
            ; mov r9, [r15 + r9 * 8 + at::ADDEND]
        );
    });
}

#[test]
fn what_has_been_checked_is_an_address_a_length_and_an_access() {
    const OUTSIDE: &str = "outside the range";
    refuse("another address", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov rax, [rsi + r9]);
    });
    refuse("another address", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; imul rbx, rbx, 3 ; mov rax, [rbx + r9]);
    });
    refuse(OUTSIDE, |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov rax, [rbx + r9 + 9]);
    });
    refuse(OUTSIDE, |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov rax, [rbx + r9 - 1]);
    });
    refuse("not an address of the guest's", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov rax, [rbx * 2 + r9]);
    });
    allow(|c, g| {
        pass_rbx(c, g, at::WRITE);
        code!(c ; add rbx, 8 ; mov [rbx + r9 - 8], rax);
    });
    refuse(OUTSIDE, |c, g| {
        pass_rbx(c, g, at::WRITE);
        code!(c ; sub rbx, 8 ; mov [rbx + r9], rax);
    });
    refuse("only reads", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov [rbx + r9], rax);
    });
    refuse("only reads", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; lock xadd [rbx + r9], rax);
    });
}

#[test]
fn a_check_is_made_as_it_ought_to_be() {
    refuse("a mask that is none", |c, g| {
        code!(c ; mov r8, rbx);
        pass_by(c, g, at::READ, 7, at::PAGE_OR_16);
    });
    refuse("a mask that is none", |c, g| {
        code!(c ; mov r8, rbx);
        pass_by(c, g, at::READ, 7, at::STATUS_FLAGS);
    });
    refuse("not an entry of the tables", |c, _| {
        code!(c ; mov r9, rbx ; mov rcx, [r15 + r9 * 8]);
    });
    refuse("not an entry of the tables", |c, _| {
        code!(c
            ; mov r8, rbx
            ; pext r9, r8, [BYTE r15 + at::TLB_INDEX]
            ; mov rcx, [r15 + r9 * 8 + at::ADDEND + 8]
        );
    });
    refuse("a use of the tables", |c, _| {
        code!(c ; mov r8, rbx ; pext r9, r8, [BYTE r15 + at::UPPER_HALF]);
    });
    refuse("a use of the tables", |c, _| code!(c ; mov [r15], rax));
    // The tag of one address, the page of another.
    refuse("the guest must not see", |c, _| {
        code!(c
            ; mov r8, rbx
            ; pext r9, r8, [BYTE r15 + at::TLB_INDEX]
            ; mov rcx, [r15 + r9 * 8]
            ; lea rcx, [rcx + rsi]
        );
    });
}

#[test]
fn an_aligned_operand_is_checked_for_that() {
    let load = |c: &mut Host, g: &Glue| {
        code!(c ; mov rcx, [rsp + at::VECTORS_MISSING] ; jrcxz >loaded);
        code!(c ; call extern g.load_vectors as usize ; .u32 0 ; loaded:);
    };
    allow(|c, g| {
        load(c, g);
        code!(c ; mov r8, rbx);
        pass_by(c, g, at::READ, 0, at::PAGE_OR_16);
        code!(c ; movaps xmm1, [r8 + r9]);
    });
    refuse("alignment", |c, g| {
        load(c, g);
        pass_rbx(c, g, at::READ);
        code!(c ; movaps xmm1, [rbx + r9]);
    });
    refuse("have not been loaded", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; movups xmm1, [rbx + r9]);
    });
}

#[test]
fn what_a_group_keeps_is_written_first() {
    let slot = at::GROUP as i8;
    allow(|c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; lea r9, [rbx + r9 + 4] ; mov [BYTE rsp + slot], r9 ; mov rcx, [BYTE rsp + slot]);
        code!(c ; mov rax, [rcx - 4] ; add rbx, rsi ; mov eax, [rcx]);
    });
    refuse("not written before", |c, _| code!(c ; mov r9, [BYTE rsp + slot]));
    refuse("is not the guest's", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov [BYTE rsp + slot], r9);
    });
    for outside in [-1, 16] {
        refuse("outside the range", |c, g| {
            pass_rbx(c, g, at::READ);
            code!(c ; lea r9, [rbx + r9] ; mov [BYTE rsp + slot], r9 ; mov r8, [BYTE rsp + slot]);
            code!(c ; mov al, [r8 + outside]);
        });
    }
    // With other tables come other rights.
    refuse("not written before", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c
            ; lea r9, [rbx + r9]
            ; mov [BYTE rsp + slot], r9
            ; mov r15, [rsp + at::TABLES_SUPERVISOR]
            ; mov [rsp + at::TABLES], r15
            ; mov r9, [BYTE rsp + slot]
        );
    });
    refuse("has not been checked", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c
            ; lea r9, [rbx + r9]
            ; mov r15, [rsp + at::TABLES_SUPERVISOR]
            ; mov [rsp + at::TABLES], r15
            ; mov rax, [r9]
        );
    });
    // One way there is a check, the other way there is none.
    refuse("not written before", |c, g| {
        code!(c ; jz >around);
        pass_rbx(c, g, at::READ);
        code!(c ; lea r9, [rbx + r9] ; mov [BYTE rsp + slot], r9);
        code!(c ; around: ; mov r9, [BYTE rsp + slot]);
    });
}

#[test]
fn the_guest_does_not_get_what_is_the_vmms() {
    const UNSEEN: &str = "the guest must not see";
    refuse(UNSEEN, |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov rax, r9);
    });
    refuse(UNSEEN, |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; lea rax, [rbx + r9]);
    });
    refuse(UNSEEN, |c, g| {
        pass_rbx(c, g, at::WRITE);
        code!(c ; mov [rbx + r9], r9);
    });
    refuse(UNSEEN, |c, _| code!(c ; add rax, rcx));
    refuse("not the guest's", |c, g| {
        pass_rbx(c, g, at::READ);
        code!(c ; mov [BYTE rsp + at::slot(9)], r9);
    });
    refuse(UNSEEN, |c, _| code!(c ; mov rcx, [rsp + at::VECTORS] ; mov rax, rcx));
    refuse("R15 is not a value", |c, _| code!(c ; mov rax, r15));
    refuse("RSP is not a value", |c, _| code!(c ; mov [BYTE rsp + at::slot(9)], rsp));
}

#[test]
fn only_the_fields_for_blocks_are_used() {
    const FIELD: &str = "not a field";
    allow(|c, _| code!(c ; mov rcx, [BYTE rsp + at::slot(9)] ; mov [BYTE rsp + at::slot(8)], rcx));
    refuse(FIELD, |c, _| code!(c ; mov rcx, [rsp - 8]));
    refuse(FIELD, |c, _| code!(c ; mov rcx, [rsp + 0x1000]));
    refuse(FIELD, |c, _| code!(c ; mov rcx, [rsp + at::slot(9) as i32 + 4]));
    refuse(FIELD, |c, _| code!(c ; mov rcx, [rsp + rax]));
    refuse(FIELD, |c, _| code!(c ; mov rcx, [rsp + at::HOST_RSP]));
    refuse(FIELD, |c, _| code!(c ; mov [rsp + at::HOST_RSP], rax));
    refuse("blocks do not write", |c, _| code!(c ; mov [rsp + at::VECTORS], rax));
    refuse("blocks do not write", |c, _| code!(c ; mov [rsp + at::TABLES_SUPERVISOR], rax));
    refuse("that of a jump's target", |c, _| code!(c ; mov [BYTE rsp + at::PAGE], rax));
    refuse("VMM's memory", |c, _| code!(c ; add rax, [rsp + at::LEVEL]));
}

#[test]
fn the_stack_pointer_and_the_tables_stay() {
    refuse("RSP is written", |c, _| code!(c ; mov rsp, rax));
    refuse("RSP is not a value", |c, _| code!(c ; add rsp, 8));
    refuse("address of the VMM's", |c, _| code!(c ; lea rsp, [rsp + 8]));
    refuse("R15 is written", |c, _| code!(c ; mov r15, rax));
    refuse("R15 is not a value", |c, _| code!(c ; xchg r15, rax));
    refuse("told about R15 first", |c, _| {
        code!(c ; mov r15, [rsp + at::TABLES_SUPERVISOR] ; mov rax, rbx);
    });
    refuse("the context's tables are R15's", |c, _| code!(c ; mov [rsp + at::TABLES], rax));
}

#[test]
fn only_instructions_of_the_list_are_there() {
    const LIST: &str = "allow-list";
    refuse(LIST, |c, _| code!(c ; wbinvd));
    refuse(LIST, |c, _| code!(c ; cpuid));
    refuse(LIST, |c, _| code!(c ; push rax));
    refuse(LIST, |c, _| code!(c ; rdtsc));
    refuse(LIST, |c, _| code!(c ; std));
    refuse(LIST, |c, _| code!(c ; movsb));
    refuse("not a stub", |c, _| code!(c ; syscall));
    refuse("blocks do not have", |c, _| code!(c ; int3));
    refuse("blocks do not have", |c, _| code!(c ; ret));
    refuse("system register", |c, _| code!(c ; mov rax, cr0));
    // mov rax, [fs:rbx]; mov rax, [rip]; mov eax, ds
    refuse("segment prefix", |c, _| code!(c ; .bytes [0x64_u8, 0x48, 0x8b, 0x03]));
    refuse("relative to RIP", |c, _| code!(c ; .bytes [0x48_u8, 0x8b, 0x05, 0, 0, 0, 0]));
    refuse("system register", |c, _| code!(c ; .bytes [0x8c_u8, 0xd8]));
    refuse("not an instruction", |c, _| code!(c ; .bytes [0x06_u8]));
}

#[test]
fn jumps_stay_in_the_block_and_go_forward() {
    allow(|c, _| code!(c ; jz >on ; mov rax, rbx ; on:));
    refuse("out of the block", |c, g| code!(c ; jz extern g.poll as usize));
    refuse("backward", |c, _| code!(c ; on: ; mov rax, rbx ; jz <on));
    refuse("an indirect jump", |c, _| code!(c ; jmp rax));
    refuse("blocks do not have", |c, _| code!(c ; call rax));
    refuse("not a stub", |c, g| code!(c ; call extern g.enter as usize ; .u32 0));
    refuse("a record of another block", |c, g| code!(c ; call extern g.poll as usize ; .u32 2));
    refused(
        "not an instruction's beginning",
        outcome(|c, g| {
            code!(c ; jz BYTE >on ; .bytes [0x48_u8] ; on: ; mov rax, rbx);
            end(c, g);
        }),
    );
    refused("end is reached", outcome(|c, _| code!(c ; mov rax, rbx)));
    refused("without a record", outcome(|c, g| code!(c ; call extern g.poll as usize)));
    refused(
        "nothing leads here",
        outcome(|c, g| {
            end(c, g);
            end(c, g);
        }),
    );
}

/// Finds a jump's target in R8.
fn find(c: &mut Host, g: &Glue) {
    code!(c
        ; mov r9d, 0
        ; crc32 r9, r8
        ; pdep r9, r9, [BYTE r15 + at::JUMP_INDEX]
        ; mov rcx, [r15 + r9 * 8 + at::JUMP_TAG]
        ; lea rcx, [rcx + r8]
        ; jrcxz >found
        ; call extern g.jump as usize
        ; .u32 0
        ; found:
    );
}

#[test]
fn a_jump_goes_to_the_entry_that_was_found() {
    let load_page = |c: &mut Host| {
        code!(c ; mov rcx, [r15 + r9 * 8 + at::JUMP_PAGE] ; mov [BYTE rsp + at::PAGE], rcx);
    };
    let jump = |c: &mut Host| code!(c ; jmp QWORD [r15 + r9 * 8 + at::JUMP_HOST]);
    outcome(|c, g| {
        code!(c ; mov r8, rax);
        find(c, g);
        load_page(c);
        jump(c);
    })
    .expect("as blocks do");
    refused(
        "without the target's page",
        outcome(|c, g| {
            code!(c ; mov r8, rax);
            find(c, g);
            jump(c);
        }),
    );
    refused(
        "another target's",
        outcome(|c, _| {
            code!(c ; mov r8, rax ; mov r9d, 0 ; crc32 r9, r8);
            code!(c ; pdep r9, r9, [BYTE r15 + at::JUMP_INDEX]);
            jump(c);
        }),
    );
    refused(
        "something else than a jump entry's",
        outcome(|c, g| {
            code!(c ; mov r8, rax);
            find(c, g);
            load_page(c);
            code!(c ; jmp QWORD [r15 + r9 * 8 + at::JUMP_PAGE]);
        }),
    );
    refused(
        "without a jump entry",
        outcome(|c, _| {
            code!(c ; mov r9, rax);
            jump(c);
        }),
    );
}

#[test]
fn the_stack_is_balanced() {
    refuse("POPFQ without PUSHFQ", |c, _| code!(c ; popfq));
    refuse("while the flags are on the stack", |c, _| code!(c ; pushfq ; pushfq));
    refuse("while the flags are on the stack", |c, _| {
        code!(c ; pushfq ; mov rcx, [BYTE rsp + at::slot(9)]);
    });
    refuse("while the flags are on the stack", |c, _| code!(c ; pushfq));
    refuse("different stacks", |c, _| code!(c ; jz >on ; pushfq ; on: ; popfq));
}

#[test]
fn a_division_cannot_fault() {
    allow(|c, g| {
        code!(c ; mov r8, rbx ; pushfq ; cmp rdx, r8 ; jb >fits ; popfq);
        end(c, g);
        code!(c ; fits: ; popfq ; div r8);
    });
    refuse("may fault", |c, _| code!(c ; mov r8, rbx ; div r8));
    refuse("may fault", |c, g| {
        code!(c ; mov r8, rbx ; pushfq ; cmp edx, r8d ; jb >fits ; popfq);
        end(c, g);
        code!(c ; fits: ; popfq ; div r8);
    });
    refuse("may fault", |c, g| {
        code!(c ; mov r8, rbx ; pushfq ; cmp rdx, r8 ; jb >fits ; popfq);
        end(c, g);
        code!(c ; fits: ; popfq ; mov rdx, rsi ; div r8);
    });
    refuse("something else than R8", |c, _| code!(c ; div rbx));
}

#[test]
fn a_bit_index_stays_in_its_word() {
    let word = |c: &mut Host, g: &Glue, shift: i32| {
        pass_rbx(c, g, at::WRITE);
        code!(c ; lea r8, [r8 + r9] ; mov rcx, rax ; mov r9d, shift);
        code!(c ; shlx rcx, rcx, r9 ; shrx rcx, rcx, r9 ; bts QWORD [r8], rcx);
    };
    allow(|c, g| word(c, g, 58));
    refuse("a bit outside", |c, g| word(c, g, 57));
    refuse("a bit outside", |c, g| {
        pass_rbx(c, g, at::WRITE);
        code!(c ; lea r8, [r8 + r9] ; bts QWORD [r8], rax);
    });
}

#[test]
fn an_instruction_begun_anew_has_done_nothing_yet() {
    let block = |between: &dyn Fn(&mut Host)| {
        outcome_with_record(|c, g, record| {
            code!(c ; mov rax, rsi ; mov [BYTE rsp + at::TEMPORARY], rax);
            record.retry = c.offset().0 as u64;
            between(c);
            pass_rbx(c, g, at::READ);
            end(c, g);
        })
    };
    block(&|_| {}).expect("nothing happens in between");
    refused("an effect already", block(&|c| code!(c ; mov rdx, rsi)));
    refused("an effect already", block(&|c| code!(c ; mov [BYTE rsp + at::slot(8)], rsi)));
    refused(
        "what it has overwritten",
        block(&|c| {
            code!(c ; mov rcx, [BYTE rsp + at::TEMPORARY] ; mov [BYTE rsp + at::TEMPORARY], rdi);
        }),
    );
    // What was in scratch registers is lost.
    refused(
        "the guest must not see",
        outcome(|c, g| {
            code!(c ; mov r8, rax);
            pass(c, g, at::READ, 7);
            code!(c ; mov rdx, rcx);
            end(c, g);
        }),
    );
}

#[test]
fn nothing_is_known_behind_what_the_interpreter_executed() {
    let block = |behind: &dyn Fn(&mut Host)| {
        outcome_with_record(|c, g, record| {
            pass_rbx(c, g, at::READ);
            code!(c ; lea r9, [rbx + r9] ; mov [BYTE rsp + at::GROUP as i8], r9 ; jz >on);
            code!(c ; call extern g.interpret as usize ; .u32 0);
            code!(c ; on: ; mov r9, [BYTE rsp + at::GROUP as i8] ; mov rax, [r9]);
            record.resume = c.offset().0 as u64;
            behind(c);
            end(c, g);
        })
    };
    // The record is also that of the check, which resumes there as well.
    block(&|c| code!(c ; add rax, rbx)).expect("values of the guest");
    refused("not written before", block(&|c| code!(c ; mov r9, [BYTE rsp + at::GROUP as i8])));
    refused("has not been checked", block(&|c| code!(c ; mov rax, [rbx + r9])));
    refused("has not been checked", block(&|c| code!(c ; mov rax, [r9])));
}
