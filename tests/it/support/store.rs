//! AWS as agents talk to it: a front of the emulator.
//!
//! Its keys are a secret's id as the agent sends it (name, path or ARN), and actions such as `GetSecretValue` (all
//! secrets), `GetParameters`, `GetCallerIdentity`, `AssumeRoleWithWebIdentity` or [`POD_IDENTITY`].

mod aws;
mod parameters;
mod protocol;
mod sts;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::control_plane::ControlPlane;
pub(crate) use super::front::Fault;
use super::front::{Front, Upstream};
use super::http::Http;
use super::unique;
pub(crate) use aws::{ACCESS_DENIED_TEXT, POD_IDENTITY};
pub(crate) use parameters::{GET_PARAMETERS, GET_PARAMETERS_BY_PATH};
use protocol::{Aws, Backend, PodIdentity};
pub(crate) use sts::{ASSUME_ROLE, WEB_IDENTITY};

/// The action that reads a secret.
pub(crate) const GET: &str = "GetSecretValue";
/// The action that tells of a secret without its value.
pub(crate) const DESCRIBE: &str = "DescribeSecret";

/// A store of one test. It ends when this is dropped, together with all requests that it still holds.
#[derive(Debug)]
pub(crate) struct Store(Front<Aws>);

impl Deref for Store {
    type Target = Front<Aws>;

    fn deref(&self) -> &Front<Aws> {
        &self.0
    }
}

impl Store {
    /// A store in front of the run's emulator.
    pub(crate) async fn start(control_plane: &ControlPlane) -> Self {
        Self::with(Backend::Emulator(Box::new(Upstream::new(control_plane.moto_url()))))
    }

    /// A store that needs no emulator and answers after `latency` (rounded up to the timer's next millisecond).
    pub(crate) fn stub(latency: Duration) -> Self {
        Self::with(Backend::Stub { latency, secrets: Mutex::default() })
    }

    fn with(backend: Backend) -> Self {
        Self(Front::start(Aws::new(backend)))
    }

    // ---- values ----

    /// Adds a secret under a path that no other test uses, `PREFIX-` and eight random characters, and returns the path.
    pub(crate) async fn seed(&self, prefix: &str, text: &str) -> String {
        let path = unique(prefix);
        self.put(&path, text).await;
        path
    }

    /// Sets a secret's string, as a new version where it exists.
    /// Returns the version's id; a stub has none.
    pub(crate) async fn put(&self, path: &str, text: &str) -> String {
        match &self.protocol().backend {
            Backend::Emulator(emulator) => put(emulator.url(), path, json!({"SecretString": text})).await,
            Backend::Stub { secrets, .. } => {
                open(secrets).insert(path.to_owned(), text.to_owned());
                String::new()
            }
        }
    }

    /// Sets a secret's bytes, as a new version where it exists. Not in a stub.
    pub(crate) async fn put_binary(&self, path: &str, bytes: &[u8]) {
        put(self.emulator(), path, json!({"SecretBinary": BASE64.encode(bytes)})).await;
    }

    /// Removes a secret at once and for good.
    pub(crate) async fn delete(&self, path: &str) {
        match &self.protocol().backend {
            Backend::Emulator(emulator) => {
                let body = json!({"SecretId": path, "ForceDeleteWithoutRecovery": true});
                call(emulator.url(), "secretsmanager.DeleteSecret", &body)
                    .await
                    .unwrap_or_else(|code| panic!("cannot delete {path}: {code}"));
            }
            Backend::Stub { secrets, .. } => {
                open(secrets).remove(path);
            }
        }
    }

    /// Has a secret of the emulator deleted in a week: until then it is there, cannot be read, and could be restored.
    pub(crate) async fn schedule_deletion(&self, path: &str) {
        let body = json!({"SecretId": path, "RecoveryWindowInDays": 7});
        let scheduled = call(self.emulator(), "secretsmanager.DeleteSecret", &body).await;
        scheduled.unwrap_or_else(|code| panic!("cannot schedule the deletion of {path}: {code}"));
    }

    fn emulator(&self) -> &str {
        match &self.protocol().backend {
            Backend::Emulator(emulator) => emulator.url(),
            Backend::Stub { .. } => panic!("a stub holds strings only"),
        }
    }

    /// The ARN of a secret of the emulator.
    pub(crate) async fn arn(&self, path: &str) -> String {
        let described = call(self.emulator(), "secretsmanager.DescribeSecret", &json!({"SecretId": path})).await;
        let described = described.unwrap_or_else(|code| panic!("the emulator does not know {path}: {code}"));
        described["ARN"].as_str().expect("a secret has an ARN").to_owned()
    }

