//! Tests of the loaders on kernels made for the purpose: `sample` makes them, `loading` loads
//! good ones, `hostile` bad ones, `vmlinux` unpacks them.

mod hostile;
mod loading;
mod sample;
mod vmlinux;
