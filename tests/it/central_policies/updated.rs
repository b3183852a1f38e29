//! What is there: what may become of it, what a probe tells of it, and whose it is.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::stage::{At, Kind, Shape, Stage, TIME, annotation, label, with};
use crate::support::node::AgentNode;
use At::{Masters, Team};
use Kind::ConfigMap as Map;
use Shape::{Direct, Master, Record, Replica};

const OWNERSHIP: &str = "jasm-agent-ownership";

#[tokio::test]
async fn a_master_stays_a_master_of_its_store() {
    let stage = Stage::set().await;
    let name = format!("kept-{}", stage.node.name());
    for kind in Kind::BOTH {
        let master = stage.object(kind, Master, &name);
        stage.create(kind, Masters, &master).await.accepted("a master");
        let newer = with(master.clone(), "/data", json!({"A": "Mg=="}));
        stage.put(kind, Masters, &newer).await.accepted("the same with another value");
        let another = with(newer.clone(), &label("source-kind"), json!("vault"));
        let words = "jasm:shape a master or a record does not become another one";
        stage.put(kind, Masters, &another).await.refused("jasm-agent-shape", words, "of another store");
        // A probe is no change: it is answered whatever it would become.
        let probe = with(another, &annotation("probe"), json!("true"));
        stage.put(kind, Masters, &probe).await.refused(OWNERSHIP, "jasm:probe rv=", "a probe");
        // What was marked before the namespace was one of masters.
        stage.lay_down(kind, Masters, &stage.object(kind, Direct, &name)).await;
        stage.put(kind, Masters, &newer).await.refused("jasm-agent-shape", words, "a direct one");
        stage.lay_down(kind, Masters, &master).await;
        let record = stage.object(kind, Record, &name);
        let by_kind = if kind == Map { words } else { "jasm:shape labels" };
        stage.put(kind, Masters, &record).await.refused("jasm-agent-shape", by_kind, "a record");
    }
    let words = "jasm:shape a master or a record does not become another one";
    for (before, after) in [(Record, Master), (Direct, Record)] {
        stage.lay_down(Map, Masters, &stage.object(Map, before, &name)).await;
        let answer = stage.put(Map, Masters, &stage.object(Map, after, &name)).await;
        answer.refused("jasm-agent-shape", words, format!("{before:?} to {after:?}"));
    }
}

/// As when an install changes its mode.
#[tokio::test]
async fn beside_pods_a_direct_one_becomes_a_replica_and_the_other_way_round() {
    let stage = Stage::set().await;
    for kind in Kind::BOTH {
        stage.create(kind, Team, &stage.object(kind, Direct, "app")).await.accepted("a direct one");
        stage.put(kind, Team, &stage.object(kind, Replica, "app")).await.accepted("a replica");
        stage.put(kind, Team, &stage.object(kind, Direct, "app")).await.accepted("a direct one again");
        // What lies in a namespace that was one of masters.
        stage.lay_down(kind, Team, &stage.object(kind, Master, "app")).await;
        stage.put(kind, Team, &stage.object(kind, Replica, "app")).await.accepted("from a master");
    }
}

#[tokio::test]
async fn a_record_is_kept_by_the_node_that_wrote_it() {
    let stage = Stage::set().await;
    let other = AgentNode::create(stage.surroundings).await;
    let by_other = other.client(stage.surroundings).await;
    let record = stage.object(Map, Record, &format!("replicas-{}", stage.node.name()));
    stage.create(Map, Masters, &record).await.accepted("a record");
    stage.put(Map, Masters, &with(record.clone(), "/data", json!({"B": "2"}))).await.accepted("by its node");
    let name = record["metadata"]["name"].as_str().expect("a name");
    let before = stage.masters.api::<ConfigMap>().get(name).await.expect("the record");
    let anothers = with(record.clone(), &annotation("node"), json!(other.name()));
    let words = "jasm:node a record of another node's agent";
    stage.put_by(&by_other, Map, Masters, &anothers).await.refused("jasm-agent-node", words, "by another");
    let false_name = stage.put_by(&by_other, Map, Masters, &record).await;
    assert!(false_name.said.contains("'jasm-agent-node'"), "in the writer's name: {false_name:?}");
    let probe = with(anothers, &annotation("probe"), json!("true"));
    stage.put_by(&by_other, Map, Masters, &probe).await.refused(OWNERSHIP, "jasm:probe rv=", "a probe by another");
    assert_eq!(stage.masters.api::<ConfigMap>().get(name).await.expect("the record"), before);
    // Masters are everybody's.
    let master = stage.object(Map, Master, &format!("ssm-{}", stage.node.name()));
    stage.create(Map, Masters, &master).await.accepted("a master");
    let by_the_other = with(master, &annotation("node"), json!(other.name()));
    stage.put_by(&by_other, Map, Masters, &by_the_other).await.accepted("a master by another");
}

