//! The real Vault core, with Kubernetes logins that the test's API server reviews.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Faults, Outcome, Skipped, Subject, WrongCredentials, conforms};
use crate::support::agent::AgentBuilder;
use crate::support::surroundings::Surroundings;
use crate::support::unique;
use crate::support::vault::{AUDIENCE, PODS, ROLE, Vault};

#[tokio::test]
async fn vault() {
    conforms(KeyValue(Vault::start(Surroundings::get().await).await, false)).await;
}

#[tokio::test]
async fn vault_as_each_pod() {
    conforms(KeyValue(Vault::start(Surroundings::pod_identity().await).await, true)).await;
}

/// The engine's version 2; whether pods log in as themselves.
struct KeyValue(Vault, bool);

#[async_trait(?Send)]
impl Subject for KeyValue {
    fn kind(&self) -> &'static str {
        "vault"
    }

    fn by_pods(&self) -> bool {
        self.1
    }

    async fn set_up(&self, builder: AgentBuilder) -> AgentBuilder {
        if self.1 {
            let instance = |name: &str, role: &str| {
                let auth = json!({"kubernetes": {"role": role}});
                let address = self.0.url();
                json!({"name": name, "kind": "vault", "address": address, "allowInsecure": true, "identity": "pod", "auth": auth})
            };
            let both = json!({"providers": [instance("vault", PODS), instance("wrong", "nobodys")]});
            return builder.providers(&both.to_string());
        }
        let token = builder.node().token_file_for(Surroundings::get().await, AUDIENCE).await;
        let secret_id = builder.node().folder().join("secret-id");
        std::fs::write(&secret_id, "no secret id of Vault's").expect("a file");
        let role_id = self.0.approle().await.role_id;
        let instance = |name: &str, auth: Value| {
            let address = self.0.url();
            json!({"name": name, "kind": "vault", "address": address, "allowInsecure": true, "auth": auth})
        };
        let right = instance("vault", json!({"kubernetes": {"role": ROLE, "tokenFile": token}}));
        let wrong = instance("wrong", json!({"appRole": {"roleId": role_id, "secretIdFile": secret_id}}));
        builder.providers(&json!({"providers": [right, wrong]}).to_string())
    }

    fn path(&self) -> String {
        unique("prod/case")
    }

    fn largest(&self) -> usize {
        512 * 1024
    }

    async fn put(&self, path: &str, value: &Value) -> String {
        self.0.put(path, value.clone()).await.to_string()
    }

    async fn put_bytes(&self, _: &str, _: &[u8]) -> Outcome {
        Err(Skipped("a value in Vault is JSON"))
    }

    async fn delete(&self, path: &str) -> &'static str {
        self.0.delete_version(path).await;
        "the version is deleted"
    }

    async fn unreadable(&self) -> Result<Vec<(String, &'static str)>, Skipped> {
        let path = self.path();
        let version = self.0.put(&path, json!({"K": "gone"})).await;
        self.0.destroy_version(&path, version).await;
        Ok(vec![(path, "the version is destroyed")])
    }

    async fn allow(&self, path: &str, allowed: bool) -> Outcome {
        match allowed {
            true => self.0.allow(path).await,
            false => self.0.deny(path).await,
        }
        Ok(())
    }

    async fn rotate(&self) -> Outcome {
        self.0.revoke_tokens().await;
        Ok(())
    }

    fn wrong_credentials(&self) -> Result<WrongCredentials, Skipped> {
        let remedy = if self.1 { "that it is bound to" } else { "check `roleId`" };
        Ok(WrongCredentials { fault: None, remedy })
    }

    fn faults(&self) -> Result<&dyn Faults, Skipped> {
        Ok(&*self.0)
    }
}
