//! Figures of a release build beside the targets: `make bench`. They are reported, never asserted: machines are
//! noisy, and here the API server shares two cores with the agent and with this program.

mod central;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, future::join_all, pin_mut};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;

use crate::support::agent::{Agent, AgentBuilder, program};
use crate::support::audit::{requests, tally};
use crate::support::cluster::TestNamespace;
use crate::support::scene::ALLOW_ALL;
use crate::support::store::{GET, Store};
use crate::support::surroundings::Surroundings;

/// How long the store takes to answer.
const LATENCY: Duration = Duration::from_millis(20);
/// How long a burst may take before the figure counts as missing.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark, of a release build: make bench"]
async fn bench() {
    let surroundings = Surroundings::get().await;
    let bench = Bench::start(surroundings).await;
    say("figure", "measured", "target");
    let size = std::fs::metadata(program()).map(|file| file.len()).expect("the program is there");
    say("release binary", &mb(size), "12 MB");
    bench.start_and_rest().await;
    bench.one_by_one().await;
    bench.a_hundred_at_once().await;
    bench.fifty_with_one_secret().await;
    bench.large_values().await;
}

/// A line of the table.
fn say(figure: &str, measured: &str, target: &str) {
    let _ = writeln!(std::io::stdout(), "{figure:<58} {measured:>18}   {target}");
}

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let place = (sorted.len() as f64 * part).ceil() as usize;
    sorted[place.clamp(1, sorted.len()) - 1]
}

struct Bench {
    surroundings: &'static Surroundings,
    store: Store,
}

/// An agent, its node and a namespace whose Secrets are watched.
struct Run {
    builder: AgentBuilder,
    agent: Agent,
    namespace: TestNamespace,
    ready_after: Duration,
}

impl Bench {
    async fn start(surroundings: &'static Surroundings) -> Self {
        Self { surroundings, store: Store::stub(LATENCY) }
    }

    async fn run(&self, change: impl FnOnce(AgentBuilder) -> AgentBuilder) -> Run {
        let builder = change(AgentBuilder::new(self.surroundings, &self.store).await.policy(ALLOW_ALL));
        self.run_on(builder).await
    }

    async fn run_on(&self, builder: AgentBuilder) -> Run {
        let namespace = TestNamespace::create(self.surroundings).await;
        let mut agent = builder.spawn();
        let ready_after = agent.ready().await;
        Run { builder, agent, namespace, ready_after }
    }

    async fn seed(&self, count: usize, value: &str) -> Vec<String> {
        let text = json!({"A": value}).to_string();
        join_all((0..count).map(|_| self.store.seed("bench", &text))).await
    }

    /// exec to ready and memory at rest, on a node with 110 pods that have their Secrets.
    async fn start_and_rest(&self) {
        let run = self.run(|builder| builder).await;
        let paths = self.seed(110, "value").await;
        run.burst(&paths, "rest").await;
        let mut times = Vec::new();
        let mut rest = Vec::new();
        for _ in 0..5 {
            let mut agent = run.builder.spawn();
            times.push(agent.ready().await);
            crate::support::wait::eventually("work on all pods to end", async || {
                let done = agent.log().iter().filter(|line| line["message"] == "sync").count();
                if done >= 110 { Ok(()) } else { Err(format!("{done} pods")) }
            })
            .await;
            rest.push(agent.memory());
        }
        times.sort();
        rest.sort_by_key(|memory| memory.resident);
        say("exec to ready, 110 pods with Secrets (median of 5)", &ms(times[2]), "500 ms");
        say("RSS at rest, 110 pods (median of 5)", &mb(rest[2].resident), "15 MB");
        say("of that anonymous, the rest is the program's file", &mb(rest[2].anonymous), "");
        say("peak RSS until then", &mb(rest[2].peak), "");
        drop(run);
    }

    /// pod created to Secret, one after another, each with a secret of its own.
    async fn one_by_one(&self) {
        let run = self.run(|builder| builder).await;
        let paths = self.seed(60, "value").await;
        let mut times = Vec::new();
        let mut from_request = Vec::new();
        for (number, path) in paths.iter().enumerate() {
            let name = format!("one-{number}");
            let took = run.one(path, &name).await;
            // The first ones make connections.
            if number >= 10 {
                times.push(took.from_reply);
                from_request.push(took.from_request);
            }
        }
        times.sort();
        from_request.sort();
        let (p50, p99) = (ms(percentile(&times, 0.5)), ms(percentile(&times, 0.99)));
        say("pod created -> Secret, p50 of 50 in sequence", &p50, "28 ms");
        say("pod created -> Secret, p99", &p99, "45 ms");
        say("the same from the create request, p50", &ms(percentile(&from_request, 0.5)), "");
        let calls = requests(self.surroundings, run.builder.node().name()).await;
        let here = calls.iter().filter(|request| request.namespace == run.namespace.name());
        for (kind, count) in tally(here) {
            say(&format!("API requests per sync: {kind}"), &format!("{:.2}", count as f64 / 60.0), "1");
        }
    }

