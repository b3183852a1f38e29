//! Parameters: Secret or ConfigMap by the type that Parameter Store gives them.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt as _;
use serde_json::json;

use super::{FRESH, MASTERS, Second, masters_of, wait_for_config_map};
use crate::support::cluster::TestNamespace;
use crate::support::scene::{Scene, later_than};
use crate::support::store::GET_PARAMETERS;
use crate::support::unique;

fn request(path: &str, name: &str, kind: &str) -> String {
    json!({"provider": "aws-ssm", "path": path, "secretName": name, "kind": kind}).to_string()
}

fn text(map: &ConfigMap, key: &str) -> String {
    map.data.as_ref().and_then(|data| data.get(key)).cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_secure_string_is_a_secret_and_plain_ones_are_config_maps() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    for (kind, value) in [("SecureString", "s"), ("String", "p"), ("StringList", "a,b")] {
        let path = unique(&format!("/prod/{}", kind.to_lowercase()));
        scene.store.put_parameter(&path, value, kind).await;
        let name = kind.to_lowercase();
        scene.pod(&name).request(&request(&path, &name, "auto")).create().await;
        let (secrets, maps) = match kind {
            "SecureString" => {
                scene.namespace.wait_for_data(&name, [("value", value)]).await;
                (1, 0)
            }
            _ => {
                let map = wait_for_config_map(&scene.namespace, &name).await;
                assert_eq!(text(&map, "value"), value);
                assert_eq!(map.labels()["jasm.codnod.io/source"], "ssm");
                assert_eq!(map.labels()["jasm.codnod.io/replicated-from"], MASTERS);
                assert!(scene.namespace.secret(&name).await.is_none());
                (0, 1)
            }
        };
        let (as_secret, as_map) = (masters_of::<Secret>(&path).await, masters_of::<ConfigMap>(&path).await);
        assert_eq!((as_secret.len(), as_map.len()), (secrets, maps), "{kind}");
        let master = as_secret.iter().map(|it| it.metadata.clone()).chain(as_map.iter().map(|it| it.metadata.clone()));
        let labels = master.flat_map(|metadata| metadata.labels.unwrap_or_default()).collect::<Vec<_>>();
        assert!(labels.contains(&("jasm.codnod.io/source-kind".to_owned(), "ssm".to_owned())), "{labels:?}");
    }
}

#[tokio::test]
async fn the_kind_that_is_written_counts_and_a_secure_string_never_becomes_a_config_map() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let (plain, secure) = (unique("/prod/plain"), unique("/prod/secure"));
    scene.store.put_parameter(&plain, "p", "String").await;
    scene.store.put_parameter(&secure, "s", "SecureString").await;
    scene.pod("plain").request(&request(&plain, "plain", "Secret")).create().await;
    scene.namespace.wait_for_data("plain", [("value", "p")]).await;
    assert_eq!(masters_of::<ConfigMap>(&plain).await.len(), 1, "the master is what the store says");
    scene.pod("map").request(&request(&plain, "map", "ConfigMap")).create().await;
    wait_for_config_map(&scene.namespace, "map").await;
    let pod = scene.pod("secure").request(&request(&secure, "secure", "ConfigMap")).create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretInvalid").await;
    assert!(event.note.as_ref().is_some_and(|note| note.contains("is a SecureString")), "{event:?}");
    let map = scene.namespace.api::<ConfigMap>().get_opt("secure").await.expect("an answer");
    assert!(map.is_none(), "nothing is written");
    assert_eq!(scene.namespace.secret("secure").await, None);
}

#[tokio::test]
async fn with_and_without_a_leading_slash_it_is_one_parameter() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = unique("/prod/slash");
    scene.store.put_parameter(&path, "v", "SecureString").await;
    scene.pod("with").request(&request(&path, "with", "auto")).create().await;
    scene.namespace.wait_for_data("with", [("value", "v")]).await;
    scene.pod("without").request(&request(&path[1..], "without", "auto")).create().await;
    scene.namespace.wait_for_data("without", [("value", "v")]).await;
    assert_eq!((scene.store.calls(GET_PARAMETERS), masters_of::<Secret>(&path).await.len()), (1, 1));
}

#[tokio::test]
async fn a_parameter_that_becomes_secret_is_a_secret_from_then_on() {
    let scene = Scene::central(|builder| builder).await;
    let second = Second::start(&scene, |builder| builder).await;
    let far = TestNamespace::create(scene.surroundings).await;
    let path = unique("/prod/changed");
    scene.store.put_parameter(&path, "plain", "String").await;
    scene.pod("one").request(&request(&path, "app", "auto")).create().await;
    let map = wait_for_config_map(&scene.namespace, "app").await;
    scene.store.delete_parameter(&path).await;
    scene.store.put_parameter(&path, "secret", "SecureString").await;
    let as_secret = Secret { metadata: map.metadata.clone(), ..Secret::default() };
    later_than(&as_secret).await;
    scene.pod("two").request(&request(&path, "app", "auto")).create().await;
    scene.namespace.wait_for_data("app", [("value", "secret")]).await;
    let kept = scene.namespace.api::<ConfigMap>().get("app").await.expect("the ConfigMap");
    assert_eq!(text(&kept, "value"), "plain", "nothing is emptied");
    second.pod(&far, "web").request(&request(&path, "app", "auto")).create().await;
    far.wait_for_data("app", [("value", "secret")]).await;
    assert!(far.api::<ConfigMap>().get_opt("app").await.expect("an answer").is_none());
}

/// ConfigMaps are held to the same rules as Secrets.
#[tokio::test]
async fn a_foreign_config_map_is_left_alone() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = unique("/prod/foreign");
    scene.store.put_parameter(&path, "v", "String").await;
    let theirs: ConfigMap = scene.namespace.add(json!({"metadata": {"name": "app"}, "data": {"theirs": "x"}})).await;
    let pod = scene.pod("web").request(&request(&path, "app", "auto")).create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    let note = event.note.clone().unwrap_or_default();
    assert!(
        note.starts_with(&format!("ConfigMap {}/app exists and is not managed by JASM", scene.namespace.name())),
        "{note}"
    );
    let now = scene.namespace.api::<ConfigMap>().get("app").await.expect("it");
    assert_eq!(now.resource_version(), theirs.resource_version());
}
