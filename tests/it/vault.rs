//! What is Vault's own: logins and their end, sealing, rights that change, both versions of the engine.

use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::support::agent::AgentBuilder;
use crate::support::front::Fault;
use crate::support::node::AgentNode;
use crate::support::scene::{Scene, later_than};
use crate::support::surroundings::Surroundings;
use crate::support::unique;
use crate::support::vault::{AUDIENCE, KV1, LOGIN, MOUNT, RENEW, ROLE, Vault};
use crate::support::wait::eventually;

/// A scene whose agent has one instance, `vault`.
struct Vaulted {
    vault: Vault,
    scene: Scene,
}

impl Vaulted {
    /// Logs in by Kubernetes.
    async fn set(settings: Value) -> Self {
        Self::set_with(Vault::start(Surroundings::get().await).await, settings).await
    }

    async fn set_with(vault: Vault, settings: Value) -> Self {
        let surroundings = Surroundings::get().await;
        let node = AgentNode::create(surroundings).await;
        let token = node.token_file_for(surroundings, AUDIENCE).await;
        let kubernetes = json!({"kubernetes": {"role": ROLE, "tokenFile": token}});
        let providers = providers(&vault, &kubernetes, settings);
        let scene = Scene::set_on(node, |builder, _| builder.providers(&providers)).await;
        Self { vault, scene }
    }

    async fn ask(&self, path: &str, secret: &str) -> Pod {
        let request = json!({"provider": "vault", "path": path, "secretName": secret});
        self.scene.pod(secret).request(&request.to_string()).create().await
    }

    async fn served(&self, secret: &str, value: &str) {
        self.scene.namespace.wait_for_data(secret, [("K", value)]).await;
    }
}

fn providers(vault: &Vault, auth: &Value, settings: Value) -> String {
    let mut instance =
        json!({"name": "vault", "kind": "vault", "address": vault.url(), "allowInsecure": true, "auth": auth});
    for (field, value) in settings.as_object().into_iter().flatten() {
        instance[field] = value.clone();
    }
    json!({"providers": [instance]}).to_string()
}

/// Tokens of four seconds: each is renewed or replaced while pods ask.
#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_a_burst_is_nobodys_failure() {
    let vault = Vault::start(Surroundings::get().await).await;
    vault.set_token_ttl(Duration::from_secs(4)).await;
    let vaulted = Vaulted::set_with(vault, json!({})).await;
    let burst = async |round: usize| {
        let names: Vec<String> = (0..15).map(|number| format!("burst-{round}-{number}")).collect();
        let paths = join_all(names.iter().map(|name| vaulted.vault.seed("burst", json!({"K": name})))).await;
        let pods = join_all(names.iter().zip(&paths).map(|(name, path)| vaulted.ask(path, name))).await;
        for (name, pod) in names.iter().zip(&pods) {
            vaulted.served(name, name).await;
            vaulted.scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
            assert_eq!(vaulted.scene.namespace.events(pod).await.len(), 1, "{name} is told of no failure");
        }
    };
    burst(0).await;
    vaulted.vault.wait_for_calls(RENEW, 2).await;
    burst(1).await;
    vaulted.vault.set_token_ttl(Duration::from_secs(3600)).await;
    let renewals = vaulted.vault.calls(RENEW);
    vaulted.vault.wait_for_calls(RENEW, renewals + 1).await;
    // All at once: as when somebody revokes them, or the server comes back from an old state.
    let logins = vaulted.vault.calls(LOGIN);
    vaulted.vault.revoke_tokens().await;
    burst(2).await;
    assert_eq!(vaulted.vault.calls(LOGIN), logins + 1, "the first one who is refused logs in for all");
}

#[tokio::test]
async fn a_sealed_vault_is_waited_for_and_nothing_is_lost() {
    let vaulted = Vaulted::set(json!({})).await;
    let before = vaulted.vault.seed("before", json!({"K": "1"})).await;
    let after = vaulted.vault.seed("after", json!({"K": "2"})).await;
    vaulted.ask(&before, "before").await;
    vaulted.served("before", "1").await;
    vaulted.vault.seal().await;
    let pod = vaulted.ask(&after, "after").await;
    let told = vaulted.scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(told.contains("did not answer"), "{told}");
    vaulted.served("before", "1").await;
    vaulted.vault.unseal().await;
    vaulted.served("after", "2").await;
}

