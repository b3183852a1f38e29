//! The rights of `rbac/` are those that an agent uses: no verb too few, or it fails, and no verb too many.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::json;

use crate::support::agent::AgentBuilder;
use crate::support::api_proxy::{ApiProxy, Match, Refusal, Trouble};
use crate::support::audit::{excesses, requests, shipped_rules};
use crate::support::cluster::TestNamespace;
use crate::support::scene::{ALLOW_ALL, later_than};
use crate::support::store::Store;
use crate::support::surroundings::Surroundings;
use crate::support::wait::eventually;

#[tokio::test]
async fn each_verb_that_is_granted_is_used_and_no_other() {
    let surroundings = Surroundings::get().await;
    let (proxy, store) = (ApiProxy::start(surroundings), Store::start(surroundings).await);
    let builder = AgentBuilder::new(surroundings, &store).await.policy(ALLOW_ALL).through(&proxy);
    // `list` is for API servers that are older than streaming lists.
    let old = proxy.fail(Match::watch().times(1), Trouble::Refused(Refusal::NoStreamingLists));
    let mut agent = builder.spawn();
    agent.ready().await;
    old.heal();
    let namespace = TestNamespace::create(surroundings).await;
    let path = store.seed("config", r#"{"A":"1"}"#).await;
    let request = |name: &str| json!({"provider": "aws-secretsmanager", "path": path, "secretName": name}).to_string();

    // `get` of each kind of workload that may have the annotation.
    let cron = namespace.workload("CronJob", "cron").await;
    let due = namespace.owned_workload("Job", "cron-29384720", Some(&cron)).await;
    let (deployment, set) = namespace.deployment("web").await;
    namespace.annotate_workload(&deployment, "jasm.codnod.io/secret-sync", &request("app")).await;
    for kind in ["ReplicaSet", "StatefulSet", "DaemonSet", "Job"] {
        let workload = namespace.workload(kind, &kind.to_lowercase()).await;
        namespace.pod(&kind.to_lowercase()).on(builder.node()).owned_by(&workload).create().await;
    }
    namespace.pod("cron").on(builder.node()).owned_by(&due).create().await;
    namespace.pod("web").on(builder.node()).owned_by(&set).label("pod-template-hash", "5d4f6c7b8").create().await;
    // `create` and `update` of Secrets.
    let first = namespace.wait_for_data("app", [("A", "1")]).await;
    store.put(&path, r#"{"A":"2"}"#).await;
    later_than(&first).await;
    namespace.pod("next").on(builder.node()).request(&request("app")).create().await;
    namespace.wait_for_data("app", [("A", "2")]).await;
    // `patch` of an Event that is told again.
    let pod = namespace.pod("malformed").on(builder.node()).request("provider: [").create().await;
    namespace.wait_for_event(&pod, "AnnotationInvalid").await;
    namespace.annotate(&pod, "jasm.codnod.io/secret-sync", "colour: red").await;

    let rules = shipped_rules();
    // What no request uses: a policy asks for it.
    let is_virtual = |rule: &&PolicyRule| rule.api_groups.iter().flatten().any(|group| group == "jasm.codnod.io");
    let granted: BTreeSet<String> = rules
        .iter()
        .filter(|rule| !is_virtual(rule))
        .flat_map(|rule| {
            let of = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
            let (groups, resources) = (of(&rule.api_groups), of(&rule.resources));
            let objects: Vec<_> =
                groups.iter().flat_map(|group| resources.iter().map(move |one| format!("{one}.{group}"))).collect();
            rule.verbs
                .iter()
                .flat_map(|verb| objects.iter().map(move |object| format!("{verb} {object}")))
                .collect::<Vec<_>>()
        })
        .collect();
    eventually("each right to be used", async || {
        let asked = requests(surroundings, builder.node().name()).await;
        assert_eq!(excesses(&asked, &rules), Vec::<String>::new());
        let used: BTreeSet<String> =
            asked.iter().map(|one| format!("{} {}.{}", one.verb, one.resource, one.group)).collect();
        let unused: Vec<_> = granted.difference(&used).collect();
        if unused.is_empty() { Ok(()) } else { Err(format!("unused: {unused:?}")) }
    })
    .await;
}
