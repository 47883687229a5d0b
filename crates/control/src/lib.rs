//! The process of a managed VM: what there is beside the VM itself.
//!
//! [`Guest`] is the VM with its folder: it pauses, suspends, takes snapshots, and keeps
//! `state.json` true. [`Server`] puts it behind HTTP on a Unix socket in that folder
//! (docs/openapi.json). [`ConsoleHub`] is its console: a log, a scroll-back, any number of viewers
//! and one writer. [`Client`] is the other side of the socket.
//!
//! Neighbours: `lifecycle` drives the VM, `vms` knows the folder, `api` has the types of requests and
//! answers; the command line opens files, starts the process and calls the client.
//!
//! Everything that is opened by name is opened in [`Guest::launch`] or before, but for snapshots,
//! whose folder is below the VM's own: that is where a sandbox for the process belongs.

#![forbid(unsafe_code)]

mod client;
mod console;
mod disks;
mod error;
mod guest;
mod metrics;
mod server;
mod snapshots;
mod usage;

pub use client::{Client, ConsoleStream};
pub use console::ConsoleHub;
pub use disks::{DiskSource, copy_file};
pub use error::ControlError;
pub use guest::{Guest, Launch, Origin};
pub use server::{Server, Serving, openapi};
pub use snapshots::list_snapshots;
