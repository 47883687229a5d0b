//! One test for every component that saves: see [`conformance!`](crate::conformance).

use crate::{Persist, Section, StateError};

/// Checks that `subject`, in whatever state it is, saves and restores faithfully into `fresh`
/// (a newly constructed component of the same kind), and that damaged input is refused without a
/// panic. Panics with the reason where it does not: call it from tests, best by
/// [`conformance!`](crate::conformance).
pub fn check_conformance(subject: &dyn Persist, fresh: &dyn Persist) {
    let kind = subject.kind();
    let saved = subject.save("0").expect("save");
    assert_eq!(saved.kind, kind, "the section has another kind than the component");
    assert_eq!(saved, subject.save("0").expect("save"), "{kind}: saving changed the component");
    fresh.restore(&saved).expect("restore");
    assert_eq!(
        saved,
        fresh.save("0").expect("save"),
        "{kind}: the restored component saves something else"
    );
    refuses(fresh, &Section { version: saved.version + 1, ..saved.clone() }, "a newer version");
    refuses(fresh, &Section { kind: format!("not-{kind}"), ..saved.clone() }, "another kind");
    for len in 0..saved.payload.len() {
        let payload = saved.payload[..len].to_vec();
        refuses(fresh, &Section { payload, ..saved.clone() }, "a truncated payload");
    }
    // Flipped bits may decode to other legal values; they only must not panic.
    for bit in 0..saved.payload.len() * 8 {
        let mut damaged = saved.clone();
        damaged.payload[bit / 8] ^= 1 << (bit % 8);
        let _: Result<(), StateError> = fresh.restore(&damaged);
    }
    fresh.restore(&saved).expect("restore after refused input");
    assert_eq!(saved, fresh.save("0").expect("save"), "{kind}: refused input left traces");
}

fn refuses(fresh: &dyn Persist, section: &Section, what: &str) {
    let error = fresh.restore(section);
    assert!(error.is_err(), "{}: {what} was accepted", section.kind);
}

/// Defines a test that a component saves and restores faithfully.
///
/// `new` constructs it, `exercise` brings a fresh one into an interesting state.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
/// # use state::{Persist, Saved, Section, StateError};
/// # #[derive(Serialize, Deserialize)] struct SavedCounter { value: u64 }
/// # impl Saved for SavedCounter { const KIND: &'static str = "counter"; const VERSION: u32 = 1; }
/// # #[derive(Default)] struct Counter(AtomicU64);
/// # impl Persist for Counter {
/// #   fn kind(&self) -> &'static str { SavedCounter::KIND }
/// #   fn save(&self, i: &str) -> Result<Section, StateError> {
/// #     Section::encode(i, &SavedCounter { value: self.0.load(Relaxed) }) }
/// #   fn restore(&self, s: &Section) -> Result<(), StateError> {
/// #     self.0.store(s.decode::<SavedCounter>()?.value, Relaxed); Ok(()) } }
/// state::conformance!(counter_saves, Counter::default(), |c: &Counter| c.0.store(7, Relaxed));
/// ```
#[macro_export]
macro_rules! conformance {
    ($name:ident, $new:expr, $exercise:expr) => {
        #[test]
        fn $name() {
            let subject = $new;
            $crate::check_conformance(&subject, &$new);
            #[allow(clippy::redundant_closure_call)]
            ($exercise)(&subject);
            $crate::check_conformance(&subject, &$new);
        }
    };
}
