//! Threads of the server: one accepts connections, one owns the target, and each connection has
//! one that reads.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use lifecycle::{DebugNotice, Vm};

use crate::address::{Address, AddressError, Listener, Stream};
use crate::guest::Guest;
use crate::session::{self, Ended};

/// What the server's own thread waits for.
pub(crate) enum Event {
    /// A debugger has connected.
    Connected(Stream),
    /// The debugger of this connection has sent something; nothing means that it is gone.
    Received(u64, Vec<u8>),
    /// The VM has something to say.
    Notice(DebugNotice),
    /// The server is to end.
    Finish,
}

/// A server that listens, before there is a VM.
pub struct Server {
    listener: Listener,
    address: Address,
}

impl Server {
    /// Listens at `address`.
    ///
    /// # Errors
    /// [`AddressError::Listen`].
    pub fn bind(address: &Address) -> Result<Self, AddressError> {
        let listener = Listener::bind(address)?;
        let address = listener.local(address);
        Ok(Self { listener, address })
    }

    /// Where a debugger connects.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves `vm`, whose vCPUs execute only when a debugger says so if it has not been started.
    ///
    /// # Errors
    /// When the host gives no threads.
    pub fn serve(self, vm: Arc<Vm>) -> io::Result<Serving> {
        let (events, queue) = channel();
        let connections = events.clone();
        let listener = self.listener;
        thread::Builder::new()
            .name("gdb listener".to_owned())
            .spawn(move || accept(&listener, &connections))?;
        let (done, finished) = channel();
        let theirs = events.clone();
        thread::Builder::new().name("gdb server".to_owned()).spawn(move || {
            serve(&vm, &theirs, &queue);
            drop(done);
        })?;
        Ok(Serving { events, finished })
    }
}

/// A server at work. Dropping it ends the server, which lets go of the VM and of its debugger.
pub struct Serving {
    events: Sender<Event>,
    finished: Receiver<()>,
}

impl Serving {
    /// After the VM has ended: waits until the debugger has been told, at most `patience`.
    pub fn finish(self, patience: Duration) {
        self.end();
        // Nothing is ever sent: the other end goes when the server does.
        let _ = self.finished.recv_timeout(patience);
    }

    fn end(&self) {
        // The server may have ended already.
        let _ = self.events.send(Event::Finish);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept(listener: &Listener, events: &Sender<Event>) {
    loop {
        let sent = match listener.accept() {
            Ok(stream) => events.send(Event::Connected(stream)),
            // Such as too many open files: it may be better later.
            Err(_) => {
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// One debugger after the other, until the VM has ended.
fn serve(vm: &Arc<Vm>, events: &Sender<Event>, queue: &Receiver<Event>) {
    for connection in 0.. {
        let stream = loop {
            match queue.recv() {
                Ok(Event::Connected(stream)) => break stream,
                Ok(Event::Received(..) | Event::Notice(_)) => {}
                Ok(Event::Finish) | Err(_) => return,
            }
        };
        let Ok(reader) = stream.try_clone() else { continue };
        let received = events.clone();
        let thread = thread::Builder::new()
            .name("gdb reader".to_owned())
            .spawn(move || read(reader, connection, &received));
        if thread.is_err() {
            continue;
        }
        let Some(mut guest) = Guest::attach(vm, events) else { return };
        match session::run(stream, connection, &mut guest, queue) {
            Ended::Detached => guest.detach(),
            Ended::Killed => return vm.kill(),
            Ended::WithVm => return,
        }
    }
}

fn read(mut stream: Stream, connection: u64, events: &Sender<Event>) {
    let mut buffer = [0; 4096];
    loop {
        let len = match stream.read(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        if events.send(Event::Received(connection, buffer[..len].to_vec())).is_err() || len == 0 {
            return;
        }
    }
}
