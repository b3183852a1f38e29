//! All that an annotation can ask for.

use serde_json::{Value, json};

use crate::support::scene::Scene;
use crate::support::store::Fault;

/// A request for one secret of AWS Secrets Manager, with further fields.
fn request(path: &str, name: &str, fields: Value) -> Value {
    let mut request = json!({"provider": "aws-secretsmanager", "path": path, "secretName": name});
    for (field, value) in fields.as_object().expect("fields") {
        request[field] = value.clone();
    }
    request
}

#[tokio::test]
async fn one_pod_asks_for_several_secrets_in_each_form_of_a_list() {
    let scene = Scene::set().await;
    let (first, second) = (scene.store.seed("a", r#"{"A":"1"}"#).await, scene.store.seed("b", r#"{"B":"2"}"#).await);
    for (form, wrap) in [("bare", false), ("wrapped", true)] {
        let names = [format!("{form}-a"), format!("{form}-b")];
        let list = json!([request(&first, &names[0], json!({})), request(&second, &names[1], json!({}))]);
        let text = if wrap { json!({"secrets": list}) } else { list };
        let pod = scene.pod(form).request(&text.to_string()).create().await;
        scene.namespace.wait_for_data(&names[0], [("A", "1")]).await;
        scene.namespace.wait_for_data(&names[1], [("B", "2")]).await;
        let events = scene.namespace.wait_for_events(&pod, 2).await;
        assert!(
            events.iter().all(|event| event.reason.as_deref() == Some("SecretSyncSuccess")),
            "one for each request"
        );
    }
}

#[tokio::test]
async fn an_entry_that_fails_does_not_hold_up_the_others() {
    let scene = Scene::set().await;
    let good = scene.store.seed("good", r#"{"A":"1"}"#).await;
    let down = scene.store.seed("down", r#"{"B":"2"}"#).await;
    scene.store.fail(&down, Fault::Status(503));
    let list = json!([
        request(&down, "down", json!({})),
        request(&good, "Bad_Name", json!({})),
        request(&good, "good", json!({})),
    ]);
    let pod = scene.pod("web").request(&list.to_string()).create().await;
    scene.namespace.wait_for_data("good", [("A", "1")]).await;
    let invalid = scene.namespace.wait_for_event(&pod, "AnnotationInvalid").await;
    assert!(invalid.note.as_deref().is_some_and(|note| note.contains("entry 2: field `secretName`")), "{invalid:?}");
    scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    scene.store.heal(&down);
    scene.namespace.wait_for_data("down", [("B", "2")]).await;
}

#[tokio::test]
async fn keys_are_chosen_renamed_and_pointed_at() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"host":"db","port":5432,"tls":{"ca":["one","two"]},"other":"x"}"#).await;
    let map = json!({"keys": {"DB_HOST": "host", "DB_PORT": "port", "CA": "/tls/ca/1"}});
    scene.pod("map").request(&request(&path, "map", map).to_string()).create().await;
    scene.namespace.wait_for_data("map", [("DB_HOST", "db"), ("DB_PORT", "5432"), ("CA", "two")]).await;
    scene.pod("list").request(&request(&path, "list", json!({"keys": ["host"]})).to_string()).create().await;
    scene.namespace.wait_for_data("list", [("host", "db")]).await;
}

#[tokio::test]
async fn a_version_is_a_stage_or_an_id() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"old"}"#).await;
    scene.pod("current").request(&request(&path, "current", json!({})).to_string()).create().await;
    let old = scene.namespace.wait_for_data("current", [("A", "old")]).await;
    let id = crate::support::scene::annotation(&old, "jasm.codnod.io/source-version").to_owned();
    scene.store.put(&path, r#"{"A":"new"}"#).await;
    for (name, version, want) in [
        ("by-stage", "AWSPREVIOUS".to_owned(), "old"),
        ("by-current", "AWSCURRENT".to_owned(), "new"),
        ("by-id", format!("uuid/{id}"), "old"),
    ] {
        scene.pod(name).request(&request(&path, name, json!({"version": version})).to_string()).create().await;
        scene.namespace.wait_for_data(name, [("A", want)]).await;
    }
    let gone = json!({"version": "uuid/00000000-0000-4000-8000-000000000000"});
    let pod = scene.pod("gone").request(&request(&path, "gone", gone).to_string()).create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    assert!(event.note.as_deref().is_some_and(|note| note.contains("check path and version")), "{event:?}");
}

#[tokio::test]
async fn text_and_bytes_are_one_key_to_the_byte() {
    let scene = Scene::set().await;
    let bytes: Vec<u8> = (0..=255).collect();
    let binary = scene.store.seed("binary", "x").await;
    scene.store.put_binary(&binary, &bytes).await;
    let text = scene.store.seed("text", " s3cret\n").await;
    scene
        .pod("binary")
        .request(&request(&binary, "binary", json!({"dataKey": "keystore.p12"})).to_string())
        .create()
        .await;
    scene.namespace.wait_for_data("binary", [("keystore.p12", bytes)]).await;
    scene.pod("text").request(&request(&text, "text", json!({})).to_string()).create().await;
    scene.namespace.wait_for_data("text", [("value", " s3cret\n")]).await;
    let object = scene.store.seed("object", r#"{ "A" : 1.10 }"#).await;
    scene
        .pod("raw")
        .request(&request(&object, "raw", json!({"format": "raw", "dataKey": "config.json"})).to_string())
        .create()
        .await;
    scene.namespace.wait_for_data("raw", [("config.json", r#"{ "A" : 1.10 }"#)]).await;
}

#[tokio::test]
async fn the_type_of_a_secret_is_one_of_a_closed_list_and_its_content_is_checked() {
    let scene = Scene::set().await;
    let (certificate, key) = (include_str!("../golden/tls/certificate.pem"), include_str!("../golden/tls/key.pem"));
    let other = include_str!("../golden/tls/other-key.pem");
    let config = r#"{"auths":{"registry.example":{"auth":"eDp5"}}}"#;
    let raw = |data_key: &str| json!({"format": "raw", "dataKey": data_key});
    let cases = [
        ("kubernetes.io/tls", json!({}), json!({"tls.crt": certificate, "tls.key": key}).to_string()),
        ("kubernetes.io/dockerconfigjson", raw(".dockerconfigjson"), config.to_owned()),
        ("kubernetes.io/basic-auth", json!({}), r#"{"username":"u","password":"p"}"#.to_owned()),
        ("kubernetes.io/ssh-auth", raw("ssh-privatekey"), "-----BEGIN OPENSSH PRIVATE KEY-----\n".to_owned()),
    ];
    for (secret_type, mut fields, value) in cases {
        let name = secret_type.split('/').next_back().expect("a name");
        let path = scene.store.seed(name, &value).await;
        fields["type"] = json!(secret_type);
        let text = request(&path, name, fields).to_string();
        scene.pod(name).request(&text).create().await;
        let secret = scene.namespace.wait_for_secret(name).await;
        assert_eq!(secret.type_.as_deref(), Some(secret_type));
        // The probe of the next pod has to be understood, too.
        scene.store.put(&path, &value).await;
        let again = scene.pod(&format!("{name}-2")).request(&text).create().await;
        scene.namespace.wait_for_event(&again, "SecretSyncSuccess").await;
    }

    let path = scene.store.seed("swapped", &json!({"tls.crt": certificate, "tls.key": other}).to_string()).await;
    let swapped = request(&path, "swapped", json!({"type": "kubernetes.io/tls"})).to_string();
    let pod = scene.pod("swapped").request(&swapped).create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretInvalid").await;
    assert!(
        event.note.as_deref().is_some_and(|note| note.contains("not the key of the first certificate")),
        "{event:?}"
    );
    assert_eq!(scene.namespace.secret("swapped").await, None);

    // A type is never changed.
    let opaque = request(&path, "tls", json!({})).to_string();
    let pod = scene.pod("opaque").request(&opaque).create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    assert!(event.note.as_deref().is_some_and(|note| note.contains("another type")), "{event:?}");

    let token = request(&path, "token", json!({"type": "kubernetes.io/service-account-token"})).to_string();
    let pod = scene.pod("token").request(&token).create().await;
    let event = scene.namespace.wait_for_event(&pod, "AnnotationInvalid").await;
    assert!(event.note.as_deref().is_some_and(|note| note.contains("known values: Opaque")), "{event:?}");
}
