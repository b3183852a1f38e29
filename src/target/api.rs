//! Requests for Secrets and ConfigMaps. The one place that names their URL: the namespace is the pod's, by type, but for the
//! admission check's dry runs in the agent's own.
//!
//! RBAC: `create` and `update` on secrets (and on configmaps, in central mode), and no other verb.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Limited};
use kube::{Client, client::Body};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{
    body::ObjectBody,
    error::TargetError,
    reply::{Reply, Status, Verb, classify, read_status},
};
use crate::{
    masters::MastersNamespace,
    pod::PodNamespace,
    request::{ObjectKind, SecretName},
    secret_value::{append, wipe},
};

/// The agent's service account, by which the policies know it.
pub(super) const AGENT: &str = "jasm-agent";
/// Replies carry no data; what is longer is not read.
const MAX_REPLY_BYTES: usize = 64 * 1024;
/// A whole Secret in base64, and its metadata.
pub(super) const MAX_OBJECT_BYTES: usize = 2 * 1024 * 1024;
/// For the body of a reply; the wait for its head is bounded by the client.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way. Each has a connection of its own (HTTP/1.1); with more, an API server answers no sooner
/// (measured: 100 creates take the least time with 16 to 32), and idle connections cost memory.
const CONCURRENT_REQUESTS: usize = 24;
/// Asks for metadata only in place of the stored object.
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// What is written, by kind, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) kind: ObjectKind,
    pub(super) home: Home,
    pub(super) name: SecretName,
}

/// Whose namespace: no text of a stranger becomes one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Home {
    Pod(PodNamespace),
    Masters(MastersNamespace),
}

impl Home {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Pod(namespace) => namespace.as_str(),
            Self::Masters(namespace) => namespace.as_str(),
        }
    }
}

impl Target {
    pub(super) fn namespace(&self) -> &str {
        self.home.as_str()
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace(), self.name)
    }
}

/// Whether the API server stores what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Store,
    DryRun,
}

/// Code and body.
pub(super) type Answer = (u16, Zeroizing<Vec<u8>>);

/// Sends Secrets and ConfigMaps.
#[derive(Clone)]
pub(super) struct Objects {
    client: Client,
    permits: Arc<Semaphore>,
}

impl Objects {
    pub(super) fn new(client: Client) -> Self {
        Self { client, permits: Arc::new(Semaphore::new(CONCURRENT_REQUESTS)) }
    }

    /// Writes an object, or tries to.
    pub(super) async fn send(&self, verb: Verb, mode: Mode, target: &Target, body: ObjectBody<'_>) -> Reply {
        let name = match verb {
            Verb::Create => None,
            Verb::Update => Some(target.name.as_str()),
        };
        let url = url(target.kind, target.namespace(), name, mode);
        match self.exchange(verb, url, body.into_bytes()).await {
            Ok((code, status)) => classify(verb, code, &status, &target.to_string()),
            Err(error) => Reply::Refused(error),
        }
    }

    /// A dry run in the agent's own namespace: code and message, for the admission check.
    pub(super) async fn check(&self, own_namespace: &str, body: ObjectBody<'_>) -> Result<(u16, Status), TargetError> {
        self.exchange(Verb::Create, url(body.kind(), own_namespace, None, Mode::DryRun), body.into_bytes()).await
    }

    /// A dry run of a request for a token of the agent's own account, which the policy on tokens refuses in several ways.
    pub(super) async fn check_tokens(&self, own_namespace: &str) -> Result<(u16, Status), TargetError> {
        let url = format!("/api/v1/namespaces/{own_namespace}/serviceaccounts/{AGENT}/token?dryRun=All");
        let spec = serde_json::json!({"audiences": ["jasm-admission-check"], "expirationSeconds": 600});
        let body = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        self.exchange(Verb::Create, url, body.to_string().into()).await
    }

