//! Annotated pod in, Secret out (spec US1, US5), with the calls that it takes.

use std::collections::BTreeMap;

use crate::support::{
    agent::AgentBuilder,
    audit::{requests, tally},
    cluster::TestNamespace,
    policies::ALLOW_ALL,
    store::Store,
    surroundings::Surroundings,
};

#[tokio::test]
async fn an_annotated_pod_gets_all_keys_of_its_secret_and_an_event() {
    let surroundings = Surroundings::get().await;
    let store = Store::start(surroundings).await;
    let builder = AgentBuilder::new(surroundings, &store).await.policy(ALLOW_ALL);
    let mut agent = builder.spawn();
    agent.ready().await;
    let namespace = TestNamespace::create(surroundings).await;
    let path = store.seed("config", r#"{"DB_HOST":"db.local","DB_USER":"app","DB_PASSWORD":"s3cret-\u00e9"}"#).await;

    let pod = namespace.pod("web").on(builder.node()).asks(&path, "app-credentials").create().await;

    let want = [("DB_HOST", "db.local"), ("DB_USER", "app"), ("DB_PASSWORD", "s3cret-é")];
    let secret = namespace.wait_for_data("app-credentials", want).await;
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    let event = namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    assert_eq!(event.reporting_controller.as_deref(), Some("jasm.codnod.io/agent"));
    let wanted = format!("Secret app-credentials was created from aws-secretsmanager {path}");
    assert_eq!(event.note.as_deref(), Some(wanted.as_str()));
    let calls = tally(&requests(surroundings, builder.node().name()).await);
    let want: BTreeMap<String, usize> = BTreeMap::new();
    assert_eq!(calls, want);
}
