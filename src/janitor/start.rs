//! Wiring of a janitor, from start to end.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use super::{Findings, Janitor};
use crate::{
    agent::StartError,
    clock::ApiClock,
    config::{Config, JanitorConfig, Mode},
    error::BoxError,
    kubernetes,
    metrics::Metrics,
    probe::{self, Heartbeat, Probes},
    provider::{Registry, read_instances},
};

/// Between looks at the providers file.
const LOOK_AT_FILE: Duration = Duration::from_secs(5);

/// Everything that a janitor needs; it makes no request yet.
///
/// # Errors
/// [`StartError`].
async fn janitor(config: &Config, of: &JanitorConfig, metrics: &Arc<Metrics>) -> Result<Arc<Janitor>, StartError> {
    let instances = read_instances(&config.providers_file)?;
    let registry = Registry::new(Mode::Central, instances, Arc::clone(metrics), Arc::default())
        .await
        .map_err(StartError::Instance)?;
    let clock = Arc::new(ApiClock::default());
    let client = kubernetes::connect(Arc::clone(&clock)).await?;
    let namespace = config.masters_namespace.clone();
    if namespace.as_str() == client.default_namespace() {
        return Err(StartError::MastersBesideTheAgent(namespace.to_string()));
    }
    Ok(Arc::new(Janitor::new(client, namespace, Arc::new(registry), of.clone(), clock, Arc::clone(metrics))))
}

/// Runs until SIGTERM or SIGINT. A deletion that is under way ends by itself: each is one request.
///
/// # Errors
/// [`StartError`]; once started it only ends by a signal.
pub async fn run(config: &Config, of: &JanitorConfig, metrics: Arc<Metrics>) -> Result<(), StartError> {
    let providers = tokio::fs::read(&config.providers_file).await.ok();
    let janitor = janitor(config, of, &metrics).await?;
    let listen_error =
        |error: std::io::Error| StartError::Listen { address: config.listen.to_string(), source: error.into() };
    let listener = probe::bind(config.listen).map_err(listen_error)?;
    let (heartbeat, leading) = (Arc::new(Heartbeat::default()), Arc::clone(&janitor));
    let probes = Probes {
        heartbeat: Arc::clone(&heartbeat),
        // One that waits for the lease is as ready as the one that has it.
        unready: Box::new(|| None),
        metrics: Box::new(move || {
            metrics.janitor_leads(leading.is_leader());
            metrics.render()
        }),
    };
    probe::serve(listener, probes).map_err(listen_error)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "the janitor starts");
    let (mut term, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(term), Ok(interrupt)) => (term, interrupt),
        (Err(error), _) | (_, Err(error)) => return Err(listen_error(error)),
    };
    tokio::select! {
        () = janitor.run() => {}
        // What one address says of a secret is no word about another's.
        () = changed(&config.providers_file, providers) => tracing::info!("the providers file has changed: it is to be started anew"),
        () = heartbeat.beat() => {}
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("the janitor ends");
    Ok(())
}

/// Ends when the file is another than before.
async fn changed(file: &Path, before: Option<Vec<u8>>) {
    loop {
        tokio::time::sleep(LOOK_AT_FILE).await;
        if tokio::fs::read(file).await.ok() != before {
            return;
        }
    }
}

/// What would go. Deletes nothing, and takes as long as two looks are apart.
///
/// # Errors
/// [`StartError`], or that masters and records could not be read.
pub async fn dry_run(config: &Config, of: &JanitorConfig) -> Result<Findings, BoxError> {
    janitor(config, of, &Arc::default()).await?.dry_run().await
}
