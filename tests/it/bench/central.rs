//! What central mode costs beside direct mode.

use super::{Bench, Run, ms, percentile, say};
use crate::support::cluster::TestNamespace;
use crate::support::surroundings::Surroundings;

/// The first ones make connections.
const WARM: usize = 10;
const PODS: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark, of a release build: make bench"]
async fn bench_of_central_mode() {
    let bench = Bench::start(Surroundings::central().await).await;
    say("central mode", "measured", "");
    let mut run = bench.run(|builder| builder.env("JASM_MODE", "central").freshness("1h")).await;
    let paths = bench.seed(PODS, "value").await;
    one_by_one(&run, &paths, "pod created -> replica, source without a master").await;
    run.namespace = TestNamespace::create(bench.surroundings).await;
    one_by_one(&run, &paths, "pod created -> replica, from the master").await;
    run.namespace = TestNamespace::create(bench.surroundings).await;
    let last = run.burst(&paths, "copies").await;
    say(&format!("{PODS} pods at once, from masters: the last one after"), &ms(last), "");
    let paths = bench.seed(100, "value").await;
    let last = run.burst(&paths, "burst").await;
    say("100 pods at once, 100 sources without a master", &ms(last), "");
    say("RSS then", &super::mb(run.agent.memory().resident), "");
}

async fn one_by_one(run: &Run, paths: &[String], figure: &str) {
    let mut times = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        let took = run.one(path, &format!("one-{number}")).await;
        if number >= WARM {
            times.push(took.from_reply);
        }
    }
    times.sort();
    say(&format!("{figure}, p50"), &ms(percentile(&times, 0.5)), "");
    say(&format!("{figure}, p99"), &ms(percentile(&times, 0.99)), "");
}
