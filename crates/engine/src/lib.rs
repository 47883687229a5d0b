//! Contracts between engines and the machine: Engine, Vcpu, CpuBus, VcpuState, CpuProfile.
