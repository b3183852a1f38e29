//! Secrets Manager and Parameter Store: the emulator, with credentials as EKS Pod Identity gives them.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Faults, Outcome, Skipped, Subject, WrongCredentials, conforms, let_in};
use crate::support::agent::AgentBuilder;
use crate::support::cluster::TestNamespace;
use crate::support::front::Fault;
use crate::support::store::{GET, GET_PARAMETERS, Store};
use crate::support::surroundings::Surroundings;
use crate::support::unique;

const LIFETIME: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn aws_secrets_manager() {
    conforms(SecretsManager(Aws::start(false).await)).await;
}

#[tokio::test]
async fn aws_parameter_store() {
    conforms(ParameterStore(Aws::start(false).await)).await;
}

#[tokio::test]
async fn aws_secrets_manager_as_each_pod() {
    conforms(SecretsManager(Aws::start(true).await)).await;
}

#[tokio::test]
async fn aws_parameter_store_as_each_pod() {
    conforms(ParameterStore(Aws::start(true).await)).await;
}

/// The role of the account `default`.
const ROLE: &str = "arn:aws:iam::123456789012:role/case";

struct Aws {
    store: Store,
    token_file: OnceLock<PathBuf>,
    by_pods: bool,
}

impl Aws {
    async fn start(by_pods: bool) -> Self {
        let surroundings = if by_pods { Surroundings::pod_identity().await } else { Surroundings::get().await };
        Self { store: Store::start(surroundings).await, token_file: OnceLock::new(), by_pods }
    }

    async fn let_in(&self, namespace: &TestNamespace) {
        if self.by_pods {
            self.store.trust(ROLE, &format!("system:serviceaccount:{}:default", namespace.name()));
            let_in(namespace, "eks.amazonaws.com/role-arn", ROLE).await;
        }
    }

    fn set_up(&self, kind: &str, builder: AgentBuilder) -> AgentBuilder {
        if self.by_pods {
            self.store.trust("unused", "unused");
            let instance =
                json!({"name": kind, "kind": kind, "region": "us-east-1", "allowInsecure": true, "identity": "pod"});
            let builder = builder.without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY");
            let builder = builder.providers(&json!({"providers": [instance]}).to_string());
            return builder.env("AWS_ENDPOINT_URL", self.store.url());
        }
        let file = self.token_file.get_or_init(|| builder.node().folder().join("aws-token"));
        std::fs::write(file, "token-1").expect("a token file");
        self.store.serve_pod_identity(file, "ASIAFIRST", LIFETIME);
        let builder = builder.without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY");
        let instance = json!({"name": kind, "kind": kind, "region": "us-east-1", "allowInsecure": true});
        builder
            .providers(&json!({"providers": [instance]}).to_string())
            .env("AWS_ENDPOINT_URL", self.store.url())
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &self.store.pod_identity_url())
            .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &file.display().to_string())
    }

    fn allow(&self, path: &str, allowed: bool) {
        match allowed {
            true => self.store.heal(path),
            false => self.store.fail(path, Fault::AccessDenied),
        }
    }

    /// The emulator takes any key, so that the refusal of the old ones is made: once, for all that is asked.
    fn rotate(&self, action: &str) {
        if let Some(file) = self.token_file.get() {
            std::fs::write(file, "token-2").expect("a new token");
            self.store.serve_pod_identity(file, "ASIASECOND", LIFETIME);
        }
        self.store.fail_times(action, 1, Fault::Status(401));
    }

    fn wrong_credentials(&self) -> WrongCredentials {
        let remedy = if self.by_pods { "trust policy allows" } else { "Pod Identity association" };
        WrongCredentials { fault: Some(Fault::Status(401)), remedy }
    }
}

struct SecretsManager(Aws);

#[async_trait(?Send)]
impl Subject for SecretsManager {
    fn kind(&self) -> &'static str {
        "aws-secretsmanager"
    }

    fn by_pods(&self) -> bool {
        self.0.by_pods
    }

    async fn let_in(&self, namespace: &TestNamespace) {
        self.0.let_in(namespace).await;
    }

    async fn set_up(&self, builder: AgentBuilder) -> AgentBuilder {
        self.0.set_up(self.kind(), builder)
    }

    fn path(&self) -> String {
        unique("/prod/case")
    }

    fn largest(&self) -> usize {
        64 * 1024
    }

    async fn put(&self, path: &str, value: &Value) -> String {
        format!("uuid/{}", self.0.store.put(path, &value.to_string()).await)
    }

    async fn put_bytes(&self, path: &str, bytes: &[u8]) -> Outcome {
        self.0.store.put_binary(path, bytes).await;
        Ok(())
    }

    async fn delete(&self, path: &str) -> &'static str {
        self.0.store.delete(path).await;
        "has no secret"
    }

    async fn unreadable(&self) -> Result<Vec<(String, &'static str)>, Skipped> {
        let path = self.path();
        self.0.store.put(&path, "{}").await;
        self.0.store.fail(&path, Fault::PendingDeletion);
        Ok(vec![(path, "deletion scheduled?")])
    }

    async fn allow(&self, path: &str, allowed: bool) -> Outcome {
        self.0.allow(path, allowed);
        Ok(())
    }

    async fn rotate(&self) -> Outcome {
        self.0.rotate(GET);
        Ok(())
    }

    fn wrong_credentials(&self) -> Result<WrongCredentials, Skipped> {
        Ok(self.0.wrong_credentials())
    }

    fn faults(&self) -> Result<&dyn Faults, Skipped> {
        Ok(&*self.0.store)
    }
}

struct ParameterStore(Aws);

#[async_trait(?Send)]
impl Subject for ParameterStore {
    fn kind(&self) -> &'static str {
        "aws-ssm"
    }

    fn by_pods(&self) -> bool {
        self.0.by_pods
    }

    async fn let_in(&self, namespace: &TestNamespace) {
        self.0.let_in(namespace).await;
    }

    async fn set_up(&self, builder: AgentBuilder) -> AgentBuilder {
        self.0.set_up(self.kind(), builder)
    }

    fn path(&self) -> String {
        unique("/prod/case")
    }

    fn largest(&self) -> usize {
        8 * 1024
    }

    /// A parameter is one key unless that is asked for.
    fn fields(&self) -> Value {
        json!({"format": "json"})
    }

    async fn put(&self, path: &str, value: &Value) -> String {
        self.0.store.put_parameter(path, &value.to_string(), "SecureString").await.to_string()
    }

    async fn put_bytes(&self, _: &str, _: &[u8]) -> Outcome {
        Err(Skipped("a parameter is text"))
    }

    async fn delete(&self, path: &str) -> &'static str {
        self.0.store.delete_parameter(path).await;
        "has no secret"
    }

    async fn unreadable(&self) -> Result<Vec<(String, &'static str)>, Skipped> {
        Err(Skipped("a parameter is there, or not"))
    }

    async fn allow(&self, path: &str, allowed: bool) -> Outcome {
        self.0.allow(path, allowed);
        Ok(())
    }

    async fn rotate(&self) -> Outcome {
        self.0.rotate(GET_PARAMETERS);
        Ok(())
    }

    fn wrong_credentials(&self) -> Result<WrongCredentials, Skipped> {
        Ok(self.0.wrong_credentials())
    }

    fn faults(&self) -> Result<&dyn Faults, Skipped> {
        Ok(&*self.0.store)
    }
}
