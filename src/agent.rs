//! Wiring: everything that runs in an agent, from start to end.

use std::{future::Future, sync::Arc, time::Duration};

use futures::{FutureExt, future::join5};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    changes::Changes,
    clock::{ApiClock, SeenClock},
    config::{Config, Mode},
    error::BoxError,
    kubernetes::{self, ConnectError, TooOld},
    limits::ByteBudget,
    masters::Masters,
    metrics::Metrics,
    policy_file::{PolicyFile, PolicyFileError},
    probe::{self, Heartbeat, Probes},
    progress::Progress,
    provider::{ProvidersError, Registry, read_instances},
    reconcile::Context,
    report::Reporter,
    request::ObjectKind,
    service_account::ServiceAccounts,
    target::{Admission, TargetConfig, Targets},
    watch,
    workload::Workloads,
    workload_annotations::WorkloadAnnotations,
};

/// How long what is under way may go on after SIGTERM.
const FINISH: Duration = Duration::from_secs(5);
/// How long Events that are queued by then may take.
const SEND_THE_REST: Duration = Duration::from_secs(2);

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The policy is there and cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyFileError),
    /// The providers file is there and cannot be used.
    #[error(transparent)]
    Providers(#[from] ProvidersError),
    /// An instance cannot be built from its settings.
    #[error("{0}")]
    Instance(String),
    /// No way to the API server.
    #[error(transparent)]
    Kubernetes(#[from] ConnectError),
    /// The API server lacks what the agent stands on.
    #[error(transparent)]
    TooOld(#[from] TooOld),
    /// Masters would stand beside the stores' credentials.
    #[error(
        "--masters-namespace (JASM_MASTERS_NAMESPACE) is the agent's own namespace {0}, whose files hold the credentials for the \
         stores: choose another one"
    )]
    MastersBesideTheAgent(String),
    /// The address of the probes cannot be used.
    #[error("--listen (JASM_LISTEN) {address} cannot be used: choose a free address of this machine")]
    Listen {
        /// The address.
        address: String,
        /// Why not.
        source: BoxError,
    },
}

/// What the configuration names, read and checked.
struct Parts {
    metrics: Arc<Metrics>,
    changes: Arc<Changes>,
    policy: Arc<PolicyFile>,
    registry: Arc<Registry>,
}

impl Parts {
    async fn read(config: &Config, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let changes = Arc::new(Changes::default());
        let policy = PolicyFile::load(&config.policy_file, Arc::clone(&metrics), Arc::clone(&changes))?;
        let instances = read_instances(&config.providers_file)?;
        let registry = Registry::new(config.mode, instances, Arc::clone(&metrics), Arc::clone(&changes))
            .await
            .map_err(StartError::Instance)?;
        Ok(Self { metrics, changes, policy: Arc::new(policy), registry: Arc::new(registry) })
    }
}

/// Runs until SIGTERM or SIGINT; then takes no more work, and finishes what is under way within 5 s.
///
/// # Errors
/// [`StartError`]; once started it only ends by a signal.
pub async fn run(config: Config, metrics: Arc<Metrics>) -> Result<(), StartError> {
    let parts = Parts::read(&config, metrics).await?;
    for instance in parts.registry.left_out() {
        tracing::warn!(instance, "a default provider is not set up; set it up in providers.yaml or the environment");
    }
    let clock = Arc::new(ApiClock::default());
    let client = kubernetes::connect(Arc::clone(&clock)).await?;
    if config.mode == Mode::Central && config.masters_namespace.as_str() == client.default_namespace() {
        return Err(StartError::MastersBesideTheAgent(config.masters_namespace.to_string()));
    }
    let listener = probe::bind(config.listen).map_err(|error| listen_error(config.listen, error))?;

    let (reporter, events) = Reporter::new(client.clone(), &config.node_name, Arc::clone(&parts.metrics));
    let context = Arc::new(context(&parts, &config, client.clone(), clock, reporter));
    let (masters, progress) = (context.masters.clone(), Arc::clone(&context.progress));
    let (admission, heartbeat) = (context.targets.admission(), Arc::new(Heartbeat::default()));
    serve_probes(listener, &parts, &context, &heartbeat, &admission, config.listen)?;
    let sending = tokio::spawn(events.run());
    tracing::info!(node = config.node_name, version = env!("CARGO_PKG_VERSION"), "the agent starts");

    let stop = stop_signal().boxed().shared();
    let work = watch::run(client.clone(), &config.node_name, context, stop.clone());
    // In one task, so that a panic in any of them ends the program, and the kubelet starts it again.
    tokio::select! {
        () = work => {}
        found = kubernetes::too_old(&client) => return Err(found.into()),
        () = give_up_after(stop) => tracing::warn!("ending with work under way: it took more than {FINISH:?}"),
        _ = join5(
            admission.watch(),
            parts.policy.watch(),
            heartbeat.beat(),
            parts.registry.keep_ready(),
            follow_masters(masters.as_deref(), &progress, &parts.changes),
        ) => {}
    }
    // The last reporter went with the work, so that the queue ends once it is empty.
    if tokio::time::timeout(SEND_THE_REST, sending).await.is_err() {
        tracing::warn!("ending with Events that were not sent");
    }
    tracing::info!("the agent ends");
    Ok(())
}

