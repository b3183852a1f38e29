//! New objects: each shape in its place, and one case for each rule that one can break.

use serde_json::{Value, json};

use super::stage::{At, Kind, STORES, Shape, Stage, annotation, label, with};
use At::{Masters, Named, Team};
use Shape::{Direct, Master, Record, Replica};

const SHAPE: &str = "jasm-agent-shape";
const LABELS: &str = "jasm:shape labels";
const PLACE: &str = "jasm:shape masters and records lie in";
const ANNOTATION: &str = "jasm:shape an annotation is not";
const VALUE: &str = "jasm:shape an annotation's value";
const TIME: &str = "jasm:shape a time";
const REQUIRED: &str = "jasm:shape annotations";

#[tokio::test]
async fn each_shape_is_written_in_its_place() {
    let stage = Stage::set().await;
    let mut count = 0;
    let mut created = async |kind, at, object: Value| {
        count += 1;
        let object = with(object, "/metadata/name", json!(format!("{}-{count}", stage.node.name())));
        stage.create(kind, at, &object).await.accepted(&object);
    };
    for kind in Kind::BOTH {
        created(kind, Team, stage.object(kind, Direct, "")).await;
        created(kind, Team, with(stage.object(kind, Replica, ""), &label("replicated-from"), json!(""))).await;
        for store in STORES {
            created(kind, Team, with(stage.object(kind, Replica, ""), &label("source"), json!(store))).await;
            created(kind, Masters, with(stage.object(kind, Master, ""), &label("source-kind"), json!(store))).await;
        }
        for (at, shape) in [(Team, Direct), (Team, Replica), (Masters, Master)] {
            created(kind, at, stage.whole(kind, shape, "")).await;
        }
    }
    created(Kind::ConfigMap, Masters, stage.object(Kind::ConfigMap, Record, "")).await;
    let sourced = with(stage.object(Kind::ConfigMap, Record, ""), &annotation("source"), json!("v1:x:y"));
    created(Kind::ConfigMap, Masters, sourced).await;
    // Text that is not base64, and bytes.
    let texts = with(stage.object(Kind::ConfigMap, Master, ""), "/data", json!({"A": "text"}));
    created(Kind::ConfigMap, Masters, with(texts, "/binaryData", json!({"B": "AAE="}))).await;
}

