//! Whether KVM runs guest kernels on the CPU or emulates them.
//!
//! Some hosts, themselves virtual, offer a /dev/kvm that executes code at privilege level 0 by
//! emulation, a thousand times slower than the CPU. A loop in a tiny guest tells them apart.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use memory::GuestRam;

use crate::KvmError;
use crate::device::{Opened, map_ram};

/// Rounds of the loop, three instructions each.
const ROUNDS: u32 = 1_000;
const INSTRUCTIONS: u64 = 3 * ROUNDS as u64;
/// Fewer instructions in a second than this are emulation. Hardware reaches some hundred million
/// even with its first accesses to memory, emulation some million.
const THRESHOLD: u64 = 20_000_000;
/// Measurements; the best counts, so that a busy host is not taken for a slow one.
const TRIES: usize = 3;
/// mov ecx, ROUNDS; l: mov eax, cr0; dec ecx; jnz l; hlt, as 16-bit code with 32-bit operands.
const LOOP: [u8; 15] = {
    let [a, b, c, d] = ROUNDS.to_le_bytes();
    [0x66, 0xb9, a, b, c, d, 0x0f, 0x20, 0xc0, 0x66, 0x49, 0x75, 0xf9, 0xf4, 0x90]
};
const START: u64 = 0x1000;

/// What KVM does with guest kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speed {
    /// They run on the CPU, at this many instructions per second or more.
    Hardware(u64),
    /// They are emulated, at about this many instructions per second; 0 when not even the loop
    /// could be executed.
    Emulated(u64),
}

pub(crate) fn measure(kvm: &Opened) -> Result<Speed, KvmError> {
    let ram = GuestRam::new(&[(0, 0x2000)]).map_err(|_| KvmError::Lacks("memory for a probe"))?;
    ram.write(memory::Gpa(START), &LOOP).map_err(|_| KvmError::Lacks("memory for a probe"))?;
    let vm = kvm.create_vm()?;
    map_ram(&vm, &ram, false)?;
    let mut vcpu = vm.create_vcpu(0).map_err(KvmError::call("KVM_CREATE_VCPU"))?;
    let mut best = 0;
    for _ in 0..TRIES {
        if let Some(took) = run_loop(&mut vcpu)? {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
            best = best.max(INSTRUCTIONS * 1_000_000_000 / nanos);
        }
        if best >= THRESHOLD {
            return Ok(Speed::Hardware(best));
        }
    }
    Ok(Speed::Emulated(best))
}

/// How long the loop takes; `None` when KVM cannot execute it.
fn run_loop(vcpu: &mut VcpuFd) -> Result<Option<Duration>, KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).map_err(KvmError::call("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: START, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(KvmError::call("KVM_SET_REGS"))?;
    let begin = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(Some(begin.elapsed())),
            Ok(_) => return Ok(None),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(KvmError::call("KVM_RUN")(error)),
        }
    }
}
