//! x87 control instructions, in safe Rust.
