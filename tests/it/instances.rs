//! Several instances beside each other, and what one that is down means for the others.

use std::time::Duration;

use serde_json::json;

use crate::support::scene::Scene;
use crate::support::store::Store;
use crate::support::surroundings::Surroundings;
use crate::support::tls::Authority;
use crate::support::unique;
use crate::support::vault::{ROLE, Vault};

/// A port that takes connections and never says a word.
fn black_hole() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    (listener, format!("http://{address}"))
}

#[tokio::test]
async fn one_that_is_down_stops_neither_the_start_nor_the_others() {
    let (_held, silent) = black_hole();
    let scene = Scene::set_with_store(|builder, store| {
        let token = builder.node().folder().join("vault-token");
        std::fs::write(&token, "made-up").expect("a file");
        let vault = |name: &str, address: &str| {
            json!({"name": name, "kind": "vault", "address": address, "allowInsecure": true, "auth": {"tokenFile": token}})
        };
        let kind = "aws-secretsmanager";
        let good = json!({"name": "good", "kind": kind, "region": "us-east-1", "endpoint": store.url(), "allowInsecure": true});
        let all = [vault("silent", &silent), vault("refuses", "http://127.0.0.1:9"), good];
        builder.providers(&json!({"providers": all}).to_string())
    })
    .await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let request = |provider: &str| json!({"provider": provider, "path": path, "secretName": provider}).to_string();
    let pods = [scene.pod("silent").request(&request("silent")), scene.pod("refuses").request(&request("refuses"))];
    let [silent, refuses] = pods;
    let (silent, refuses) = (silent.create().await, refuses.create().await);
    scene.pod("good").request(&request("good")).create().await;
    scene.namespace.wait_for_data("good", [("A", "1")]).await;
    for pod in [&refuses, &silent] {
        let told = scene.namespace.wait_for_event(pod, "SecretFetchFailed").await.note.unwrap_or_default();
        assert!(told.contains("did not answer"), "{told}");
    }
    let risky = scene.wait_for_log("a warning at the start", |line| line["message"] == "not for production").await;
    assert_eq!((&risky["level"], &risky["provider"]), (&json!("WARN"), &json!("silent")));
}

#[tokio::test]
async fn pods_of_one_node_are_served_by_four_stores() {
    let surroundings = Surroundings::get().await;
    let vault = Vault::start(surroundings).await;
    let token = vault.token(Duration::from_secs(3600), &[ROLE]).await;
    let scene = Scene::set_with(|builder| {
        let folder = builder.node().folder().join("files");
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("app.json"), r#"{"A":"file"}"#).expect("a file");
        let file = builder.node().folder().join("vault-token");
        std::fs::write(&file, &token).expect("a file");
        let aws = |kind: &str| json!({"name": kind, "kind": kind, "allowInsecure": true});
        let vault = json!({"name": "vault", "kind": "vault", "address": vault.url(), "allowInsecure": true, "auth": {"tokenFile": file}});
        let files = json!({"name": "file", "kind": "file", "directory": folder});
        builder.providers(&json!({"providers": [aws("aws-secretsmanager"), aws("aws-ssm"), vault, files]}).to_string())
    })
    .await;
    let secret = scene.store.seed("app", r#"{"A":"aws-secretsmanager"}"#).await;
    let parameter = unique("/app");
    scene.store.put_parameter(&format!("{parameter}/A"), "aws-ssm", "SecureString").await;
    let in_vault = vault.seed("app", json!({"A": "vault"})).await;
    let folder = format!("{parameter}/*");
    let asked =
        [("aws-secretsmanager", secret.as_str()), ("aws-ssm", &folder), ("vault", &in_vault), ("file", "app.json")];
    for (provider, path) in asked {
        let request = json!({"provider": provider, "path": path, "secretName": provider}).to_string();
        scene.pod(provider).request(&request).create().await;
    }
    for (provider, _) in asked {
        scene.namespace.wait_for_data(provider, [("A", provider)]).await;
    }
}

#[tokio::test]
async fn two_of_one_kind_are_two_stores() {
    let surroundings = Surroundings::get().await;
    let other = Store::start(surroundings).await;
    let scene = Scene::set_with_store(|builder, store| {
        let instance = |name: &str, region: &str, store: &Store| {
            json!({"name": name, "kind": "aws-ssm", "region": region, "endpoint": store.url(), "allowInsecure": true})
        };
        let both = [instance("ssm-eu", "eu-west-1", store), instance("ssm-us", "us-east-1", &other)];
        builder.providers(&json!({"providers": both}).to_string())
    })
    .await;
    other.put_parameter("/two/of/one/kind", "1", "String").await;
    let request =
        |provider: &str| json!({"provider": provider, "path": "/two/of/one/kind", "secretName": provider}).to_string();
    scene.pod("us").request(&request("ssm-us")).create().await;
    scene.namespace.wait_for_data("ssm-us", [("value", "1")]).await;
    let pod = scene.pod("eu").request(&request("ssm-eu")).create().await;
    let told = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(told.contains("ssm-eu has no secret"), "the region is the instance's: {told}");
}

#[tokio::test]
async fn a_vault_with_a_certificate_of_its_own_is_trusted_by_ca_file_alone() {
    let surroundings = Surroundings::get().await;
    let vault = Vault::start(surroundings).await;
    let authority = Authority::new(&["127.0.0.1"]);
    let tls = vault.with_tls(&authority);
    let token = vault.token(Duration::from_secs(3600), &[ROLE]).await;
    let scene = Scene::set_with(|builder| {
        let file = builder.node().folder().join("vault-token");
        std::fs::write(&file, &token).expect("a file");
        let trusting = json!({"name": "trusting", "kind": "vault", "address": tls.url(), "caFile": authority.file(), "auth": {"tokenFile": file}});
        let wary = json!({"name": "wary", "kind": "vault", "address": tls.url(), "auth": {"tokenFile": file}});
        builder.providers(&json!({"providers": [trusting, wary]}).to_string())
    })
    .await;
    let path = vault.seed("app", json!({"A": "1"})).await;
    let request = |provider: &str| json!({"provider": provider, "path": path, "secretName": provider}).to_string();
    scene.pod("trusting").request(&request("trusting")).create().await;
    scene.namespace.wait_for_data("trusting", [("A", "1")]).await;
    let pod = scene.pod("wary").request(&request("wary")).create().await;
    let told = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(told.contains("did not answer"), "{told}");
    let line = scene.wait_for_log("why", |line| line["pod"] == "wary" && line["outcome"] == "failed").await;
    assert!(line["error"].as_str().is_some_and(|text| text.contains("certificate")), "{line}");
}
