//! The store that agents talk to: a server in front of the AWS emulator which counts, holds and spoils answers.
//!
//! A *key* names what is counted, held or spoiled: a secret's id as the agent sends it (name, path or ARN), or an
//! action such as `GetSecretValue` (all secrets), `GetCallerIdentity`, `AssumeRoleWithWebIdentity` or [`POD_IDENTITY`].
//! Where both are set, the secret's own setting wins.

mod aws;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::control_plane::ControlPlane;
use super::http::Http;
use super::own_thread::Server;
use super::unique;
use super::wait::{DEADLINE, eventually};
pub(crate) use aws::{ACCESS_DENIED_TEXT, Fault, POD_IDENTITY};

/// The action that reads a secret.
pub(crate) const GET: &str = "GetSecretValue";

/// A store of one test. It ends when this is dropped, together with all requests that it still holds.
#[derive(Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
    server: Server,
}

/// What the test and the server's thread both touch.
#[derive(Debug)]
struct Shared {
    backend: Backend,
    state: Mutex<State>,
}

/// Who knows the values.
#[derive(Debug)]
enum Backend {
    /// The emulator at this URL, shared by all stores of a run.
    Emulator { url: String },
    /// This program, after a pause: for the benchmark, since the emulator manages only some 180 requests a second.
    Stub { latency: Duration, secrets: Mutex<BTreeMap<String, String>> },
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    faults: BTreeMap<String, Spoiling>,
    gates: BTreeMap<String, Arc<Barrier>>,
    pod_identity: Option<PodIdentity>,
    web_identity_lifetime: Option<Duration>,
}

/// One request, noted when it arrived, whatever became of it.
#[derive(Debug)]
struct Call {
    action: String,
    secret: Option<String>,
    credential: String,
}

impl Call {
    fn is_about(&self, key: &str) -> bool {
        self.action == key || (self.action == GET && self.secret.as_deref() == Some(key))
    }
}

#[derive(Debug)]
struct Spoiling {
    fault: Fault,
    /// How many answers are still to be spoiled; `None` is all until [`Store::heal`].
    left: Option<usize>,
    /// One answer in so many.
    every: usize,
    asked: usize,
}

/// What the Pod Identity endpoint hands out.
#[derive(Debug, Clone)]
struct PodIdentity {
    token_file: PathBuf,
    access_key: String,
    lifetime: Duration,
}

impl Store {
    /// A store in front of the run's emulator.
    pub(crate) async fn start(control_plane: &ControlPlane) -> Self {
        Self::with(Backend::Emulator { url: control_plane.moto_url().to_owned() })
    }

    /// A store that needs no emulator and answers after `latency` (rounded up to the timer's next millisecond).
    pub(crate) fn stub(latency: Duration) -> Self {
        Self::with(Backend::Stub { latency, secrets: Mutex::default() })
    }

    fn with(backend: Backend) -> Self {
        let shared = Arc::new(Shared { backend, state: Mutex::default() });
        let served = Arc::clone(&shared);
        let server = Server::start(move |listener| server::serve(listener, served));
        Self { shared, server }
    }

    /// `http://127.0.0.1:PORT`, for `AWS_ENDPOINT_URL`.
    pub(crate) fn url(&self) -> &str {
        self.server.url()
    }

    // ---- values ----

    /// Adds a secret under a path that no other test uses, `PREFIX-` and eight random characters, and returns the path.
    pub(crate) async fn seed(&self, prefix: &str, text: &str) -> String {
        let path = unique(prefix);
        self.put(&path, text).await;
        path
    }

    /// Sets a secret's string, as a new version where it exists.
    pub(crate) async fn put(&self, path: &str, text: &str) {
        match &self.shared.backend {
            Backend::Emulator { url } => put(url, path, json!({"SecretString": text})).await,
            Backend::Stub { secrets, .. } => {
                secrets.lock().expect(NO_PANIC).insert(path.to_owned(), text.to_owned());
            }
        }
    }

