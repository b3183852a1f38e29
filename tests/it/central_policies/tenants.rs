//! What a team may do about masters and replicas: nothing that the agent goes by, and everything else in its namespace.

use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::stage::{At, Kind, Shape, Stage, with};
use crate::marker::{ANNOTATIONS, LABELS};
use crate::support::wait::eventually;

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";

#[tokio::test]
async fn each_name_that_the_agent_writes_is_its_own_on_configmaps_too() {
    let stage = Stage::set().await.with_tenant().await;
    for kind in Kind::BOTH {
        let named = |names: &[&str], section: &'static str| {
            names.iter().map(move |name| (section, format!("jasm.codnod.io/{name}"))).collect::<Vec<_>>()
        };
        let names = [named(&LABELS, "labels"), named(&ANNOTATIONS, "annotations")].concat();
        let plain = json!({"metadata": {"name": "app"}, "data": {"A": "MQ=="}});
        let set = |object, (section, name): &(&str, String)| {
            with(object, &format!("/metadata/{section}/{}", name.replace('/', "~1")), json!("x"))
        };
        let whole = names.iter().fold(stage.object(kind, Shape::Replica, "app"), set);
        for (section, name) in &names {
            for (how, before, value) in [
                ("added", &plain, json!("y")),
                ("added empty", &plain, json!("")),
                ("changed", &whole, json!("y")),
                ("taken off", &whole, Value::Null),
            ] {
                stage.lay_down(kind, At::Team, before).await;
                let patch = json!({"metadata": {*section: {name: value}}}).to_string();
                let answer = stage.as_tenant(Method::PATCH, &stage.path(kind, At::Team, "/app"), MERGE, &patch).await;
                answer.refused("jasm-agent-marker", "jasm:marker", format!("{section} {name} {how} on a {kind:?}"));
            }
        }
        // What else a team does to the agent's.
        stage.lay_down(kind, At::Team, &stage.object(kind, Shape::Replica, "app")).await;
        for patch in [
            json!({"data": {"A": "Mg=="}}),
            json!({"metadata": {"labels": {"team": "a"}, "annotations": {"jasm.codnod.io/secret-sync": "x"}}}),
            json!({"immutable": true}),
        ] {
            let path = stage.path(kind, At::Team, "/app");
            stage.as_tenant(Method::PATCH, &path, MERGE, &patch.to_string()).await.accepted(patch);
        }
        stage.as_tenant(Method::DELETE, &stage.path(kind, At::Team, "/app"), JSON, "").await.accepted("a deletion");
    }
}

#[tokio::test]
async fn a_tenant_makes_no_replica_and_the_rest_of_the_cluster_goes_on() {
    let stage = Stage::set().await.with_tenant().await;
    for kind in Kind::BOTH {
        let path = stage.path(kind, At::Team, "");
        let replica = stage.object(kind, Shape::Replica, "app").to_string();
        let answer = stage.as_tenant(Method::POST, &path, JSON, &replica).await;
        answer.refused("jasm-agent-marker", "jasm:marker", format!("a replica: {kind:?}"));
        let plain = json!({"metadata": {"name": "plain"}}).to_string();
        stage.as_tenant(Method::POST, &path, JSON, &plain).await.accepted("a plain one");
    }
    // One that Kubernetes itself writes into each namespace.
    eventually("the root certificate", async || {
        let maps = stage.team.api::<ConfigMap>();
        maps.get("kube-root-ca.crt").await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn a_tenant_reads_and_writes_nothing_among_masters() {
    let stage = Stage::set().await.with_tenant().await;
    for kind in Kind::BOTH {
        let name = format!("hidden-{}", stage.node.name());
        let master = stage.object(kind, Shape::Master, &name);
        stage.create(kind, At::Masters, &master).await.accepted("a master");
        let (all, one) = (stage.path(kind, At::Masters, ""), stage.path(kind, At::Masters, &format!("/{name}")));
        for (method, path) in [
            (Method::GET, one.clone()),
            (Method::GET, all.clone()),
            (Method::GET, format!("{all}?watch=true")),
            (Method::GET, format!("/api/v1/{}", kind.resource())),
            (Method::POST, all),
            (Method::PUT, one.clone()),
            (Method::PATCH, one.clone()),
            (Method::DELETE, one),
        ] {
            let content = if method == Method::PATCH { MERGE } else { JSON };
            let answer = stage.as_tenant(method.clone(), &path, content, &master.to_string()).await;
            answer.beyond_rights(format!("{method} {path}"));
        }
    }
}
