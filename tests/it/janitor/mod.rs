//! The janitor: what it takes away, and thirty ways in which it must not.

mod deletes;
mod rights;
mod stores;
mod wrongs;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::support::agent::program;
use crate::support::control_plane::project;
use crate::support::leash::Leash;
use crate::support::scene::Scene;
use crate::support::store::Store;
use crate::support::surroundings::Surroundings;
use crate::support::wait::{eventually, try_within};
use crate::support::{object, unique};

const PROVIDERS: &str = "providers:
- {name: aws-secretsmanager, kind: aws-secretsmanager, allowInsecure: true}
- {name: aws-ssm, kind: aws-ssm, allowInsecure: true}
- {name: other, kind: aws-secretsmanager, allowInsecure: true}
";
/// A janitor asks one store after the other, and some of them take their time.
const PATIENCE: Duration = Duration::from_secs(60);
/// A value may be as old: seconds that pass in a test bring no new fetch.
const FRESH: &str = "10m";

/// An agent with a masters' namespace of its own, since a janitor looks at all masters in one; and what a janitor needs.
struct Stage {
    scene: Scene,
    masters: String,
    /// The janitor's way to the stores, on which faults can be put without the agents' noticing.
    store: Store,
    kubeconfig: PathBuf,
    providers: String,
    /// The variables that lead a program to stores beside AWS.
    env: Vec<(&'static str, String)>,
}

impl Stage {
    async fn set() -> Self {
        Self::set_with(PROVIDERS.to_owned(), Vec::new()).await
    }

