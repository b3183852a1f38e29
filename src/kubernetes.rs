//! The connection to the API server.

use std::{sync::Arc, time::Duration};

use http::{Response, header};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt},
    config::KubeConfigOptions,
};
use tower::{ServiceBuilder, timeout::TimeoutLayer};

use crate::{clock::ApiClock, error::BoxError};

/// For the head of every reply, also that of a watch: without it a request into a black hole never returns.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Kept for the next pods; each costs some 50 KB here and as much at the API server, times the nodes of the cluster.
const IDLE_CONNECTIONS: usize = 8;

/// No way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a pod's service account nor a kubeconfig.
    #[error(
        "no access to Kubernetes: not in a pod with a service account token, and no kubeconfig (KUBECONFIG) that can be read"
    )]
    NoConfig(#[source] BoxError),
    /// Certificates or credentials cannot be used.
    #[error("the access to Kubernetes that is configured cannot be used: check its certificates and credentials")]
    Unusable(#[source] BoxError),
}

/// A client for the API server that configuration names: in the cluster by the pod's service account, else `KUBECONFIG`.
///
/// It repeats nothing by itself (retries are the controller's), waits a bounded time for the head of each reply, and
/// notes the API server's clock. Connections have TCP_NODELAY, without which the first request on each takes 40 ms longer.
///
/// # Errors
/// [`ConnectError`]; no request is made.
pub async fn connect(clock: Arc<ApiClock>) -> Result<Client, ConnectError> {
    let config = match Config::incluster() {
        Ok(config) => config,
        Err(_) => Config::from_kubeconfig(&KubeConfigOptions::default())
            .await
            .map_err(|error| ConnectError::NoConfig(error.into()))?,
    };
    client(config, clock).map_err(|error| ConnectError::Unusable(error.into()))
}

fn client(config: Config, clock: Arc<ApiClock>) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(connector)?;
    let http =
        HttpClient::builder(TokioExecutor::new()).pool_max_idle_per_host(IDLE_CONNECTIONS).build::<_, Body>(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_response(move |reply: Response<_>| {
            if let Some(date) = reply.headers().get(header::DATE).and_then(|date| date.to_str().ok()) {
                clock.observe(date);
            }
            reply
        })
        .layer(TimeoutLayer::new(HEAD_TIMEOUT))
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}
