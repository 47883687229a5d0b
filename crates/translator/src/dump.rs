//! Translating single blocks apart from a vCPU, to look at them.
//!
//! [`dump_block`] shows guest code beside the host code that is made of it. Nothing is executed.
//! Neighbours: `xtask dump-block` prints it; the tests of [`crate::verify`] use the [`Workbench`].

use std::fmt::Write as _;
use std::sync::Arc;

use engine::{CpuProfile, EngineError, Level, ProfileError, VcpuConfig, Vendor};
use iced_x86::{Decoder, DecoderOptions, FastFormatter, FlowControl, InstructionInfoFactory};
use interpreter::InterpreterVcpu;
use memory::GuestRam;

use crate::cache::CodeCache;
use crate::glue::Glue;
use crate::mode::CodeMode;
use crate::translate::{
    MAX_BLOCK_BYTES, MAX_INSTRUCTIONS, PAGE, Request, Surroundings, Translation, translate,
};
use crate::verify::{Candidate, check, is_followed_by_record};

/// What [`dump_block`] translates for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DumpOptions {
    /// The code executes at CPL 3; else at CPL 0.
    pub user: bool,
    /// Each access is checked by itself, as after a group of accesses did not lie in one page.
    pub plain: bool,
    /// The block counts its instructions, as under an instruction budget.
    pub counts: bool,
    /// It is 32-bit code; else 64-bit code.
    pub bits32: bool,
}

/// Translates the block that begins with `code`, at the beginning of a page, for a CPU with all
/// features of the profile `v3`, and shows guest and host code side by side. Offsets, in
/// hexadecimal, count from the page's and from the block's beginning. Behind the call of a stub
/// stands the number of the exit's record. At most 4096 bytes of `code` are looked at; the block
/// may end earlier.
///
/// # Errors
/// [`EngineError`] when the host gives no memory for the stubs.
pub fn dump_block(code: &[u8], options: DumpOptions) -> Result<String, EngineError> {
    let mut bench = Workbench::new()?;
    let code = &code[..code.len().min(PAGE as usize)];
    let DumpOptions { user, plain, counts, bits32 } = options;
    let mode = CodeMode { user, bits32 };
    let request = Request { start: 0, mode, plain, counts, longest: MAX_INSTRUCTIONS };
    let Some(block) = bench.translate(code, request) else {
        return Ok("no instruction: nothing is translated\n".to_owned());
    };
    let mut text = format!(
        "{} instructions, {} bytes; host code: {} bytes, {} exits\n",
        block.instructions,
        block.guest_bytes,
        block.host.len(),
        block.records.len()
    );
    let mut begins = block.begins.iter().peekable();
    let mut formatter = FastFormatter::new();
    let mut at = 0;
    while at < block.host.len() {
        let mut guest = String::new();
        while let Some((_, offset)) = begins.next_if(|(host, _)| *host <= at) {
            let entry = at < block.body;
            guest = if entry {
                "(entry)".into()
            } else {
                guest_text(code, *offset, mode, &mut formatter)
            };
        }
        let (host, next) = bench.host_text(&block, at, &mut formatter);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{guest:<40}  {at:4x}  {host}");
        at = next;
    }
    if let Err(violation) = check(&bench.candidate(&block)) {
        let _ = writeln!(text, "{violation}");
    }
    Ok(text)
}

/// Offset and text of the guest's instruction at `offset`.
fn guest_text(code: &[u8], offset: u32, mode: CodeMode, formatter: &mut FastFormatter) -> String {
    let rest = code.get(offset as usize..).unwrap_or_default();
    let mut decoder =
        Decoder::with_ip(mode.bitness(), rest, u64::from(offset), DecoderOptions::NONE);
    let instruction = decoder.decode();
    let mut text = format!("{offset:4x}  ");
    if instruction.is_invalid() {
        text.push_str("(next block)");
    } else {
        formatter.format(&instruction, &mut text);
    }
    text
}

/// The profile `v3` with all features.
pub(crate) fn profile() -> Result<CpuProfile, ProfileError> {
    CpuProfile::new(Level::V3, Vendor::Intel, 1_000_000, &|_| true)
}

/// Translates blocks that nobody runs, for a CPU of profile `v3` with all features.
pub(crate) struct Workbench {
    interpreter: InterpreterVcpu,
    pub(crate) glue: Glue,
    /// Host address that blocks are made for.
    pub(crate) base: u64,
    info: InstructionInfoFactory,
    /// Holds the stubs.
    _cache: CodeCache,
}

