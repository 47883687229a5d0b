//! The thread of one vCPU.
//!
//! It owns the vCPU and does what the driver orders, one order at a time. The driver sends orders
//! that answer at once only while the vCPU is parked: while it does not run.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use engine::{CpuBus, EngineError, Kick, Vcpu, VcpuExit, VcpuState, VcpuStats, WriteLog};

use crate::VmError;

/// What a run ended with; the text is what the engine said or how it panicked.
pub(crate) type RunResult = Result<VcpuExit, String>;

enum Order {
    Run,
    Budget(Option<u64>),
    Save(Sender<Result<VcpuState, EngineError>>),
    Restore(Box<VcpuState>, Sender<Result<(), EngineError>>),
    Stats(Sender<VcpuStats>),
    Act(VcpuAct),
}

/// Something to do with a parked vCPU, on its thread.
pub(crate) type VcpuAct = Box<dyn FnOnce(&mut dyn Vcpu, &dyn CpuBus) + Send>;

/// A vCPU and its thread, as the driver sees them.
pub(crate) struct VcpuThread {
    index: u32,
    orders: Option<Sender<Order>>,
    kick: Arc<dyn Kick>,
    write_log: Option<Arc<dyn WriteLog>>,
    thread: Option<JoinHandle<()>>,
    running: bool,
}

impl VcpuThread {
    /// Starts the thread of vCPU `index`, parked. `done` is called with the result of each run.
    pub(crate) fn start(
        index: u32,
        vcpu: Box<dyn Vcpu>,
        bus: Arc<dyn CpuBus>,
        done: impl Fn(RunResult) + Send + 'static,
    ) -> Result<Self, VmError> {
        let (kick, write_log) = (vcpu.kicker(), vcpu.write_log());
        let (orders, inbox) = channel();
        let thread = thread::Builder::new()
            .name(format!("vcpu {index}"))
            .spawn(move || serve(vcpu, &*bus, &inbox, &done))
            .map_err(|cause| VmError::Host { action: "start a vCPU thread", cause })?;
        let thread = Some(thread);
        Ok(Self { index, orders: Some(orders), kick, write_log, thread, running: false })
    }

    /// What knows the pages that its VM has written without hooks.
    pub(crate) fn write_log(&self) -> Option<&Arc<dyn WriteLog>> {
        self.write_log.as_ref()
    }

    /// Whether it was told to run and has not reported since.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Notes that the vCPU has reported the end of a run.
    pub(crate) fn parked(&mut self) {
        self.running = false;
    }

    pub(crate) fn run(&mut self) {
        self.running = true;
        self.order(Order::Run);
    }

    /// Makes a running vCPU report soon.
    pub(crate) fn kick(&self) {
        self.kick.kick();
    }

    pub(crate) fn set_budget(&self, instructions: Option<u64>) {
        self.order(Order::Budget(instructions));
    }

    pub(crate) fn save(&self) -> Result<VcpuState, VmError> {
        let (reply, answer) = channel();
        self.order(Order::Save(reply));
        self.answer(&answer)?.map_err(|e| self.failed(&e))
    }

    pub(crate) fn restore(&self, state: VcpuState) -> Result<(), VmError> {
        let (reply, answer) = channel();
        self.order(Order::Restore(Box::new(state), reply));
        self.answer(&answer)?.map_err(|e| self.failed(&e))
    }

    pub(crate) fn stats(&self) -> Result<VcpuStats, VmError> {
        let (reply, answer) = channel();
        self.order(Order::Stats(reply));
        self.answer(&answer)
    }

    pub(crate) fn act(&self, act: VcpuAct) {
        self.order(Order::Act(act));
    }

    fn order(&self, order: Order) {
        debug_assert!(!self.running || matches!(order, Order::Run));
        if let Some(orders) = &self.orders {
            // A thread that is gone has reported so; whoever waits for an answer gets none.
            let _ = orders.send(order);
        }
    }

    fn answer<T>(&self, answer: &Receiver<T>) -> Result<T, VmError> {
        answer.recv().map_err(|_| self.failed(&"its thread is gone"))
    }

    fn failed(&self, cause: &dyn std::fmt::Display) -> VmError {
        VmError::Vcpu { vcpu: self.index, cause: cause.to_string() }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.orders = None;
        self.kick.kick();
        if let Some(thread) = self.thread.take() {
            // Panics were caught and reported.
            let _ = thread.join();
        }
    }
}

fn serve(
    mut vcpu: Box<dyn Vcpu>,
    bus: &dyn CpuBus,
    inbox: &Receiver<Order>,
    done: &dyn Fn(RunResult),
) {
    // Whoever asked may have given up: an answer that nobody takes is dropped.
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Run => {
                let result = panic::catch_unwind(AssertUnwindSafe(|| vcpu.run(bus)));
                let lost = result.is_err();
                done(match result {
                    Ok(exit) => exit.map_err(|e| e.to_string()),
                    Err(panic) => Err(format!("internal error: {}", text_of(&*panic))),
                });
                if lost {
                    // Its state cannot be trusted any more.
                    return;
                }
            }
            Order::Budget(instructions) => vcpu.set_budget(instructions),
            Order::Save(reply) => drop(reply.send(vcpu.save(bus))),
            Order::Restore(state, reply) => drop(reply.send(vcpu.restore(&state, bus))),
            Order::Stats(reply) => drop(reply.send(vcpu.stats())),
            Order::Act(act) => act(&mut *vcpu, bus),
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic")
}
