//! The cases. Each one is for every store, and knows it only as a [`Subject`](super::Subject).

use std::time::{Duration, Instant};

use futures::future::{FutureExt as _, LocalBoxFuture, join_all};
use serde_json::json;

use super::bench::Bench;
use super::{Outcome, WrongCredentials};
use crate::support::front::Fault;

type Case = fn(&Bench) -> LocalBoxFuture<'_, Outcome>;

pub(super) const ALL: &[(&str, Case)] = &[
    ("found", |bench| found(bench).boxed_local()),
    ("missing", |bench| missing(bench).boxed_local()),
    ("denied and back", |bench| denied(bench).boxed_local()),
    ("throttled", |bench| throttled(bench).boxed_local()),
    ("slow", |bench| slow(bench).boxed_local()),
    ("unavailable", |bench| passes(bench, Fault::Unavailable).boxed_local()),
    ("truncated", |bench| passes(bench, Fault::Truncated).boxed_local()),
    ("too large an answer", |bench| oversized(bench).boxed_local()),
    ("black hole", |bench| black_hole(bench).boxed_local()),
    ("binary", |bench| binary(bench).boxed_local()),
    ("unicode", |bench| unicode(bench).boxed_local()),
    ("empty", |bench| empty(bench).boxed_local()),
    ("largest", |bench| largest(bench).boxed_local()),
    ("version pin", |bench| version_pin(bench).boxed_local()),
    ("old version", |bench| old_version(bench).boxed_local()),
    ("no such version", |bench| no_such_version(bench).boxed_local()),
    ("deleted", |bench| deleted(bench).boxed_local()),
    ("unreadable", |bench| unreadable(bench).boxed_local()),
    ("wrong credentials", |bench| wrong_credentials(bench).boxed_local()),
    ("rotated credentials", |bench| rotated_credentials(bench).boxed_local()),
    ("cancelled", |bench| cancelled(bench).boxed_local()),
    ("concurrent", |bench| concurrent(bench).boxed_local()),
    ("no body in a text", |bench| no_body_in_a_text(bench).boxed_local()),
];

async fn found(bench: &Bench) -> Outcome {
    let (path, value) = bench.seed().await;
    let (_, secret) = bench.ask(&path).await;
    bench.wait_for(&secret, &value).await;
    Ok(())
}

async fn missing(bench: &Bench) -> Outcome {
    let path = bench.subject.path();
    let (pod, secret) = bench.ask(&path).await;
    let told = bench.failure(&pod).await;
    assert!(told.contains("has no secret") && told.contains(&path), "{told}");
    assert!(bench.namespace.secret(&secret).await.is_none(), "and nothing is written");
    bench.gone(&pod).await;
    Ok(())
}

async fn denied(bench: &Bench) -> Outcome {
    let (path, value) = bench.seed().await;
    bench.subject.allow(&path, false).await?;
    let (pod, _) = bench.ask(&path).await;
    let told = bench.failure(&pod).await;
    assert!(told.contains("denied access") && told.contains("grant "), "it says what to grant, and to whom: {told}");
    bench.subject.allow(&path, true).await?;
    bench.next_second().await;
    let (_, secret) = bench.ask(&path).await;
    bench.wait_for(&secret, &value).await;
    Ok(())
}

async fn throttled(bench: &Bench) -> Outcome {
    let (path, value) = bench.seed().await;
    bench.subject.faults()?.fail_times(&path, 2, Fault::Throttling);
    let (pod, secret) = bench.ask(&path).await;
    bench.wait_for_failure(&pod, "throttles requests").await;
    bench.wait_for(&secret, &value).await;
    let calls = bench.subject.faults()?.calls(&path);
    // One more where an answer comes too late for the agent.
    assert!((3..=4).contains(&calls), "asked again as often as it took: {calls}");
    Ok(())
}

async fn slow(bench: &Bench) -> Outcome {
    let (path, value) = bench.seed().await;
    bench.subject.faults()?.fail_times(&path, 1, Fault::Slow(Duration::from_secs(1)));
    let (_, secret) = bench.ask(&path).await;
    bench.wait_for(&secret, &value).await;
    assert_eq!(bench.subject.faults()?.calls(&path), 1, "it was waited for");
    Ok(())
}

/// One answer is spoiled, and the next one right.
async fn passes(bench: &Bench, fault: Fault) -> Outcome {
    let (path, value) = bench.seed().await;
    bench.subject.faults()?.fail_times(&path, 1, fault);
    let (pod, secret) = bench.ask(&path).await;
    bench.wait_for_failure(&pod, "did not answer").await;
    bench.wait_for(&secret, &value).await;
    Ok(())
}

