//! What each store itself says of a secret that is gone, and of one that only seems to be.

use std::time::Duration;

use serde_json::{Value, json};

use super::Stage;
use crate::support::azure::{CLIENT, CLIENT_SECRET, KeyVault, TENANT};
use crate::support::surroundings::Surroundings;
use crate::support::unique;
use crate::support::vault::{ROLE, Vault};

/// All stores at once, each with a source that is there, so that its word is believed.
#[tokio::test]
async fn only_what_is_gone_for_the_store_itself_goes() {
    let surroundings = Surroundings::central().await;
    let (vault, azure) = (Vault::start(surroundings).await, KeyVault::start());
    let folder = surroundings.folder(&unique("stores"));
    let file = |name: &str, text: &str| {
        let file = folder.join(name);
        std::fs::write(&file, text).expect("a file");
        file
    };
    let token = file("token", &vault.token(Duration::from_secs(600), &[ROLE]).await);
    let client_secret = file("client-secret", CLIENT_SECRET);
    let auth = json!({"clientSecret": {"tenantId": TENANT, "clientId": CLIENT, "secretFile": client_secret}});
    let providers = json!({"providers": [
        {"name": "aws-secretsmanager", "kind": "aws-secretsmanager", "allowInsecure": true},
        {"name": "aws-ssm", "kind": "aws-ssm", "allowInsecure": true},
        {"name": "vault", "kind": "vault", "address": vault.url(), "allowInsecure": true, "auth": {"tokenFile": token}},
        {"name": "azure-keyvault", "kind": "azure-keyvault", "vaultUrl": azure.url(), "auth": auth},
        {"name": "file", "kind": "file", "directory": folder},
    ]});
    let stage = Stage::set_with(providers.to_string(), azure.environment().to_vec()).await;
    let store = &stage.scene.store;
    let asks = async |name: &str, provider: &str, path: &str, more: Value| {
        let mut request = json!({"provider": provider, "path": path, "secretName": name, "kind": "Secret"});
        request.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        stage.scene.pod(name).request(&request.to_string()).create().await;
        stage.scene.namespace.wait_for_secret(name).await;
    };
    let parameter = async |name: &str| {
        let path = unique(&format!("/prod/{name}"));
        store.put_parameter(&path, "x", "SecureString").await;
        path
    };
    let sm = [store.seed("gone", "x").await, store.seed("scheduled", "x").await, store.seed("there", "x").await];
    for (name, path) in ["sm-gone", "sm-scheduled", "sm-there"].iter().zip(&sm) {
        asks(name, "aws-secretsmanager", path, Value::Null).await;
    }
    let ssm = [parameter("gone").await, parameter("there").await, parameter("folder/a").await];
    asks("ssm-gone", "aws-ssm", &ssm[0], Value::Null).await;
    asks("ssm-there", "aws-ssm", &ssm[1], Value::Null).await;
    let (parent, _) = ssm[2].rsplit_once('/').expect("a folder");
    asks("ssm-folder", "aws-ssm", &format!("{parent}/*"), Value::Null).await;
    let mut kv = Vec::new();
    for name in ["vault-gone", "vault-deleted", "vault-destroyed", "vault-there"] {
        let path = vault.seed("prod/case", json!({"A": "1"})).await;
        let version = if name == "vault-destroyed" { json!({"version": "1"}) } else { Value::Null };
        asks(name, "vault", &path, version).await;
        kv.push(path);
    }
    for name in ["akv-gone", "akv-recoverable", "akv-disabled", "akv-there"] {
        azure.put(name, "x");
        asks(name, "azure-keyvault", name, Value::Null).await;
    }
    let app = file("app.json", r#"{"A":"1"}"#);
    file("app-there.json", r#"{"A":"1"}"#);
    asks("file-gone", "file", "app.json", Value::Null).await;
    asks("file-there", "file", "app-there.json", Value::Null).await;
    let gone = ["sm-gone", "ssm-gone", "vault-gone", "akv-gone"];
    let stay = [
        "sm-scheduled",
        "sm-there",
        "ssm-there",
        "ssm-folder",
        "vault-deleted",
        "vault-destroyed",
        "vault-there",
        "akv-recoverable",
        "akv-disabled",
        "akv-there",
        "file-gone",
        "file-there",
    ];
    stage.recorded(&[&gone[..], &stay].concat()).await;

    store.delete(&sm[0]).await;
    store.schedule_deletion(&sm[1]).await;
    store.delete_parameter(&ssm[0]).await;
    store.delete_parameter(&ssm[2]).await;
    vault.delete(&kv[0]).await;
    vault.delete_version(&kv[1]).await;
    vault.destroy_version(&kv[2], 1).await;
    azure.delete("akv-gone");
    azure.purge("akv-gone");
    azure.delete("akv-recoverable");
    azure.disable("akv-disabled");
    std::fs::remove_file(app).expect("removed");

    let janitor = stage.janitor(&[]);
    for name in gone {
        stage.gone(name).await;
    }
    janitor.says(&["its source is gone, and so are its replicas", "azure-keyvault"]).await;
    // Twice as long as what was gone took.
    tokio::time::sleep(Duration::from_secs(10)).await;
    for name in stay {
        assert!(stage.scene.namespace.secret(name).await.is_some(), "{name}: {}", janitor.text());
    }
    assert_eq!(stage.masters().await.len(), stay.len(), "their masters: {}", janitor.text());
}
