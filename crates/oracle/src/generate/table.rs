//! The instruction forms of 64-bit user mode, by class.

use std::sync::OnceLock;

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic};

use crate::policy;
use crate::random::Random;

/// Classes of instruction forms, and how often each is drawn, in percent.
const WEIGHTS: [(Class, u64); 8] = [
    (Class::Integer, 39),
    (Class::Control, 9),
    (Class::Stack, 7),
    (Class::String, 7),
    (Class::X87, 12),
    (Class::Sse, 12),
    (Class::Avx, 13),
    (Class::Privileged, 1),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Integer,
    Control,
    Stack,
    String,
    X87,
    Sse,
    Avx,
    Privileged,
}

/// All forms that are compared, by class in the order of [`WEIGHTS`].
fn forms() -> &'static [Vec<Code>; WEIGHTS.len()] {
    static FORMS: OnceLock<[Vec<Code>; WEIGHTS.len()]> = OnceLock::new();
    FORMS.get_or_init(|| {
        WEIGHTS.map(|(class, _)| {
            Code::values().filter(|c| is_candidate(*c) && classify(*c) == class).collect()
        })
    })
}

/// Whether the form exists in 64-bit code and can be compared.
fn is_candidate(code: Code) -> bool {
    let info = code.op_code();
    info.is_instruction()
        && info.mode64()
        && info.intel_decoder64()
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && policy::allows(code)
}

fn classify(code: Code) -> Class {
    use CpuidFeature as F;
    let info = code.op_code();
    let has = |features: &[F]| code.cpuid_features().iter().any(|f| features.contains(f));
    if info.is_privileged() || info.must_be_cpl0() {
        Class::Privileged
    } else if code.is_string_instruction() {
        Class::String
    } else if code.flow_control() != FlowControl::Next {
        Class::Control
    } else if info.is_stack_instruction() {
        Class::Stack
    } else if has(&[F::FPU, F::FPU287, F::FPU387]) {
        Class::X87
    } else if has(&[F::AVX, F::AVX2, F::FMA, F::F16C]) {
        Class::Avx
    } else if has(&[F::MMX, F::SSE, F::SSE2, F::SSE3, F::SSSE3, F::SSE4_1, F::SSE4_2])
        || has(&[F::AES, F::PCLMULQDQ, F::SHA, F::FXSR])
    {
        Class::Sse
    } else {
        Class::Integer
    }
}

/// Draws a form, of `only` if given.
pub(super) fn pick(random: &mut Random, only: Option<Mnemonic>) -> Code {
    let forms = forms();
    if let Some(mnemonic) = only {
        let of_it: Vec<Code> =
            forms.iter().flatten().copied().filter(|c| c.mnemonic() == mnemonic).collect();
        return random.pick(&of_it);
    }
    let mut point = random.below(100);
    for (class, (_, weight)) in forms.iter().zip(WEIGHTS) {
        if point < weight {
            return random.pick(class);
        }
        point -= weight;
    }
    unreachable!("the weights add up to 100")
}

/// Whether any form has the mnemonic.
pub(super) fn has(mnemonic: Mnemonic) -> bool {
    forms().iter().flatten().any(|c| c.mnemonic() == mnemonic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_forms() {
        let count = |class| {
            let index = WEIGHTS.iter().position(|(c, _)| *c == class).unwrap();
            forms()[index].len()
        };
        assert_eq!(WEIGHTS.iter().map(|(_, w)| w).sum::<u64>(), 100);
        assert!(count(Class::Integer) > 400, "{}", count(Class::Integer));
        assert!(count(Class::Control) > 50, "{}", count(Class::Control));
        assert!(count(Class::Stack) > 10, "{}", count(Class::Stack));
        assert!(count(Class::String) > 15, "{}", count(Class::String));
        assert!(count(Class::X87) > 120, "{}", count(Class::X87));
        assert!(count(Class::Sse) > 380, "{}", count(Class::Sse));
        assert!(count(Class::Avx) > 600, "{}", count(Class::Avx));
        assert!(count(Class::Privileged) > 10, "{}", count(Class::Privileged));
    }
}
