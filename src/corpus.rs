//! The cases of `tests/corpus` through the pure layers: annotation, policy, mapping. What needs a pod's state or the API
//! server is in the walk against a real agent, `tests/it/corpus.rs`.

#[path = "../tests/it/corpus/case.rs"]
mod case;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use self::case::{Case, POLICY, Value};
use crate::{
    error::SyncError,
    mapping,
    pod::PodNamespace,
    policy::{AdmittedRequest, Policy, Requester},
    progress::Ask,
    provider::{Catalogue, Kind, ProviderName},
    request,
    secret_value::SecretPayload,
};

/// No text takes long, however slow the machine: what grows with the square of a text takes many times this.
const LIMIT: Duration = Duration::from_secs(2);

/// What became of a case.
#[derive(Default)]
struct Outcome {
    /// Events as they fold: by Secret, reason and action.
    events: BTreeSet<(String, &'static str, &'static str)>,
    notes: Vec<String>,
    asks: Vec<String>,
    secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    types: BTreeSet<&'static str>,
}

#[test]
fn each_case_comes_out_as_it_says() {
    let policy = Policy::parse([("policy.yaml", POLICY)]).expect("a policy");
    let mut failures = Vec::new();
    let cases = case::all();
    for case in cases.iter().filter(|case| case.pod.is_none() && case.then.is_none()) {
        let outcome = catch_unwind(AssertUnwindSafe(|| walk(case, &policy)));
        let wrong = outcome.map_or_else(|_| vec!["it panics".to_owned()], |outcome| compare(case, &outcome));
        failures.extend(wrong.into_iter().map(|wrong| format!("{}: {wrong}", case.name)));
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// All else that is text reaches the agent.
#[test]
fn the_api_server_refuses_an_annotation_for_its_size_alone() {
    const ALL_ANNOTATIONS: usize = 256 * 1024;
    for case in case::all() {
        let length = case.text.as_ref().map_or(0, String::len);
        assert_eq!(case.want.reaches_the_agent(), length <= ALL_ANNOTATIONS, "{}", case.name);
    }
}

#[test]
fn no_case_is_there_twice() {
    let mut seen = BTreeMap::new();
    for case in &case::all() {
        // The name of the case stands in it.
        let place = case.path();
        let same = |text: &Option<String>| text.as_ref().map(|text| text.replace(&place, "PATH"));
        let kind = case.value.as_ref().map(|value| matches!(value, Value::Text(_)));
        let value = case.value.as_ref().map(|value| String::from_utf8_lossy(value.bytes()));
        let before = seen.insert((same(&case.text), same(&case.then), kind, value, case.pod.clone()), &case.name);
        assert_eq!(before, None, "the same as {}", case.name);
    }
}

fn walk(case: &Case, policy: &Policy) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(text) = &case.text else { return outcome };
    let catalogue =
        Catalogue::new(crate::config::Mode::Direct, [(ProviderName::for_test("aws-secretsmanager"), Kind::for_test())]);
    let started = Instant::now();
    let parsed = request::parse(text, &catalogue);
    assert!(started.elapsed() < LIMIT, "parsing took {:?}", started.elapsed());
    for ask in parsed.unwrap_or_else(|error| vec![Err(error.into())]) {
        let secret = ask.as_ref().map(|request| request.secret_name.to_string()).unwrap_or_default();
        let (reason, action) = match serve(case, ask, policy, &mut outcome) {
            Ok(Served::Made) => ("SecretSyncSuccess", ""),
            Ok(Served::NothingInStore) => ("SecretFetchFailed", ""),
            Err(error) => {
                outcome.notes.push(error.to_string());
                (error.reason().as_str(), error.action())
            }
        };
        outcome.events.insert((secret, reason, action));
    }
    outcome
}

enum Served {
    Made,
    NothingInStore,
}

fn serve(case: &Case, ask: Ask, policy: &Policy, outcome: &mut Outcome) -> Result<Served, SyncError> {
    let pod = Requester { namespace: PodNamespace::for_test("corpus"), service_account: "default".to_owned() };
    let admitted: AdmittedRequest = policy.admit(ask?, &pod)?;
    let request = admitted.request();
    outcome.asks.push(request.remote.path.clone());
    let payload = match &case.value {
        Some(_) if request.remote.path != case.path() => None,
        // The one version that a new secret has.
        Some(_) if request.remote.version.as_ref().is_some_and(|version| version != "AWSCURRENT") => None,
        Some(Value::Text(text)) => Some(SecretPayload::new(text.clone().into_bytes(), "v")),
        Some(Value::Bytes(bytes)) => Some(SecretPayload::whole(bytes.clone(), "v")),
        None => None,
    };
    let Some(payload) = payload else { return Ok(Served::NothingInStore) };
    let started = Instant::now();
    let mapped = mapping::map(&request.template, &payload);
    assert!(started.elapsed() < LIMIT, "mapping took {:?}", started.elapsed());
    let data = mapped.map_err(|problem| SyncError::Mapping {
        provider: request.remote.provider.clone(),
        path: request.remote.path.clone(),
        problem,
    })?;
    let data = data.iter().map(|(key, value)| (key.to_owned(), value.to_vec())).collect();
    outcome.secrets.insert(request.secret_name.to_string(), data);
    outcome.types.insert(request.template.secret_type.as_str());
    Ok(Served::Made)
}

/// What is not as the case says.
fn compare(case: &Case, outcome: &Outcome) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut reasons: Vec<&str> = outcome.events.iter().map(|(_, reason, _)| *reason).collect();
    reasons.sort_unstable();
    if reasons != case.want.reasons() {
        wrong.push(format!("{reasons:?} in place of {:?}: {:?}", case.want.reasons(), outcome.notes));
    }
    // What the store says is not known here.
    let from_store = reasons.contains(&"SecretFetchFailed");
    for says in case.want.says.iter().filter(|_| !from_store) {
        if !outcome.notes.iter().any(|note| note.contains(says.as_str())) {
            wrong.push(format!("{:?} lacks {says:?}", outcome.notes));
        }
    }
    let asks: BTreeSet<&str> = outcome.asks.iter().map(String::as_str).collect();
    if asks != case.asks().iter().map(String::as_str).collect() {
        wrong.push(format!("the store is asked for {asks:?} in place of {:?}", case.asks()));
    }
    if outcome.secrets != case.want.secrets() {
        let keys = |all: &BTreeMap<String, BTreeMap<String, Vec<u8>>>| {
            all.iter().map(|(name, data)| format!("{name}: {:?}", data.keys())).collect::<Vec<_>>().join("; ")
        };
        wrong.push(format!("Secrets {} in place of {}", keys(&outcome.secrets), keys(&case.want.secrets())));
    }
    if outcome.types.iter().any(|secret_type| *secret_type != case.want.r#type) {
        wrong.push(format!("type {:?} in place of {}", outcome.types, case.want.r#type));
    }
    wrong
}
