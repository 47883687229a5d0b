//! Paging outside long mode: 32-bit paging with 4 MiB pages and PSE-36, PAE
//! paging with its pointer registers, the switches between them, and the
//! permissions that both share (Intel SDM vol. 3A 4.3, 4.4, 4.6 to 4.8).

#![no_std]
#![no_main]

mod legacy32;
mod pae;
mod rights;
mod scene;
mod switches;

use kit::{Report, legacy};

kit::program!(main);

fn main(t: &mut Report) {
    legacy::init();
    scene::init();
    legacy32::run(t);
    pae::run(t);
    rights::run(t);
    switches::run(t);
}
