//! The node as its root sees it, through a privileged pod.

use super::cluster::{kubectl, try_kubectl};

/// Runs a script of busybox's shell there, in the node's processes; its stdout.
pub(super) fn on_node(script: &str) -> String {
    kubectl(&["exec", "-n", "jasm-e2e", "node", "--", "sh", "-euc", script])
}

/// The same, where the script may fail.
pub(super) fn try_on_node(script: &str) -> Result<String, String> {
    try_kubectl(&["exec", "-n", "jasm-e2e", "node", "--", "sh", "-euc", script], "")
}

/// Sends a signal to the agent's program.
pub(super) fn signal_agent(signal: &str) {
    on_node(&format!("kill -{signal} $(pidof jasm-agent)"));
}

/// Sets `cgroup` to the folder of the agent's memory cgroup, of either version.
pub(super) const AGENT_CGROUP: &str = r#"
pid=$(pidof jasm-agent)
root=/proc/1/root/sys/fs/cgroup
[ ! -d $root/memory ] || root=$root/memory
cgroup=$(dirname $(find $root -name cgroup.procs -exec grep -lx "$pid" {} + | head -n 1))
"#;

/// Bytes that the agent's container uses now, and at most, as its memory limit counts them.
pub(super) fn agent_memory() -> (u64, u64) {
    let script = r#"
cd $cgroup
if [ -e memory.current ]; then cat memory.current memory.peak; else cat memory.usage_in_bytes memory.max_usage_in_bytes; fi
"#;
    let text = on_node(&format!("{AGENT_CGROUP}{script}"));
    let mut numbers = text.lines().map(|line| line.parse().expect("a number of bytes"));
    (numbers.next().expect("usage"), numbers.next().expect("peak"))
}
