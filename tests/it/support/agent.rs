//! The agent's program as a test sees it: files and environment in, an HTTP port and a log out.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::Value;

use super::api_proxy::ApiProxy;
use super::audit;
use super::control_plane::ControlPlane;
use super::http::{Http, Reply};
use super::leash::Leash;
use super::node::AgentNode;
use super::store::Store;
use super::wait::eventually;

/// The instances that an agent has by default, here with a store that has no TLS.
const PROVIDERS: &str = "providers:
- {name: aws-secretsmanager, kind: aws-secretsmanager, allowInsecure: true}
- {name: aws-ssm, kind: aws-ssm, allowInsecure: true}
";

/// How many lines of its log a message about an agent quotes.
const TAIL: usize = 20;

/// An agent's node, files and environment. Each [`AgentBuilder::spawn`] is a start (or restart) of that agent.
#[derive(Debug)]
pub(crate) struct AgentBuilder {
    program: PathBuf,
    node: AgentNode,
    audit_log: PathBuf,
    env: BTreeMap<String, String>,
}

impl AgentBuilder {
    /// An agent on a new node, whose store is `store`. It has no policy file yet.
    pub(crate) async fn new(control_plane: &ControlPlane, store: &Store) -> Self {
        Self::on(AgentNode::create(control_plane).await, control_plane, store)
    }

    /// An agent on this node.
    pub(crate) fn on(node: AgentNode, control_plane: &ControlPlane, store: &Store) -> Self {
        let file = |name: &str| node.folder().join(name).display().to_string();
        let env = [
            ("NODE_NAME", node.name().to_owned()),
            ("KUBECONFIG", node.kubeconfig().display().to_string()),
            ("JASM_POLICY_FILE", file("policy.yaml")),
            ("JASM_PROVIDERS_FILE", file("providers.yaml")),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", store.url().to_owned()),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let builder = Self { program: program(), node, audit_log: control_plane.audit_log().to_owned(), env };
        builder.providers(PROVIDERS)
    }

    /// The node that the agent serves.
    pub(crate) fn node(&self) -> &AgentNode {
        &self.node
    }

    /// Another program than the one under test: an agent of another release.
    pub(crate) fn program(mut self, program: &Path) -> Self {
        self.set_program(program);
        self
    }

    /// The same for the next start, as a roll-out does it.
    pub(crate) fn set_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// The policy file's text. [`AgentBuilder::write_policy`] changes it later.
    pub(crate) fn policy(self, yaml: &str) -> Self {
        self.write_policy(yaml);
        self
    }

    /// The providers file's text.
    pub(crate) fn providers(self, yaml: &str) -> Self {
        self.write("providers.yaml", yaml);
        self
    }

    /// `JASM_FRESHNESS`, as in `60s`.
    pub(crate) fn freshness(self, duration: &str) -> Self {
        self.env("JASM_FRESHNESS", duration)
    }

    /// `JASM_LOG_LEVEL`, as in `trace`.
    pub(crate) fn log_level(self, level: &str) -> Self {
        self.env("JASM_LOG_LEVEL", level)
    }

    /// Goes to the API server by this proxy.
    pub(crate) fn through(self, proxy: &ApiProxy) -> Self {
        let kubeconfig = proxy.kubeconfig(&self.node).display().to_string();
        self.env("KUBECONFIG", &kubeconfig)
    }

    /// Any other variable of the agent's environment, which holds nothing but what is set here.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same for the next start.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    /// Removes a variable from the agent's environment.
    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Replaces the policy file in one step, as the kubelet does with a changed ConfigMap.
    pub(crate) fn write_policy(&self, yaml: &str) {
        self.write("policy.yaml", yaml);
    }

    fn write(&self, name: &str, text: &str) {
        let (file, new) = (self.node.folder().join(name), self.node.folder().join(format!(".{name}.new")));
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file));
        written.unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    }

    /// Starts the program on a free port.
    pub(crate) fn spawn(&self) -> Agent {
        let listen = free_address();
        let mut command = Command::new(&self.program);
        command.env_clear().envs(&self.env).env("JASM_LISTEN", &listen);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", self.program.display()));
        Agent::new(child, format!("http://{listen}"), self, started)
    }
}

/// `JASM_AGENT_BIN`, or the program that cargo built along with the tests.
pub(crate) fn program() -> PathBuf {
    let named = std::env::var_os("JASM_AGENT_BIN").or_else(|| option_env!("CARGO_BIN_EXE_jasm-agent").map(Into::into));
    PathBuf::from(named.expect("no agent to test: run through cargo test, or set JASM_AGENT_BIN to the program"))
}

/// One that nobody else is given before the agent has it: the kernel gives higher ones.
fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 50) as u16 * 200;
    let address = || format!("127.0.0.1:{}", first + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000);
    let free = (0..2_000).map(|_| address()).find(|address| TcpListener::bind(address).is_ok());
    free.expect("a free loopback port between 20000 and 32000")
}

