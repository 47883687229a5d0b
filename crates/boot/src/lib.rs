//! Kernel loaders (bzImage, PVH ELF) and the ACPI tables.