#[tokio::test]
async fn a_policy_that_denies_says_what_to_grant_and_a_change_back_needs_no_restart() {
    let vaulted = Vaulted::set(json!({})).await;
    let path = vaulted.vault.seed("prod/app", json!({"K": "1"})).await;
    vaulted.ask(&path, "app").await;
    let written = vaulted.scene.namespace.wait_for_data("app", [("K", "1")]).await;
    vaulted.vault.deny(&path).await;
    later_than(&written).await;
    let pod = vaulted.ask_again(&path, "app").await;
    let told = vaulted.scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    let wanted = format!("path \"secret/data/{path}\" {{ capabilities = [\"read\"] }}");
    assert!(told.contains(&wanted) && told.contains("role jasm of auth/kubernetes"), "{told}");
    vaulted.served("app", "1").await;
    vaulted.vault.allow(&path).await;
    vaulted.vault.put(&path, json!({"K": "2"})).await;
    vaulted.next_second().await;
    vaulted.ask_again(&path, "app").await;
    vaulted.served("app", "2").await;
}

impl Vaulted {
    /// By another pod.
    async fn ask_again(&self, path: &str, secret: &str) -> Pod {
        let request = json!({"provider": "vault", "path": path, "secretName": secret});
        self.scene.pod(&unique(secret)).request(&request.to_string()).create().await
    }

