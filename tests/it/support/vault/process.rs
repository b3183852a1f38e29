//! The program `vault`: built once, started, ended.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde::Deserialize;

use super::super::control_plane::project;
use super::super::leash::Leash;

/// A running Vault. It is killed when this is dropped, and when the test run ends, however it ends.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    leash: Leash,
    pub(super) ready: Ready,
}

/// What the program says when it answers.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Ready {
    pub(super) url: String,
    pub(super) root_token: String,
    pub(super) unseal_key: String,
}

impl Process {
    /// Starts it and returns when it answers; its log goes to a file in `folder`. Blocks; the first start on a machine
    /// builds the program, which takes minutes.
    pub(super) fn start(folder: &Path) -> Result<Self, String> {
        let log = folder.join("vault.log");
        let file = std::fs::File::create(&log).map_err(|error| format!("cannot write {}: {error}", log.display()))?;
        let mut child = Command::new(program()?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .map_err(|error| format!("cannot start vault: {error}"))?;
        let pipe = child.stdout.take();
        let leash = Leash::on(child.id());
        let mut process = Self { child, leash, ready: Ready::default() };
        let mut line = String::new();
        let read = pipe.map(|pipe| BufReader::new(pipe).read_line(&mut line));
        process.ready = serde_json::from_str(&line)
            .map_err(|error| format!("vault did not start ({read:?}, {error}): {}", said(&log)))?;
        Ok(process)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.leash.release();
    }
}

fn said(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_else(|error| format!("its log cannot be read: {error}"))
}

/// The program in the cache.
fn program() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let script = project().join("tests/control-plane/build.sh");
        let output = Command::new(&script).arg("vault").stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| format!("cannot run {}: {error}", script.display()))?;
        let folder = String::from_utf8_lossy(&output.stdout).lines().last().map(PathBuf::from);
        folder
            .filter(|_| output.status.success())
            .map(|folder| folder.join("vault"))
            .ok_or_else(|| format!("{} vault failed ({}); its message is on stderr", script.display(), output.status))
    };
    BUILT.get_or_init(build).clone()
}
