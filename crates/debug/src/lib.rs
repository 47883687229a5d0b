//! The debugger's server: a VM as a target of gdb (GDB manual, "Remote Serial Protocol").
//!
//! A [`Server`] listens on a TCP port or a Unix socket and serves one debugger at a time; the
//! protocol itself is the crate `gdbstub`'s. Each vCPU is a thread of the target. While the
//! debugger looks, the whole VM is paused, its time included. Breakpoints change no guest memory
//! and watchpoints no debug register: engines compare addresses ([`engine::Debugging`]).
//!
//! Key types: [`Server`] before and [`Serving`] after the VM exists; `Guest` is the target,
//! `Session` the loop that feeds it.
//!
//! Neighbours: `lifecycle` pauses and resumes the VM and lends its vCPUs, `paging` finds what a
//! guest-virtual address means; the command line starts the server.
//!
//! Whoever can connect controls the guest, but nothing else of the host. What a client sends is
//! parsed by `gdbstub` and reaches the VM only as register values, guest addresses and requests.

#![forbid(unsafe_code)]

mod address;
mod guest;
mod memory_access;
mod monitor;
mod registers;
mod server;
mod session;

pub use address::{Address, AddressError};
pub use server::{Server, Serving};