    /// Pods that come after it are newer, and a token that was got before it is no longer young.
    async fn next_second(&self) {
        let start = Timestamp::now();
        eventually("a second to pass", async || {
            let passed = Timestamp::now().duration_since(start);
            if passed.as_millis() > 1000 { Ok(()) } else { Err(format!("{passed:?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn values_keep_their_json_types_as_they_are_written() {
    let vaulted = Vaulted::set(json!({})).await;
    let value = json!({"text": "a\nb", "number": 5432, "yes": true, "none": null, "more": {"a": [1, 2]}});
    let path = vaulted.vault.seed("types", value).await;
    vaulted.ask(&path, "types").await;
    let wanted = [("text", "a\nb"), ("number", "5432"), ("yes", "true"), ("none", ""), ("more", r#"{"a":[1,2]}"#)];
    vaulted.scene.namespace.wait_for_data("types", wanted).await;
}

#[tokio::test]
async fn the_version_of_the_engine_is_found_out_once_or_set() {
    for settings in [json!({"mount": KV1}), json!({"mount": KV1, "kvVersion": 1})] {
        let found_out = settings.get("kvVersion").is_none();
        let vaulted = Vaulted::set(settings).await;
        for name in ["one", "two"] {
            let path = unique("v1/app");
            vaulted.vault.put_v1(&path, json!({"K": name})).await;
            vaulted.ask(&path, name).await;
            vaulted.served(name, name).await;
        }
        assert_eq!(vaulted.vault.calls(MOUNT), usize::from(found_out), "asked once, where it is not set");
        let request = json!({"provider": "vault", "path": "v1/app", "secretName": "pinned", "version": "1"});
        let pod = vaulted.scene.pod("pinned").request(&request.to_string()).create().await;
        let told = vaulted.scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
        assert!(told.contains("KV version 1, which has no versions"), "{told}");
    }
}

#[tokio::test]
async fn each_request_names_the_namespace_of_the_instance() {
    let vaulted = Vaulted::set(json!({"namespace": "team-a"})).await;
    let path = vaulted.vault.seed("app", json!({"K": "1"})).await;
    vaulted.ask(&path, "app").await;
    vaulted.served("app", "1").await;
    for key in [LOGIN, MOUNT, path.as_str()] {
        let named = vaulted.vault.namespaces(key);
        assert!(!named.is_empty() && named.iter().all(|name| name == "team-a"), "{key}: {named:?}");
    }
}

#[tokio::test]
async fn an_app_role_logs_in_with_the_secret_id_that_its_file_holds_then() {
    let vault = Vault::start(Surroundings::get().await).await;
    let first = vault.approle().await;
    let scene = Scene::set_with(|builder| {
        let file = write(&builder, "secret-id", &format!("{}\n", first.secret_id));
        let auth = json!({"appRole": {"roleId": first.role_id, "secretIdFile": file}});
        builder.providers(&providers(&vault, &auth, json!({})))
    })
    .await;
    let vaulted = Vaulted { vault, scene };
    let path = vaulted.vault.seed("one", json!({"K": "1"})).await;
    vaulted.ask(&path, "one").await;
    vaulted.served("one", "1").await;
    let second = vaulted.vault.approle().await;
    write(&vaulted.scene.builder, "secret-id", &second.secret_id);
    vaulted.next_second().await;
    vaulted.vault.revoke_tokens().await;
    let path = vaulted.vault.seed("two", json!({"K": "2"})).await;
    vaulted.ask(&path, "two").await;
    vaulted.served("two", "2").await;
}

#[tokio::test]
async fn a_token_file_is_read_at_each_use_and_nobody_logs_in() {
    let vault = Vault::start(Surroundings::get().await).await;
    let hour = Duration::from_secs(3600);
    let first = vault.token(hour, &[ROLE]).await;
    let scene = Scene::set_with(|builder| {
        let file = write(&builder, "vault-token", &first);
        builder.providers(&providers(&vault, &json!({"tokenFile": file}), json!({})))
    })
    .await;
    let vaulted = Vaulted { vault, scene };
    let mut token = first;
    for name in ["one", "two"] {
        let path = vaulted.vault.seed(name, json!({"K": name})).await;
        vaulted.ask(&path, name).await;
        vaulted.served(name, name).await;
        let used = vaulted.vault.credentials(&path);
        assert!(used.iter().all(|used| *used == token), "{name}: the token that the file holds");
        token = vaulted.vault.token(hour, &[ROLE]).await;
        write(&vaulted.scene.builder, "vault-token", &token);
    }
    assert_eq!(vaulted.vault.calls(LOGIN), 0);
}

#[tokio::test]
async fn a_role_that_vault_does_not_have_says_what_to_look_at() {
    let vaulted = Vaulted::set(json!({"auth": {"kubernetes": {"role": "nobody"}}})).await;
    let pod = vaulted.ask("app", "app").await;
    let told = vaulted.scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(told.contains("no valid credentials") && told.contains("auth/kubernetes"), "{told}");
}

fn write(builder: &AgentBuilder, name: &str, text: &str) -> PathBuf {
    let file = builder.node().folder().join(name);
    std::fs::write(&file, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    file
}

#[tokio::test]
async fn a_dead_token_in_a_file_is_no_missing_right() {
    let vault = Vault::start(Surroundings::get().await).await;
    let scene = Scene::set_with(|builder| {
        let file = write(&builder, "vault-token", "no token of Vault's");
        builder.providers(&providers(&vault, &json!({"tokenFile": file}), json!({})))
    })
    .await;
    let vaulted = Vaulted { vault, scene };
    let path = vaulted.vault.seed("app", json!({"K": "1"})).await;
    let pod = vaulted.ask(&path, "app").await;
    let told = vaulted.scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(told.contains("no valid credentials") && told.contains("holds a token that Vault takes"), "{told}");
    let token = vaulted.vault.token(Duration::from_secs(3600), &[ROLE]).await;
    write(&vaulted.scene.builder, "vault-token", &token);
    vaulted.served("app", "1").await;
}

/// Five refusals within a quarter of an hour lock the role for everybody.
#[tokio::test]
async fn a_secret_id_that_was_refused_is_not_shown_again_and_another_one_at_once() {
    let vault = Vault::start(Surroundings::get().await).await;
    let role = vault.approle().await;
    let scene = Scene::set_with(|builder| {
        let file = write(&builder, "secret-id", "no secret id of Vault's");
        let auth = json!({"appRole": {"roleId": role.role_id, "secretIdFile": file}});
        builder.providers(&providers(&vault, &auth, json!({})))
    })
    .await;
    let vaulted = Vaulted { vault, scene };
    let paths = join_all((0..5).map(|_| vaulted.vault.seed("app", json!({"K": "1"})))).await;
    for (number, path) in paths.iter().enumerate() {
        let pod = vaulted.ask(path, &format!("app-{number}")).await;
        vaulted.scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    }
    // The one of the start, and the one more that there may be after ten seconds.
    let refused = vaulted.vault.calls(LOGIN);
    assert!((1..=2).contains(&refused), "{refused} logins with what was refused");
    write(&vaulted.scene.builder, "secret-id", &role.secret_id);
    for number in 0..paths.len() {
        vaulted.served(&format!("app-{number}"), "1").await;
    }
    assert_eq!(vaulted.vault.calls(LOGIN), refused + 1);
}

#[tokio::test]
async fn what_stands_in_front_of_vault_says_nothing_about_a_secret() {
    let vaulted = Vaulted::set(json!({})).await;
    let path = vaulted.vault.seed("app", json!({"K": "1"})).await;
    vaulted.vault.fail_times(&path, 1, Fault::Status(404));
    let pod = vaulted.ask(&path, "app").await;
    let told = vaulted.scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(told.contains("did not answer"), "{told}");
    vaulted.served("app", "1").await;
}
