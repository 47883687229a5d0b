//! One debugger's session: feeds what it sends, and what happens to the VM, to `gdbstub`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::Receiver;

use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use lifecycle::{DebugNotice, Outcome};

use crate::address::Stream;
use crate::guest::{Guest, thread_of};
use crate::server::Event;

type StopReason = MultiThreadStopReason<u64>;

/// How a session ended.
pub(crate) enum Ended {
    /// The debugger let go, or is gone.
    Detached,
    /// The debugger wants the VM to end.
    Killed,
    /// The VM has ended, and the debugger knows.
    WithVm,
}

/// The half of the connection that is written to: whole packets at a time.
struct Wire {
    stream: Stream,
    packet: Vec<u8>,
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.packet.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.packet.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.stream.write_all(&self.packet);
        self.packet.clear();
        written
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The reader's thread ends with it.
        self.stream.shut();
    }
}

/// What comes next in a session.
enum Next {
    Byte(u8),
    Notice(DebugNotice),
    Gone,
    Finish,
}

struct Input<'a> {
    queue: &'a Receiver<Event>,
    connection: u64,
    bytes: VecDeque<u8>,
    /// Comes when the bytes are used up.
    end: Option<Next>,
}

/// Serves one connection until its end.
pub(crate) fn run(
    stream: Stream,
    connection: u64,
    guest: &mut Guest,
    queue: &Receiver<Event>,
) -> Ended {
    let mut input = Input { queue, connection, bytes: VecDeque::new(), end: None };
    let stub = GdbStub::new(Wire { stream, packet: Vec::new() });
    let Ok(mut stub) = stub.run_state_machine(guest) else { return Ended::Detached };
    loop {
        let next = match stub {
            GdbStubStateMachine::Idle(stub) => match input.next() {
                Next::Byte(byte) => stub.incoming_data(guest, byte),
                Next::Notice(DebugNotice::Ended(_)) => return Ended::WithVm,
                // A second vCPU stopped with the one that was reported.
                Next::Notice(notice) => {
                    guest.keep(&notice);
                    Ok(stub.into())
                }
                Next::Gone => return Ended::Detached,
                Next::Finish => return Ended::WithVm,
            },
            GdbStubStateMachine::Running(stub) => match guest.take_pending() {
                Some(reason) => stub.report_stop(guest, reason),
                None => match input.next() {
                    Next::Byte(byte) => stub.incoming_data(guest, byte),
                    Next::Notice(notice) => {
                        let reason = guest.stopped(&notice);
                        stub.report_stop(guest, reason)
                    }
                    Next::Gone => return Ended::Detached,
                    Next::Finish => return Ended::WithVm,
                },
            },
            GdbStubStateMachine::CtrlCInterrupt(stub) => {
                let reason = input.interrupt(guest);
                stub.interrupt_handled(guest, Some(reason))
            }
            GdbStubStateMachine::Disconnected(stub) => {
                return match stub.get_reason() {
                    DisconnectReason::Kill => Ended::Killed,
                    DisconnectReason::Disconnect => Ended::Detached,
                    _ => Ended::WithVm,
                };
            }
        };
        match next {
            Ok(next) => stub = next,
            // The connection failed, or what came over it is not the protocol.
            Err(_) => return Ended::Detached,
        }
    }
}

impl Input<'_> {
    fn next(&mut self) -> Next {
        loop {
            if let Some(byte) = self.bytes.pop_front() {
                return Next::Byte(byte);
            }
            if let Some(end) = self.end.take() {
                return end;
            }
            let Ok(event) = self.queue.recv() else { return Next::Finish };
            if let Some(next) = self.take(event) {
                return next;
            }
        }
    }

    fn take(&mut self, event: Event) -> Option<Next> {
        match event {
            // One at a time: the connection is closed.
            Event::Connected(other) => other.shut(),
            Event::Received(from, _) if from != self.connection => {}
            Event::Received(_, bytes) if bytes.is_empty() => return Some(Next::Gone),
            Event::Received(_, bytes) => self.bytes.extend(bytes),
            Event::Notice(notice) => return Some(Next::Notice(notice)),
            Event::Finish => return Some(Next::Finish),
        }
        None
    }

    /// Ctrl-C: pauses the VM, unless something else has just done so.
    fn interrupt(&mut self, guest: &mut Guest) -> StopReason {
        guest.pause();
        while let Ok(event) = self.queue.try_recv() {
            match self.take(event) {
                Some(Next::Notice(notice)) => return guest.stopped(&notice),
                Some(end) => self.end = Some(end),
                None => {}
            }
        }
        let tid = thread_of(guest.current());
        StopReason::SignalWithThread { tid, signal: Signal::SIGINT }
    }
}

/// How a debugger is told of the VM's end: as the end of a process.
pub(crate) fn end_of(outcome: &Outcome) -> StopReason {
    match outcome {
        Outcome::PoweredOff | Outcome::Reset => StopReason::Exited(0),
        Outcome::DebugExit(value) => StopReason::Exited(value << 1 | 1),
        Outcome::Killed => StopReason::Terminated(Signal::SIGKILL),
        Outcome::TripleFault(_) => StopReason::Exited(3),
        _ => StopReason::Exited(1),
    }
}
