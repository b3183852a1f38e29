//! A real Vault as agents talk to it: a process of its own behind a front.
//!
//! Its keys are a secret's path below its mount, as in `prod/app`, and the actions [`READ`], [`LOGIN`], [`RENEW`],
//! [`LOOKUP`] and [`MOUNT`]. Namespaces are a feature of Vault Enterprise: this one ignores the header that names one,
//! and [`Vault::namespaces`] says what was sent.

mod admin;
mod process;
mod protocol;
mod setup;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::control_plane::ControlPlane;
use super::front::{Front, Upstream, header};
use super::own_thread::Server;
use super::tls::Authority;
use super::unique;
use admin::Admin;
use process::Process;
use protocol::Api;
pub(crate) use protocol::{LOGIN, LOOKUP, MOUNT, PERMISSION_DENIED_TEXT, READ, RENEW};

/// Where version 2 of the KV engine is mounted.
pub(crate) const KV2: &str = "secret";
/// Where version 1 of the KV engine is mounted.
pub(crate) const KV1: &str = "kv1";
/// The name of the agent's role in both auth methods, and of its policy.
pub(crate) const ROLE: &str = "jasm";
/// The role of all pods' service accounts, by tokens of the same audience.
pub(crate) const PODS: &str = "pods";
/// For whom a Kubernetes token has to be.
pub(crate) const AUDIENCE: &str = "vault";
/// The lifetime of the agent's tokens until [`Vault::set_token_ttl`].
const TOKEN_TTL: Duration = Duration::from_secs(3600);

/// A Vault of one test. It ends when this is dropped.
///
/// The agent's service account may log in at `auth/kubernetes` in the role [`ROLE`], whoever holds [`Vault::approle`] at
/// `auth/approle`. Both get a policy that reads everything below [`KV2`] and [`KV1`] but what was denied.
#[derive(Debug)]
pub(crate) struct Vault {
    front: Front<Api>,
    admin: Admin,
    denied: Mutex<BTreeSet<String>>,
    process: Process,
}

/// What an AppRole is logged in with.
#[derive(Debug)]
pub(crate) struct AppRole {
    pub(crate) role_id: String,
    pub(crate) secret_id: String,
}

/// The same Vault behind a certificate.
#[derive(Debug)]
pub(crate) struct WithTls {
    front: Front<Api>,
    /// The way in for requests without TLS; held for its life alone.
    _plain: Server,
}

impl WithTls {
    /// `https://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.front.address())
    }
}

impl Deref for Vault {
    type Target = Front<Api>;

    fn deref(&self) -> &Front<Api> {
        &self.front
    }
}

impl Vault {
    /// A Vault that has its tokens reviewed by this API server.
    pub(crate) async fn start(control_plane: &ControlPlane) -> Self {
        let folder = control_plane.folder(&unique("vault"));
        let started = tokio::task::spawn_blocking(move || Process::start(&folder)).await;
        let process = started.expect("starting a Vault does not panic").unwrap_or_else(|message| panic!("{message}"));
        let admin = Admin::new(&process.ready.url, &process.ready.root_token);
        let front = Front::start(Api(Upstream::new(&process.ready.url)));
        let vault = Self { front, admin, denied: Mutex::default(), process };
        setup::mount_engines(&vault.admin).await;
        vault.write_policy().await;
        setup::enable_kubernetes(&vault.admin, control_plane).await;
        setup::enable_approle(&vault.admin).await;
        vault.set_token_ttl(TOKEN_TTL).await;
        vault
    }

    /// Another way in, with TLS, as long as what is returned.
    pub(crate) fn with_tls(&self, authority: &Authority) -> WithTls {
        let (front, plain) = Front::start_tls(Api(Upstream::new(&self.process.ready.url)), authority.server());
        WithTls { front, _plain: plain }
    }

    // ---- values ----

    /// Adds a secret under a path that no other test uses, `PREFIX-` and eight random characters, and returns the path.
    pub(crate) async fn seed(&self, prefix: &str, data: Value) -> String {
        let path = unique(prefix);
        self.put(&path, data).await;
        path
    }

    /// Adds a version to a secret of [`KV2`] and returns its number. `data`: an object.
    pub(crate) async fn put(&self, path: &str, data: Value) -> u64 {
        let done = self.admin.post(&format!("{KV2}/data/{path}"), json!({"data": data})).await;
        done["data"]["version"].as_u64().expect("a version is a number")
    }

