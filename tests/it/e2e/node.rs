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

/// What the agent takes, in bytes.
pub(super) struct Memory {
    /// Of its container now, as the limit counts it. Pages of the program's file may count elsewhere.
    pub(super) cgroup: u64,
    /// The most that it was.
    pub(super) peak: u64,
    /// Of the process now, with the pages of its file.
    pub(super) resident: u64,
}

/// Reads it.
pub(super) fn agent_memory() -> Memory {
    let script = r#"
grep VmRSS /proc/$pid/status | tr -dc '0-9\n'
cd $cgroup
if [ -e memory.current ]; then cat memory.current memory.peak; else cat memory.usage_in_bytes memory.max_usage_in_bytes; fi
"#;
    let text = on_node(&format!("{AGENT_CGROUP}{script}"));
    let mut numbers = text.lines().map(|line| line.parse::<u64>().expect("a number"));
    let mut next = || numbers.next().expect("three numbers");
    Memory { resident: next() * 1024, cgroup: next(), peak: next() }
}
