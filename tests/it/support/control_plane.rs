//! One control plane of its own: `tests/control-plane/up.sh`, held by a pipe.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::client::legacy::{Client as HttpClient, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{ServiceBuilder, timeout::TimeoutLayer};

use super::{say, unique};

/// The first start on a machine builds the servers; after that it takes seconds.
const START_LIMIT: Duration = Duration::from_secs(60 * 60);
/// How long the API server may take to begin an answer.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// The sources of the project: where its manifests and scripts lie.
pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// etcd, API server, controller manager and moto. They end when this is dropped, and when the test run ends, however it ends.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    folder: PathBuf,
    env: BTreeMap<String, String>,
    /// Its stdin is a pipe that only this process holds: when it closes, the program ends all it started.
    program: Child,
}

impl ControlPlane {
    /// Starts all of it and returns when it answers. Blocks; the error says what did not start.
    pub(crate) fn start() -> Result<Self, String> {
        let folder = std::env::temp_dir().join(unique(&format!("jasm-it-{}", std::process::id())));
        say(&format!("starting a control plane in {}", folder.display()));
        let program = project().join("tests/control-plane/up.sh");
        let child = Command::new(&program)
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let mut control_plane = Self { folder, env: BTreeMap::new(), program: child };
        control_plane.env = control_plane.await_env()?;
        control_plane.complete()?;
        Ok(control_plane)
    }

    /// Polls for the file that is written when everything is ready.
    fn await_env(&mut self) -> Result<BTreeMap<String, String>, String> {
        let file = self.folder.join("env");
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                return Ok(parse_env(&text));
            }
            if let Ok(Some(status)) = self.program.try_wait() {
                return Err(format!("the control plane did not start ({status}); its own message is on stderr"));
            }
            if Instant::now() >= deadline {
                return Err(format!("waited {START_LIMIT:?} for {}; up.sh still runs without it", file.display()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Checks that nothing is missing, so that the getters below cannot fail in the middle of a test.
    fn complete(&self) -> Result<(), String> {
        let wanted = ["KUBECONFIG", "API_SERVER", "CA_FILE", "AUDIT_LOG", "MOTO_URL", "ASSETS"];
        match wanted.iter().find(|key| !self.env.contains_key(**key)) {
            Some(key) => Err(format!("{}/env lacks {key}", self.folder.display())),
            None => Ok(()),
        }
    }

    fn env(&self, key: &str) -> &str {
        self.env.get(key).map(String::as_str).expect("checked when the control plane started")
    }

    /// `https://127.0.0.1:PORT`.
    pub(crate) fn api_server(&self) -> &str {
        self.env("API_SERVER")
    }

    /// The authority that signed the API server's certificate (PEM).
    pub(crate) fn ca_file(&self) -> &Path {
        Path::new(self.env("CA_FILE"))
    }

    /// The kubeconfig of a cluster administrator.
    pub(crate) fn kubeconfig(&self) -> &Path {
        Path::new(self.env("KUBECONFIG"))
    }

    /// The API server's audit log: JSON lines, level Metadata.
    pub(crate) fn audit_log(&self) -> &Path {
        Path::new(self.env("AUDIT_LOG"))
    }

    /// `http://127.0.0.1:PORT` of the AWS emulator.
    pub(crate) fn moto_url(&self) -> &str {
        self.env("MOTO_URL")
    }

    /// A new folder for a test's files; it goes with the control plane, and only the owner can read it.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.join("tests").join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
        folder
    }

    /// Runs kubectl as administrator in the project's folder and returns its stdout. Blocks; the error is kubectl's own.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let (stdout, said) = run(self.as_admin().args(arguments), &format!("kubectl {}", arguments.join(" ")))?;
        if !said.is_empty() {
            say(&format!("kubectl {}: {said}", arguments.join(" ")));
        }
        Ok(stdout)
    }

    /// The same, with what it says on stderr: warnings of the API server, and its own.
    pub(crate) fn kubectl_warnings(&self, arguments: &[&str]) -> Result<(String, Vec<String>), String> {
        let (stdout, said) = run(self.as_admin().args(arguments), &format!("kubectl {}", arguments.join(" ")))?;
        // kubectl's own, about the order of the objects.
        let warnings = said.lines().filter(|line| !line.trim().is_empty() && !line.contains("Sorting order"));
        Ok((stdout, warnings.map(ToOwned::to_owned).collect()))
    }

    fn as_admin(&self) -> Command {
        let mut command = Command::new(Path::new(self.env("ASSETS")).join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--cache-dir").arg(self.folder.join("kubectl"));
        command
    }

    /// Runs a text of commands in bash, in which `kubectl` is an administrator's, in the project's folder; returns its
    /// stdout. Blocks; the error has what stood on stderr.
    pub(crate) fn bash(&self, script: &str) -> Result<String, String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).env("PATH", format!("{}:{path}", self.env("ASSETS")));
        command.env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.folder.join("kubectl"));
        let (stdout, said) = run(&mut command, script)?;
        if !said.is_empty() {
            say(&format!("{script}: {said}"));
        }
        Ok(stdout)
    }

    /// A client with the rights of that kubeconfig. It belongs to the runtime that used it first: each test makes its own.
    pub(crate) async fn client(&self, kubeconfig: &Path) -> kube::Client {
        client(kubeconfig).await.unwrap_or_else(|error| panic!("no client for {}: {error}", kubeconfig.display()))
    }

    /// A client of a cluster administrator.
    pub(crate) async fn admin(&self) -> kube::Client {
        self.client(self.kubeconfig()).await
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.program.stdin.take());
        let _ = self.program.wait();
    }
}

/// Runs a command in the project's folder; returns what it writes to stdout and stderr.
fn run(command: &mut Command, shown: &str) -> Result<(String, String), String> {
    let output = command.current_dir(project()).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run {shown}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{shown} failed ({}): {said}", output.status));
    }
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), said.into_owned()))
}

fn parse_env(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// A client that never repeats a request by itself (a test sees each answer) and loses no time on fresh connections
/// (kube's own connector leaves TCP_NODELAY off, which costs 40 ms on each).
pub(crate) async fn client(kubeconfig: &Path) -> Result<kube::Client, Box<dyn std::error::Error>> {
    // Fails when it is installed already, which is all that is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let https = config.rustls_https_connector_with_connector(connector)?;
    let http = HttpClient::builder(TokioExecutor::new()).build::<_, kube::client::Body>(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(TimeoutLayer::new(REPLY_LIMIT))
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}
