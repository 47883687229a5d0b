//! Runs single vector and x87 instructions of a guest on the host CPU, on operands copied in.
