//! Ways to be wrong. In each of them something looks as if a replica could go, and it must stay.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{Janitor, Stage};
use crate::support::api_proxy::{ApiProxy, Match, Refusal, Trouble};
use crate::support::scene::later_than;
use crate::support::store::Fault;
use crate::support::{object, unique};

/// Longer than a janitor of these tests takes from a first look to a deletion.
const LONG: Duration = Duration::from_secs(8);

/// What the janitor's store says, while the source is there.
fn answers() -> Vec<(&'static str, Fault)> {
    vec![
        ("denied", Fault::AccessDenied),
        ("throttled", Fault::Throttling),
        ("throttled-for-long", Fault::RetryAfter(Duration::from_secs(60))),
        ("pending-deletion", Fault::PendingDeletion),
        ("unavailable", Fault::Unavailable),
        ("forbidden", Fault::Status(403)),
        ("not-found-by-a-proxy", Fault::Status(404)),
        ("down", Fault::Status(500)),
        ("bad-gateway", Fault::Status(502)),
        ("truncated", Fault::Truncated),
        ("empty", Fault::Body(String::new())),
        ("empty-object", Fault::Body("{}".to_owned())),
        ("empty-list", Fault::Body("[]".to_owned())),
        ("no-json", Fault::Body("<html>not found</html>".to_owned())),
        ("oversized", Fault::Oversized),
    ]
}

