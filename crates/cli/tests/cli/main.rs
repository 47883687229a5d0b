//! The program from outside: exit statuses, messages, standard streams, signals, terminals, managed
//! VMs and what can happen to them.

mod bad_input;
mod disk_images;
mod durability;
mod faults;
mod golden;
mod guests;
mod managed;
mod statuses;
mod streams;
mod support;
mod terminal;
mod watching;