async fn oversized(bench: &Bench) -> Outcome {
    let (path, _) = bench.seed().await;
    bench.subject.faults()?.fail(&path, Fault::Oversized);
    let (pod, secret) = bench.ask(&path).await;
    bench.failure(&pod).await;
    assert!(bench.namespace.secret(&secret).await.is_none(), "nothing of it is written");
    bench.gone(&pod).await;
    bench.subject.faults()?.heal(&path);
    Ok(())
}

async fn black_hole(bench: &Bench) -> Outcome {
    let (path, value) = bench.seed().await;
    let gate = bench.subject.faults()?.hold(&path);
    let (pod, secret) = bench.ask(&path).await;
    gate.held(1).await;
    let (other_path, other_value) = bench.seed().await;
    let (_, other) = bench.ask(&other_path).await;
    bench.wait_for(&other, &other_value).await;
    bench.wait_for_failure(&pod, "did not answer").await;
    gate.release();
    bench.wait_for(&secret, &value).await;
    Ok(())
}

async fn binary(bench: &Bench) -> Outcome {
    let path = bench.subject.path();
    let bytes = [0, 159, 146, 150, 255, 0, 10];
    bench.subject.put_bytes(&path, &bytes).await?;
    let (_, secret) = bench.ask(&path).await;
    bench.namespace.wait_for_data(&secret, [("value", bytes)]).await;
    Ok(())
}

async fn unicode(bench: &Bench) -> Outcome {
    let (path, value) = (bench.subject.path(), bench.value());
    let text = format!("Zażółć gęślą jaźń \u{1f511} \"quoted\" \\ back\n\ttab {value}");
    bench.subject.put(&path, &json!({"K": text})).await;
    let (_, secret) = bench.ask(&path).await;
    bench.wait_for(&secret, &text).await;
    Ok(())
}

async fn empty(bench: &Bench) -> Outcome {
    let path = bench.subject.path();
    bench.subject.put(&path, &json!({})).await;
    let (pod, secret) = bench.ask(&path).await;
    let told = bench.namespace.wait_for_event(&pod, "SecretInvalid").await.note.unwrap_or_default();
    assert!(told.contains("empty"), "{told}");
    assert!(bench.namespace.secret(&secret).await.is_none(), "an empty Secret helps nobody");
    bench.gone(&pod).await;
    Ok(())
}

async fn largest(bench: &Bench) -> Outcome {
    let (path, value) = (bench.subject.path(), bench.value());
    let around = json!({"K": value}).to_string().len();
    let text = format!("{value}{}", "x".repeat(bench.subject.largest() - around));
    bench.subject.put(&path, &json!({"K": text})).await;
    let (_, secret) = bench.ask(&path).await;
    bench.wait_for(&secret, &text).await;
    Ok(())
}

async fn version_pin(bench: &Bench) -> Outcome {
    bench.subject.has_versions()?;
    let (path, first, second) = (bench.subject.path(), bench.value(), bench.value());
    bench.subject.put(&path, &json!({"K": first})).await;
    let pinned = bench.subject.put(&path, &json!({"K": second})).await;
    let third = bench.value();
    bench.subject.put(&path, &json!({"K": third})).await;
    let (_, secret) = bench.ask_with(&path, json!({"version": pinned})).await;
    bench.wait_for(&secret, &second).await;
    let (_, current) = bench.ask(&path).await;
    bench.wait_for(&current, &third).await;
    Ok(())
}

async fn old_version(bench: &Bench) -> Outcome {
    bench.subject.has_versions()?;
    let (path, old, new) = (bench.subject.path(), bench.value(), bench.value());
    let version = bench.subject.put(&path, &json!({"K": old})).await;
    bench.subject.put(&path, &json!({"K": new})).await;
    let (_, secret) = bench.ask_with(&path, json!({"version": version})).await;
    let written = bench.wait_for(&secret, &old).await;
    let annotations = written.metadata.annotations.unwrap_or_default();
    let stands = annotations.get("jasm.codnod.io/source-version").map(String::as_str).unwrap_or_default();
    assert!(!stands.is_empty() && version.ends_with(stands), "the Secret says which one it is: {stands:?}");
    Ok(())
}

async fn no_such_version(bench: &Bench) -> Outcome {
    bench.subject.has_versions()?;
    let path = bench.subject.path();
    let mut version = bench.subject.put(&path, &json!({"K": bench.value()})).await;
    // Of the same form, and no version of this secret.
    let last = version.pop().expect("a version is not empty");
    version.push(if last == '9' { '8' } else { '9' });
    let (pod, _) = bench.ask_with(&path, json!({"version": version})).await;
    bench.wait_for_failure(&pod, "has no secret").await;
    bench.gone(&pod).await;
    Ok(())
}

