//! A double of Azure Key Vault under its real host names, by way of a proxy and TLS.

use std::path::PathBuf;
use std::sync::OnceLock;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Faults, Outcome, Skipped, Subject, WrongCredentials, conforms, let_in};
use crate::support::agent::AgentBuilder;
use crate::support::azure::{CLIENT, CLIENT_SECRET, KeyVault, TENANT};
use crate::support::cluster::TestNamespace;
use crate::support::front::Fault;
use crate::support::unique;

#[tokio::test]
async fn azure_key_vault() {
    conforms(Secrets { vault: KeyVault::start(), by_pods: false, secret_file: OnceLock::new() }).await;
}

#[tokio::test]
async fn azure_key_vault_as_each_pod() {
    conforms(Secrets { vault: KeyVault::start(), by_pods: true, secret_file: OnceLock::new() }).await;
}

struct Secrets {
    vault: KeyVault,
    by_pods: bool,
    secret_file: OnceLock<PathBuf>,
}

#[async_trait(?Send)]
impl Subject for Secrets {
    fn kind(&self) -> &'static str {
        "azure-keyvault"
    }

    fn by_pods(&self) -> bool {
        self.by_pods
    }

    async fn let_in(&self, namespace: &TestNamespace) {
        if self.by_pods {
            self.vault.trust_subject(&format!("system:serviceaccount:{}:default", namespace.name()));
            let_in(namespace, "azure.workload.identity/client-id", CLIENT).await;
        }
    }

    async fn set_up(&self, builder: AgentBuilder) -> AgentBuilder {
        if self.by_pods {
            let instance = |name: &str, tenant: &str| {
                let auth = json!({"workloadIdentity": {"tenantId": tenant}});
                json!({"name": name, "kind": "azure-keyvault", "vaultUrl": self.vault.url(), "identity": "pod", "auth": auth})
            };
            let other = "c11e47aa-0000-4000-8000-00000000000c";
            let both = json!({"providers": [instance("azure-keyvault", TENANT), instance("wrong", other)]});
            let builder = builder.providers(&both.to_string());
            return self.vault.environment().iter().fold(builder, |builder, (name, value)| builder.env(name, value));
        }
        let file = |name: &str, text: &str| {
            let file = builder.node().folder().join(name);
            std::fs::write(&file, text).expect("a file");
            file
        };
        let right = self.secret_file.get_or_init(|| file("client-secret", CLIENT_SECRET));
        let wrong = file("wrong-secret", "no secret of this client");
        let instance = |name: &str, secret_file: &PathBuf| {
            let auth = json!({"clientSecret": {"tenantId": TENANT, "clientId": CLIENT, "secretFile": secret_file}});
            json!({"name": name, "kind": "azure-keyvault", "vaultUrl": self.vault.url(), "auth": auth})
        };
        let providers = json!({"providers": [instance("azure-keyvault", right), instance("wrong", &wrong)]});
        let builder = builder.providers(&providers.to_string());
        self.vault.environment().iter().fold(builder, |builder, (name, value)| builder.env(name, value))
    }

    fn path(&self) -> String {
        unique("case")
    }

    fn largest(&self) -> usize {
        25 * 1024
    }

    async fn put(&self, path: &str, value: &Value) -> String {
        self.vault.put(path, &value.to_string())
    }

    async fn put_bytes(&self, _: &str, _: &[u8]) -> Outcome {
        Err(Skipped("a value in Key Vault is text"))
    }

    async fn delete(&self, path: &str) -> &'static str {
        self.vault.delete(path);
        "has no secret"
    }

    async fn unreadable(&self) -> Result<Vec<(String, &'static str)>, Skipped> {
        let path = self.path();
        self.vault.put(&path, "{}");
        self.vault.disable(&path);
        Ok(vec![(path, "it is disabled")])
    }

    async fn allow(&self, path: &str, allowed: bool) -> Outcome {
        match allowed {
            true => self.vault.heal(path),
            false => self.vault.fail(path, Fault::AccessDenied),
        }
        Ok(())
    }

    async fn rotate(&self) -> Outcome {
        if let Some(file) = self.secret_file.get() {
            self.vault.set_secret("another-secret");
            std::fs::write(file, "another-secret").expect("a new secret");
        }
        self.vault.expire_tokens();
        Ok(())
    }

    fn wrong_credentials(&self) -> Result<WrongCredentials, Skipped> {
        let remedy = if self.by_pods { "has a federated credential" } else { "holds a valid secret of client" };
        Ok(WrongCredentials { fault: None, remedy })
    }

    fn faults(&self) -> Result<&dyn Faults, Skipped> {
        Ok(&*self.vault)
    }
}