#[tokio::test]
async fn a_probe_tells_which_object_it_is_and_what_it_was_copied_from() {
    let stage = Stage::set().await;
    for kind in Kind::BOTH {
        for (at, shape, from) in [(Team, Direct, ""), (Team, Replica, "ssm-config"), (Masters, Master, "")] {
            let name = format!("{}-{}", format!("{shape:?}").to_lowercase(), stage.node.name());
            let object = stage.whole(kind, shape, &name);
            stage.create(kind, at, &object).await.accepted(&name);
            let stored =
                stage.as_admin(http::Method::GET, &stage.path(kind, at, &format!("/{name}")), &json!({})).await;
            let stored: Value = serde_json::from_str(&stored.said).expect("an object");
            let text = |field: &str| stored["metadata"][field].as_str().expect("a text").to_owned();
            let want = format!(
                "jasm:probe rv={} uid={} source=v1:x:y through={TIME} since={TIME} workload=pods-and-jobs version=7 \
                 from={from} others=",
                text("resourceVersion"),
                text("uid")
            );
            let answer = stage.put(kind, at, &with(object, &annotation("probe"), json!("true"))).await;
            answer.refused(OWNERSHIP, &want, &name);
            assert!(answer.said.ends_with(&want), "and nothing after it: {}", answer.said);
            stage.put(kind, at, &stage.object(kind, shape, &name)).await.accepted("nothing of it is somebody else's");
        }
    }
    let record = stage.object(Map, Record, &format!("probed-{}", stage.node.name()));
    stage.create(Map, Masters, &record).await.accepted("a record");
    let answer = stage.put(Map, Masters, &with(record, &annotation("probe"), json!("true"))).await;
    assert!(answer.said.ends_with(" source= through= since= workload= version= from= others="), "{answer:?}");
}

#[tokio::test]
async fn what_others_have_is_not_overwritten() {
    let stage = Stage::set().await;
    let owner: ConfigMap = stage.team.add(json!({"metadata": {"name": "owner"}})).await;
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()}]);
    for kind in Kind::BOTH {
        for (at, shape) in [(Team, Replica), (Masters, Master)] {
            let foreign = format!("foreign-{}", stage.node.name());
            stage.lay_down(kind, at, &json!({"metadata": {"name": foreign}})).await;
            let answer = stage.put(kind, at, &stage.object(kind, shape, &foreign)).await;
            // What is no master becomes none, either: of two refusals the API server tells one.
            let by_shape =
                matches!(shape, Master) && answer.said.contains("jasm:shape a master or a record does not become");
            if !by_shape {
                answer.refused(OWNERSHIP, "jasm:not-ours", format!("{kind:?} {shape:?}"));
            }
        }
        let on = |place: &str, value| with(stage.object(kind, Replica, "decorated"), place, value);
        for (decorated, others) in [
            (on("/metadata/labels/team", json!("a")), ",labels"),
            (on("/metadata/labels/app.kubernetes.io~1managed-by", json!("Helm")), ",labels"),
            (on("/metadata/annotations/reloader", json!("x")), ",annotations"),
            (on(&annotation("probe"), json!("x")), ",annotations"),
            (on("/metadata/finalizers", json!(["example.com/stays"])), ",finalizers"),
            (on("/metadata/ownerReferences", owner.clone()), ",ownerReferences"),
        ] {
            stage.lay_down(kind, Team, &decorated).await;
            let plain = stage.object(kind, Replica, "decorated");
            let answer = stage.put(kind, Team, &plain).await;
            answer.refused(OWNERSHIP, &format!("jasm:others {others}"), format!("{kind:?} {decorated}"));
            let answer = stage.put(kind, Team, &with(plain, &annotation("probe"), json!("true"))).await;
            answer.refused(OWNERSHIP, "jasm:probe rv=", others);
            assert!(answer.said.ends_with(&format!(" others={others}")), "{answer:?}");
            let bare = json!({"metadata": {"finalizers": null}});
            stage.as_admin(http::Method::PATCH, &stage.path(kind, Team, "/decorated"), &bare).await.accepted("bare");
        }
    }
}
