//! All cases of `tests/corpus` in one walk: a pod for each on the node of a real agent, all at once, and everything that
//! comes of them. The format of the cases is in README.md there.

mod case;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use self::case::{Case, POLICY, Value};
use self::state::State;
use crate::support::canary::Canary;
use crate::support::cluster::{TestNamespace, data, differences};
use crate::support::node::AgentNode;
use crate::support::scene::Scene;
use crate::support::store::Fault;
use crate::support::unique;
use crate::support::wait::try_within;

/// How many cases are made at a time.
const AT_A_TIME: usize = 4;
/// For all cases together: the agent sends at most 50 Events a second, and the emulator is slow.
const LIMIT: Duration = Duration::from_secs(90);
/// The API server's limits.
const MAX_NOTE_BYTES: usize = 1024;
const MAX_REASON_BYTES: usize = 128;
/// What is too short to be looked for in a long text, and too long to be worth it.
const LOOKED_FOR: std::ops::RangeInclusive<usize> = 10..=4096;

/// A case whose pod is there.
struct Staged<'a> {
    case: &'a Case,
    state: State,
    namespace: TestNamespace,
    pod: Pod,
}

/// Events and Secrets of the whole cluster.
struct Seen {
    events: Vec<Event>,
    secrets: Vec<Secret>,
}

#[tokio::test]
async fn each_case_comes_out_as_it_says() {
    let cases = case::all();
    let scene = Scene::set_with(|builder| builder.policy(POLICY).log_level("trace")).await;
    let other = AgentNode::create(scene.surroundings).await;
    fill_the_store(&scene, &cases).await;

    let made = stream::iter(&cases).map(|case| make(case, &scene, &other)).buffer_unordered(AT_A_TIME);
    let made: Vec<Result<Staged<'_>, Option<String>>> = made.collect().await;
    let mut failures: Vec<String> = made.iter().filter_map(|made| made.as_ref().err()?.clone()).collect();
    let mut staged: Vec<Staged<'_>> = made.into_iter().filter_map(Result::ok).collect();
    staged.sort_by(|one, other| one.case.name.cmp(&other.case.name));

    edit(&staged).await;
    let told = try_within(LIMIT, "all cases", async || {
        let seen = Seen::now(&scene).await;
        let missing = staged.iter().filter(|staged| !compare(staged, &seen).is_empty()).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} cases that did not come out as they say")) }
    });
    failures.extend(told.await.err());
    let settled = settle(&scene).await;

    let seen = Seen::now(&scene).await;
    failures.extend(staged.iter().flat_map(|staged| {
        let name = &staged.case.name;
        compare(staged, &seen).into_iter().map(move |wrong| format!("{name}: {wrong}"))
    }));
    failures.extend(elsewhere(&scene, &staged, &seen));
    failures.extend(asked(&scene, &cases, &settled));
    failures.extend(leaked(&scene, &cases, &staged, &seen).await);
    failures.extend(agent_is_well(&scene).await);
    assert!(failures.is_empty(), "of {} cases:\n{}", cases.len(), failures.join("\n"));
}

async fn fill_the_store(scene: &Scene, cases: &[Case]) {
    let store = &scene.store;
    stream::iter(cases)
        .for_each_concurrent(AT_A_TIME, async |case| match &case.value {
            // The emulator takes no empty value, and neither does AWS.
            Some(Value::Text(text)) if text.is_empty() => {
                let answer = json!({"ARN": "arn", "Name": case.path(), "VersionId": "empty", "SecretString": ""});
                store.fail(&case.path(), Fault::Body(answer.to_string()));
            }
            Some(Value::Text(text)) => {
                store.put(&case.path(), text).await;
            }
            Some(Value::Bytes(bytes)) => store.put_binary(&case.path(), bytes).await,
            None => {}
        })
        .await;
}

/// Makes a case's pod, in a namespace of its own. There is none where the API server refuses it, as it should, or not.
async fn make<'a>(case: &'a Case, scene: &Scene, other: &AgentNode) -> Result<Staged<'a>, Option<String>> {
    let namespace = TestNamespace::named(scene.surroundings, &unique("corpus")).await;
    let state = State::of(case);
    match (state.create(case, &namespace, scene.builder.node(), other).await, case.want.reaches_the_agent()) {
        (Ok(pod), true) => Ok(Staged { case, state, namespace, pod }),
        (Err(kube::Error::Api(status)), false) if status.code == 422 => Err(None),
        (Ok(_), false) => Err(Some(format!("{}: the API server takes it", case.name))),
        (Err(error), _) => Err(Some(format!("{}: the API server refuses it: {error}", case.name))),
    }
}