    /// Reads an object with its data: code and body, which is zeroized. `None` where the body is longer than `most`.
    ///
    /// RBAC: `get`, which the agent has on masters alone.
    pub(super) async fn read(&self, target: &Target, most: usize) -> Result<Option<Answer>, TargetError> {
        let url = url(target.kind, target.namespace(), Some(target.name.as_str()), Mode::Store);
        let request = Request::get(url).header(header::ACCEPT, "application/json").body(Body::empty());
        let _permit = self.permits.acquire().await.map_err(unreachable)?;
        let reply = self.client.send(request.map_err(unreachable)?).await.map_err(unreachable)?;
        let code = reply.status().as_u16();
        let read = async {
            let mut frames = reply.into_body();
            let mut body = Zeroizing::new(Vec::with_capacity(MAX_REPLY_BYTES));
            while let Some(frame) = frames.frame().await {
                if let Ok(data) = frame.map_err(unreachable)?.into_data() {
                    let is_too_long = body.len() + data.len() > most;
                    append(&mut body, &data);
                    wipe(data);
                    if is_too_long {
                        return Ok(None);
                    }
                }
            }
            Ok(Some((code, body)))
        };
        tokio::time::timeout(REPLY_TIMEOUT, read).await.map_err(unreachable)?
    }

    async fn exchange(&self, verb: Verb, url: String, body: Bytes) -> Result<(u16, Status), TargetError> {
        let method = match verb {
            Verb::Create => Method::POST,
            Verb::Update => Method::PUT,
        };
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::ACCEPT, METADATA_ONLY)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(unreachable)?;
        let _permit = self.permits.acquire().await.map_err(unreachable)?;
        let reply = self.client.send(request).await.map_err(unreachable)?;
        let code = reply.status().as_u16();
        let read = Limited::new(reply.into_body(), MAX_REPLY_BYTES).collect();
        let status = match tokio::time::timeout(REPLY_TIMEOUT, read).await {
            Ok(Ok(body)) => read_status(&body.to_bytes()),
            // The head of a success says it all; a refusal without its text could be any.
            _ if (200..300).contains(&code) => Status::default(),
            Ok(Err(error)) => return Err(unreachable(error)),
            Err(elapsed) => return Err(unreachable(elapsed)),
        };
        Ok((code, status))
    }
}

fn url(kind: ObjectKind, namespace: &str, name: Option<&str>, mode: Mode) -> String {
    let name = name.map(|name| format!("/{name}")).unwrap_or_default();
    let query = if mode == Mode::DryRun { "?dryRun=All" } else { "" };
    format!("/api/v1/namespaces/{namespace}/{}{name}{query}", kind.plural())
}

fn unreachable(error: impl Into<crate::error::BoxError>) -> TargetError {
    TargetError::Unreachable { source: error.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        provider::{Catalogue, Kind, ProviderName},
        request,
    };

    proptest::proptest! {
        /// Whatever a pod writes, its request is for its own namespace, or for nothing.
        #[test]
        fn no_request_reaches_another_namespace(
            name in "([a-z./?#%@:\\\\ ]|kube-system|namespaces|secrets|\\.\\.){1,12}",
            namespace in "[a-z][a-z0-9-]{0,10}[a-z]",
            more in "(namespace|secretNamespace|url)?",
        ) {
            let catalogue = Catalogue::new(crate::config::Mode::Direct, [(ProviderName::for_test("aws"), Kind::for_test())]);
            let mut asked = json!({"provider": "aws", "path": "a", "secretName": name});
            if !more.is_empty() {
                asked[more.as_str()] = json!("kube-system");
            }
            let asks = request::parse(&asked.to_string(), &catalogue).unwrap_or_default();
            for request in asks.into_iter().flatten() {
                let secret = request.secret_name.as_str();
                for mode in [Mode::Store, Mode::DryRun] {
                    let url = format!("https://api{}", url(ObjectKind::Secret, &namespace, Some(secret), mode));
                    let uri: http::Uri = url.parse().expect("a URL");
                    let want = ["", "api", "v1", "namespaces", &namespace, "secrets", secret];
                    proptest::prop_assert_eq!(uri.path().split('/').collect::<Vec<_>>(), want);
                }
            }
        }
    }
}
