//! Progress of building an image, on standard error.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use images::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report;

/// A bar where standard error is a terminal; else only messages.
#[derive(Default)]
pub struct Bar {
    bar: Mutex<Option<ProgressBar>>,
}

const TICK: Duration = Duration::from_millis(120);
const KNOWN: &str = "{msg:28} [{bar:40}] {bytes}/{total_bytes} {eta}";
const SHARE: &str = "{msg:28} [{bar:40}] {percent}% {elapsed}";
const UNKNOWN: &str = "{msg:28} {spinner} {bytes} {elapsed}";

impl Bar {
    /// A bar that appears with the first step.
    pub fn new() -> Self {
        Self::default()
    }

    fn replace(&self, next: Option<ProgressBar>) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = std::mem::replace(&mut *bar, next) {
            old.finish_and_clear();
        }
    }

    fn with(&self, act: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            act(bar);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bar {
    fn step(&self, name: &str) {
        if !io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style(UNKNOWN));
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(TICK);
        self.replace(Some(bar));
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.with(|bar| {
            if let Some(total) = total
                && bar.length() != Some(total)
            {
                bar.set_style(style(KNOWN));
                bar.set_length(total);
            }
            bar.set_position(done);
        });
    }

    fn share(&self, done: u64, total: u64) {
        self.with(|bar| {
            bar.set_style(style(SHARE));
            bar.set_length(total);
            bar.set_position(done);
        });
    }

    fn message(&self, text: &str) {
        let mut shown = false;
        self.with(|bar| {
            bar.println(format!("ringfence: {text}"));
            shown = true;
        });
        if !shown {
            report::note(text);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.replace(None);
    }
}