    /// Sets a secret of [`KV1`], which has no versions.
    pub(crate) async fn put_v1(&self, path: &str, data: Value) {
        self.admin.post(&format!("{KV1}/{path}"), data).await;
    }

    /// Deletes the newest version of a secret. It could be restored.
    pub(crate) async fn delete_version(&self, path: &str) {
        self.admin.delete(&format!("{KV2}/data/{path}")).await;
    }

    /// Destroys a version of a secret for good. Its number stays taken.
    pub(crate) async fn destroy_version(&self, path: &str, version: u64) {
        self.admin.post(&format!("{KV2}/destroy/{path}"), json!({"versions": [version]})).await;
    }

    /// Removes a secret with all its versions.
    pub(crate) async fn delete(&self, path: &str) {
        self.admin.delete(&format!("{KV2}/metadata/{path}")).await;
    }

    // ---- rights ----

    /// The agent may not read this path any more, in neither engine.
    pub(crate) async fn deny(&self, path: &str) {
        self.denied().insert(path.to_owned());
        self.write_policy().await;
    }

    /// The agent may read this path again.
    pub(crate) async fn allow(&self, path: &str) {
        self.denied().remove(path);
        self.write_policy().await;
    }

    async fn write_policy(&self) {
        let mut policy = String::new();
        for path in [format!("{KV2}/data/*"), format!("{KV1}/*")] {
            let _ = writeln!(policy, r#"path "{path}" {{ capabilities = ["read"] }}"#);
        }
        for path in self.denied().iter() {
            let _ = writeln!(policy, r#"path "{KV2}/data/{path}" {{ capabilities = ["deny"] }}"#);
            let _ = writeln!(policy, r#"path "{KV1}/{path}" {{ capabilities = ["deny"] }}"#);
        }
        self.admin.post(&format!("sys/policies/acl/{ROLE}"), json!({"policy": policy})).await;
    }

    fn denied(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.denied.lock().expect("nothing panics while it holds the denied paths")
    }

    // ---- tokens ----

    /// Tokens of logins from now on end after `ttl` (whole seconds) unless they are renewed.
    pub(crate) async fn set_token_ttl(&self, ttl: Duration) {
        setup::set_roles(&self.admin, ttl).await;
    }

    /// Ends all tokens but the root token.
    pub(crate) async fn revoke_tokens(&self) {
        self.admin.post("sys/leases/revoke-prefix/auth", json!({"sync": true})).await;
    }

    /// A token from nobody's login, which can be renewed. `ttl`: whole seconds.
    pub(crate) async fn token(&self, ttl: Duration, policies: &[&str]) -> String {
        let wanted = json!({"policies": policies, "ttl": format!("{}s", ttl.as_secs()), "renewable": true});
        let made = self.admin.post("auth/token/create", wanted).await;
        made["auth"]["client_token"].as_str().expect("a token is a text").to_owned()
    }

    /// The role's id and a new secret id.
    pub(crate) async fn approle(&self) -> AppRole {
        let role = self.admin.get(&format!("auth/approle/role/{ROLE}/role-id")).await;
        let secret = self.admin.post(&format!("auth/approle/role/{ROLE}/secret-id"), json!({})).await;
        let text = |value: &Value| value.as_str().expect("an id is a text").to_owned();
        AppRole { role_id: text(&role["data"]["role_id"]), secret_id: text(&secret["data"]["secret_id"]) }
    }

    // ---- the whole ----

    /// The program's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Vault answers nothing but 503 until [`Vault::unseal`].
    pub(crate) async fn seal(&self) {
        self.admin.post("sys/seal", json!({})).await;
    }

    /// Returns when secrets can be read again.
    pub(crate) async fn unseal(&self) {
        self.admin.post("sys/unseal", json!({"key": self.process.ready.unseal_key})).await;
        setup::upgraded(&self.admin).await;
    }

    /// The header `X-Vault-Namespace` of each request about `key`; empty where there was none.
    pub(crate) fn namespaces(&self, key: &str) -> Vec<String> {
        self.about(key, |asked| header(&asked.headers, "x-vault-namespace").to_owned())
    }
}
