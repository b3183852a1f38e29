//! What is Key Vault's own: logins, its wish to be left alone, and the way there by a proxy. The vault is a double.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::support::agent::AgentBuilder;
use crate::support::azure::{CLIENT, CLIENT_SECRET, KeyVault, LOGIN_HOST, MANAGED_IDENTITY, TENANT, TOKEN};
use crate::support::front::Fault;
use crate::support::scene::Scene;
use crate::support::unique;

struct Vaulted {
    vault: KeyVault,
    scene: Scene,
}

impl Vaulted {
    async fn set(vault: KeyVault, auth: impl FnOnce(&AgentBuilder) -> Value) -> Self {
        Self::set_in(vault, &[], auth).await
    }

    /// With more in the environment.
    async fn set_in(vault: KeyVault, more: &[(&str, String)], auth: impl FnOnce(&AgentBuilder) -> Value) -> Self {
        let scene = Scene::set_with(|builder| {
            let kind = "azure-keyvault";
            let instance = json!({"name": kind, "kind": kind, "vaultUrl": vault.url(), "auth": auth(&builder)});
            let builder = builder.providers(&json!({"providers": [instance]}).to_string());
            let environment = vault.environment();
            environment.iter().chain(more).fold(builder, |builder, (name, value)| builder.env(name, value))
        })
        .await;
        Self { vault, scene }
    }

    fn seed(&self, value: &str) -> String {
        let name = unique("app");
        self.vault.put(&name, value);
        name
    }

    async fn ask(&self, path: &str, secret: &str) -> Pod {
        let request = json!({"provider": "azure-keyvault", "path": path, "secretName": secret});
        self.scene.pod(secret).request(&request.to_string()).create().await
    }

    async fn served(&self, secret: &str, value: &str) {
        self.scene.namespace.wait_for_data(secret, [("value", value)]).await;
    }

    async fn told(&self, pod: &Pod) -> String {
        self.scene.namespace.wait_for_event(pod, "SecretFetchFailed").await.note.unwrap_or_default()
    }
}