    async fn a_hundred_at_once(&self) {
        let run = self.run(|builder| builder).await;
        let warm = self.seed(1, "value").await;
        run.burst(&warm, "warm").await;
        let paths = self.seed(100, "value").await;
        let last = run.burst(&paths, "burst").await;
        say("100 pods at once, 100 secrets: the last one after", &ms(last), "500 ms");
        let syncs = run.syncs_per_second();
        say("syncs per second within that", &format!("{syncs:.0}"), "500");
    }

    async fn fifty_with_one_secret(&self) {
        let run = self.run(|builder| builder.freshness("60s")).await;
        let path = self.seed(1, "value").await.remove(0);
        self.store.forget_calls();
        let names: Vec<String> = (0..50).map(|number| format!("same-{number}")).collect();
        let pods = join_all(
            names.iter().map(|name| run.namespace.pod(name).on(run.builder.node()).asks(&path, "same").create()),
        )
        .await;
        for pod in &pods {
            run.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
        }
        say("50 pods, one secret: provider calls", &self.store.calls(GET).to_string(), "1");
    }

    async fn large_values(&self) {
        let run = self.run(|builder| builder).await;
        let paths = self.seed(100, &"x".repeat(64_000)).await;
        let last = run.burst(&paths, "large").await;
        say("100 pods at once, 64 KB each: the last one after", &ms(last), "");
        say("peak RSS with that", &mb(run.agent.memory().peak), "32 MB");
        say("exec to ready, no pods", &ms(run.ready_after), "500 ms");
    }
}

struct Took {
    from_request: Duration,
    from_reply: Duration,
}

impl Run {
    /// Creates one pod and waits for its Secret, which a watch reports.
    async fn one(&self, path: &str, name: &str) -> Took {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}")).streaming_lists();
        let secrets = watcher(self.namespace.api::<Secret>(), config);
        pin_mut!(secrets);
        while !matches!(secrets.try_next().await.expect("a watch"), Some(watcher::Event::InitDone)) {}
        let requested = Instant::now();
        self.namespace.pod(name).on(self.builder.node()).asks(path, name).create().await;
        let replied = Instant::now();
        let mut applied = secrets.applied_objects();
        applied.try_next().await.expect("a watch").expect("a Secret");
        Took { from_request: requested.elapsed(), from_reply: replied.elapsed() }
    }

    /// Creates all pods at once; returns the time from the first request to the last Secret.
    async fn burst(&self, paths: &[String], prefix: &str) -> Duration {
        let config = watcher::Config::default().streaming_lists();
        let secrets = watcher(self.namespace.api::<Secret>(), config);
        pin_mut!(secrets);
        while !matches!(secrets.try_next().await.expect("a watch"), Some(watcher::Event::InitDone)) {}
        let started = Instant::now();
        let names: Vec<String> = (0..paths.len()).map(|number| format!("{prefix}-{number}")).collect();
        let create = names
            .iter()
            .zip(paths)
            .map(|(name, path)| self.namespace.pod(name).on(self.builder.node()).asks(path, name).create());
        let creates = futures::stream::iter(create).buffer_unordered(32).collect::<Vec<_>>();
        let arrivals = async {
            let mut missing: BTreeMap<&str, ()> = names.iter().map(|name| (name.as_str(), ())).collect();
            let mut applied = secrets.applied_objects();
            while !missing.is_empty() {
                let secret = applied.try_next().await.expect("a watch").expect("a Secret");
                missing.remove(secret.name_any().as_str());
            }
            started.elapsed()
        };
        let both = futures::future::join(creates, arrivals);
        tokio::time::timeout(LIMIT, both).await.expect("all Secrets within a minute").1
    }

    /// By the times of the log lines.
    fn syncs_per_second(&self) -> f64 {
        let times: Vec<jiff::Timestamp> = self
            .agent
            .log()
            .iter()
            .filter(|line| {
                line["message"] == "sync" && line["secret"].as_str().is_some_and(|name| name.starts_with("burst"))
            })
            .filter_map(|line| line["timestamp"].as_str()?.parse().ok())
            .collect();
        match (times.iter().min(), times.iter().max()) {
            (Some(first), Some(last)) => times.len() as f64 / last.duration_since(*first).as_secs_f64().max(0.001),
            _ => 0.0,
        }
    }
}
