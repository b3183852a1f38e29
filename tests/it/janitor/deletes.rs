//! What goes, and in which order.

use super::Stage;

#[tokio::test]
async fn replicas_of_a_source_that_is_gone_go_then_its_master_and_nothing_else() {
    let stage = Stage::set().await;
    let (gone, stays) = (stage.replica("gone").await, stage.replica("stays").await);
    stage.asked(&gone, "gone-too").await;
    stage.recorded(&["gone", "gone-too", "stays"]).await;
    stage.scene.store.delete(&gone).await;
    let janitor = stage.janitor(&[]);
    stage.gone("gone").await;
    stage.gone("gone-too").await;
    janitor.says(&["its source is gone, and so are its replicas", &gone]).await;
    assert!(stage.master(&gone).await.is_none());
    assert!(stage.scene.namespace.secret("stays").await.is_some() && stage.master(&stays).await.is_some());
    let events = stage.scene.namespace.all_events().await;
    let told = events.iter().filter(|event| event.reason.as_deref() == Some("ReplicaDeleted"));
    let notes: Vec<String> = told.filter_map(|event| event.note.clone()).collect();
    for name in ["gone", "gone-too"] {
        let want = format!("Secret {name} was deleted: its source is gone at the store (v1:aws-secretsmanager:{gone})");
        assert_eq!(notes.iter().filter(|note| **note == want).count(), 1, "one Event for {name}: {notes:?}");
    }
}

#[tokio::test]
async fn a_replica_whose_master_was_taken_goes_once_no_pod_asks_for_it() {
    let stage = Stage::set().await;
    let path = stage.scene.store.seed("taken", r#"{"A":"1"}"#).await;
    let pod = stage.asked(&path, "taken").await;
    stage.replica("stays").await;
    stage.recorded(&["taken", "stays"]).await;
    stage.take_master(&path).await;
    let janitor = stage.janitor(&[]);
    // A pod asks for it, for longer than it takes.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert!(stage.scene.namespace.secret("taken").await.is_some(), "{}", janitor.text());
    stage.scene.namespace.delete_pod(&pod).await;
    stage.gone("taken").await;
    assert!(stage.scene.namespace.secret("stays").await.is_some());
}

/// While the janitor is at a source's replicas, its master still serves pods: what was made from it in that time would stay for ever.
#[tokio::test]
async fn a_replica_that_came_back_from_the_master_goes_after_it() {
    let stage = Stage::set().await;
    stage.replica("witness").await;
    let path = stage.replica("a-first").await;
    stage.asked(&path, "b-second").await;
    stage.recorded(&["a-first", "b-second"]).await;
    stage.scene.store.delete(&path).await;
    // Six seconds from one to the next.
    let janitor = stage.janitor(&["--max-per-minute", "10"]);
    stage.gone("a-first").await;
    stage.scene.pod("a-late-one").asks(&path, "a-first").create().await;
    stage.scene.namespace.wait_for_secret("a-first").await;
    janitor.says(&["its source is gone, and so are its replicas", &path]).await;
    stage.gone("a-first").await;
    assert_eq!(
        (stage.scene.namespace.secret("b-second").await.is_some(), stage.master(&path).await.is_some()),
        (false, false)
    );
}

#[tokio::test]
async fn a_dry_run_shows_what_would_go_and_why_and_deletes_nothing() {
    let stage = Stage::set().await;
    let path = stage.replica("shown").await;
    stage.replica("stays").await;
    stage.recorded(&["shown", "stays"]).await;
    stage.scene.store.delete(&path).await;
    let said = stage.janitor(&["--dry-run"]).ended().await;
    let object = format!("Secret {}/shown", stage.scene.namespace.name());
    let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    for want in [path.as_str(), "source_gone", "replica"] {
        assert!(line(&object).contains(want), "{said}");
    }
    assert!(line("Secret sm-").contains("master"), "{said}");
    assert!(!said.contains("stays"), "{said}");
    assert!(stage.scene.namespace.secret("shown").await.is_some() && stage.master(&path).await.is_some());
}

#[tokio::test]
async fn a_wave_stops_it_until_it_is_allowed() {
    let stage = Stage::set().await;
    stage.replica("witness").await;
    // Of sources, and of replicas of one source.
    let sources: Vec<String> = (0..6).map(|number| format!("source-{number}")).collect();
    let mut paths = Vec::new();
    for name in &sources {
        paths.push(stage.replica(name).await);
    }
    let replicas: Vec<String> = (0..6).map(|number| format!("replica-{number}")).collect();
    let one = stage.scene.store.seed("one", r#"{"A":"1"}"#).await;
    for name in &replicas {
        stage.asked(&one, name).await;
    }
    let all: Vec<&str> = sources.iter().chain(&replicas).map(String::as_str).collect();
    stage.recorded(&all).await;
    stage.scene.store.delete(&one).await;
    let mut janitor = stage.janitor(&[]);
    janitor.says(&["looks like a mistake", "\"orphans\":6"]).await;
    for path in &paths {
        stage.scene.store.delete(path).await;
    }
    janitor.says(&["is not believed: it says that 7 sources are absent, 0 more of which"]).await;
    // For some rounds more.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    for name in &all {
        assert!(stage.scene.namespace.secret(name).await.is_some(), "{name}");
    }
    janitor.kill();
    drop(janitor);
    stage.free_the_lease().await;
    let _allowed = stage.janitor(&["--allow-waves"]);
    for name in &all {
        stage.gone(name).await;
    }
    assert!(stage.scene.namespace.secret("witness").await.is_some());
}

#[tokio::test]
async fn no_more_go_in_a_minute_than_it_was_told() {
    let stage = Stage::set().await;
    stage.replica("witness").await;
    let names = ["slow-0", "slow-1", "slow-2"];
    let mut paths = Vec::new();
    for name in names {
        paths.push(stage.replica(name).await);
    }
    stage.recorded(&names).await;
    for path in &paths {
        stage.scene.store.delete(path).await;
    }
    let janitor = stage.janitor(&["--max-per-minute", "30"]);
    for name in names {
        stage.gone(name).await;
        janitor.says(&["\"message\":\"deleted\"", name]).await;
    }
    let text = janitor.text();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let deleted = lines.filter(|line| line["message"] == "deleted");
    let times: Vec<jiff::Timestamp> = deleted.filter_map(|line| line["timestamp"].as_str()?.parse().ok()).collect();
    assert_eq!(times.len(), names.len(), "{text}");
    let apart = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64());
    assert!(apart.clone().all(|seconds| seconds >= 1.9), "{:?}", apart.collect::<Vec<_>>());
}
