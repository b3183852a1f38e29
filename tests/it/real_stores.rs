//! The real clouds, for whoever has an account: left out, with a line that says so, unless the environment names secrets.
//!
//! `JASM_REAL_PROVIDERS` is a providers file, and `JASM_REAL_SECRETS` what to read by it: `INSTANCE=PATH`, several with
//! spaces between. Each has to be a JSON object or a text. Credentials come from the environment (`AWS_*`, `AZURE_*`) and
//! from the files that the providers file names. No value is shown.

use serde_json::json;

use crate::support::say;
use crate::support::scene::Scene;

#[tokio::test]
async fn each_named_secret_of_a_real_store_arrives() {
    let (Ok(file), Ok(secrets)) = (std::env::var("JASM_REAL_PROVIDERS"), std::env::var("JASM_REAL_SECRETS")) else {
        return say(
            "no real store is asked: set JASM_REAL_PROVIDERS and JASM_REAL_SECRETS to do that (tests/it/real_stores.rs)",
        );
    };
    let scene = Scene::set_with(|builder| {
        let builder = ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"]
            .iter()
            .fold(builder.env("JASM_PROVIDERS_FILE", &file), |builder, name| builder.without_env(name));
        let passed = |(name, _): &(String, String)| {
            ["AWS_", "AZURE_", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"].iter().any(|prefix| name.starts_with(prefix))
        };
        std::env::vars().filter(passed).fold(builder, |builder, (name, value)| builder.env(&name, &value))
    })
    .await;
    for (number, secret) in secrets.split_whitespace().enumerate() {
        let (instance, path) = secret.split_once('=').expect("JASM_REAL_SECRETS has the form INSTANCE=PATH ...");
        let name = format!("real-{number}");
        let request = json!({"provider": instance, "path": path, "secretName": name}).to_string();
        scene.pod(&name).request(&request).create().await;
        let keys = scene.namespace.wait_for_secret(&name).await.data.unwrap_or_default().len();
        say(&format!("{instance}: {path} arrived with {keys} keys"));
    }
}
