//! Virtual-8086 mode without its extensions (CR4.VME clear): entry by IRETD,
//! 16-bit addresses at level 3, what IOPL decides, events to the monitor in
//! ring 0 and back, the I/O bitmap (Intel SDM vol. 3B 21.2, 21.3).

#![no_std]
#![no_main]

mod addresses;
mod events;
mod privilege;

use kit::{Report, legacy, real};

kit::program!(main);

fn main(t: &mut Report) {
    legacy::init();
    real::init();
    addresses::run(t);
    privilege::run(t);
    events::run(t);
    addresses::code_limit(t);
}

/// What programs run with: the end of a snippet is INT n, which needs IOPL 3.
pub fn run(code: kit::Code) -> legacy::Legacy {
    real::at_8086(code, 3).with_task()
}