    /// Sets a secret's bytes, as a new version where it exists. Not in a stub.
    pub(crate) async fn put_binary(&self, path: &str, bytes: &[u8]) {
        put(self.emulator(), path, json!({"SecretBinary": BASE64.encode(bytes)})).await;
    }

    /// Removes a secret at once and for good.
    pub(crate) async fn delete(&self, path: &str) {
        match &self.shared.backend {
            Backend::Emulator { url } => {
                let body = json!({"SecretId": path, "ForceDeleteWithoutRecovery": true});
                call(url, "DeleteSecret", &body).await.unwrap_or_else(|code| panic!("cannot delete {path}: {code}"));
            }
            Backend::Stub { secrets, .. } => {
                secrets.lock().expect(NO_PANIC).remove(path);
            }
        }
    }

    fn emulator(&self) -> &str {
        match &self.shared.backend {
            Backend::Emulator { url } => url,
            Backend::Stub { .. } => panic!("a stub holds strings only"),
        }
    }

    // ---- trouble ----

    /// Spoils each answer about `key` until [`Store::heal`].
    pub(crate) fn fail(&self, key: &str, fault: Fault) {
        self.state().faults.insert(key.to_owned(), Spoiling { fault, left: None, every: 1, asked: 0 });
    }

    /// Spoils the next `times` answers about `key`; later ones are right again.
    pub(crate) fn fail_times(&self, key: &str, times: usize, fault: Fault) {
        assert!(times > 0, "no answer about {key} would be spoiled");
        self.state().faults.insert(key.to_owned(), Spoiling { fault, left: Some(times), every: 1, asked: 0 });
    }

    /// Spoils one in so many answers about `key`, until [`Store::heal`].
    pub(crate) fn fail_every(&self, key: &str, every: usize, fault: Fault) {
        self.state().faults.insert(key.to_owned(), Spoiling { fault, left: None, every, asked: 0 });
    }

    /// Answers about `key` are right again.
    pub(crate) fn heal(&self, key: &str) {
        self.state().faults.remove(key);
    }

