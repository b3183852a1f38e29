//! The emulator of AWS in the cluster, and the proxy between it and the agents.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{Cluster, try_kubectl};

/// Where toxiproxy listens to orders (https://github.com/Shopify/toxiproxy#http-api), by way of the API server.
const CONTROL: &str = "/api/v1/namespaces/jasm-e2e/services/store:8474/proxy";

/// Creates secrets, or gives those that are there a new value.
const PUT: &str = r#"
import boto3, json, sys
aws = boto3.client("secretsmanager", "eu-west-1", endpoint_url="http://localhost:5000",
                   aws_access_key_id="any", aws_secret_access_key="any")
for name, value in json.load(sys.stdin).items():
    try:
        aws.create_secret(Name=name, SecretString=value)
    except aws.exceptions.ResourceExistsException:
        aws.put_secret_value(SecretId=name, SecretString=value)
"#;

/// Gives each path a JSON object with one key, `V`.
pub(super) fn put<'a>(values: impl IntoIterator<Item = (&'a String, String)>) {
    let values: BTreeMap<_, _> =
        values.into_iter().map(|(path, value)| (path, json!({"V": value}).to_string())).collect();
    let exec = ["exec", "-i", "-n", "emulator", "deployment/aws", "--", "python", "-c", PUT];
    // The message of a failure is kubectl's or Python's, without the values.
    try_kubectl(&exec, &json!(values).to_string()).unwrap_or_else(|message| panic!("{message}"));
}

impl Cluster {
    /// The store answers again, and at once.
    pub(super) async fn reset_store(&self) {
        self.order("/reset", &json!({})).await;
    }

    /// The store's port is closed.
    pub(super) async fn close_store(&self) {
        self.order("/proxies/store", &json!({"enabled": false})).await;
    }

    /// Each answer of the store comes that much later.
    pub(super) async fn slow_store(&self, latency: Duration) {
        self.reset_store().await;
        let latency = json!({"type": "latency", "attributes": {"latency": latency.as_millis() as u64}});
        self.order("/proxies/store/toxics", &latency).await;
    }

    async fn order(&self, path: &str, order: &Value) {
        let request = http::Request::post(format!("{CONTROL}{path}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(order.to_string().into_bytes())
            .expect("a valid request");
        let answer = self.client.request_text(request).await;
        answer.unwrap_or_else(|error| panic!("toxiproxy does not take {path}: {error}"));
    }
}
