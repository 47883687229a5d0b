//! What a vCPU tells somebody who watches it: what it does, for a profile, and events, for a trace.
//!
//! A vCPU keeps an [`Observer`] and stores an [`Activity`] in it whenever that changes. Events are
//! asked for by kind; one that nobody wants costs a look at a byte, where the guest's code has been
//! left anyway.

use std::sync::atomic::{AtomicU8, Ordering};

/// What a vCPU's thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Activity {
    /// The engine's own work: it fills tables, translates code, delivers events.
    Helpers,
    /// Executes translated code.
    Translated,
    /// Executes the guest instruction by instruction.
    Interpreter,
    /// The host's CPU executes the guest itself.
    Direct,
    /// Devices serve an access.
    Devices,
    /// The guest sleeps.
    Idle,
}

impl Activity {
    /// All of them, by their numbers.
    pub const ALL: [Self; 6] = [
        Self::Helpers,
        Self::Translated,
        Self::Interpreter,
        Self::Direct,
        Self::Devices,
        Self::Idle,
    ];

    /// Name for a user.
    pub fn name(self) -> &'static str {
        match self {
            Self::Helpers => "helpers",
            Self::Translated => "translated code",
            Self::Interpreter => "interpreter",
            Self::Direct => "direct execution",
            Self::Devices => "devices",
            Self::Idle => "idle",
        }
    }
}

/// Kinds of events, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traced(u8);

impl Traced {
    /// The engine leaves its fast path.
    pub const EXITS: Self = Self(1);
    /// Interrupts are delivered to the guest.
    pub const INTERRUPTS: Self = Self(2);
    /// Accesses to ports and device memory.
    pub const IO: Self = Self(4);
    /// RDMSR and WRMSR.
    pub const MSR: Self = Self(8);

    /// Kinds and their names for a user.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("exits", Self::EXITS),
        ("interrupts", Self::INTERRUPTS),
        ("io", Self::IO),
        ("msr", Self::MSR),
    ];

    /// Both sets together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any of `other` is in the set.
    #[inline(always)]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Something that happened on a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// The fast path was left.
    Exit {
        /// Why, in the engine's words.
        reason: &'static str,
        /// At which instruction, where that is known without asking the host.
        rip: Option<u64>,
    },
    /// An interrupt was delivered.
    Interrupt {
        /// Its vector.
        vector: u8,
        /// Before which instruction, as above.
        rip: Option<u64>,
    },
    /// An access to a port.
    Port {
        /// The port.
        port: u16,
        /// Whether it was written.
        write: bool,
        /// Bytes: 1, 2 or 4.
        size: u16,
        /// What was read or written.
        value: u32,
    },
    /// An access to device memory.
    Mmio {
        /// Guest-physical address.
        gpa: u64,
        /// Whether it was written.
        write: bool,
        /// Bytes, 1 to 8.
        size: usize,
        /// What was read or written.
        value: u64,
    },
    /// RDMSR or WRMSR.
    Msr {
        /// The MSR.
        number: u32,
        /// Whether it was written.
        write: bool,
        /// What was read or written; `None` for a read that faulted.
        value: Option<u64>,
        /// Whether the instruction faulted.
        fault: bool,
    },
}

/// Takes the events of one vCPU, on that vCPU's thread.
pub type Sink = Box<dyn Fn(TraceEvent) + Send + Sync>;

/// Where a vCPU says what it does. The default is heard by nobody.
#[derive(Default)]
pub struct Observer {
    activity: AtomicU8,
    traced: Traced,
    sink: Option<Sink>,
}

impl Observer {
    /// Somebody who wants the events of these kinds in `sink`.
    pub fn tracing(traced: Traced, sink: Sink) -> Self {
        Self { activity: AtomicU8::default(), traced, sink: Some(sink) }
    }

    /// The vCPU does something else from now on; gives what it did before. On its thread only.
    #[inline(always)]
    pub fn enter(&self, activity: Activity) -> Activity {
        let before = self.activity();
        self.activity.store(activity as u8, Ordering::Relaxed);
        before
    }

    /// What the vCPU does.
    #[inline(always)]
    pub fn activity(&self) -> Activity {
        let number = usize::from(self.activity.load(Ordering::Relaxed));
        Activity::ALL.get(number).copied().unwrap_or(Activity::Helpers)
    }

    /// Whether events of a kind are wanted.
    #[inline(always)]
    pub fn traces(&self, kind: Traced) -> bool {
        self.traced.has(kind)
    }

    /// Tells of an event of a wanted kind.
    #[cold]
    pub fn tell(&self, event: TraceEvent) {
        if let Some(sink) = &self.sink {
            sink(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activities_have_their_numbers() {
        let observer = Observer::default();
        for (number, activity) in Activity::ALL.into_iter().enumerate() {
            assert_eq!(activity as usize, number);
            observer.enter(activity);
            assert_eq!(observer.activity(), activity);
        }
    }

    #[test]
    fn nobody_wants_anything() {
        let observer = Observer::default();
        assert!(Traced::NAMES.iter().all(|(_, kind)| !observer.traces(*kind)));
        let both = Traced::IO.with(Traced::MSR);
        assert!(both.has(Traced::MSR) && !both.has(Traced::EXITS));
    }
}