    /// Holds back each answer about `key` until the gate is released. The value is read before the answer is held: an
    /// answer that was asked for before a change stays the old one. A gate that stays shut is a store that hangs.
    pub(crate) fn hold(&self, key: &str) -> Gate<'_> {
        let barrier = Arc::new(Barrier { held: watch::Sender::new(0), open: watch::Sender::new(false) });
        let before = self.state().gates.insert(key.to_owned(), Arc::clone(&barrier));
        assert!(before.is_none_or(|gate| gate.is_open()), "answers about {key} are held already");
        Gate { store: self, key: key.to_owned(), barrier }
    }

    // ---- what was asked ----

    /// How many requests about `key` have arrived, answered or not.
    pub(crate) fn calls(&self, key: &str) -> usize {
        self.about(key, |_| ()).len()
    }

    /// The secrets of which a read has arrived.
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        self.state().calls.iter().filter(|call| call.action == GET).filter_map(|call| call.secret.clone()).collect()
    }

    /// How many reads of secrets have arrived, of whichever secret.
    pub(crate) fn total_calls(&self) -> usize {
        self.calls(GET)
    }

    /// The access key id with which each request about `key` was signed (a rotation shows here).
    pub(crate) fn access_keys(&self, key: &str) -> Vec<String> {
        self.about(key, |call| call.credential.clone())
    }

    /// The token that came with each request about `AssumeRoleWithWebIdentity` or [`POD_IDENTITY`].
    pub(crate) fn tokens(&self, key: &str) -> Vec<String> {
        self.about(key, |call| call.credential.clone())
    }

    /// Starts counting anew.
    pub(crate) fn forget_calls(&self) {
        self.state().calls.clear();
    }

    /// Waits until at least `wanted` requests about `key` have arrived.
    pub(crate) async fn wait_for_calls(&self, key: &str, wanted: usize) {
        eventually(&format!("{wanted} requests about {key}"), async || match self.calls(key) {
            enough if enough >= wanted => Ok(()),
            found => Err(format!("{found} requests about it")),
        })
        .await;
    }

    fn about<T>(&self, key: &str, what: impl Fn(&Call) -> T) -> Vec<T> {
        self.state().calls.iter().filter(|call| call.is_about(key)).map(what).collect()
    }

    // ---- credentials ----

    /// From now on the Pod Identity endpoint answers whoever shows the content of `token_file`, with credentials of
    /// this access key id that expire after `lifetime`. A second call replaces the first: a rotation.
    pub(crate) fn serve_pod_identity(&self, token_file: &Path, access_key: &str, lifetime: Duration) {
        let (token_file, access_key) = (token_file.to_owned(), access_key.to_owned());
        self.state().pod_identity = Some(PodIdentity { token_file, access_key, lifetime });
    }

    /// For `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub(crate) fn pod_identity_url(&self) -> String {
        format!("{}{}", self.url(), aws::POD_IDENTITY_PATH)
    }

    /// Credentials of `AssumeRoleWithWebIdentity` expire after `lifetime` from now on (the emulator gives an hour).
    pub(crate) fn set_web_identity_lifetime(&self, lifetime: Duration) {
        self.state().web_identity_lifetime = Some(lifetime);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

const NO_PANIC: &str = "nothing panics while it holds the store's state";

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

/// Holds answers; opening it is final.
#[derive(Debug)]
struct Barrier {
    held: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

impl Barrier {
    fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Returns when the gate is open.
    async fn pass(&self) {
        self.held.send_modify(|held| *held += 1);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

/// Holds back answers from [`Store::hold`] to [`Gate::release`], or until it is dropped.
#[must_use = "a gate that is dropped holds nothing"]
#[derive(Debug)]
pub(crate) struct Gate<'a> {
    store: &'a Store,
    key: String,
    barrier: Arc<Barrier>,
}

impl Gate<'_> {
    /// How many answers came to the gate so far.
    pub(crate) fn count(&self) -> usize {
        *self.barrier.held.borrow()
    }

    /// Waits until `wanted` answers have come to the gate.
    pub(crate) async fn held(&self, wanted: usize) {
        let mut held = self.barrier.held.subscribe();
        if tokio::time::timeout(DEADLINE, held.wait_for(|held| *held >= wanted)).await.is_err() {
            panic!("waited {DEADLINE:?} for {wanted} held answers about {}; found {}", self.key, self.count());
        }
    }

    /// Sends all held answers, and holds no more.
    pub(crate) fn release(self) {}
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.barrier.open.send_replace(true);
        let mut state = self.store.state();
        if state.gates.get(&self.key).is_some_and(|gate| Arc::ptr_eq(gate, &self.barrier)) {
            state.gates.remove(&self.key);
        }
    }
}

/// Adds a version to a secret of the emulator, or makes it.
async fn put(url: &str, path: &str, value: Value) {
    let with = |key: &str| {
        let mut body = value.clone();
        body[key] = json!(path);
        body
    };
    let mut done = call(url, "PutSecretValue", &with("SecretId")).await;
    if done.as_ref().is_err_and(|code| code == "ResourceNotFoundException") {
        done = call(url, "CreateSecret", &with("Name")).await;
    }
    done.unwrap_or_else(|code| panic!("the emulator did not take the secret {path}: {code}"));
}

/// Asks the emulator for one action. The error is AWS's code alone: its text could quote a value.
async fn call(url: &str, action: &str, body: &Value) -> Result<(), String> {
    let reply = Http::new().send(aws::request(url, action, body)).await?;
    if reply.status.is_success() {
        return Ok(());
    }
    let code =
        serde_json::from_slice::<Value>(&reply.body).ok().and_then(|body| Some(body["__type"].as_str()?.to_owned()));
    Err(code.unwrap_or_else(|| format!("status {} without an error code", reply.status)))
}
