//! 32-bit protected mode without long mode: the state at the PVH entry point,
//! leaving and entering long mode, exceptions through a 32-bit IDT, 32-bit
//! task state, gates and paging, instructions that 64-bit mode lacks (Intel
//! SDM vol. 3A 5 to 7, 9.8).

#![no_std]
#![no_main]

mod entry;
mod exceptions;
mod instructions;
mod paging;
mod privilege;
mod transitions;

use kit::Report;

kit::program!(main);

fn main(t: &mut Report) {
    entry::run(t);
    transitions::run(t);
    exceptions::run(t);
    privilege::run(t);
    instructions::run(t);
    paging::run(t);
}
