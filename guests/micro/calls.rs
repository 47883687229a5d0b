//! System calls and signals.

use std::ffi::{c_int, c_void};

use crate::sys::{self, call};
use crate::{Operation, Place, timed};

/// A system call that does next to nothing.
pub fn null(_: &Place) -> Result<Operation, String> {
    Ok(timed(|| {
        // SAFETY: takes nothing and changes nothing.
        unsafe { sys::raw(call::GETPPID, [0; 6]) };
    }))
}

/// A byte of /dev/zero.
pub fn read(_: &Place) -> Result<Operation, String> {
    let file = sys::open(c"/dev/zero").ok_or("there is no /dev/zero")?;
    Ok(timed(move || {
        sys::read_byte(file);
    }))
}

/// A byte to /dev/null.
pub fn write(_: &Place) -> Result<Operation, String> {
    let file = sys::open(c"/dev/null").ok_or("there is no /dev/null")?;
    Ok(timed(move || sys::write_byte(file)))
}

/// The attributes of a file by its path.
pub fn stat(place: &Place) -> Result<Operation, String> {
    let path = place.file.clone();
    // `struct stat` has 144 bytes.
    let mut attributes = [0_u64; 18];
    Ok(timed(move || {
        // SAFETY: a path that ends with a zero, and room for the attributes.
        unsafe {
            sys::must(call::STAT, [path.as_ptr() as usize, attributes.as_mut_ptr() as usize, 0])
        };
    }))
}

/// Opens and closes a file.
pub fn open_close(place: &Place) -> Result<Operation, String> {
    let path = place.file.clone();
    Ok(timed(move || sys::close(sys::open(&path).expect("the file is there"))))
}

extern "C" fn nothing(_: c_int, _: *mut c_void, _: *mut c_void) {}

/// Sets a handler.
pub fn signal_install(_: &Place) -> Result<Operation, String> {
    Ok(timed(|| sys::handle(sys::SIGUSR1, nothing)))
}

/// Sends a signal to the program itself, whose handler runs and returns.
pub fn signal_handle(_: &Place) -> Result<Operation, String> {
    sys::handle(sys::SIGUSR1, nothing);
    // SAFETY: changes nothing.
    let own = unsafe { sys::must(call::GETPID, [0; 3]) };
    Ok(timed(move || {
        // SAFETY: the signal has a handler.
        unsafe { sys::must(call::KILL, [own, sys::SIGUSR1, 0]) };
    }))
}
