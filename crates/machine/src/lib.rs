//! Composition: from a machine specification to a machine with its CPUs, devices and memory.
