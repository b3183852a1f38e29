//! The same with every store that speaks HTTP: each way in which an answer can be wrong, with values in it, and an
//! environment that asks every library to be as talkative as it can.

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Map, Value, json};

use super::{found, surfaces};
use crate::support::agent::AgentBuilder;
use crate::support::azure::{CLIENT, CLIENT_SECRET, KeyVault, TENANT};
use crate::support::canary::{Canary, random_values};
use crate::support::scene::Scene;
use crate::support::store::Fault;
use crate::support::surroundings::Surroundings;
use crate::support::unique;
use crate::support::vault::{ROLE, Vault};

const KINDS: [&str; 4] = ["aws-secretsmanager", "aws-ssm", "vault", "azure-keyvault"];

/// Variables that libraries of this kind listen to somewhere. The agent's own is the only one that may count.
const LOUD: [(&str, &str); 11] = [
    ("RUST_LOG", "trace"),
    ("RUST_BACKTRACE", "full"),
    ("RUST_LIB_BACKTRACE", "full"),
    ("AWS_LOG_LEVEL", "trace"),
    ("AWS_SDK_LOG_LEVEL", "trace"),
    ("AZURE_LOG_LEVEL", "verbose"),
    ("VAULT_LOG_LEVEL", "trace"),
    ("HYPER_LOG", "trace"),
    // With these kube would talk to another server, or as somebody else.
    ("KUBE_RS_DEBUG_OVERRIDE_URL", "http://127.0.0.1:9"),
    ("KUBE_RS_DEBUG_IMPERSONATE_USER", "somebody"),
    ("KUBE_RS_DEBUG_IMPERSONATE_GROUP", "system:masters"),
];

/// All stores, behind one agent.
struct Stores {
    scene: Scene,
    vault: Vault,
    azure: KeyVault,
}

impl Stores {
    async fn start(token: &str, key: &str, key_log: &Path) -> Self {
        let vault = Vault::start(Surroundings::get().await).await;
        let azure = KeyVault::start();
        let vault_token = vault.token(Duration::from_secs(3600), &[ROLE]).await;
        let scene = Scene::set_with(|builder| {
            let file = |name: &str, text: &str| {
                let file = builder.node().folder().join(name);
                std::fs::write(&file, text).expect("a file");
                file
            };
            let client =
                json!({"tenantId": TENANT, "clientId": CLIENT, "secretFile": file("client-secret", CLIENT_SECRET)});
            let providers = json!({"providers": [
                {"name": "aws-secretsmanager", "kind": "aws-secretsmanager", "allowInsecure": true},
                {"name": "aws-ssm", "kind": "aws-ssm", "allowInsecure": true},
                {"name": "vault", "kind": "vault", "address": vault.url(), "allowInsecure": true,
                 "auth": {"tokenFile": file(token, &vault_token)}},
                {"name": "azure-keyvault", "kind": "azure-keyvault", "vaultUrl": azure.url(), "auth": {"clientSecret": client}},
            ]});
            let builder =
                builder.providers(&providers.to_string()).log_level("trace").env("AWS_SECRET_ACCESS_KEY", key);
            loud(builder, key_log, &azure)
        });
        Self { scene: scene.await, vault, azure }
    }

    /// A new secret with these values; returns its path.
    async fn put(&self, kind: &str, case: &str, good: &Value) -> String {
        match kind {
            "aws-secretsmanager" => self.scene.store.seed(case, &good.to_string()).await,
            "vault" => self.vault.seed(case, good.clone()).await,
            "azure-keyvault" => {
                let name = unique(case);
                self.azure.put(&name, &good.to_string());
                name
            }
            _ => {
                let name = unique(&format!("/{case}"));
                self.scene.store.put_parameter(&name, &good.to_string(), "SecureString").await;
                name
            }
        }
    }

    fn fail(&self, kind: &str, path: &str, fault: Fault) {
        match kind {
            "vault" => self.vault.fail(path, fault),
            "azure-keyvault" => self.azure.fail(path, fault),
            _ => self.scene.store.fail(path, fault),
        }
    }