/// All at once, beside one real orphan, which shows that the janitor works.
#[tokio::test]
async fn what_a_store_does_not_say_deletes_nothing() {
    let stage = Stage::set().await;
    let mut paths = Vec::new();
    for (name, fault) in answers() {
        let path = stage.replica(name).await;
        stage.store.fail(&path, fault);
        paths.push((name, path));
    }
    // An instance of which every source is gone is as likely another region.
    let alone = stage.scene.store.seed("alone", r#"{"A":"1"}"#).await;
    let request = json!({"provider": "other", "path": alone, "secretName": "alone"}).to_string();
    stage.scene.pod("alone").request(&request).create().await;
    stage.scene.namespace.wait_for_secret("alone").await;
    // The first to be asked for: after three answers that are none a store is asked no more in that round.
    let (witness, orphan) = (stage.replica("a-witness").await, stage.replica("orphan").await);
    let mut names: Vec<&str> = paths.iter().map(|(name, _)| *name).collect();
    names.extend(["alone", "a-witness", "orphan"]);
    stage.recorded(&names).await;
    stage.scene.store.delete(&alone).await;
    stage.scene.store.delete(&orphan).await;

    let janitor = stage.janitor(&[]);
    stage.gone("orphan").await;
    tokio::time::sleep(LONG).await;
    for (name, path) in &paths {
        assert!(stage.scene.namespace.secret(name).await.is_some(), "{name}: {}", janitor.text());
        assert!(stage.master(path).await.is_some(), "{name}");
    }
    for (name, path) in [("alone", &alone), ("a-witness", &witness)] {
        assert!(stage.scene.namespace.secret(name).await.is_some() && stage.master(path).await.is_some(), "{name}");
    }
}

/// The source is gone, and the object under that name is not the replica any more that a node wrote, or nobody recorded it.
#[tokio::test]
async fn what_is_no_replica_in_a_recorded_state_stays() {
    let stage = Stage::set().await;
    let names = ["edited", "released", "unmarked", "replaced", "moved"];
    let mut paths = Vec::new();
    for name in names {
        paths.push(stage.replica(name).await);
    }
    let witness = stage.replica("witness").await;
    let other = stage.scene.store.seed("newer", r#"{"B":"2"}"#).await;
    for number in 0..30 {
        stage.asked(&witness, &format!("more-{number}")).await;
    }
    stage.recorded(&[&names[..], &["witness", "more-29"]].concat()).await;

    let namespace = &stage.scene.namespace;
    namespace.edit_secret("edited", json!({"stringData": {"A": "by hand"}})).await;
    namespace.edit_secret("released", json!({"metadata": {"labels": {"jasm.codnod.io/managed-by": null}}})).await;
    namespace.edit_secret("unmarked", json!({"metadata": {"labels": {"jasm.codnod.io/replicated-from": null}}})).await;
    let secrets: Api<Secret> = namespace.api();
    secrets.delete("replaced", &DeleteParams::default()).await.expect("deleted");
    namespace.add_secret("replaced", &[("theirs", "x")]).await;
    // Another source took the name, which its old record does not know.
    let before = namespace.wait_for_secret("moved").await;
    secrets.delete("moved", &DeleteParams::default()).await.expect("deleted");
    later_than(&before).await;
    stage.scene.pod("moved-again").asks(&other, "moved").create().await;
    namespace.wait_for_data("moved", [("B", "2")]).await;
    // One that looks like a replica, and that nobody recorded.
    let mut spoofed = json!(namespace.wait_for_secret("witness").await);
    spoofed["metadata"] = json!({
        "name": "spoofed", "labels": spoofed["metadata"]["labels"], "annotations": spoofed["metadata"]["annotations"],
    });
    spoofed["metadata"]["annotations"]["jasm.codnod.io/source"] = json!(format!("v1:aws-secretsmanager:{}", paths[0]));
    let _: Secret = namespace.add(spoofed).await;
    for path in &paths {
        stage.scene.store.delete(path).await;
    }

    let janitor = stage.janitor(&[]);
    janitor.says(&["not deleted", "it was changed since a node wrote it", "edited"]).await;
    tokio::time::sleep(LONG).await;
    for name in names.iter().chain(&["witness", "spoofed", "more-0", "more-29"]) {
        assert!(namespace.secret(name).await.is_some(), "{name}: {}", janitor.text());
    }
    assert!(stage.master(&paths[0]).await.is_some(), "a master whose replica is kept stays");
}

#[tokio::test]
async fn a_master_that_was_taken_takes_no_replica_that_a_pod_of_any_node_asks_for() {
    let stage = Stage::set().await;
    let path = stage.replica("used").await;
    stage.replica("witness").await;
    stage.recorded(&["used", "witness"]).await;
    let waiting = stage.scene.store.seed("waits", r#"{"A":"1"}"#).await;
    let pod = stage.asked(&waiting, "waits").await;
    stage.recorded(&["waits"]).await;
    stage.scene.namespace.delete_pod(&pod).await;
    // A pod that is not served asks all the same.
    let request = json!({"provider": "aws-secretsmanager", "path": waiting, "secretName": "waits", "keys": ["none"]});
    let pod = stage.scene.pod("waits-again").request(&request.to_string()).create().await;
    stage.scene.namespace.wait_for_event(&pod, "SecretKeyMissing").await;
    let idle = stage.scene.store.seed("idle", r#"{"A":"1"}"#).await;
    let before = stage.asked(&idle, "idle").await;
    stage.recorded(&["idle"]).await;
    stage.scene.namespace.delete_pod(&before).await;
    for path in [&path, &waiting, &idle] {
        stage.take_master(path).await;
    }
    let janitor = stage.janitor(&[]);
    // That one goes, so that the janitor does its work.
    stage.gone("idle").await;
    tokio::time::sleep(LONG).await;
    assert!(stage.master(&path).await.is_none(), "it is still missing");
    for name in ["used", "waits", "witness"] {
        assert!(stage.scene.namespace.secret(name).await.is_some(), "{name}: {}", janitor.text());
    }
}

/// Of what the annotation means that nobody can read any more, or is not read yet, any replica may be in use.
#[tokio::test]
async fn while_a_pods_request_cannot_be_read_its_namespace_keeps_all_replicas() {
    let stage = Stage::set().await;
    let path = stage.scene.store.seed("unread", r#"{"A":"1"}"#).await;
    let pod = stage.asked(&path, "unread").await;
    stage.replica("witness").await;
    stage.recorded(&["unread", "witness"]).await;
    let pod = stage.scene.namespace.annotate(&pod, "jasm.codnod.io/secret-sync", "{cut off").await;
    stage.scene.namespace.wait_for_event(&pod, "AnnotationInvalid").await;
    stage.take_master(&path).await;
    let janitor = stage.janitor(&[]);
    tokio::time::sleep(LONG).await;
    assert!(stage.scene.namespace.secret("unread").await.is_some(), "{}", janitor.text());
    stage.scene.namespace.delete_pod(&pod).await;
    stage.gone("unread").await;
}

/// What was shown when the round began is shown again before each source's first deletion.
#[tokio::test]
async fn a_source_that_is_back_while_the_janitor_is_at_work_keeps_its_replicas() {
    let stage = Stage::set().await;
    stage.replica("witness").await;
    // In the order in which they go.
    let (first, second) = (stage.replica("a-first").await, stage.replica("b-second").await);
    stage.recorded(&["a-first", "b-second", "witness"]).await;
    stage.scene.store.delete(&first).await;
    stage.scene.store.delete(&second).await;
    let janitor = stage.janitor(&["--max-per-minute", "6"]);
    stage.gone("a-first").await;
    stage.scene.store.put(&second, r#"{"A":"back"}"#).await;
    janitor.says(&["not deleted", "is not so any more", "b-second"]).await;
    assert!(stage.scene.namespace.secret("b-second").await.is_some(), "{}", janitor.text());
    assert!(stage.master(&second).await.is_some(), "its master stays with it");
}

/// Records remember replicas for long; what is not there any more is no reason to stop, and none to look again and again.
#[tokio::test]
async fn what_somebody_else_deleted_makes_no_wave() {
    let stage = Stage::set().await;
    stage.replica("witness").await;
    let names: Vec<String> = (0..6).map(|number| format!("ghost-{number}")).collect();
    let path = stage.scene.store.seed("ghost", r#"{"A":"1"}"#).await;
    let mut pods = Vec::new();
    for name in &names {
        pods.push(stage.asked(&path, name).await);
    }
    let orphan = stage.replica("orphan").await;
    stage.recorded(&names.iter().map(String::as_str).chain(["orphan"]).collect::<Vec<_>>()).await;
    for pod in &pods {
        stage.scene.namespace.delete_pod(pod).await;
    }
    stage.scene.store.delete(&path).await;
    stage.scene.store.delete(&orphan).await;
    let secrets: Api<Secret> = stage.scene.namespace.api();
    for name in &names {
        secrets.delete(name, &DeleteParams::default()).await.expect("deleted");
    }
    let janitor = stage.janitor(&[]);
    stage.gone("orphan").await;
    janitor.says(&["its source is gone, and so are its replicas", &path]).await;
    assert!(!janitor.text().contains("looks like a mistake"), "{}", janitor.text());
}

/// Their masters are missing, and the records say that pods ask for them; so would a real loss of masters look.
#[tokio::test]
async fn what_it_deleted_itself_while_pods_asked_for_it_makes_no_wave() {
    let stage = Stage::set().await;
    stage.replica("witness").await;
    let names: Vec<String> = (0..6).map(|number| format!("used-{number}")).collect();
    let mut paths = Vec::new();
    for name in &names {
        paths.push(stage.replica(name).await);
    }
    let orphan = stage.replica("orphan").await;
    stage.recorded(&names.iter().map(String::as_str).chain(["orphan"]).collect::<Vec<_>>()).await;
    let janitor = stage.janitor(&[]);
    for (name, path) in names.iter().zip(&paths) {
        stage.scene.store.delete(path).await;
        stage.gone(name).await;
        janitor.says(&["its source is gone, and so are its replicas", path]).await;
    }
    stage.scene.store.delete(&orphan).await;
    stage.gone("orphan").await;
    assert!(!janitor.text().contains("looks like a mistake"), "{}", janitor.text());
}

#[tokio::test]
async fn a_janitor_whose_providers_have_changed_ends_and_is_started_anew() {
    let stage = Stage::set().await;
    let janitor = stage.janitor(&[]);
    janitor.says(&["this janitor is the one that works"]).await;
    let file = janitor.providers.clone();
    std::fs::write(file, "providers: []").expect("written");
    let said = janitor.ended().await;
    assert!(said.contains("the providers file has changed"), "{said}");
}

#[tokio::test]
async fn without_its_records_its_rights_or_its_policy_nothing_goes() {
    let stage = Stage::set().await;
    let path = stage.replica("orphan").await;
    stage.replica("witness").await;
    stage.recorded(&["orphan", "witness"]).await;
    stage.scene.store.delete(&path).await;
    let admin = stage.scene.surroundings.admin().await;
    let still_there = async |why: &str, janitor: &Janitor| {
        tokio::time::sleep(LONG).await;
        assert!(stage.scene.namespace.secret("orphan").await.is_some(), "{why}: {}", janitor.text());
        assert!(stage.master(&path).await.is_some(), "{why}");
    };
    // By a proxy, so that other tests keep theirs.
    let proxy = ApiProxy::start(stage.scene.surroundings);
    let kubeconfig = stage.scene.surroundings.folder(&crate::support::unique("proxied")).join("kubeconfig");
    let direct = std::fs::read_to_string(&stage.kubeconfig).expect("a kubeconfig");
    std::fs::write(&kubeconfig, direct.replace(stage.scene.surroundings.api_server(), proxy.url())).expect("written");
    let of_masters = |resource: &str| format!("/namespaces/{}/{resource}", stage.masters);
    for (lists, refusal) in [
        (of_masters("secrets"), Refusal::NoRight),
        (of_masters("configmaps"), Refusal::Unavailable),
        (of_masters("secrets"), Refusal::Overloaded { retry_after: 1 }),
        (of_masters("configmaps"), Refusal::Expired),
        ("/nodes".to_owned(), Refusal::NoRight),
    ] {
        let outage = proxy.fail(Match::new("GET", &lists), Trouble::Refused(refusal));
        let janitor = stage.janitor_by(&kubeconfig, &[]);
        janitor.says(&["could not be read: nothing more is deleted"]).await;
        still_there("masters or records that cannot be read", &janitor).await;
        drop(janitor);
        outage.heal();
        stage.free_the_lease().await;
    }
    // What a look is answered without a right, without the policy, and by something in between.
    let nowhere = Refusal::Echo { code: 404, said: "<html>" };
    for (refusal, said) in [
        (Refusal::NoRight, "the API server answered 403"),
        (Refusal::Echo { code: 200, said: "" }, "the admission policy jasm-janitor is not in force"),
        (nowhere, "the API server answered 404"),
    ] {
        let outage = proxy.fail(Match::new("DELETE", "/secrets/"), Trouble::Refused(refusal));
        let janitor = stage.janitor_by(&kubeconfig, &[]);
        janitor.says(&["not deleted", said]).await;
        still_there(said, &janitor).await;
        drop(janitor);
        outage.heal();
        stage.free_the_lease().await;
    }
    // Without the record nobody knows of it.
    let maps: Api<ConfigMap> = Api::namespaced(admin.clone(), &stage.masters);
    let bindings: Api<RoleBinding> = Api::namespaced(admin, &stage.masters);
    bindings.delete("jasm-agent-masters", &DeleteParams::default()).await.expect("the agent writes no more records");
    for record in maps.list(&Default::default()).await.expect("records") {
        if record.name_any().starts_with("replicas-") {
            maps.delete(&record.name_any(), &DeleteParams::default()).await.expect("deleted");
        }
    }
    still_there("a replica of which nobody knows", &stage.janitor(&[])).await;
}

/// Everything that a janitor could take for a master that was taken away on purpose, beside one that was.
#[tokio::test]
async fn masters_that_are_missing_take_nothing_while_it_is_not_known_what_pods_ask_for() {
    let stage = Stage::set().await;
    let path = stage.scene.store.seed("taken", r#"{"A":"1"}"#).await;
    let pod = stage.asked(&path, "taken").await;
    stage.replica("witness").await;
    stage.recorded(&["taken", "witness"]).await;
    stage.scene.namespace.delete_pod(&pod).await;
    stage.take_master(&path).await;
    let stays = async |why: &str, janitor: &Janitor| {
        tokio::time::sleep(LONG).await;
        assert!(stage.scene.namespace.secret("taken").await.is_some(), "{why}: {}", janitor.text());
    };
    let admin = stage.scene.surroundings.admin().await;
    let nodes: Api<Node> = Api::all(admin.clone());
    let silent = json!({"metadata": {"name": unique("silent"), "labels": {"jasm-test/masters": stage.masters}}});
    let silent = nodes.create(&PostParams::default(), &object(silent)).await.expect("a node");
    let janitor = stage.janitor(&[]);
    janitor
        .says(&["no replica counts as asked for by no pod", &silent.name_any(), "no record that is up to date"])
        .await;
    stays("a node without a record", &janitor).await;
    // A record of a release to come, of that node.
    let maps: Api<ConfigMap> = Api::namespaced(admin.clone(), &stage.masters);
    let record = json!({
        "metadata": {
            "name": "replicas-other",
            "labels": {
                "jasm.codnod.io/managed-by": "jasm",
                "app.kubernetes.io/managed-by": "jasm",
                "jasm.codnod.io/record": "replicas",
            },
            "annotations": {
                "jasm.codnod.io/node": silent.name_any(),
                "jasm.codnod.io/synced-at": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            },
        },
        "data": {"Secret.a.b": "{\"kind\": \"ToCome\"}"},
    });
    maps.create(&PostParams::default(), &object(record)).await.expect("a record");
    janitor.says(&["has an entry that this release cannot read"]).await;
    stays("an entry that cannot be read", &janitor).await;
    let whole = json!({"data": {"Secret.a.b": null}});
    maps.patch("replicas-other", &PatchParams::default(), &Patch::Merge(&whole)).await.expect("an empty record");
    stage.gone("taken").await;
    drop(janitor);
    nodes.delete(&silent.name_any(), &DeleteParams::default()).await.expect("deleted");
}

/// As after a rename of a label: no node has to have a record then.
#[tokio::test]
async fn labels_that_no_node_has_take_nothing() {
    let stage = Stage::set().await;
    stage.replica("witness").await;
    let path = stage.scene.store.seed("taken", r#"{"A":"1"}"#).await;
    let pod = stage.asked(&path, "taken").await;
    stage.recorded(&["taken"]).await;
    stage.scene.namespace.delete_pod(&pod).await;
    stage.take_master(&path).await;
    let janitor = stage.janitor(&["--nodes", "jasm-test/masters=nobodys"]);
    janitor.says(&["no node has the labels of --nodes"]).await;
    tokio::time::sleep(LONG).await;
    assert!(stage.scene.namespace.secret("taken").await.is_some(), "{}", janitor.text());
}

/// As if somebody had emptied the namespace, or restored it without them.
#[tokio::test]
async fn when_all_masters_are_missing_or_many_no_replica_goes() {
    let stage = Stage::set().await;
    let mut paths = Vec::new();
    for name in ["used-1", "used-2", "used-3", "used-4", "used-5", "used-6", "unused"] {
        let path = stage.scene.store.seed(name, r#"{"A":"1"}"#).await;
        let pod = stage.asked(&path, name).await;
        paths.push((path, pod));
    }
    stage.recorded(&["used-1", "used-6", "unused"]).await;
    let (_, unused) = paths.last().expect("the last one");
    stage.scene.namespace.delete_pod(unused).await;
    for (path, _) in &paths {
        stage.take_master(path).await;
    }
    assert_eq!(stage.masters().await.len(), 0);
    let janitor = stage.janitor(&[]);
    tokio::time::sleep(LONG).await;
    assert!(stage.scene.namespace.secret("unused").await.is_some(), "none at all: {}", janitor.text());
    // One is back, as after a restore of some.
    stage.replica("witness").await;
    // It looks no further than the sixth: more than five are too many.
    janitor.says(&["looks like a mistake", "\"without_master\":6"]).await;
    tokio::time::sleep(LONG).await;
    assert!(stage.scene.namespace.secret("unused").await.is_some(), "seven of eight: {}", janitor.text());
}

#[tokio::test]
async fn of_two_janitors_one_works_and_one_that_loses_its_lease_stops() {
    let stage = Stage::set().await;
    let first = stage.janitor(&[]);
    first.says(&["this janitor is the one that works"]).await;
    let second = stage.janitor(&[]);
    let path = stage.replica("orphan").await;
    stage.replica("witness").await;
    stage.recorded(&["orphan", "witness"]).await;
    stage.scene.store.delete(&path).await;
    stage.gone("orphan").await;
    assert!(!second.text().contains("\"deleted\"") && !second.text().contains("is the one that works"));
    // Somebody else takes it.
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(stage.scene.surroundings.admin().await, &stage.masters);
    let taken = Patch::Merge(json!({"spec": {"holderIdentity": "somebody"}}));
    leases.patch("jasm-janitor", &PatchParams::default(), &taken).await.expect("taken");
    first.says(&["another janitor has the lease: this one stops"]).await;
    let late = stage.replica("late").await;
    stage.recorded(&["late"]).await;
    stage.scene.store.delete(&late).await;
    tokio::time::sleep(LONG).await;
    assert!(stage.scene.namespace.secret("late").await.is_some(), "{}", first.text());
}

/// Wherever it dies, the next one finds nothing half done: the right ones go, and no other.
#[tokio::test]
async fn one_that_is_killed_after_any_request_leaves_its_successor_nothing_to_repair() {
    let stage = Stage::set().await;
    stage.replica("witness").await;
    let proxy = ApiProxy::start(stage.scene.surroundings);
    let kubeconfig = stage.scene.surroundings.folder(&crate::support::unique("proxied")).join("kubeconfig");
    let direct = std::fs::read_to_string(&stage.kubeconfig).expect("a kubeconfig");
    std::fs::write(&kubeconfig, direct.replace(stage.scene.surroundings.api_server(), proxy.url())).expect("written");
    for (round, after) in [0, 1, 2].into_iter().enumerate() {
        let name = format!("orphan-{round}");
        let path = stage.replica(&name).await;
        stage.recorded(&[name.as_str(), "witness"]).await;
        stage.scene.store.delete(&path).await;
        // The look, the deletion of the replica, and that of the master.
        let held = proxy.fail(Match::new("DELETE", "/").after(after).times(1), Trouble::HeldReply);
        let mut janitor = stage.janitor_by(&kubeconfig, &[]);
        crate::support::wait::eventually("the request after which it dies", async || match held.count() {
            0 => Err(janitor.text()),
            _ => Ok(()),
        })
        .await;
        janitor.kill();
        drop(janitor);
        held.heal();
        stage.free_the_lease().await;
        let next = stage.janitor(&[]);
        stage.gone(&name).await;
        crate::support::wait::eventually("the end of its master", async || match stage.master(&path).await {
            None => Ok(()),
            Some(_) => Err(next.text()),
        })
        .await;
        assert!(stage.scene.namespace.secret("witness").await.is_some());
        drop(next);
        stage.free_the_lease().await;
    }
}
