//! The same for every store: what a pod asks, what it gets, and what it is told, through the agent as it is installed.
//!
//! A store takes part by a [`Subject`]: how its values are put, and how it fails. The cases know nothing else of it. Each
//! test prints the table of its store; a case that a store cannot have says why.

mod aws;
mod azure;
mod bench;
mod cases;
mod file;
mod vault;

use async_trait::async_trait;
use futures::FutureExt as _;
use serde_json::Value;

use crate::support::agent::AgentBuilder;
use crate::support::cluster::TestNamespace;
use crate::support::front::{Fault, Front, Gate};
use crate::support::say;
use bench::Bench;

/// A case that a store cannot have, and why.
#[derive(Debug)]
struct Skipped(&'static str);

/// What became of a case: a failure panics.
type Outcome = Result<(), Skipped>;

/// One store as the cases see it. Paths are made by [`Subject::path`]; values are JSON objects.
#[async_trait(?Send)]
trait Subject: Send + Sync {
    /// The kind, and the name of its instance.
    fn kind(&self) -> &'static str;
    /// Gives an agent its providers file and what it needs besides: an instance called like the kind, and where the store
    /// can have that, `wrong`, whose credentials the store does not take.
    async fn set_up(&self, builder: AgentBuilder) -> AgentBuilder;

    /// Whether it is asked as each pod's own service account.
    fn by_pods(&self) -> bool {
        false
    }
    /// Lets the account `default` of the cases' namespace in, where it is asked as that.
    async fn let_in(&self, _: &TestNamespace) {}

    /// A path that nobody used.
    fn path(&self) -> String;
    /// The largest value that the store can hold, in bytes.
    fn largest(&self) -> usize;
    /// Fields of the annotation beside provider, path and name.
    fn fields(&self) -> Value {
        Value::Null
    }
    /// Sets a value, as a new version where the path has one; returns the version as an annotation names it.
    async fn put(&self, path: &str, value: &Value) -> String;
    /// Whether there are versions.
    fn has_versions(&self) -> Outcome {
        Ok(())
    }
    /// Sets a value of bytes that are no text.
    async fn put_bytes(&self, path: &str, bytes: &[u8]) -> Outcome;
    /// Takes a secret away; returns what the pod is told then.
    async fn delete(&self, path: &str) -> &'static str;
    /// Other states in which a secret is there and not readable, each with what the pod is told.
    async fn unreadable(&self) -> Result<Vec<(String, &'static str)>, Skipped>;
    /// Takes the agent's right to a path away, or gives it back.
    async fn allow(&self, path: &str, allowed: bool) -> Outcome;
    /// Makes the agent's credentials worthless, and gives it others where it looks for them.
    async fn rotate(&self) -> Outcome;
    /// What is told where the credentials are wrong; `wrong` has to be an instance then, unless `fault` is one.
    fn wrong_credentials(&self) -> Result<WrongCredentials, Skipped>;
    /// How its answers are spoiled.
    fn faults(&self) -> Result<&dyn Faults, Skipped>;
}

/// How a store does not know the agent.
struct WrongCredentials {
    /// Where the store cannot be given wrong ones: what it would answer.
    fault: Option<Fault>,
    /// What the pod is told to look at.
    remedy: &'static str,
}

/// A front, whatever its protocol.
trait Faults: Send + Sync {
    fn fail(&self, key: &str, fault: Fault);
    fn fail_times(&self, key: &str, times: usize, fault: Fault);
    fn heal(&self, key: &str);
    fn hold(&self, key: &str) -> Gate;
    fn calls(&self, key: &str) -> usize;
}

impl<P: Send + Sync> Faults for Front<P> {
    fn fail(&self, key: &str, fault: Fault) {
        Front::fail(self, key, fault);
    }

    fn fail_times(&self, key: &str, times: usize, fault: Fault) {
        Front::fail_times(self, key, times, fault);
    }

    fn heal(&self, key: &str) {
        Front::heal(self, key);
    }

    fn hold(&self, key: &str) -> Gate {
        Front::hold(self, key)
    }

    fn calls(&self, key: &str) -> usize {
        Front::calls(self, key)
    }
}

/// Lets the account `default` of a namespace say who it is at a store.
async fn let_in(namespace: &TestNamespace, annotation: &str, value: &str) {
    let accounts: kube::Api<k8s_openapi::api::core::v1::ServiceAccount> = namespace.api();
    let patch = serde_json::json!({"metadata": {"annotations": {annotation: value}}});
    accounts.patch("default", &Default::default(), &kube::api::Patch::Merge(&patch)).await.expect("annotated");
}

/// Runs all cases against one store, one after the other: a fault of one must not meet another.
async fn conforms(subject: impl Subject + 'static) {
    let bench = Bench::set(Box::new(subject)).await;
    let by_pods = if bench.subject.by_pods() { ", as each pod" } else { "" };
    let mut table = format!("conformance of {}{by_pods}:", bench.subject.kind());
    let mut failed = Vec::new();
    for (name, case) in cases::ALL {
        let outcome = std::panic::AssertUnwindSafe(case(&bench)).catch_unwind().await;
        let shown = match outcome {
            Ok(Ok(())) => "ok".to_owned(),
            Ok(Err(Skipped(reason))) => format!("skipped: {reason}"),
            Err(_) => {
                failed.push(*name);
                "FAILED".to_owned()
            }
        };
        table.push_str(&format!("\n  {name:<24}{shown}"));
    }
    say(&table);
    bench.assert_no_value_anywhere().await;
    assert!(failed.is_empty(), "{}: {failed:?}; each one's message is above", bench.subject.kind());
}
