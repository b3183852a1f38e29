//! What ends a program of a test when the test run goes away without having done it.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

/// A shell that kills a program when this process ends: it waits on a pipe whose other end only this process holds.
/// (`Drop` does not run on Ctrl-C or SIGKILL.)
#[derive(Debug)]
pub(crate) struct Leash(Child);

impl Leash {
    pub(crate) fn on(pid: u32) -> Self {
        let script = r#"trap "" INT TERM HUP; read -r released || kill -KILL "$1""#;
        let shell = Command::new("sh")
            .args(["-c", script, "leash", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(shell.expect("the program `sh` is installed"))
    }

    /// Ends the shell without a kill; a second call does nothing.
    pub(crate) fn release(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            let _ = pipe.write_all(b"released\n");
        }
        let _ = self.0.wait();
    }
}
