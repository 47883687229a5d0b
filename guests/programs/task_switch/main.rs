//! Hardware task switches in 32- and 16-bit task state segments: by JMP, CALL
//! and their gates, by events through task gates, and by IRET; what a switch
//! saves, loads and marks, and what goes wrong before and after its
//! commitment (Intel SDM vol. 3A 8.2 to 8.6, 6.12.2, table 6-6).

#![no_std]
#![no_main]

mod events;
mod faults;
mod scene;
mod sixteen;
mod state;
mod switches;

use kit::{Report, legacy, real};

kit::program!(main);

fn main(t: &mut Report) {
    legacy::init();
    real::init();
    switches::run(t);
    state::run(t);
    events::run(t);
    sixteen::run(t);
    faults::run(t);
    sixteen::long_mode(t);
}
