//! The thread of one vCPU.
//!
//! It owns the vCPU and does what the driver orders, one order at a time. The driver sends orders
//! that answer at once only while the vCPU is parked: while it does not run.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use engine::{CpuBus, EngineError, Kick, Vcpu, VcpuExit, VcpuState, VcpuStats, WriteLog};

use crate::VmError;
use crate::observed::{ObservedBus, Watch};

/// What a run ended with; the text is what the engine said or how it panicked.
pub(crate) type RunResult = Result<VcpuExit, String>;

enum Order {
    Run,
    Budget(Option<u64>),
    Save(Sender<Result<VcpuState, EngineError>>),
    Restore(Box<VcpuState>, Sender<Result<(), EngineError>>),
    Stats(Sender<VcpuStats>),
    Act(VcpuAct),
    Observe(Arc<Watch>),
}

/// Something to do with a parked vCPU, on its thread.
pub(crate) type VcpuAct = Box<dyn FnOnce(&mut dyn Vcpu, &dyn CpuBus) + Send>;

/// A vCPU and its thread, as the driver sees them.
pub(crate) struct VcpuThread {
    index: u32,
    orders: Option<Sender<Order>>,
    kick: Arc<dyn Kick>,
    write_log: Option<Arc<dyn WriteLog>>,
    /// The driver has kicked, and the vCPU has not parked since.
    kicked: Arc<AtomicBool>,
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
        let kicked = Arc::new(AtomicBool::new(false));
        let by_driver = Arc::clone(&kicked);
        let (orders, inbox) = channel();
        let thread = thread::Builder::new()
            .name(format!("vcpu {index}"))
            .spawn(move || serve(vcpu, bus, &inbox, &by_driver, &done))
            .map_err(|cause| VmError::Host { action: "start a vCPU thread", cause })?;
        let thread = Some(thread);
        Ok(Self { index, orders: Some(orders), kick, write_log, kicked, thread, running: false })
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
        self.kicked.store(true, Ordering::Release);
        self.kick.kick();
    }

    /// From now on `watch` is told what the vCPU does, and may kick it for a sample.
    pub(crate) fn observe(&self, watch: Arc<Watch>) {
        watch.set_kick(Arc::clone(&self.kick));
        self.order(Order::Observe(watch));
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
        self.kick();
        if let Some(thread) = self.thread.take() {
            // Panics were caught and reported.
            let _ = thread.join();
        }
    }
}

fn serve(
    mut vcpu: Box<dyn Vcpu>,
    mut bus: Arc<dyn CpuBus>,
    inbox: &Receiver<Order>,
    kicked: &AtomicBool,
    done: &dyn Fn(RunResult),
) {
    let mut watch = None;
    // Whoever asked may have given up: an answer that nobody takes is dropped.
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Run => {
                let run = || run_on(&mut *vcpu, &*bus, watch.as_deref(), kicked);
                let result = panic::catch_unwind(AssertUnwindSafe(run));
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
            Order::Save(reply) => drop(reply.send(vcpu.save(&*bus))),
            Order::Restore(state, reply) => drop(reply.send(vcpu.restore(&state, &*bus))),
            Order::Stats(reply) => drop(reply.send(vcpu.stats())),
            Order::Act(act) => act(&mut *vcpu, &*bus),
            Order::Observe(by) => {
                vcpu.observe(Arc::clone(by.observer()));
                bus = Arc::new(ObservedBus::new(bus, Arc::clone(by.observer())));
                watch = Some(by);
            }
        }
    }
}

/// Runs a vCPU until there is something for the driver to decide: that somebody wanted a sample is
/// nothing.
fn run_on(
    vcpu: &mut dyn Vcpu,
    bus: &dyn CpuBus,
    watch: Option<&Watch>,
    kicked: &AtomicBool,
) -> Result<VcpuExit, EngineError> {
    let Some(watch) = watch else { return vcpu.run(bus) };
    loop {
        watch.set_runs(true);
        let exit = vcpu.run(bus);
        watch.set_runs(false);
        let exit = exit?;
        if watch.is_due() {
            watch.take(&vcpu.save(bus)?);
        }
        // Kicks for samples may also come late, when the vCPU has parked or left for another reason.
        if exit != VcpuExit::Paused || kicked.swap(false, Ordering::AcqRel) {
            watch.tell_exit(&exit);
            return Ok(exit);
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic")
}