fn context(parts: &Parts, config: &Config, client: Client, clock: Arc<ApiClock>, reporter: Reporter) -> Context {
    let reads = config.workload_annotations;
    let workloads = if reads { Workloads::read_by(client.clone()) } else { Workloads::by_names() };
    let target = TargetConfig {
        node: config.node_name.clone(),
        own_namespace: client.default_namespace().to_owned(),
        freshness: config.freshness,
        kinds: match config.mode {
            Mode::Direct => &[ObjectKind::Secret],
            Mode::Central => &[ObjectKind::Secret, ObjectKind::ConfigMap],
        },
        tokens: parts.registry.acts_as_pods(),
    };
    let seen = Arc::new(SeenClock::default());
    let targets = Targets::new(
        client.clone(),
        workloads,
        target,
        Arc::clone(&clock),
        Arc::clone(&parts.metrics),
        Arc::clone(&parts.changes),
    );
    let masters = (config.mode == Mode::Central).then(|| {
        let (namespace, registry) = (config.masters_namespace.clone(), Arc::clone(&parts.registry));
        let store = targets.masters(namespace.clone());
        Masters::new(namespace, client.clone(), store, registry, Arc::clone(&seen))
    });
    Context {
        masters,
        clock,
        values: ByteBudget::for_values(),
        policy: Arc::clone(&parts.policy),
        registry: Arc::clone(&parts.registry),
        service_accounts: ServiceAccounts::new(client.clone(), &config.node_name, Arc::clone(&parts.changes)),
        workload_annotations: reads.then(|| WorkloadAnnotations::new(client)),
        targets,
        reporter,
        progress: Arc::new(Progress::new(reads)),
        changes: Arc::clone(&parts.changes),
        seen,
        freshness: config.freshness,
    }
}

/// Never ends.
async fn follow_masters(masters: Option<&Masters>, progress: &Progress, changes: &Changes) {
    match masters {
        Some(masters) => masters.watch(progress, changes).await,
        None => futures::future::pending().await,
    }
}

fn serve_probes(
    listener: std::net::TcpListener,
    parts: &Parts,
    context: &Context,
    heartbeat: &Arc<Heartbeat>,
    admission: &Arc<Admission>,
    address: std::net::SocketAddr,
) -> Result<(), StartError> {
    let (waiting, progress) = (Arc::clone(&context.progress), Arc::clone(&context.progress));
    let (metrics, admission) = (Arc::clone(&parts.metrics), Arc::clone(admission));
    let (masters, registry) = (context.masters.clone(), Arc::clone(&context.registry));
    let probes = Probes {
        heartbeat: Arc::clone(heartbeat),
        unready: Box::new(move || unready(&admission, &progress)),
        metrics: Box::new(move || {
            metrics.waiting(waiting.waiting());
            metrics.accounts(registry.drop_unused());
            if let Some(masters) = &masters {
                metrics.replicas(masters.index().len(), masters.count(&waiting.in_use()));
            }
            metrics.render()
        }),
    };
    probe::serve(listener, probes).map_err(|error| listen_error(address, error))
}

/// What keeps the agent from being ready. A refusal in one namespace never does.
fn unready(admission: &Admission, progress: &Progress) -> Option<&'static str> {
    if !admission.has_rights() {
        return Some("RBAC lets the agent write no Secret, not even in its own namespace: apply rbac/");
    }
    if !admission.is_enforced() {
        return Some("the admission policies of rbac/ are not known to be in force; the agent's log says which");
    }
    (!progress.is_ready()).then_some("the first list of the node's pods is not worked through yet")
}

fn listen_error(address: std::net::SocketAddr, error: std::io::Error) -> StartError {
    StartError::Listen { address: address.to_string(), source: error.into() }
}

/// Ends at SIGTERM or SIGINT.
fn stop_signal() -> impl Future<Output = ()> + Send + 'static {
    let (term, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut term), Ok(mut interrupt)) = (term, interrupt) else {
            // Without handlers the kernel's own apply, which end the program at once.
            return futures::future::pending().await;
        };
        futures::future::select(Box::pin(term.recv()), Box::pin(interrupt.recv())).await;
        tracing::info!("stopping: no more work is taken, what is under way is finished");
    }
}

async fn give_up_after(stop: impl Future<Output = ()>) {
    stop.await;
    tokio::time::sleep(FINISH).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_has_five_seconds() {
        let stop = tokio::time::sleep(Duration::from_secs(100));
        let given_up = tokio::time::timeout(Duration::from_millis(104_990), give_up_after(stop)).await;
        assert!(given_up.is_err(), "not earlier");
        let stop = tokio::time::sleep(Duration::from_secs(100));
        assert!(tokio::time::timeout(Duration::from_millis(105_010), give_up_after(stop)).await.is_ok(), "not later");
    }
}
