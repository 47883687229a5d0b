//! The interpreter engine: the readable reference for every behaviour of the CPU.