    async fn set_with(providers: String, env: Vec<(&'static str, String)>) -> Self {
        let surroundings = Surroundings::central().await;
        let masters = unique("masters");
        let all: Api<Namespace> = Api::all(surroundings.admin().await);
        let namespace = json!({"metadata": {"name": masters, "labels": {"jasm.codnod.io/masters": "true"}}});
        all.create(&PostParams::default(), &object(namespace)).await.expect("a namespace");
        for roles in ["central/masters/role.yaml", "janitor/masters/role.yaml"] {
            let text = std::fs::read_to_string(project().join("daemonset/components").join(roles)).expect("roles");
            let file = surroundings.folder(&unique("roles")).join("roles.yaml");
            std::fs::write(&file, text.replace("jasm-masters", &masters)).expect("roles");
            surroundings.kubectl(&["apply", "--filename", &file.display().to_string()]).expect("roles");
        }
        let scene = Scene::central(|builder| {
            let builder = builder.env("JASM_MASTERS_NAMESPACE", &masters).freshness(FRESH).providers(&providers);
            env.iter().fold(builder, |builder, (name, value)| builder.env(name, value))
        })
        .await;
        // Other tests' nodes have no record here.
        let nodes: Api<Node> = Api::all(surroundings.admin().await);
        let label = json!({"metadata": {"labels": {"jasm-test/masters": masters}}});
        nodes
            .patch(scene.builder.node().name(), &PatchParams::default(), &Patch::Merge(&label))
            .await
            .expect("a label");
        let store = Store::start(surroundings).await;
        let kubeconfig = kubeconfig(surroundings).await;
        Self { scene, masters, store, kubeconfig, providers, env }
    }

    /// A replica of a new source, and its path.
    async fn replica(&self, name: &str) -> String {
        let path = self.scene.store.seed(name, r#"{"A":"1"}"#).await;
        self.asked(&path, name).await;
        path
    }

    /// A pod of this name asks for a Secret of this name.
    async fn asked(&self, path: &str, name: &str) -> k8s_openapi::api::core::v1::Pod {
        let pod = self.scene.pod(name).asks(path, name).create().await;
        self.scene.namespace.wait_for_secret(name).await;
        pod
    }

    async fn masters(&self) -> Vec<Secret> {
        let api: Api<Secret> = Api::namespaced(self.scene.surroundings.admin().await, &self.masters);
        api.list(&ListParams::default()).await.expect("a list of masters").items
    }

    async fn master(&self, path: &str) -> Option<Secret> {
        self.masters()
            .await
            .into_iter()
            .find(|one| one.annotations().get("jasm.codnod.io/source-path").is_some_and(|of| of == path))
    }

    /// Waits until the node's record has these.
    async fn recorded(&self, names: &[&str]) {
        let api: Api<k8s_openapi::api::core::v1::ConfigMap> =
            Api::namespaced(self.scene.surroundings.admin().await, &self.masters);
        let wanted: Vec<String> =
            names.iter().map(|name| format!("Secret.{}.{name}", self.scene.namespace.name())).collect();
        eventually("the node's record", async || {
            let all = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            let has = |key: &String| {
                all.items.iter().any(|map| {
                    let text = map.data.as_ref().and_then(|data| data.get(key));
                    text.is_some_and(|text| !text.contains(r#""uid":"""#))
                })
            };
            if wanted.iter().all(has) { Ok(()) } else { Err(format!("{} records", all.items.len())) }
        })
        .await;
    }

    /// Takes the master of a source away.
    async fn take_master(&self, path: &str) {
        let master = self.master(path).await.expect("a master");
        let api: Api<Secret> = Api::namespaced(self.scene.surroundings.admin().await, &self.masters);
        api.delete(&master.name_any(), &Default::default()).await.expect("deleted");
    }

    /// Waits until `name` is gone.
    async fn gone(&self, name: &str) {
        let awaited = format!("the end of {name}");
        let gone = try_within(PATIENCE, &awaited, async || match self.scene.namespace.secret(name).await {
            None => Ok(()),
            Some(_) => Err("that it is there".to_owned()),
        });
        gone.await.unwrap_or_else(|message| panic!("{message}"));
    }

    /// As if the one before had let go of it.
    async fn free_the_lease(&self) {
        let leases: Api<Lease> = Api::namespaced(self.scene.surroundings.admin().await, &self.masters);
        let _ = leases.delete("jasm-janitor", &Default::default()).await;
    }

    fn janitor(&self, more: &[&str]) -> Janitor {
        self.janitor_by(&self.kubeconfig, more)
    }

    fn janitor_by(&self, kubeconfig: &std::path::Path, more: &[&str]) -> Janitor {
        let providers = self.scene.surroundings.folder(&unique("janitor")).join("providers.yaml");
        std::fs::write(&providers, &self.providers).expect("providers");
        let mut command = Command::new(program());
        command.env_clear().env("KUBECONFIG", kubeconfig).env("JASM_LISTEN", "127.0.0.1:0");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("AWS_REGION", "us-east-1");
        command.env("AWS_ENDPOINT_URL", self.store.url()).env("JASM_PROVIDERS_FILE", &providers);
        command.env("JASM_MASTERS_NAMESPACE", &self.masters);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.arg("janitor").args(["--every", "1s", "--confirm-after", "2s"]).args(more);
        if !more.contains(&"--nodes") {
            command.args(["--nodes", &format!("jasm-test/masters={}", self.masters)]);
        }
        if !more.contains(&"--max-per-minute") {
            command.args(["--max-per-minute", "600"]);
        }
        Janitor::start(command, providers)
    }
}

/// A running janitor; it ends with this.
struct Janitor {
    providers: PathBuf,
    child: Child,
    leash: Leash,
    output: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Janitor {
    fn start(mut command: Command, providers: PathBuf) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let output = Arc::new(Mutex::new(Vec::new()));
        let collect = |pipe: Box<dyn std::io::Read + Send>| {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    output.lock().expect("no reader panicked").push(line);
                }
            })
        };
        let (stdout, stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let readers = vec![collect(Box::new(stdout)), collect(Box::new(stderr))];
        let leash = Leash::on(child.id());
        Self { providers, child, leash, output, readers }
    }

    fn text(&self) -> String {
        self.output.lock().expect("no reader panicked").join("\n")
    }

    /// Waits for a line of its log that has all of these.
    async fn says(&self, words: &[&str]) {
        let awaited = format!("{words:?} in the janitor's log");
        let said = try_within(PATIENCE, &awaited, async || {
            let text = self.text();
            let found = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
            if found { Ok(()) } else { Err(text) }
        });
        said.await.unwrap_or_else(|message| panic!("{message}"));
    }

    /// Waits for its end, and gives all that it wrote.
    async fn ended(mut self) -> String {
        let end = try_within(PATIENCE, "the end of the program", async || match self.child.try_wait() {
            Ok(Some(_)) => Ok(()),
            _ => Err("that it runs".to_owned()),
        });
        end.await.unwrap_or_else(|message| panic!("{message}"));
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        self.text()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.leash.release();
    }
}

impl Drop for Janitor {
    #[expect(clippy::print_stderr, reason = "the test runner shows it below a test that failed, and nowhere else")]
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("janitor: {}", self.text());
        }
    }
}

/// A kubeconfig with a token of the janitor's account.
async fn kubeconfig(surroundings: &Surroundings) -> PathBuf {
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(surroundings.admin().await, "jasm-system");
    let reply = accounts.create_token_request("jasm-janitor", &PostParams::default(), &request).await;
    let token = reply.expect("a token").status.expect("a token").token;
    let file = surroundings.folder(&unique("janitor")).join("kubeconfig");
    let content = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "janitor",
        "contexts": [{"name": "janitor", "context": {"cluster": "test", "user": "janitor", "namespace": "jasm-system"}}],
        "clusters": [{"name": "test", "cluster": {
            "server": surroundings.api_server(), "certificate-authority": surroundings.ca_file(),
        }}],
        "users": [{"name": "janitor", "user": {"token": token}}],
    });
    std::fs::write(&file, content.to_string()).expect("a kubeconfig");
    file
}
