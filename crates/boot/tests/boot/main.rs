//! Tests of the loaders on kernels made for the purpose: `sample` makes them, `loading` loads
//! good ones, `hostile` bad ones, `vmlinux` unpacks them, `multiboot` has multiboot kernels of both
//! kinds.

mod hostile;
mod loading;
mod multiboot;
mod sample;
mod vmlinux;