/// A running agent. It is killed when this is dropped, and when the test run ends, however it ends.
///
/// A test that has gone well so far fails at that point if the audit log holds a request of the agent's node that
/// `rbac/` does not allow, or a read of a Secret: so every agent of a run is looked at.
pub(crate) struct Agent {
    child: Child,
    leash: Leash,
    node: String,
    masters: Option<String>,
    /// Whether an instance of its providers asks as pods.
    asks_as_pods: bool,
    audit_log: PathBuf,
    url: String,
    http: Http,
    started: Instant,
    output: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Agent {
    fn new(mut child: Child, url: String, of: &AgentBuilder, started: Instant) -> Self {
        let output = Arc::new(Mutex::new(Vec::new()));
        let stderr = child.stderr.take().map(|pipe| collect(pipe, &output));
        let stdout = child.stdout.take().map(|pipe| collect(pipe, &output));
        let leash = Leash::on(child.id());
        let readers = stderr.into_iter().chain(stdout).collect();
        let (node, audit_log) = (of.node.name().to_owned(), of.audit_log.clone());
        // Also for one that was in central mode before.
        let namespace = || of.env.get("JASM_MASTERS_NAMESPACE").map_or(audit::MASTERS_NAMESPACE, String::as_str);
        let masters = of.env.contains_key("JASM_MODE").then(|| namespace().to_owned());
        let asks_as_pods = std::fs::read_to_string(of.node.folder().join("providers.yaml"))
            .is_ok_and(|providers| providers.contains(r#""identity":"pod""#));
        Self { child, leash, node, masters, asks_as_pods, audit_log, url, http: Http::new(), started, output, readers }
    }

    /// The program's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `http://127.0.0.1:PORT` of the agent.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Waits until `/readyz` says yes; returns the time since the program was started.
    pub(crate) async fn ready(&mut self) -> Duration {
        let awaited = format!("the agent on {} to be ready", self.node);
        eventually(&awaited, async || {
            let answer = self.http.get(&format!("{}/readyz", self.url)).await;
            let found = match answer {
                Ok(reply) if reply.status == StatusCode::OK => return Ok(()),
                Ok(reply) => format!("{} {:?}", reply.status, reply.text()),
                Err(error) => error,
            };
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the agent on {} ended with {status} before it was ready; {}", self.node, self.tail());
            }
            Err(format!("{found}; {}", self.tail()))
        })
        .await;
        self.started.elapsed()
    }

    /// GETs a path of the agent, as in `/metrics`.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        let reply = self.http.get(&format!("{}{path}", self.url)).await;
        reply.unwrap_or_else(|error| panic!("GET {path} of the agent on {}: {error}; {}", self.node, self.tail()))
    }

    /// All lines that it wrote so far, to stderr and to stdout.
    pub(crate) fn output(&self) -> Vec<String> {
        self.output.lock().expect("no reader of the agent's output panicked").clone()
    }

    /// The lines of its log that are JSON objects.
    pub(crate) fn log(&self) -> Vec<Value> {
        let lines = self.output();
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect()
    }

    /// Its whole output as one text, for a search.
    pub(crate) fn text(&self) -> String {
        self.output().join("\n")
    }

    /// What it takes of the machine's memory, as the kernel counts it.
    pub(crate) fn memory(&self) -> Memory {
        let file = format!("/proc/{}/status", self.pid());
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("cannot read {file}: {error}"));
        let bytes = |name: &str| kilobytes(&text, name).unwrap_or_else(|| panic!("{file} has no {name}")) * 1024;
        Memory { resident: bytes("VmRSS"), anonymous: bytes("RssAnon"), peak: bytes("VmHWM") }
    }

    /// What it has used of the processors so far, to the hundredth of a second.
    pub(crate) fn processor_time(&self) -> Duration {
        let file = format!("/proc/{}/stat", self.pid());
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("cannot read {file}: {error}"));
        // Behind the program's name, which is in brackets: state is the first field, utime and stime the 12th and 13th.
        let (_, fields) = text.rsplit_once(") ").expect("a name in brackets");
        let ticks = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        Duration::from_millis(ticks * 10)
    }

    /// Asks it to end, as the kubelet does, and waits for that.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.stop("TERM").await
    }

    /// Sends a signal (`TERM`, `INT` ...) and waits for the end.
    pub(crate) async fn stop(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.ended().await
    }

    /// Sends a signal and returns at once.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        let sent = sent.expect("the program `kill` is installed");
        assert!(sent.success(), "cannot send {signal} to the agent on {}; {}", self.node, self.tail());
    }

    /// Waits until the program has ended, and its last line is in [`Agent::output`].
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let awaited = format!("the end of the agent on {}", self.node);
        let status = eventually(&awaited, async || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(format!("that it still runs; {}", self.tail())),
            Err(error) => Err(format!("an error: {error}")),
        })
        .await;
        self.finish();
        status
    }

    /// Kills the program with SIGKILL, as a node that goes away does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.finish();
    }

    /// After the end: nobody is left to kill, and the pipes hold the last lines.
    fn finish(&mut self) {
        self.leash.release();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    /// The last lines of its output, for messages.
    pub(crate) fn tail(&self) -> String {
        let lines = self.output();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        format!("the last {} of {} lines of its log:\n{}", tail.len(), lines.len(), tail.join("\n"))
    }
}

impl Drop for Agent {
    #[expect(clippy::print_stderr, reason = "the test runner shows it below a test that failed, and nowhere else")]
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("agent on {}: {}", self.node, self.tail());
            return;
        }
        let requests = audit::read(&self.audit_log, Some(&self.node));
        let excesses = match &self.masters {
            Some(masters) => audit::excesses_in_central_mode(&requests, masters),
            None if self.asks_as_pods => audit::excesses(&requests, &audit::rules_with_tokens()),
            None => audit::excesses(&requests, &audit::shipped_rules()),
        };
        assert!(excesses.is_empty(), "the agent asked for what rbac/ does not grant, or for a Secret: {excesses:#?}");
    }
}

/// In bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Now.
    pub(crate) resident: u64,
    /// Of that, what is not the program's own file: the rest is shared and can be read again.
    pub(crate) anonymous: u64,
    /// The most so far.
    pub(crate) peak: u64,
}

/// A line of `/proc/PID/status`, as in `VmRSS:      1234 kB`.
fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Adds each line of `pipe` to `output`, on a thread of its own, until the writer closes it.
fn collect(pipe: impl Read + Send + 'static, output: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            output.lock().expect("no reader of the agent's output panicked").push(line);
        }
    })
}