    /// A pod that asks for a path is told this in the end.
    async fn told(&self, kind: &str, case: &str, path: &str, reason: &str) {
        let name = format!("{case}-{kind}");
        let request = json!({"provider": kind, "path": path, "secretName": name}).to_string();
        let pod = self.scene.pod(&name).request(&request).create().await;
        self.scene.namespace.wait_for_event(&pod, reason).await;
        self.scene.namespace.delete_pod(&pod).await;
    }
}

fn loud(builder: AgentBuilder, key_log: &Path, azure: &KeyVault) -> AgentBuilder {
    let builder = LOUD.iter().fold(builder, |builder, (name, value)| builder.env(name, value));
    let builder = builder.env("SSLKEYLOGFILE", &key_log.display().to_string());
    azure.environment().iter().fold(builder, |builder, (name, value)| builder.env(name, value))
}

/// All of them, with values wherever there is room for one.
fn faults(good: &str) -> Vec<(&'static str, Fault)> {
    vec![
        ("denied", Fault::AccessDenied),
        ("throttled", Fault::Throttling),
        ("later", Fault::RetryAfter(Duration::from_secs(1))),
        ("deleted", Fault::PendingDeletion),
        ("unavailable", Fault::Unavailable),
        ("bad-request", Fault::Status(400)),
        ("forbidden", Fault::Status(403)),
        ("broken", Fault::Status(500)),
        ("truncated", Fault::Truncated),
        ("oversized", Fault::Oversized),
        ("bare", Fault::Body(good.to_owned())),
        ("cut", Fault::Body(good[..good.len() / 2].to_owned())),
        ("page", Fault::Body(format!("<html>{good}</html>"))),
        (
            "a-text",
            Fault::Body(json!({"SecretString": [good], "Parameters": good, "data": good, "value": 7}).to_string()),
        ),
        ("a-version", Fault::Body(json!({"VersionId": 7, "value": good, "id": {"x": good}}).to_string())),
    ]
}

#[tokio::test]
async fn no_value_of_any_store_appears_whatever_is_wrong_with_its_answers() {
    let values = random_values(10);
    let key = random_values(1).remove(0);
    // One that is short enough for every store: Parameter Store takes 4 KB.
    let few = values.iter().enumerate().filter(|(_, value)| value.len() < 1000);
    let good: Map<String, Value> = few.map(|(number, value)| (format!("K{number}"), json!(value))).collect();
    let good = Value::Object(good);
    let key_log = std::env::temp_dir().join(unique("jasm-key-log"));
    let stores = Stores::start("vault-token", &key, &key_log).await;
    for kind in KINDS {
        let path = stores.put(kind, "good", &good).await;
        stores.told(kind, "good", &path, "SecretSyncSuccess").await;
    }
    for (case, fault) in faults(&good.to_string()) {
        join_all(KINDS.map(async |kind| {
            let path = stores.put(kind, case, &good).await;
            stores.fail(kind, &path, fault.clone());
            stores.told(kind, case, &path, "SecretFetchFailed").await;
        }))
        .await;
    }
    let scene = &stores.scene;
    let folder = scene.builder.node().folder();
    let tokens = ["token", "vault-token"].map(|file| std::fs::read_to_string(folder.join(file)).expect("a token"));
    let canary = Canary::new(values.into_iter().chain([key, CLIENT_SECRET.to_owned()]).chain(tokens));
    assert_eq!(found(&canary, &surfaces(scene, &[&scene.namespace]).await), Vec::<String>::new());
    assert!(!key_log.exists(), "the keys of TLS were written down");
    only_the_agent_speaks(scene);
}

/// `trace` is the agent's own level, and no variable makes anybody else speak.
fn only_the_agent_speaks(scene: &Scene) {
    let output = scene.agent.output();
    let parsed = output.iter().filter_map(|line| serde_json::from_str(line).ok());
    let log: Vec<Value> = parsed.filter(Value::is_object).collect();
    assert_eq!(log.len(), output.len(), "each line is JSON");
    let target = |line: &Value| line["target"].as_str().unwrap_or_default().to_owned();
    let others: Vec<_> = log.iter().map(target).filter(|target| target.split("::").next() != Some("jasm")).collect();
    assert!(others.iter().all(|target| target.starts_with("kube_runtime::")), "{others:?}");
    assert!(log.iter().any(|line| line["level"] == "DEBUG"), "the agent itself does as it is told");
}
