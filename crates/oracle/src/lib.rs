//! Compares an engine's user-mode instructions with the host CPU.
//!
//! A [`Case`] is a short instruction sequence, made from the decoder's own table by a
//! [`Generator`], with registers and memory. The [`NativeRunner`] executes it on the host CPU in a
//! sealed process, a [`Subject`] on an engine; [`compare`](compare::compare) tells every register,
//! defined flag, byte of memory and property of the final exception that differs. [`check()`] does
//! that for many cases, makes those that differ smaller, and reports them as [`Finding`]s. A case
//! is known by seed and number and can be repeated alone.
//!
//! Both sides see the same linear addresses ([`layout`]) and end every case in an exception: on
//! the host it becomes a signal, on a vCPU it enters a handler of a minimal supervisor, which
//! stops the vCPU.
//!
//! Neighbours: `engine` (a [`VcpuSubject`] drives any engine), `memory`; used by tests only.
//! Unsafe code is confined to [`native`].

pub mod case;
pub mod check;
pub mod compare;
pub mod flags;
pub mod generate;
pub mod image;
pub mod layout;
pub mod leeway;
pub mod native;
pub mod policy;
pub mod random;
pub mod report;
pub mod shrink;
pub mod subject;
pub mod values;

mod supervisor;

pub use case::{Case, Fault, Observation};
pub use check::{CheckError, Plan, Summary, check};
pub use generate::Generator;
pub use native::{NativeOutcome, NativeRunner};
pub use report::Finding;
pub use subject::{Subject, SubjectError, SubjectOutcome, VcpuSubject, WarmSubject};
