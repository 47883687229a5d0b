//! The PAM registers of the host bridge: which accesses to the area below 1 MiB reach RAM.

use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use interpreter::Interpreter;
use lifecycle::Outcome;
use ringfence_tests::bare;
use ringfence_tests::vm::Setup;
use translator::{Options, Translator};

/// Some ten times what a run takes alone: the tests of a run share the host.
const LIMIT: Duration = Duration::from_secs(60);

/// The register for 0xc0000 to 0xc7fff, as CONFIG_ADDRESS, and its byte of CONFIG_DATA.
const PAM1: u32 = 0x8000_0090;
const PAM1_PORT: u16 = 0xcfd;
/// An address that it governs.
const ADDRESS: u32 = 0xc_1000;

/// Code that sets the rights.
fn set_pam(rights: u8) -> Vec<u8> {
    // mov dx, 0xcf8; mov eax, PAM1; out dx, eax; mov dx, PAM1_PORT; mov al, rights; out dx, al
    let mut code = vec![0x66, 0xba, 0xf8, 0x0c, 0xb8];
    code.extend(PAM1.to_le_bytes());
    code.extend([0xef, 0x66, 0xba]);
    code.extend(PAM1_PORT.to_le_bytes());
    code.extend([0xb0, rights, 0xee]);
    code
}

/// Code that writes a byte.
fn write(value: u8) -> Vec<u8> {
    // mov byte [ADDRESS], value
    [&[0xc6, 0x04, 0x25][..], &ADDRESS.to_le_bytes(), &[value]].concat()
}

/// Code that ends the VM with status `failed` unless the byte is `value`.
fn expect(value: u8, failed: u8) -> Vec<u8> {
    let exit = bare::debug_exit(failed);
    // cmp byte [ADDRESS], value; je over
    let mut code = [&[0x80, 0x3c, 0x25][..], &ADDRESS.to_le_bytes(), &[value]].concat();
    code.extend([0x74, exit.len() as u8]);
    code.extend(exit);
    code
}

fn rights(engine: Arc<dyn Engine>) {
    let code = [
        write(0x11),
        expect(0x11, 1),
        // Read only, and both again, so that it is seen that nothing was written.
        set_pam(0x11),
        expect(0x11, 2),
        write(0x22),
        expect(0x11, 3),
        // Neither.
        set_pam(0),
        expect(0xff, 4),
        write(0x33),
        set_pam(0x33),
        expect(0x11, 5),
        // Write only.
        set_pam(0x22),
        write(0x44),
        expect(0xff, 6),
        set_pam(0x33),
        expect(0x44, 7),
        write(0x55),
        expect(0x55, 8),
        bare::debug_exit(0),
    ]
    .concat();
    let guest = Setup::new(engine, 16, bare::guest64(&code)).debug_exit().start();
    assert_eq!(guest.end(LIMIT), Outcome::DebugExit(0), "the status is the number of the check");
}

#[test]
fn the_interpreter_follows_pam() {
    rights(Arc::new(Interpreter::new()));
}

#[test]
fn the_translator_follows_pam() {
    rights(Arc::new(Translator::new().expect("a host with BMI2 and AVX2")));
    let short = Options { longest_block: 1, ..Options::default() };
    rights(Arc::new(Translator::with_options(short).expect("as before")));
}