fn write(builder: &AgentBuilder, name: &str, text: &str) -> PathBuf {
    let file = builder.node().folder().join(name);
    std::fs::write(&file, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    file
}

fn client_secret(builder: &AgentBuilder, text: &str) -> Value {
    let file = write(builder, "client-secret", text);
    json!({"clientSecret": {"tenantId": TENANT, "clientId": CLIENT, "secretFile": file}})
}

#[tokio::test]
async fn a_workload_identity_shows_the_token_that_its_file_holds_then() {
    let vault = KeyVault::start();
    // As long as the SDK's own margin: each read wants a new one.
    vault.set_token_lifetime(Duration::from_secs(60));
    let vaulted = Vaulted::set(vault, |builder| {
        let file = write(builder, "azure-token", "federated-1");
        json!({"workloadIdentity": {"tenantId": TENANT, "clientId": CLIENT, "tokenFile": file}})
    })
    .await;
    let file = vaulted.scene.builder.node().folder().join("azure-token");
    vaulted.vault.trust(&file);
    let name = vaulted.seed("1");
    vaulted.ask(&name, "one").await;
    vaulted.served("one", "1").await;
    std::fs::write(&file, "federated-2").expect("a new token");
    let name = vaulted.seed("2");
    vaulted.ask(&name, "two").await;
    vaulted.served("two", "2").await;
}

/// The proxy is none of its business: that would see the request, or answer with an identity of its own.
#[tokio::test]
async fn a_managed_identity_is_asked_of_the_machine_and_by_no_proxy() {
    let vault = KeyVault::start();
    vault.serve_managed_identity(CLIENT);
    let endpoint = vault.identity_endpoint();
    let vaulted = Vaulted::set_in(vault, &endpoint, |_| json!({"managedIdentity": {"clientId": CLIENT}})).await;
    let name = vaulted.seed("1");
    vaulted.ask(&name, "one").await;
    vaulted.served("one", "1").await;
    assert!(vaulted.vault.calls(MANAGED_IDENTITY) > 0);
    assert_eq!(vaulted.vault.proxy().hosts(), [vaulted.vault.host()]);
}

#[tokio::test]
async fn a_secret_that_is_wrong_says_so_in_whatever_form_and_is_read_again() {
    for long in [false, true] {
        let vault = KeyVault::start();
        if long {
            vault.use_long_login_errors();
        }
        let vaulted = Vaulted::set(vault, |builder| client_secret(builder, "not this one")).await;
        let name = vaulted.seed("1");
        let pod = vaulted.ask(&name, "app").await;
        let told = vaulted.told(&pod).await;
        assert!(told.contains("no valid credentials") && told.contains("holds a valid secret of client"), "{told}");
        write(&vaulted.scene.builder, "client-secret", CLIENT_SECRET);
        vaulted.served("app", "1").await;
    }
}

#[tokio::test]
async fn a_login_that_is_down_is_no_wrong_secret() {
    let vault = KeyVault::start();
    vault.fail(TOKEN, Fault::Status(503));
    let vaulted = Vaulted::set(vault, |builder| client_secret(builder, CLIENT_SECRET)).await;
    let name = vaulted.seed("1");
    let pod = vaulted.ask(&name, "app").await;
    let told = vaulted.told(&pod).await;
    assert!(told.contains("did not answer"), "{told}");
    vaulted.vault.heal(TOKEN);
    vaulted.served("app", "1").await;
}

#[tokio::test]
async fn a_vault_that_wants_to_be_left_alone_is_by_all() {
    let vaulted = Vaulted::set(KeyVault::start(), |builder| client_secret(builder, CLIENT_SECRET)).await;
    let (first, second) = (vaulted.seed("1"), vaulted.seed("2"));
    vaulted.vault.fail_times(&first, 1, Fault::RetryAfter(Duration::from_secs(8)));
    let pod = vaulted.ask(&first, "one").await;
    let told = vaulted.told(&pod).await;
    let throttled = Instant::now();
    assert!(told.contains("throttles requests"), "{told}");
    vaulted.ask(&second, "two").await;
    vaulted.served("two", "2").await;
    // The Event comes behind the answer.
    assert!(throttled.elapsed() > Duration::from_secs(4), "asked after {:?}", throttled.elapsed());
    vaulted.served("one", "1").await;
    assert_eq!((vaulted.vault.calls(&first), vaulted.vault.calls(&second)), (2, 1), "and then once each");
}

#[tokio::test]
async fn all_requests_go_by_the_proxy_and_under_the_real_names() {
    let vaulted = Vaulted::set(KeyVault::start(), |builder| client_secret(builder, CLIENT_SECRET)).await;
    let name = vaulted.seed("1");
    vaulted.ask(&name, "app").await;
    vaulted.served("app", "1").await;
    let mut hosts = vaulted.vault.proxy().hosts();
    hosts.sort();
    let mut wanted = [vaulted.vault.host(), LOGIN_HOST.to_owned()];
    wanted.sort();
    assert_eq!(hosts, wanted, "and what is in NO_PROXY does not");
}

/// Key Vault takes no note of case, and policy does: what no rule names in this very form is not asked for.
#[tokio::test]
async fn policy_sees_the_name_in_the_form_that_is_sent() {
    let vaulted = Vaulted::set(KeyVault::start(), |builder| client_secret(builder, CLIENT_SECRET)).await;
    let name = vaulted.seed("1");
    let rule =
        |path: &str| format!("{{namespaces: ['*'], serviceAccounts: ['*'], providers: ['*'], paths: ['{path}']}}");
    vaulted.scene.builder.write_policy(&format!("rules: [{}, {}]", rule(&name), rule("another")));
    vaulted
        .scene
        .wait_for_log("the new policy", |line| line["message"] == "policy in force" && line["rules"] == 2)
        .await;
    let upper = name.to_uppercase();
    let pod = vaulted.ask(&upper, "upper").await;
    vaulted.scene.namespace.wait_for_event(&pod, "PolicyDenied").await;
    assert_eq!(vaulted.vault.calls(&upper), 0);
}
