//! The install as users have it, on a real node with a real kubelet: `make e2e`.
//!
//! These tests need a cluster (`KUBECONFIG`) that has the image, and one after another (`--test-threads=1`): they kill,
//! stop and replace the agent. `tests/e2e.sh` brings up a node of its own where no cluster is named. Times are printed,
//! and asserted only where a limit is the product's own.
//!
//! | module | shows |
//! |---|---|
//! | `starts` | the Secret is there when the kubelet looks: environment and volumes, one and thirty at a time |
//! | `deaths` | the agent is killed, stopped, out of memory, replaced |
//! | `stores` | the store is down, or slow while a Secret is outdated |
//! | `fresh_node` | pods that are there before any agent is |
//! | `shapes` | init containers, `optional`, `subPath`, StatefulSets, CronJobs, two containers |
//! | `installs` | Pod Security, memory, what stays after `kubectl delete -k` |
//! | `try_it` | the steps of docs/try-it.md |

mod cluster;
mod deaths;
mod fresh_node;
mod history;
mod installs;
mod node;
mod pods;
mod shapes;
mod starts;
mod store;
mod stores;
mod try_it;

use std::io::Write as _;
use std::time::Duration;

/// How long a pod may take to run, also after the kubelet's longest pause between two looks.
const PATIENCE: Duration = Duration::from_secs(90);

/// A line of the report, also where the output of tests is captured.
fn report(line: &str) {
    let _ = writeln!(std::io::stdout(), "e2e: {line}");
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

fn median(durations: &mut [Duration]) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}
