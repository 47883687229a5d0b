//! How a long operation tells its caller where it is.
//!
//! The command line draws a bar from this; tests use [`Silent`].

/// Receives the progress of a download or a build.
///
/// Calls come from the thread that runs the operation, in this order: any
/// number of times one [`step`](Progress::step) followed by its
/// [`bytes`](Progress::bytes) or [`share`](Progress::share); messages at any time.
pub trait Progress {
    /// A new step begins, for example "Downloading packages". The counters of
    /// the step before are void.
    fn step(&self, name: &str);

    /// `done` bytes of the step are through, of `total` where that is known.
    fn bytes(&self, done: u64, total: Option<u64>);

    /// `done` of the step's `total` equal parts are through.
    fn share(&self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// Something the user may want to know, for example what is waited for.
    fn message(&self, text: &str);
}

/// Progress that nobody looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _name: &str) {}
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
    fn message(&self, _text: &str) {}
}
