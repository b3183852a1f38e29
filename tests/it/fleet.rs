//! Figures of a fleet: 1,000 pods in 120 namespaces on 10 nodes, 10,000 syncs, a store that fails one time in a hundred;
//! and what an agent takes of a processor while nothing happens. `make fleet`; times are reported, never asserted.

use std::io::Write as _;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, future::join_all, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::cluster::TestNamespace;
use crate::support::scene::ALLOW_ALL;
use crate::support::store::{Fault, GET, Store};
use crate::support::surroundings::Surroundings;
use crate::support::wait::try_within;

const AGENTS: usize = 10;
const NAMESPACES: usize = 120;
const PODS: usize = 1000;
const SECRETS_OF_A_POD: usize = 10;
const SYNCS: usize = PODS * SECRETS_OF_A_POD;
/// The API server, ten agents and this program share the machine's processors.
const LIMIT: Duration = Duration::from_secs(600);
/// How long an agent is watched at rest, in seconds, where `JASM_FLEET_REST` says nothing else.
const REST: u64 = 60;

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "fleet: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes, and a release build: make fleet"]
async fn ten_thousand_syncs_of_a_fleet_and_each_one_ends_well() {
    let surroundings = Surroundings::get().await;
    let store = Store::stub(Duration::from_millis(20));
    let builders = join_all((0..AGENTS).map(|_| AgentBuilder::new(surroundings, &store))).await;
    let builders: Vec<AgentBuilder> = builders.into_iter().map(|builder| builder.policy(ALLOW_ALL)).collect();
    let mut agents: Vec<Agent> = builders.iter().map(AgentBuilder::spawn).collect();
    for agent in &mut agents {
        agent.ready().await;
    }
    let namespaces = stream::iter(0..NAMESPACES).map(|_| TestNamespace::create(surroundings));
    let namespaces: Vec<TestNamespace> = namespaces.buffer_unordered(16).collect().await;
    let paths = join_all((0..SECRETS_OF_A_POD).map(|_| store.seed("fleet", r#"{"A":"value"}"#))).await;
    store.fail_every(GET, 100, Fault::Status(503));

    let started = Instant::now();
    let pods = (0..PODS).map(|number| {
        let (namespace, builder) = (&namespaces[number % NAMESPACES], &builders[number % AGENTS]);
        let name = format!("pod-{number}");
        let entry = |(index, path): (usize, &String)| {
            json!({"provider": "aws-secretsmanager", "path": path, "secretName": format!("{name}-{index}")})
        };
        let request = Value::Array(paths.iter().enumerate().map(entry).collect()).to_string();
        async move { namespace.pod(&name).on(builder.node()).request(&request).create().await }
    });
    stream::iter(pods).buffer_unordered(32).collect::<Vec<_>>().await;
    let created = started.elapsed();
    let everywhere: Api<Secret> = Api::all(surroundings.admin().await);
    let ours = ListParams::default().labels("jasm.codnod.io/managed-by=jasm");
    try_within(LIMIT, "all Secrets", async || {
        let found = everywhere.list_metadata(&ours).await.map_err(|error| error.to_string())?.items.len();
        if found == SYNCS { Ok(()) } else { Err(format!("{found} of {SYNCS}")) }
    })
    .await
    .unwrap_or_else(|message| panic!("{message}"));
    let done = started.elapsed();

    let (mut at_once, mut failed, mut slow) = (0, 0, 0);
    for line in agents.iter().flat_map(Agent::log).filter(|line| line["message"] == "sync") {
        match line["outcome"].as_str() {
            Some("created") => at_once += 1,
            _ => failed += 1,
        }
        slow += usize::from(line["duration_ms"].as_u64().is_some_and(|ms| ms > 5000));
    }
    assert_eq!(at_once, SYNCS, "each Secret was created once");
    let calls = store.calls(GET);
    assert!(failed <= SYNCS / 100 + calls / 100, "{failed} attempts failed with {calls} provider calls");
    say(&format!(
        "{PODS} pods in {NAMESPACES} namespaces on {AGENTS} agents: pods created after {:.1} s, all {SYNCS} Secrets after {:.1} s",
        created.as_secs_f64(),
        done.as_secs_f64()
    ));
    say(&format!(
        "provider calls {calls}; attempts that failed {failed} of {}, all others ended well at the first; attempts above 5 s: {slow}",
        SYNCS + failed
    ));
    let peak = agents.iter().map(|agent| agent.memory().peak).max().unwrap_or_default();
    say(&format!("peak RSS of an agent: {:.1} MB", peak as f64 / 1e6));

    let rest = std::env::var("JASM_FLEET_REST").ok().and_then(|text| text.parse().ok()).unwrap_or(REST);
    let before: Vec<Duration> = agents.iter().map(Agent::processor_time).collect();
    tokio::time::sleep(Duration::from_secs(rest)).await;
    let used = agents.iter().zip(before).map(|(agent, before)| agent.processor_time().saturating_sub(before));
    let most = used.max().unwrap_or_default();
    say(&format!(
        "at rest for {rest} s with {} pods each: at most {:.4} of a processor",
        PODS / AGENTS,
        most.as_secs_f64() / rest as f64
    ));
}
