//! The x86 page walk, shared by engines, debugger and hypercalls.