async fn deleted(bench: &Bench) -> Outcome {
    let (path, value) = bench.seed().await;
    let (pod, secret) = bench.ask(&path).await;
    bench.wait_for(&secret, &value).await;
    bench.gone(&pod).await;
    let wanted = bench.subject.delete(&path).await;
    bench.next_second().await;
    let pod = bench.ask_into(&secret, &path, json!({})).await;
    bench.wait_for_failure(&pod, wanted).await;
    bench.wait_for(&secret, &value).await;
    bench.gone(&pod).await;
    Ok(())
}

async fn unreadable(bench: &Bench) -> Outcome {
    for (path, wanted) in bench.subject.unreadable().await? {
        let (pod, _) = bench.ask(&path).await;
        bench.wait_for_failure(&pod, wanted).await;
        bench.gone(&pod).await;
    }
    Ok(())
}

async fn wrong_credentials(bench: &Bench) -> Outcome {
    let WrongCredentials { fault, remedy } = bench.subject.wrong_credentials()?;
    let (path, _) = bench.seed().await;
    let more = match fault {
        None => json!({"provider": "wrong"}),
        Some(fault) => {
            bench.subject.faults()?.fail(&path, fault);
            json!({})
        }
    };
    let (pod, secret) = bench.ask_with(&path, more).await;
    let told = bench.failure(&pod).await;
    assert!(told.contains("no valid credentials") && told.contains(remedy), "{told}");
    assert!(bench.namespace.secret(&secret).await.is_none());
    bench.gone(&pod).await;
    Ok(())
}

async fn rotated_credentials(bench: &Bench) -> Outcome {
    let (before, value) = bench.seed().await;
    let (_, secret) = bench.ask(&before).await;
    bench.wait_for(&secret, &value).await;
    bench.next_second().await;
    bench.subject.rotate().await?;
    let (path, value) = bench.seed().await;
    let (pod, secret) = bench.ask(&path).await;
    bench.wait_for(&secret, &value).await;
    bench.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert_eq!(bench.namespace.events(&pod).await.len(), 1, "no failure is told: new ones are got at once");
    Ok(())
}

async fn cancelled(bench: &Bench) -> Outcome {
    let (path, value) = bench.seed().await;
    let gate = bench.subject.faults()?.hold(&path);
    let (pod, _) = bench.ask(&path).await;
    gate.held(1).await;
    bench.gone(&pod).await;
    let (other_path, other_value) = bench.seed().await;
    let (_, other) = bench.ask(&other_path).await;
    bench.wait_for(&other, &other_value).await;
    let (_, secret) = bench.ask(&path).await;
    gate.release();
    bench.wait_for(&secret, &value).await;
    Ok(())
}

async fn concurrent(bench: &Bench) -> Outcome {
    let (path, value) = bench.seed().await;
    let started = Instant::now();
    let gate = bench.subject.faults().ok().map(|faults| faults.hold(&path));
    let same = join_all((0..10).map(|_| bench.ask(&path))).await;
    let seeds = join_all((0..20).map(|_| bench.seed())).await;
    let others = join_all(seeds.iter().map(|(path, _)| bench.ask(path))).await;
    for ((_, secret), (_, value)) in others.iter().zip(&seeds) {
        bench.wait_for(secret, value).await;
    }
    drop(gate);
    for (_, secret) in &same {
        bench.wait_for(secret, &value).await;
    }
    if let Ok(faults) = bench.subject.faults() {
        let (calls, seconds) =
            (faults.calls(&path), usize::try_from(started.elapsed().as_secs()).unwrap_or(usize::MAX));
        assert!(calls <= seconds + 2, "{calls} requests in {seconds} s: at most one for each second");
    }
    Ok(())
}

async fn no_body_in_a_text(bench: &Bench) -> Outcome {
    let (path, _) = bench.seed().await;
    let leak = bench.value();
    let bodies = [format!(r#"{{"value":{{"leak":"{leak}"}},"data":7}}"#), format!("<html>{leak}</html>"), leak];
    for body in bodies {
        bench.subject.faults()?.fail(&path, Fault::Body(body));
        bench.next_second().await;
        let (pod, _) = bench.ask(&path).await;
        bench.failure(&pod).await;
        bench.gone(&pod).await;
    }
    // That it stands nowhere is looked at in the end, with all other values.
    bench.subject.faults()?.heal(&path);
    Ok(())
}
