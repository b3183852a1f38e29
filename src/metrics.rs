//! What `/metrics` shows. No label is an object's name, a path, or a text that somebody else wrote; but in central mode one
//! metric names namespaces and masters.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{error::Reason, provider::ProviderName};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SyncLabels {
    provider: String,
    result: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstanceLabel {
    provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabel {
    sha256: String,
}

/// In central mode alone, whose audit trail it is: no other metric names objects.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplicaLabels {
    namespace: String,
    master: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeletedLabel {
    why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
}

/// Every metric of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    syncs: Family<SyncLabels, Counter>,
    waiting: Family<ReasonLabel, Gauge>,
    sync_seconds: Histogram,
    provider_requests: Family<ProviderLabels, Counter>,
    provider_trouble: Family<InstanceLabel, Gauge>,
    masters: Gauge,
    replicas: Family<ReplicaLabels, Gauge>,
    accounts: Gauge,
    janitor_leads: Gauge,
    janitor_orphans: Gauge,
    janitor_stopped: Gauge,
    janitor_not_believed: Gauge,
    janitor_rounds: Counter,
    janitor_deleted: Family<DeletedLabel, Counter>,
    policy_info: Family<PolicyLabel, Gauge>,
    policy_reload_ok: Gauge,
    admission_enforced: Gauge,
    panics: Counter<u64, AtomicU64>,
    events_dropped: Counter<u64, AtomicU64>,
    journald_dropped: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    /// An agent's.
    fn default() -> Self {
        let mut metrics = Self::unregistered();
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn unregistered() -> Self {
        let buckets = [0.005, 0.01, 0.02, 0.03, 0.045, 0.07, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        Self {
            registry: Registry::default(),
            syncs: Family::default(),
            waiting: Family::default(),
            sync_seconds: Histogram::new(buckets),
            provider_requests: Family::default(),
            provider_trouble: Family::default(),
            masters: Gauge::default(),
            replicas: Family::default(),
            accounts: Gauge::default(),
            janitor_leads: Gauge::default(),
            janitor_orphans: Gauge::default(),
            janitor_stopped: Gauge::default(),
            janitor_not_believed: Gauge::default(),
            janitor_rounds: Counter::default(),
            janitor_deleted: Family::default(),
            policy_info: Family::default(),
            policy_reload_ok: Gauge::default(),
            admission_enforced: Gauge::default(),
            panics: Counter::default(),
            events_dropped: Counter::default(),
            journald_dropped: Counter::default(),
        }
    }

    /// A janitor's own, and none of an agent's: a gauge of what it does not do would look like trouble.
    pub fn of_a_janitor() -> Self {
        let mut metrics = Self::unregistered();
        metrics.register_common();
        let r = &mut metrics.registry;
        r.register("jasm_janitor_leads", "1 while this janitor is the one that works", metrics.janitor_leads.clone());
        r.register(
            "jasm_janitor_orphans",
            "Replicas that are to go, by the last round",
            metrics.janitor_orphans.clone(),
        );
        r.register(
            "jasm_janitor_stopped",
            "1 while so many replicas became orphans that none is deleted",
            metrics.janitor_stopped.clone(),
        );
        r.register(
            "jasm_janitor_not_believed",
            "Provider instances that say of so many sources that they are absent that none of theirs goes",
            metrics.janitor_not_believed.clone(),
        );
        r.register("jasm_janitor_rounds", "Rounds that the janitor was through with", metrics.janitor_rounds.clone());
        r.register("jasm_janitor_deleted", "What the janitor deleted, by reason", metrics.janitor_deleted.clone());
        metrics
    }

    /// Of whatever program it is.
    fn register_common(&mut self) {
        let build: Family<BuildLabel, Gauge> = Family::default();
        build.get_or_create(&BuildLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        let r = &mut self.registry;
        r.register("jasm_build_info", "Version of the agent", build);
        r.register("jasm_provider_requests", "Requests to stores, by outcome", self.provider_requests.clone());
    }

    fn register(&mut self) {
        self.register_common();
        let r = &mut self.registry;
        r.register(
            "jasm_service_accounts",
            "Service accounts for which something is kept that stores gave, of all instances",
            self.accounts.clone(),
        );
        r.register("jasm_syncs", "Requests of pods worked on, by outcome", self.syncs.clone());
        r.register(
            "jasm_requests_waiting",
            "Requests of pods on this node that are not served yet",
            self.waiting.clone(),
        );
        r.register(
            "jasm_sync_duration_seconds",
            "From the start of work on a request to its outcome",
            self.sync_seconds.clone(),
        );
        r.register(
            "jasm_provider_in_trouble",
            "1 while a store answers nobody and one request at a time tries",
            self.provider_trouble.clone(),
        );
        r.register("jasm_masters", "Masters that the agent knows of, in central mode", self.masters.clone());
        r.register(
            "jasm_replicas",
            "Requests of pods on this node that are served, by namespace and master, in central mode",
            self.replicas.clone(),
        );
        r.register("jasm_policy_info", "The policy in force: digest of its files", self.policy_info.clone());
        r.register(
            "jasm_policy_last_reload_successful",
            "0 while the newest policy file is broken and an older one is in force",
            self.policy_reload_ok.clone(),
        );
        r.register(
            "jasm_admission_enforced",
            "1 while every shipped admission policy refused its check",
            self.admission_enforced.clone(),
        );
        r.register("jasm_panics", "Bugs caught while working on a request", self.panics.clone());
        r.register(
            "jasm_events_dropped",
            "Events not sent because the queue was full or the API server refused",
            self.events_dropped.clone(),
        );
        r.register(
            "jasm_journald_dropped",
            "Log lines not in the node's journal because the queue was full or the socket refused",
            self.journald_dropped.clone(),
        );
    }

    /// One request worked on. `provider` must be a configured name, or empty: it becomes a label.
    pub fn sync(&self, provider: &str, result: &'static str, reason: Reason, seconds: f64) {
        let labels = SyncLabels { provider: provider.to_owned(), result, reason: reason.as_str() };
        self.syncs.get_or_create(&labels).inc();
        self.sync_seconds.observe(seconds);
    }

    /// One answer, or failure, of a store.
    pub fn provider_request(&self, provider: &ProviderName, result: &'static str) {
        let labels = ProviderLabels { provider: provider.to_string(), result };
        self.provider_requests.get_or_create(&labels).inc();
    }

    /// Whether a store is in trouble.
    pub fn circuit(&self, provider: &ProviderName, open: bool) {
        self.provider_trouble.get_or_create(&InstanceLabel { provider: provider.to_string() }).set(i64::from(open));
    }

    /// How many requests wait, by reason; reasons that are not named fall to zero.
    pub fn waiting(&self, counts: impl IntoIterator<Item = (Reason, i64)>) {
        self.waiting.clear();
        for (reason, count) in counts {
            self.waiting.get_or_create(&ReasonLabel { reason: reason.as_str() }).set(count);
        }
    }

    /// For how many service accounts something is kept that stores gave, by instance and account.
    pub fn accounts(&self, count: usize) {
        self.accounts.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Central mode: how many masters are known, and how many requests of this node's pods each one serves in each namespace.
    pub fn replicas(&self, masters: usize, counts: impl IntoIterator<Item = ((String, String), i64)>) {
        self.masters.set(i64::try_from(masters).unwrap_or(i64::MAX));
        self.replicas.clear();
        for ((namespace, master), count) in counts {
            self.replicas.get_or_create(&ReplicaLabels { namespace, master }).set(count);
        }
    }

    /// Whether this janitor has the lease.
    pub fn janitor_leads(&self, leads: bool) {
        self.janitor_leads.set(i64::from(leads));
    }

    /// What a round of the janitor found, whether it is too much to delete any of it, and how many instances are not believed.
    pub fn janitor(&self, orphans: usize, stopped: bool, not_believed: usize) {
        self.janitor_not_believed.set(i64::try_from(not_believed).unwrap_or(i64::MAX));
        self.janitor_orphans.set(i64::try_from(orphans).unwrap_or(i64::MAX));
        self.janitor_stopped.set(i64::from(stopped));
    }

    /// The janitor was through with a round.
    pub fn janitor_was_through(&self) {
        self.janitor_rounds.inc();
    }

    /// Something was deleted: one of the janitor's reasons, or `master`.
    pub fn janitor_deleted(&self, why: &str) {
        self.janitor_deleted.get_or_create(&DeletedLabel { why: why.to_owned() }).inc();
    }

    /// The policy in force.
    pub fn policy(&self, sha256: &str) {
        self.policy_info.clear();
        self.policy_info.get_or_create(&PolicyLabel { sha256: sha256.to_owned() }).set(1);
    }

    /// Whether the newest policy file could be used.
    pub fn policy_reload(&self, ok: bool) {
        self.policy_reload_ok.set(i64::from(ok));
    }

    /// Whether every admission policy is known to be in force.
    pub fn admission_enforced(&self, enforced: bool) {
        self.admission_enforced.set(i64::from(enforced));
    }

    /// One bug caught.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// One Event not sent.
    pub fn event_dropped(&self) {
        self.events_dropped.inc();
    }

    /// One log line that the journal did not get.
    pub fn journald_dropped(&self) {
        self.journald_dropped.inc();
    }

    /// The text that Prometheus reads (OpenMetrics).
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_the_documented_ones() {
        let metrics = Metrics::default();
        metrics.sync("aws-secretsmanager", "created", Reason::SecretSyncSuccess, 0.02);
        metrics.provider_request(&ProviderName::for_test("aws-secretsmanager"), "ok");
        metrics.waiting([(Reason::PolicyDenied, 2)]);
        metrics.waiting([(Reason::SecretConflict, 1)]);
        metrics.policy("abc");
        metrics.admission_enforced(true);
        let text = metrics.render();
        for want in [
            r#"jasm_syncs_total{provider="aws-secretsmanager",result="created",reason="SecretSyncSuccess"} 1"#,
            r#"jasm_provider_requests_total{provider="aws-secretsmanager",result="ok"} 1"#,
            r#"jasm_requests_waiting{reason="SecretConflict"} 1"#,
            r#"jasm_policy_info{sha256="abc"} 1"#,
            "jasm_admission_enforced 1",
            "jasm_sync_duration_seconds_count 1",
            "jasm_build_info{version=",
        ] {
            assert!(text.contains(want), "{want} is not in\n{text}");
        }
        assert!(!text.contains("PolicyDenied"), "a reason without requests is gone");
        let janitor = Metrics::of_a_janitor();
        janitor.janitor(2, true, 3);
        janitor.janitor_deleted("source_gone");
        let text = janitor.render();
        for want in [
            "jasm_janitor_orphans 2",
            "jasm_janitor_stopped 1",
            "jasm_janitor_not_believed 3",
            r#"jasm_janitor_deleted_total{why="source_gone"} 1"#,
            "jasm_build_info{version=",
        ] {
            assert!(text.contains(want), "{want} is not in\n{text}");
        }
        assert!(!text.contains("jasm_admission_enforced"), "an alert would take it for an agent");
    }
}