impl Workbench {
    pub(crate) fn new() -> Result<Self, EngineError> {
        let host = |cause: String| EngineError::Host { engine: crate::NAME, cause };
        let profile = profile().map_err(|e| host(e.to_string()))?;
        let ram = Arc::new(GuestRam::new(&[(0, 1 << 20)]).map_err(|e| host(e.to_string()))?);
        let interpreter = InterpreterVcpu::new(VcpuConfig::alone(Arc::new(profile), ram))?;
        let mut cache = CodeCache::new(2 * MAX_BLOCK_BYTES).map_err(|e| host(e.to_string()))?;
        let glue = Glue::emit(&mut cache);
        let base = cache.next();
        Ok(Self { interpreter, glue, base, info: InstructionInfoFactory::new(), _cache: cache })
    }

    /// The block that begins at `request.start` in `page`, with records from 0.
    pub(crate) fn translate(&mut self, page: &[u8], request: Request) -> Option<Translation> {
        let mut around = Surroundings {
            glue: self.glue,
            base: self.base,
            first_record: 0,
            interpreter: &self.interpreter,
            info: &mut self.info,
        };
        translate(&mut around, page, request)
    }

    /// The block, to be checked.
    pub(crate) fn candidate<'a>(&'a self, block: &'a Translation) -> Candidate<'a> {
        Candidate {
            host: &block.host,
            base: self.base,
            body: block.body,
            records: &block.records,
            first_record: 0,
            glue: &self.glue,
        }
    }

    /// Text of the host instruction at offset `at`, and the offset of the next.
    fn host_text(
        &self,
        block: &Translation,
        at: usize,
        formatter: &mut FastFormatter,
    ) -> (String, usize) {
        let rest = &block.host[at..];
        // Counted from the block's beginning, so that jumps name offsets.
        let i = Decoder::with_ip(64, rest, at as u64, DecoderOptions::NONE).decode();
        let mut next = at + i.len().max(1);
        let mut text = String::new();
        if i.flow_control() != FlowControl::Call {
            formatter.format(&i, &mut text);
            return (text, next);
        }
        let target = self.base.wrapping_add(i.near_branch_target());
        let _ = write!(text, "call {}", self.stub_name(target));
        if is_followed_by_record(target, &self.glue)
            && let Some(Ok(number)) = block.host.get(next..next + 4).map(<[u8; 4]>::try_from)
        {
            let _ = write!(text, "  ; record {}", u32::from_le_bytes(number));
            next += 4;
        }
        (text, next)
    }

    fn stub_name(&self, target: u64) -> &'static str {
        let Glue { interpret, miss, chain, poll, jump, .. } = self.glue;
        let Glue { load_vectors, syscall, sysret, popf, popf32, flags_image, .. } = self.glue;
        let names = [
            (interpret, "interpret"),
            (miss, "tlb_miss"),
            (chain, "link"),
            (poll, "poll"),
            (jump, "jump_miss"),
            (load_vectors, "load_vectors"),
            (syscall, "syscall"),
            (sysret, "sysret"),
            (popf, "popf"),
            (popf32, "popf"),
            (flags_image, "flags_image"),
        ];
        match names.into_iter().find(|(address, _)| *address == target) {
            Some((_, name)) => name,
            None if self.glue.is_rep_movs(target) => "rep_movs",
            None if self.glue.is_rep_stos(target) => "rep_stos",
            None => "?",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_host_code_stand_side_by_side() {
        // mov rax, [rdi]; ret
        let text = dump_block(&[0x48, 0x8b, 0x07, 0xc3], DumpOptions::default()).unwrap();
        let line = |of: &str| text.lines().find(|line| line.contains(of)).unwrap();
        assert!(line("  0  mov rax,[rdi]").contains("lea r8,[rdi]"), "{text}");
        assert!(line("  3  ret").contains("mov r8,r11"), "{text}");
        assert!(text.contains("call tlb_miss  ; record 1"), "{text}");
        assert!(!text.contains("breaks the rules"), "{text}");
    }

    #[test]
    fn what_is_no_code_is_said_to_be_none() {
        let text = dump_block(&[], DumpOptions::default()).unwrap();
        assert!(text.contains("nothing is translated"), "{text}");
    }
}
