//! Architectural definitions of x86-64: registers, descriptors, page-table entries, MSRs, CPUID leaves.
