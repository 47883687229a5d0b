//! What is mapped in the sandbox of one guest address space, and what has to go.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use ::direct::{DirectError, MOST_WATCHED, Mapping, Rights, Sandbox};
use memory::{GuestRam, RamOffset};

use super::habit::Habit;
use crate::blocks::Spread;

type Fast = BuildHasherDefault<Spread>;

/// One guest address space, by its PCID.
pub(crate) struct Space {
    pub(crate) pcid: u16,
    pub(crate) habit: Habit,
    /// When it was last entered, in entries of the vCPU.
    pub(crate) entered: u64,
    sandbox: Option<Sandbox>,
    pages: HashMap<u64, Page, Fast>,
    /// Linear addresses of the pages mapped writably, by their place in guest RAM.
    writable: HashMap<u64, Vec<u64>, Fast>,
    /// Linear addresses of the pages mapped to be executed, with their place and code version.
    code: Vec<(u64, RamOffset, u32)>,
    code_epoch: u64,
    /// Linear addresses of instructions that it has to stop at, those of pages mapped last at the
    /// end.
    watched: Vec<u64>,
    /// The sandbox knows them.
    watches: bool,
    /// Everything has to go before it is entered again.
    all_gone: bool,
    /// These pages have to go.
    gone: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Page {
    ram: u64,
    rights: Rights,
}

/// A page to be mapped, with the code version of one that is to be executed and the places in it
/// where execution has to stop.
pub(crate) struct Wanted {
    pub(crate) linear: u64,
    pub(crate) ram: RamOffset,
    pub(crate) rights: Rights,
    pub(crate) version: u32,
    pub(crate) stops: Vec<u16>,
}

impl Space {
    pub(crate) fn new(pcid: u16) -> Self {
        Self {
            pcid,
            habit: Habit::default(),
            entered: 0,
            sandbox: None,
            pages: HashMap::default(),
            writable: HashMap::default(),
            code: Vec::new(),
            code_epoch: 0,
            watched: Vec::new(),
            watches: true,
            all_gone: false,
            gone: Vec::new(),
        }
    }

    /// The rights of the page at `linear`, if it is mapped.
    pub(crate) fn rights(&self, linear: u64) -> Option<Rights> {
        self.pages.get(&linear).map(|page| page.rights)
    }

    /// Gives the sandbox up.
    pub(crate) fn close(&mut self) {
        self.forget_pages();
        self.sandbox = None;
        self.watches = true;
        self.all_gone = false;
    }

    /// The sandbox, without what has to go; made by `make` when there is none.
    pub(crate) fn ready(
        &mut self,
        ram: &GuestRam,
        make: impl FnOnce() -> Result<Sandbox, DirectError>,
    ) -> Result<&mut Sandbox, DirectError> {
        self.drop_changed_code(ram);
        let sandbox = match &mut self.sandbox {
            Some(sandbox) => sandbox,
            empty => {
                self.all_gone = false;
                self.gone.clear();
                return Ok(empty.insert(make()?));
            }
        };
        if std::mem::take(&mut self.all_gone) {
            self.gone.clear();
            sandbox.unmap_all()?;
        } else if !self.gone.is_empty() {
            sandbox.unmap(self.gone.drain(..))?;
        }
        if !std::mem::replace(&mut self.watches, true) {
            sandbox.watch(&self.watched)?;
        }
        Ok(sandbox)
    }

    fn drop_changed_code(&mut self, ram: &GuestRam) {
        let epoch = ram.code_epoch();
        if epoch == self.code_epoch {
            return;
        }
        self.code_epoch = epoch;
        let (stay, go): (Vec<_>, Vec<_>) =
            self.code.drain(..).partition(|(_, at, version)| ram.code_version(*at) == *version);
        self.code = stay;
        for (linear, ..) in go {
            self.drop_page(linear);
        }
    }

    /// Maps pages, in place of what was there. [`Space::ready`] comes first.
    pub(crate) fn map(&mut self, wanted: &[Wanted]) -> Result<(), DirectError> {
        for page in wanted {
            self.forget_page(page.linear);
            self.watch(page);
            self.pages.insert(page.linear, Page { ram: page.ram.0, rights: page.rights });
            match page.rights {
                Rights::Read => {}
                Rights::Write => self.writable.entry(page.ram.0).or_default().push(page.linear),
                Rights::Execute => self.code.push((page.linear, page.ram, page.version)),
            }
        }
        let Some(sandbox) = &mut self.sandbox else { return Ok(()) };
        sandbox.map(wanted.iter().map(|page| Mapping {
            linear: page.linear,
            offset: page.ram.0,
            rights: page.rights,
        }))
    }

    /// Has execution stop where it has to in `page`, in place of what was mapped first if need be.
    fn watch(&mut self, page: &Wanted) {
        if page.stops.is_empty() {
            return;
        }
        while self.watched.len() + page.stops.len() > MOST_WATCHED {
            let first = self.watched[0] & !0xfff;
            self.drop_page(first);
        }
        self.watched.extend(page.stops.iter().map(|at| page.linear + u64::from(*at)));
        self.watches = false;
    }

    /// Nobody may rely on any page any more.
    pub(crate) fn drop_all(&mut self) {
        if !self.pages.is_empty() {
            self.forget_pages();
            self.all_gone = true;
        }
    }

    /// The page at `linear` may not be relied on any more.
    pub(crate) fn drop_page(&mut self, linear: u64) {
        if self.forget_page(linear) {
            self.gone.push(linear);
        }
    }

    /// The page at `ram` may not be written any more without a look at its state.
    pub(crate) fn protect(&mut self, ram: RamOffset) {
        for linear in self.writable.remove(&(ram.0 & !0xfff)).into_iter().flatten() {
            self.pages.remove(&linear);
            self.gone.push(linear);
        }
    }

    /// Removes what is known of a page; whether it was mapped.
    fn forget_page(&mut self, linear: u64) -> bool {
        let Some(page) = self.pages.remove(&linear) else { return false };
        match page.rights {
            Rights::Read => {}
            Rights::Write => {
                if let Some(places) = self.writable.get_mut(&page.ram) {
                    places.retain(|place| *place != linear);
                    if places.is_empty() {
                        self.writable.remove(&page.ram);
                    }
                }
            }
            Rights::Execute => {
                self.code.retain(|(place, ..)| *place != linear);
                let before = self.watched.len();
                self.watched.retain(|at| at & !0xfff != linear);
                self.watches &= self.watched.len() == before;
            }
        }
        true
    }

    fn forget_pages(&mut self) {
        self.pages.clear();
        self.writable.clear();
        self.code.clear();
        self.gone.clear();
        self.watches &= self.watched.is_empty();
        self.watched.clear();
    }
}