type Breach = (&'static str, At, Shape, String, Value, &'static str, &'static str);

/// What is wrong with an object of either kind, and who says so with which words.
fn breaches() -> Vec<Breach> {
    let shape = |case, at, shape, place: &str, value, words| (case, at, shape, place.to_owned(), value, SHAPE, words);
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]);
    let foreign = "/metadata/labels/argocd.argoproj.io~1secret-type";
    let none = || json!(null);
    let of_nothing = json!({
        "jasm.codnod.io/managed-by": "jasm", "app.kubernetes.io/managed-by": "jasm", "jasm.codnod.io/source": "ssm", "team": "a",
    });
    vec![
        // Each in its place.
        shape("a direct one among masters", Masters, Direct, "/x", none(), PLACE),
        shape("a replica among masters", Masters, Replica, "/x", none(), PLACE),
        shape("a master beside a pod", Team, Master, "/x", none(), PLACE),
        // Labels.
        shape("no marker", Masters, Master, &label("managed-by"), none(), LABELS),
        shape("another value of it", Masters, Master, &label("managed-by"), json!("x"), LABELS),
        shape(
            "for people, another",
            Team,
            Replica,
            "/metadata/labels/app.kubernetes.io~1managed-by",
            json!("x"),
            LABELS,
        ),
        shape("a replica of nothing", Team, Replica, &label("replicated-from"), none(), LABELS),
        shape("a replica of nothing, with four labels", Team, Replica, "/metadata/labels", of_nothing, LABELS),
        shape("a replica of no store", Team, Replica, &label("source"), none(), LABELS),
        shape("a replica of another store", Team, Replica, &label("source"), json!("s3"), LABELS),
        shape("a replica of an empty store", Team, Replica, &label("source"), json!(""), LABELS),
        shape("a replica that is a master", Team, Replica, &label("source-kind"), json!("ssm"), LABELS),
        shape("a direct one with a store", Team, Direct, &label("source"), json!("ssm"), LABELS),
        shape("a master of another store", Masters, Master, &label("source-kind"), json!("s3"), LABELS),
        shape("a master of an empty store", Masters, Master, &label("source-kind"), json!(""), LABELS),
        shape("a master that is a record", Masters, Master, &label("record"), json!("replicas"), LABELS),
        shape("a master from elsewhere", Masters, Master, &label("replicated-from"), json!("x"), LABELS),
        shape("somebody's label on a direct one", Team, Direct, foreign, json!("cluster"), LABELS),
        shape("somebody's label on a replica", Team, Replica, foreign, json!("cluster"), LABELS),
        shape("somebody's label on a master", Masters, Master, foreign, json!("cluster"), LABELS),
        shape("a record of another thing", Masters, Direct, &label("record"), json!("x"), LABELS),
        // Annotations.
        shape("an annotation of no name of ours", Masters, Master, &annotation("new"), json!("x"), ANNOTATION),
        shape("somebody's", Team, Replica, "/metadata/annotations/replicator~1to", json!("*"), ANNOTATION),
        shape("a name with a blank", Team, Replica, &annotation("source-namespace"), json!("a b"), VALUE),
        shape("a long name", Team, Replica, &annotation("source-namespace"), json!("x".repeat(1025)), VALUE),
        shape("a time that is none", Team, Replica, &annotation("last-replicated"), json!("soon"), TIME),
        shape(
            "half of it",
            Masters,
            Master,
            &annotation("whole"),
            json!("false"),
            "jasm:shape annotation jasm.codnod.io/whole",
        ),
        shape(
            "an empty word",
            Masters,
            Master,
            &annotation("whole"),
            json!(""),
            "jasm:shape annotation jasm.codnod.io/whole",
        ),
        shape("a master of no source", Masters, Master, &annotation("source"), none(), REQUIRED),
        shape("a replica of no source", Team, Replica, &annotation("source"), none(), REQUIRED),
        shape("a source of a later form", Masters, Master, &annotation("source"), json!("v2:x"), REQUIRED),
        // What other controllers act on.
        shape("a finalizer", Masters, Master, "/metadata/finalizers", json!(["x.y/z"]), "jasm:shape finalizers"),
        shape("an owner", Team, Replica, "/metadata/ownerReferences", owner, "jasm:shape ownerReferences"),
        shape("a generated name", Masters, Master, "/metadata/generateName", json!("x-"), "jasm:shape generateName"),
        shape("immutable", Masters, Master, "/immutable", json!(true), "jasm:shape immutable"),
        // The other policies.
        (
            "a probe",
            Masters,
            Master,
            annotation("probe"),
            json!("true"),
            "jasm-agent-ownership",
            "jasm:probe-on-create",
        ),
        (
            "another node",
            Masters,
            Master,
            annotation("node"),
            json!("other"),
            "jasm-agent-node",
            "jasm:node annotation",
        ),
        (
            "kube-system",
            Named("kube-system"),
            Replica,
            "/x".to_owned(),
            none(),
            "jasm-agent-namespaces",
            "jasm:namespace",
        ),
        (
            "beside the agent",
            Named("jasm-system"),
            Replica,
            "/x".to_owned(),
            none(),
            "jasm-agent-namespaces",
            "jasm:namespace",
        ),
        (
            "as anybody",
            Masters,
            Master,
            annotation("source"),
            json!("v1:check:marker"),
            "jasm-agent-marker",
            "jasm:marker",
        ),
    ]
}

#[tokio::test]
async fn whatever_breaks_one_rule_is_refused_by_its_policy() {
    let stage = Stage::set().await;
    for kind in Kind::BOTH {
        for (case, at, shape, place, value, policy, words) in breaches() {
            let object = with(stage.object(kind, shape, &format!("new-{}", stage.node.name())), &place, value);
            stage.create(kind, at, &object).await.refused(policy, words, format!("{case} ({kind:?})"));
        }
    }
    // A Secret's own rule, and those of records.
    let typed = with(stage.object(Kind::Secret, Master, "typed"), "/type", json!("bootstrap.kubernetes.io/token"));
    stage.create(Kind::Secret, Masters, &typed).await.refused(SHAPE, "jasm:shape the type", "a bootstrap token");
    let secret = stage.object(Kind::Secret, Record, "record");
    stage.create(Kind::Secret, Masters, &secret).await.refused(SHAPE, LABELS, "a record that is a Secret");
    let record = |place: &str, value| with(stage.object(Kind::ConfigMap, Record, "record"), place, value);
    for (case, at, record, words) in [
        ("beside a pod", Team, record("/x", json!(null)), PLACE),
        ("of another thing", Masters, record(&label("record"), json!("masters")), LABELS),
        ("of a later source", Masters, record(&annotation("source"), json!("v2:x")), REQUIRED),
        ("of an empty source", Masters, record(&annotation("source"), json!("")), REQUIRED),
    ] {
        stage.create(Kind::ConfigMap, at, &record).await.refused(SHAPE, words, case);
    }
    // Two policies refuse that one.
    let nobodys = stage.create(Kind::ConfigMap, Masters, &record(&annotation("node"), json!(null))).await;
    assert!(nobodys.code == 403 && nobodys.said.contains("ValidatingAdmissionPolicy 'jasm-agent-"), "{nobodys:?}");
}
