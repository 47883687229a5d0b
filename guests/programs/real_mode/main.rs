//! Real mode: addresses, limits, control transfer, the interrupt vector
//! table, what protected mode leaves behind, and the switches between the two
//! (Intel SDM vol. 3B 21.1, vol. 3A 10.9).

#![no_std]
#![no_main]

mod addresses;
mod events;
mod flow;
mod switches;

use kit::{Report, legacy, real};

kit::program!(main);

fn main(t: &mut Report) {
    legacy::init();
    real::init();
    addresses::run(t);
    flow::run(t);
    events::run(t);
    switches::run(t);
    events::control(t);
    flow::limits(t);
}