/// Edits the pods whose cases say so, each after its first Event.
async fn edit(staged: &[Staged<'_>]) {
    let edits = staged.iter().filter_map(|staged| Some((staged, staged.state.edit(staged.case)?)));
    stream::iter(edits)
        .for_each_concurrent(AT_A_TIME, async |(staged, edit)| {
            let first =
                try_within(LIMIT, "a first Event", async || match staged.namespace.events(&staged.pod).await.len() {
                    0 => Err("none".to_owned()),
                    _ => Ok(()),
                });
            // What is missing is told with all the rest.
            if first.await.is_ok() {
                edit.apply(&staged.namespace, &staged.pod).await;
            }
        })
        .await;
}

/// Waits for the Event of one more pod: Events are sent one after another, and what came before was worked on.
async fn settle(scene: &Scene) -> String {
    let path = scene.store.seed("corpus/settle", r#"{"settled":"yes"}"#).await;
    let pod = scene.pod("settle").asks(&path, "settle").create().await;
    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    path
}

impl Seen {
    async fn now(scene: &Scene) -> Self {
        let admin = scene.surroundings.admin().await;
        let events = Api::<Event>::all(admin.clone()).list(&ListParams::default()).await;
        let secrets = Api::<Secret>::all(admin).list(&ListParams::default()).await;
        Self {
            events: events.expect("an administrator lists all Events").items,
            secrets: secrets.expect("an administrator lists all Secrets").items,
        }
    }

    fn events_of(&self, pod: &Pod) -> Vec<&Event> {
        let uid = pod.uid();
        self.events.iter().filter(|event| event.regarding.as_ref().is_some_and(|it| it.uid == uid)).collect()
    }

    fn secrets_in(&self, namespace: &TestNamespace) -> BTreeMap<&str, &Secret> {
        let in_it = |secret: &&Secret| secret.metadata.namespace.as_deref() == Some(namespace.name());
        let found = self.secrets.iter().filter(in_it);
        found.filter_map(|secret| Some((secret.metadata.name.as_deref()?, secret))).collect()
    }
}

/// What is not as the case says.
fn compare(staged: &Staged<'_>, seen: &Seen) -> Vec<String> {
    let want = &staged.case.want;
    let mut wrong = Vec::new();
    let events = seen.events_of(&staged.pod);
    let notes: Vec<&str> = events.iter().map(|event| event.note.as_deref().unwrap_or_default()).collect();
    let mut reasons: Vec<&str> = events.iter().map(|event| event.reason.as_deref().unwrap_or_default()).collect();
    reasons.sort_unstable();
    if reasons != want.reasons() {
        wrong.push(format!("Events {reasons:?} in place of {:?}: {notes:?}", want.reasons()));
    }
    for says in &want.says {
        if !notes.iter().any(|note| note.contains(says.as_str())) {
            wrong.push(format!("{notes:?} lacks {says:?}"));
        }
    }
    wrong.extend(events.iter().filter_map(|event| malformed(event)));

    let secrets = seen.secrets_in(&staged.namespace);
    let wanted = want.secrets();
    for name in wanted.keys().filter(|name| !secrets.contains_key(name.as_str())) {
        wrong.push(format!("there is no Secret {name}"));
    }
    for (name, secret) in secrets {
        let Some(wanted) = wanted.get(name) else {
            wrong.push(format!("the Secret {name} should not be there"));
            continue;
        };
        wrong.extend(differences(&data(secret), wanted).into_iter().map(|difference| format!("{name}: {difference}")));
        if secret.type_.as_deref() != Some(&want.r#type) {
            wrong.push(format!("{name} has the type {:?}", secret.type_));
        }
    }
    wrong
}

/// What is wrong with an Event, whatever it tells.
fn malformed(event: &Event) -> Option<String> {
    let (reason, note) = (event.reason.as_deref()?, event.note.as_deref()?);
    let kind = if reason == "SecretSyncSuccess" { "Normal" } else { "Warning" };
    if event.type_.as_deref() != Some(kind) {
        return Some(format!("{reason} is {:?}", event.type_));
    }
    if note.is_empty() || note.len() > MAX_NOTE_BYTES || reason.len() > MAX_REASON_BYTES {
        return Some(format!("the note of {reason} has {} bytes", note.len()));
    }
    // A replacement character stands for what is not shown.
    let shown = |c: char| c == '\u{fffd}' || c == ' ' || c.is_ascii_graphic();
    note.chars().find(|c| !shown(*c)).map(|c| format!("the note of {reason} has the character {}", c.escape_unicode()))
}

/// Secrets that the agent wrote where no case is.
fn elsewhere(scene: &Scene, staged: &[Staged<'_>], seen: &Seen) -> Vec<String> {
    let known: BTreeSet<&str> =
        staged.iter().map(|staged| staged.namespace.name()).chain([scene.namespace.name()]).collect();
    let ours = seen.secrets.iter().filter(|secret| {
        let by = secret.annotations().get("jasm.codnod.io/node");
        by.is_some_and(|node| node == scene.builder.node().name())
    });
    let strays = ours.filter(|secret| !known.contains(secret.metadata.namespace.as_deref().unwrap_or_default()));
    strays.map(|secret| format!("the Secret {:?} is in no case's namespace", secret.metadata.name)).collect()
}

/// What the store was asked for, and should not have been, and the other way round.
fn asked(scene: &Scene, cases: &[Case], settled: &str) -> Vec<String> {
    let mut wanted: BTreeSet<String> = cases.iter().flat_map(Case::asks).collect();
    wanted.insert(settled.to_owned());
    let asked = scene.store.asked();
    let too_many = asked.difference(&wanted).map(|path| format!("the store was asked for {path:?}"));
    too_many.chain(wanted.difference(&asked).map(|path| format!("the store was not asked for {path:?}"))).collect()
}

/// Where values of the cases stand in what the agent wrote.
async fn leaked(scene: &Scene, cases: &[Case], staged: &[Staged<'_>], seen: &Seen) -> Vec<String> {
    let events: Vec<&Event> = staged.iter().flat_map(|staged| seen.events_of(&staged.pod)).collect();
    let texts = [
        ("the agent's log", scene.agent.text()),
        ("an Event", serde_json::to_string(&events).expect("Events are JSON")),
        ("the agent's metrics", scene.agent.get("/metrics").await.text()),
    ];
    let (mut looked_for, mut found) = (BTreeSet::new(), Vec::new());
    for case in cases {
        let mut values: Vec<Vec<u8>> = case.value.iter().map(|value| value.bytes().to_vec()).collect();
        values.extend(case.want.secrets().into_values().flat_map(BTreeMap::into_values));
        values.extend(case.value.iter().flat_map(|value| texts_in(value.bytes())));
        values.retain(|value| LOOKED_FOR.contains(&value.len()) && looked_for.insert(value.clone()));
        let canary = Canary::new(values);
        for (origin, text) in &texts {
            let forms = canary.search(text.as_bytes());
            found.extend(forms.into_iter().map(|form| format!("{}: {origin} holds {form}", case.name)));
        }
    }
    assert!(looked_for.len() >= 100, "only {} values are looked for", looked_for.len());
    found
}

/// The texts between quotes of a value, but for keys: those may be named.
fn texts_in(value: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(value);
    let parts: Vec<&str> = text.split('"').collect();
    let values = parts.windows(2).skip(1).step_by(2).filter(|pair| !pair[1].trim_start().starts_with(':'));
    values.map(|pair| pair[0].as_bytes().to_vec()).collect()
}

async fn agent_is_well(scene: &Scene) -> Vec<String> {
    let mut wrong = Vec::new();
    for probe in ["/livez", "/readyz"] {
        let reply = scene.agent.get(probe).await;
        if !reply.status.is_success() {
            wrong.push(format!("{probe} says {}", reply.text()));
        }
    }
    let metrics = scene.agent.get("/metrics").await.text();
    if !metrics.lines().any(|line| line == "jasm_panics_total 0") {
        wrong.push("the agent counts panics".to_owned());
    }
    wrong
}
