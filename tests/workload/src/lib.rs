//! What the tests and `cargo xtask` run under stock kernels, and how to judge it.
//!
//! [`init`] makes the `/init` of an initramfs from a script, [`kernel_log`] finds what a kernel
//! complains about, [`stress`] runs the program of `guests/stress` on the host and compares what a
//! guest prints with it, [`micro`] reads what the program of `guests/micro` measured.

#![forbid(unsafe_code)]

pub mod kernel_log;
pub mod micro;
pub mod stress;

/// The beginning of every `/init`: file systems, commands by name, and a line for the test.
const PROLOGUE: &str = "#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev 2>/dev/null
echo GUEST-UP $(uname -r)
";

/// An `/init` for an initramfs with busybox: prints `GUEST-UP` and the kernel's version, runs the
/// shell commands `script`, prints `GUEST-DOWN` and powers off.
pub fn init(script: &str) -> String {
    format!("{PROLOGUE}{script}\necho GUEST-DOWN\npoweroff -f\nsleep 10\n")
}
