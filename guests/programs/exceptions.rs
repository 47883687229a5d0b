//! Every exception.
#![no_std]
#![no_main]
use kit::{Outcome, Report, snippet, trap::vector};
kit::program!(main);
fn main(t: &mut Report) {
    t.eq("empty", snippet!("nop").k(), Outcome::Done);
    t.eq("ud2", snippet!("mov eax,1"; "ud2").k(), Outcome::fault(vector::UD));
    t.eq("ud2 user", snippet!("mov eax,1"; "ud2").u(), Outcome::fault(vector::UD));
    t.eq("hlt user", snippet!("mov eax,1"; "hlt").u(), Outcome::fault(vector::GP));
}
