//! Ends KVM_RUN from other threads.
//!
//! KVM_RUN looks at the byte `immediate_exit` when it begins and ends when a signal arrives; both
//! together leave no gap (Linux, Documentation/virt/kvm/api.rst, `immediate_exit`). The signal's
//! handler does nothing: being interrupted is all that is wanted.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use engine::Kick;

/// Who is to be interrupted, while it runs.
struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is used only under the mutex of the Waker, in which a Target stands only
// while the mapping that it points into exists.
unsafe impl Send for Target {}

/// Reaches the vCPU's thread.
#[derive(Default)]
pub(crate) struct Waker {
    target: Mutex<Option<Target>>,
    kicked: AtomicBool,
}

impl Waker {
    /// The calling thread runs the vCPU whose run page has `immediate_exit` from now on, until the
    /// guard is dropped.
    ///
    /// # Safety
    /// `immediate_exit` stays valid until the guard is dropped.
    pub(crate) unsafe fn enter(self: &Arc<Self>, immediate_exit: *const AtomicU8) -> Entered {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install_handler);
        // SAFETY: has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *self.lock() = Some(Target { thread, immediate_exit });
        Entered(Arc::clone(self))
    }

    /// Makes the present or next KVM_RUN end.
    pub(crate) fn wake(&self) {
        if let Some(target) = &*self.lock() {
            // SAFETY: `enter`'s caller keeps the byte valid while the target is registered.
            unsafe { &*target.immediate_exit }.store(1, Ordering::Release);
            // SAFETY: the thread is inside `run`, so it exists. The handler is installed.
            unsafe { libc::pthread_kill(target.thread, libc::SIGRTMIN()) };
        }
    }

    /// Whether a kick waits to be taken.
    pub(crate) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::Acquire)
    }

    /// Whether a kick came since the last call.
    pub(crate) fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::AcqRel)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Target>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, its thread is interrupted.
pub(crate) struct Entered(Arc<Waker>);

impl Drop for Entered {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// Kicks the vCPU, whichever half of it executes.
pub(crate) struct Kicker {
    pub(crate) waker: Arc<Waker>,
    /// The interpreter's, which also wakes the thread from sleeping in HLT and calls the waker.
    pub(crate) carrier: Arc<dyn Kick>,
}

impl Kick for Kicker {
    fn kick(&self) {
        self.waker.kicked.store(true, Ordering::Release);
        self.carrier.kick();
    }
}

extern "C" fn ignore(_signal: libc::c_int) {}

fn install_handler() {
    let handler: extern "C" fn(libc::c_int) = ignore;
    // SAFETY: all-zero is a valid sigaction: no flags (so that calls are interrupted, not
    // restarted), an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: the handler is async-signal-safe (it does nothing), the pointers are valid.
    unsafe { libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut()) };
}
