//! What a running agent keeps to itself: nobody but root reads its memory, and a crash leaves no core file.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::agent::program;
use crate::support::leash::Leash;
use crate::support::unique;

/// The user of the agent as it is installed.
const USER: u32 = 65532;

/// A program that is killed when this is dropped.
struct Running {
    child: Child,
    leash: Leash,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let child = command.spawn().expect("the program starts");
        let leash = Leash::on(child.id());
        Self { child, leash }
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.child.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.leash.release();
    }
}

/// A folder that everybody may look into; it goes when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(unique("jasm-process"));
        fs::create_dir(&folder).expect("a folder");
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("it is ours");
        Self(folder)
    }

    /// The agent's program where another user can start it.
    fn program(&self) -> PathBuf {
        let (from, to) = (program(), self.0.join("jasm-agent"));
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).expect("there is room for the program");
        }
        to
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// As the agent's user where the tests run as root, who may read everything; else as who runs them.
fn unprivileged(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    if fs::metadata("/proc/self").expect("there is a /proc").uid() == 0 {
        command.uid(USER).gid(USER);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// What another process of the same user gets of a file.
fn read_by_the_same_user(file: &str) -> Result<usize, String> {
    let output = unprivileged("cat").arg(file).stdout(Stdio::piped()).output().expect("cat starts");
    if output.status.success() { Ok(output.stdout.len()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
}

/// An agent that waits for its API server. By then it has read everything that it reads at a start.
async fn waiting(folder: &Folder, api_server: &TcpListener) -> Running {
    let address = api_server.local_addr().expect("it listens");
    let kubeconfig = folder.0.join("kubeconfig");
    let content = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {"token": "x"}}],
    });
    fs::write(&kubeconfig, content.to_string()).expect("a file");
    fs::set_permissions(&kubeconfig, Permissions::from_mode(0o644)).expect("it is ours");
    // With as much core as the system allows, so that it is the agent that takes it away.
    let mut command = unprivileged("sh");
    command.args(["-c", r#"ulimit -S -c "$(ulimit -H -c)"; exec "$0""#]).arg(folder.program());
    command.env_clear().env("NODE_NAME", "n").env("JASM_LISTEN", "127.0.0.1:0").env("KUBECONFIG", &kubeconfig);
    let agent = Running::start(&mut command);
    let connected = timeout(Duration::from_secs(30), api_server.accept()).await;
    connected.expect("the agent asks its API server").expect("a connection");
    agent
}

#[tokio::test]
async fn another_process_of_its_user_cannot_look_into_the_agent() {
    let (folder, api_server) = (Folder::new(), TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
    let agent = waiting(&folder, &api_server).await;
    let other = Running::start(unprivileged("sleep").arg("600"));
    for file in ["environ", "maps"] {
        let refused = read_by_the_same_user(&agent.file(file)).expect_err("the agent is not dumpable");
        assert!(refused.contains("Permission denied"), "{file}: {refused}");
        let read = read_by_the_same_user(&other.file(file));
        assert!(
            read.as_ref().is_ok_and(|bytes| *bytes > 0),
            "{file} of a program that does nothing about it: {read:?}"
        );
    }
    let owner = |of: &Running| fs::metadata(of.file("mem")).expect("it runs").uid();
    assert_eq!(owner(&agent), 0, "its memory is root's");
    assert_ne!(owner(&other), 0, "and not everybody's is");
}

#[tokio::test]
async fn a_crash_of_the_agent_leaves_no_core_file() {
    let (folder, api_server) = (Folder::new(), TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
    let agent = waiting(&folder, &api_server).await;
    let limits = fs::read_to_string(agent.file("limits")).expect("it runs");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("such a limit");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"], "soft and hard");
}
