//! The program from outside: exit statuses, messages, standard streams, signals, terminals.

mod bad_input;
mod guests;
mod statuses;
mod streams;
mod support;
mod terminal;
