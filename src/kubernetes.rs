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

/// Admission policies are in force from 1.30 on, and tokens name the node.
const OLDEST_MINOR: u32 = 30;
/// Between questions for the version while nobody answers.
const VERSION_AGAIN: Duration = Duration::from_secs(5);

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

/// An API server that lacks what the agent stands on.
#[derive(Debug, thiserror::Error)]
#[error(
    "the API server is Kubernetes {found}, and the agent needs 1.{OLDEST_MINOR} or newer: older ones have no admission \
     policies and no node in tokens, which bound what the agent may do"
)]
pub struct TooOld {
    /// What it says of itself.
    found: String,
}

/// Asks for the version of the API server until there is an answer, and returns only where that is too old.
///
/// RBAC: `get` on `/version`, which every account has by `system:public-info-viewer`; without it nothing is checked.
pub async fn too_old(client: &Client) -> TooOld {
    loop {
        match client.apiserver_version().await {
            Ok(version) if is_too_old(&version.major, &version.minor) => return TooOld { found: version.git_version },
            Ok(_) => break,
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403 | 404) => {
                tracing::warn!(
                    code = status.code,
                    "the API server does not tell its version; the agent needs 1.30 or newer"
                );
                break;
            }
            Err(_) => tokio::time::sleep(VERSION_AGAIN).await,
        }
    }
    std::future::pending().await
}

/// Some clouds write `30+`. What cannot be read is not held against it.
fn is_too_old(major: &str, minor: &str) -> bool {
    let digits = minor.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    major == "1" && digits.parse().is_ok_and(|minor: u32| minor < OLDEST_MINOR)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake_api::json_reply;

    #[test]
    fn versions_of_all_spellings_are_told_apart() {
        let cases = [
            ("1", "29", true),
            ("1", "30", false),
            ("1", "29+", true),
            ("1", "33+", false),
            ("2", "0", false),
            ("1", "", false),
        ];
        for (major, minor, want) in cases {
            assert_eq!(is_too_old(major, minor), want, "{major}.{minor}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_api_server_is_named_and_a_new_one_is_no_matter() {
        let server = |minor: &'static str| {
            let version = json!({
                "major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.4"), "gitCommit": "", "gitTreeState": "",
                "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
            });
            let service = tower::service_fn(move |_: http::Request<Body>| {
                let reply = json_reply(200, &version);
                async move { reply }
            });
            Client::new(service, "jasm-system")
        };
        let said = too_old(&server("29")).await.to_string();
        assert!(said.contains("v1.29.4") && said.contains("needs 1.30"), "{said}");
        let asked = tokio::time::timeout(Duration::from_secs(60), too_old(&server("30"))).await;
        assert!(asked.is_err(), "nothing to say");
    }
}
