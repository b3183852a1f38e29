//! Pods that print what they were started with.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::cluster::OwnNamespace;
use crate::support::cluster::SYNC_ANNOTATION;

/// How a pod takes its Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// `envFrom`.
    Env,
    /// A volume.
    Volume,
    /// Both.
    Both,
}

/// The text of an annotation that asks for one secret.
pub(super) fn asks(path: &str, secret: &str) -> Value {
    json!({ SYNC_ANNOTATION: json!({"provider": "aws-secretsmanager", "path": path, "secretName": secret}).to_string() })
}

/// A pod's spec: prints `env=<V>` and `volume=<V>`, whichever it has, then `done`, and stays.
pub(super) fn spec(how: How, secret: &str) -> Value {
    let print = "echo env=$V; [ ! -e /secret/V ] || echo volume=$(cat /secret/V); echo done; exec sleep infinity";
    let mut container = json!({
        "name": "main", "image": "docker.io/library/busybox:1.37", "command": ["sh", "-c", print],
    });
    let mut spec = json!({
        "nodeSelector": {"jasm.codnod.io/e2e": "here"},
        "terminationGracePeriodSeconds": 0,
        "enableServiceLinks": false,
    });
    if how != How::Volume {
        container["envFrom"] = json!([{"secretRef": {"name": secret}}]);
    }
    if how != How::Env {
        container["volumeMounts"] = json!([{"name": "secret", "mountPath": "/secret"}]);
        spec["volumes"] = json!([{"name": "secret", "secret": {"secretName": secret}}]);
    }
    spec["containers"] = json!([container]);
    spec
}

impl OwnNamespace {
    /// Creates a pod that asks for `path` (or for nothing), and takes the Secret `secret`.
    pub(super) async fn pod(&self, name: &str, how: How, secret: &str, path: Option<&str>) {
        let annotations = path.map_or(json!({}), |path| asks(path, secret));
        self.create::<Pod>(json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec(how, secret)}))
            .await;
    }
}
