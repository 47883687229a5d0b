//! What the processor says of itself and whether it holds: CPUID against
//! instructions, control registers, MSRs, the XSAVE family, the time-stamp
//! counter (Intel SDM vol. 2A CPUID; vol. 3A 2.5; vol. 1 chapter 13).

#![no_std]
#![no_main]

mod control;
mod features;
mod identity;
mod msrs;
mod xsave;

use kit::Report;

kit::program!(main);

fn main(t: &mut Report) {
    identity::run(t);
    features::run(t);
    control::run(t);
    msrs::run(t);
    xsave::run(t);
}
