//! Refusals of the API server, of others' policies and webhooks among them, that quote what was sent to them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use super::{found, surfaces};
use crate::support::api_proxy::{ApiProxy, Match, Refusal, Trouble};
use crate::support::canary::{Canary, random_values};
use crate::support::cluster::TestNamespace;
use crate::support::scene::{Scene, later_than};
use crate::support::surroundings::Surroundings;
use crate::support::wait::eventually;
use crate::support::{object, unique};

#[tokio::test]
async fn no_value_appears_whatever_the_api_server_refuses_and_quotes() {
    let surroundings = Surroundings::get().await;
    let proxy = ApiProxy::start(surroundings);
    let scene = Scene::set_with(|builder| builder.log_level("trace").through(&proxy)).await;
    let mut values = random_values(6);
    // The API server drops a policy's message that has line breaks in it.
    values[0] = unique("plain-value");
    let good = json!({"A": values[0], "B": values[1], "C": values[2], "D": values[3], "E": values[4], "F": values[5]});
    let path = scene.store.seed("good", &good.to_string()).await;
    let canary = Canary::new(&values);

    let told = each_quoting_answer(&scene, &proxy, &path).await;
    let policy = ForeignPolicy::install(&scene).await;
    let pod = policy.namespace.pod("quoted").on(scene.builder.node()).asks(&path, "quoted").create().await;
    let note = policy.namespace.wait_for_event(&pod, "SecretWriteFailed").await.note.unwrap_or_default();
    assert!(note.contains(&format!("the admission policy `{}` refused", policy.name)), "{note}");
    policy.shows_the_value_to_others(&values[0]).await;
    each_state_that_is_refused(&scene, &path).await;

    let seen = surfaces(&scene, &[&scene.namespace, &policy.namespace]).await;
    assert_eq!(found(&canary, &seen), Vec::<String>::new(), "after {told} answers that quote");
    policy.remove().await;
}

/// How many.
async fn each_quoting_answer(scene: &Scene, proxy: &ApiProxy, path: &str) -> usize {
    let echo = |code, said| Refusal::Echo { code, said };
    let answers = [
        ("denied", echo(403, "admission webhook \"echo.example.com\" denied the request: ")),
        ("denied-otherwise", echo(422, "admission webhook \"echo.example.com\" denied the request: ")),
        ("webhook-down", echo(500, "Internal error occurred: failed calling webhook \"echo.example.com\": ")),
        ("bad-request", echo(400, "Secret in version \"v1\" cannot be handled as a Secret: ")),
        ("invalid", echo(422, "Secret \"x\" is invalid: data[A]: Invalid value: ")),
        ("no-right", Refusal::NoRight),
        ("overloaded", Refusal::Overloaded { retry_after: 1 }),
        ("unavailable", Refusal::Unavailable),
        ("lost-races", Refusal::AlreadyExists),
    ];
    let told = answers.len();
    for (name, refusal) in answers {
        let outage = proxy.fail(Match::new("POST", "/secrets").dry_run(false), Trouble::Refused(refusal));
        let pod = scene.pod(name).asks(path, name).create().await;
        scene.namespace.wait_for_event(&pod, "SecretWriteFailed").await;
        outage.heal();
        scene.namespace.delete_pod(&pod).await;
    }
    told
}

/// Secrets that others changed, in mid-life.
async fn each_state_that_is_refused(scene: &Scene, path: &str) {
    for (name, change) in [
        ("decorated", json!({"metadata": {"labels": {"team": "a"}}})),
        ("immutable", json!({"immutable": true, "stringData": {"A": "another"}})),
    ] {
        scene.pod(&format!("one-{name}")).asks(path, name).create().await;
        let secret = scene.namespace.wait_for_secret(name).await;
        scene.namespace.edit_secret(name, change).await;
        later_than(&secret).await;
        let pod = scene.pod(&format!("two-{name}")).asks(path, name).create().await;
        scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    }
    // One of our own: this is where the agent writes nothing.
    let closed = TestNamespace::shared(scene.surroundings, "kube-public").await;
    let name = unique("closed");
    let pod = closed.pod(&name).on(scene.builder.node()).asks(path, &name).create().await;
    closed.wait_for_event(&pod, "SecretWriteFailed").await;
    closed.delete_pod(&pod).await;
}

/// A policy of somebody else's, which tells the value that it refuses.
struct ForeignPolicy {
    name: String,
    namespace: TestNamespace,
    admin: kube::Client,
}

impl ForeignPolicy {
    async fn install(scene: &Scene) -> Self {
        let (name, admin) = (unique("quotes"), scene.surroundings.admin().await);
        let namespace = TestNamespace::create(scene.surroundings).await;
        let policy: ValidatingAdmissionPolicy = object(json!({
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["CREATE"]},
                ]},
                "validations": [{
                    "expression": "!has(object.data) || !('A' in object.data)",
                    "messageExpression": "'this is not allowed: ' + string(object.data['A'])",
                }],
            },
        }));
        let here = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name()}}});
        let binding: ValidatingAdmissionPolicyBinding = object(json!({
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": here},
        }));
        Api::all(admin.clone()).create(&PostParams::default(), &policy).await.expect("a policy");
        Api::all(admin.clone()).create(&PostParams::default(), &binding).await.expect("a binding");
        let installed = Self { name, namespace, admin };
        eventually("the foreign policy to be in force", async || match installed.refusal("probe").await {
            Some(_) => Ok(()),
            None => Err("that the write was accepted".to_owned()),
        })
        .await;
        installed
    }

    /// What it says to a write of this value.
    async fn refusal(&self, value: &str) -> Option<String> {
        let secrets: Api<Secret> = self.namespace.api();
        let secret: Secret = object(json!({"metadata": {"name": "tried"}, "stringData": {"A": value}}));
        let tried = secrets.create(&PostParams { dry_run: true, ..PostParams::default() }, &secret).await;
        tried.err().map(|error| error.to_string())
    }

    /// Else this test would show nothing.
    async fn shows_the_value_to_others(&self, value: &str) {
        let said = self.refusal(value).await.unwrap_or_default();
        let quotes = said.contains(value) || said.contains(&STANDARD.encode(value));
        assert!(quotes, "the policy quotes what was sent");
    }

    async fn remove(&self) {
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.admin.clone());
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.admin.clone());
        bindings.delete(&self.name, &DeleteParams::default()).await.expect("the binding goes");
        policies.delete(&self.name, &DeleteParams::default()).await.expect("the policy goes");
    }
}