    // ---- what was asked ----

    /// How many reads of secrets have arrived, of whichever secret.
    pub(crate) fn total_calls(&self) -> usize {
        self.calls(GET)
    }

    /// The access key id with which each request about `key` was signed (a rotation shows here).
    pub(crate) fn access_keys(&self, key: &str) -> Vec<String> {
        self.credentials(key)
    }

    /// The token that came with each request about `AssumeRoleWithWebIdentity` or [`POD_IDENTITY`].
    pub(crate) fn tokens(&self, key: &str) -> Vec<String> {
        self.credentials(key)
    }

    // ---- credentials ----

    /// From now on the Pod Identity endpoint answers whoever shows the content of `token_file`, with credentials of
    /// this access key id that expire after `lifetime`. A second call replaces the first: a rotation.
    pub(crate) fn serve_pod_identity(&self, token_file: &Path, access_key: &str, lifetime: Duration) {
        let (token_file, access_key) = (token_file.to_owned(), access_key.to_owned());
        self.protocol().settings().pod_identity = Some(PodIdentity { token_file, access_key, lifetime });
    }

    /// From now on the double has a token service of its own, in which a role trusts a subject: of a token, or as an external id.
    /// `eks` is the role of EKS Pod Identity.
    pub(crate) fn trust(&self, role: &str, subject: &str) {
        self.protocol().settings().sts.get_or_insert_default().trust(role, subject);
    }

    /// A role trusts nobody any more.
    pub(crate) fn distrust(&self, role: &str) {
        self.protocol().settings().sts.get_or_insert_default().distrust(role);
    }

    /// How long its credentials hold from now on.
    pub(crate) fn set_lifetime(&self, lifetime: Duration) {
        self.protocol().settings().sts.get_or_insert_default().set_lifetime(lifetime);
    }

    /// A value that a holder of credentials alone is given: a role, with the tags of its session, or a subject at EKS.
    pub(crate) fn put_for(&self, holder: &str, path: &str, value: &str) {
        self.protocol().settings().sts.get_or_insert_default().put_for(holder, path, value);
    }

    /// Whose credentials each request about `key` came with.
    pub(crate) fn holders(&self, key: &str) -> Vec<String> {
        let keys = self.credentials(key);
        let mut settings = self.protocol().settings();
        let sts = settings.sts.get_or_insert_default();
        keys.iter().map(|key| sts.holder(key)).collect()
    }

    /// For `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub(crate) fn pod_identity_url(&self) -> String {
        format!("{}{}", self.url(), aws::POD_IDENTITY_PATH)
    }

    /// Credentials of `AssumeRoleWithWebIdentity` expire after `lifetime` from now on (the emulator gives an hour).
    pub(crate) fn set_web_identity_lifetime(&self, lifetime: Duration) {
        self.protocol().settings().web_identity_lifetime = Some(lifetime);
    }
}

/// The secrets of a stub.
fn open(secrets: &Mutex<BTreeMap<String, String>>) -> MutexGuard<'_, BTreeMap<String, String>> {
    secrets.lock().expect("nothing panics while it holds the stub's secrets")
}

/// Adds a version to a secret of the emulator, or makes it.
async fn put(url: &str, path: &str, value: Value) -> String {
    let with = |key: &str| {
        let mut body = value.clone();
        body[key] = json!(path);
        body
    };
    let mut done = call(url, "secretsmanager.PutSecretValue", &with("SecretId")).await;
    if done.as_ref().is_err_and(|code| code == "ResourceNotFoundException") {
        done = call(url, "secretsmanager.CreateSecret", &with("Name")).await;
    }
    let done = done.unwrap_or_else(|code| panic!("the emulator did not take the secret {path}: {code}"));
    done["VersionId"].as_str().unwrap_or_default().to_owned()
}

/// Asks the emulator for one action, as in `AmazonSSM.PutParameter`, and returns its answer. The error is AWS's code
/// alone: its text could quote a value.
async fn call(url: &str, target: &str, body: &Value) -> Result<Value, String> {
    let reply = Http::new().send(aws::request(url, target, body)).await?;
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    if reply.status.is_success() {
        return Ok(body);
    }
    Err(body["__type"].as_str().map_or_else(|| format!("status {} without an error code", reply.status), Into::into))
}
