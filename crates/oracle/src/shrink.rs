//! Makes a case that shows a difference smaller.

use crate::case::Case;
use crate::image::CpuImage;

/// Removes instructions and replaces registers and memory by simple values, as long as `differs`
/// holds.
pub fn shrink(case: &Case, mut differs: impl FnMut(&Case) -> bool) -> Case {
    let mut best = case.clone();
    let mut attempt = |change: &dyn Fn(&mut Case)| {
        let mut candidate = best.clone();
        change(&mut candidate);
        let better = differs(&candidate);
        if better {
            best = candidate;
        }
        better
    };
    // Instructions first, which helps most, and again when registers no longer hide anything.
    let numbers = || (0..case.instructions.len()).rev();
    let removals: Vec<_> = numbers().map(|index| move |c: &mut Case| remove(c, index)).collect();
    for removal in &removals {
        attempt(removal);
    }
    let plain = CpuImage::default();
    attempt(&|c| c.pokes.clear());
    attempt(&|c| c.contents = [0; crate::layout::PAGES]);
    attempt(&|c| c.image.rflags = plain.rflags);
    attempt(&|c| c.image.xsave = plain.xsave);
    for index in 0..16 {
        attempt(&|c| c.image.gpr[index] = 0);
        attempt(&|c| c.image.set_ymm(index, [0; 2]));
    }
    for index in 0..8 {
        attempt(&|c| c.image.set_st(index, &[0; 10]));
    }
    attempt(&|c| c.image.set_mxcsr(x86::xsave::MXCSR_INIT));
    attempt(&|c| c.image.put(0, &plain.get::<24>(0)));
    for removal in &removals {
        attempt(removal);
    }
    best
}

/// Removes an instruction unless it is the last one that is left.
fn remove(case: &mut Case, index: usize) {
    if case.instructions.len() > 1 && index < case.instructions.len() {
        case.instructions.remove(index);
    }
}
