//! Where the agent reads and writes: by its rights, and with the components that bound it further.

use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::stage::{Answer, At, Kind, Shape, Stage, account, send};
use crate::policies::assert_expressions_fit;
use crate::support::cluster::TestNamespace;
use crate::support::node::{AGENT_NAMESPACE, AgentNode, agents_secret};
use crate::support::surroundings::{MASTERS_NAMESPACE, Surroundings};
use crate::support::wait::eventually;

#[tokio::test]
async fn the_agents_token_reads_masters_and_nothing_else() {
    let stage = Stage::set().await;
    for kind in Kind::BOTH {
        let name = format!("read-{}", stage.node.name());
        stage.create(kind, At::Masters, &stage.object(kind, Shape::Master, &name)).await.accepted("a master");
        stage.create(kind, At::Team, &stage.object(kind, Shape::Replica, &name)).await.accepted("a replica");
        let (all, one) = (stage.path(kind, At::Masters, ""), stage.path(kind, At::Masters, &format!("/{name}")));
        for path in [&one, &all, &format!("{all}?watch=true&timeoutSeconds=1")] {
            stage.ask(Method::GET, path).await.accepted(path);
        }
        for method in [Method::PATCH, Method::DELETE] {
            stage.ask(method.clone(), &one).await.beyond_rights(format!("{method} {one}"));
        }
        stage.ask(Method::DELETE, &all).await.beyond_rights("all of them");
        let everywhere = format!("/api/v1/{}", kind.resource());
        for at in [At::Team, At::Named(AGENT_NAMESPACE), At::Named("kube-system")] {
            let (all, one) = (stage.path(kind, at, ""), stage.path(kind, at, &format!("/{name}")));
            for path in [&one, &all, &format!("{all}?watch=true"), &everywhere, &format!("{everywhere}?watch=true")] {
                stage.ask(Method::GET, path).await.beyond_rights(path);
            }
            for method in [Method::PATCH, Method::DELETE] {
                stage.ask(method.clone(), &one).await.beyond_rights(format!("{method} {one}"));
            }
        }
    }
}

#[tokio::test]
async fn every_expression_fits_secrets_and_configmaps() {
    assert_expressions_fit(Surroundings::central().await).await;
}

/// Without the component no policy looks at a ConfigMap.
#[tokio::test]
async fn the_base_install_bounds_secrets_alone() {
    let surroundings = Surroundings::get().await;
    for (layer, want) in [("daemonset", json!(["secrets"])), ("tests/layers/central", json!(["secrets", "configmaps"]))]
    {
        let rendered = surroundings.kubectl(&["kustomize", layer]).unwrap_or_else(|error| panic!("{error}"));
        let objects = serde_yaml::Deserializer::from_str(&rendered)
            .map(|document| <Value as serde::Deserialize>::deserialize(document).expect("YAML"));
        let policies: Vec<_> = objects.filter(|object| object["kind"] == "ValidatingAdmissionPolicy").collect();
        assert_eq!(policies.len(), 5, "{layer}");
        for policy in policies {
            let rules = &policy["spec"]["matchConstraints"]["resourceRules"];
            assert_eq!(rules.as_array().map(Vec::len), Some(1), "{layer}: {rules}");
            assert_eq!(rules[0]["resources"], want, "{layer}: {}", policy["metadata"]["name"]);
        }
    }
}

/// With `per-namespace`, `pods-only` and `labelled-namespaces`, on a control plane that no other test uses.
#[tokio::test]
async fn masters_need_neither_a_binding_nor_a_label_of_their_namespace() {
    let surroundings = Surroundings::own().await;
    let kubectl = |command: &str| surroundings.bash(command).unwrap_or_else(|error| panic!("{error}"));
    kubectl("kubectl apply -k tests/layers/central-bound && kubectl delete clusterrolebinding jasm-agent");
    let node = AgentNode::create(&surroundings).await;
    let agent = node.client(&surroundings).await;
    let team = TestNamespace::create(&surroundings).await;
    let create = async |kind: Kind, namespace: &str, labels: Value| -> Answer {
        let mut object = agents_secret(node.name(), "app");
        object["kind"] = json!(format!("{kind:?}"));
        for (key, value) in labels.as_object().expect("labels") {
            object["metadata"]["labels"][key] = value.clone();
        }
        let path = format!("/api/v1/namespaces/{namespace}/{}?dryRun=All", kind.resource());
        send(&agent, None, Method::POST, &path, "application/json", &object.to_string()).await
    };
    let master = json!({"jasm.codnod.io/source-kind": "vault"});
    let replica = json!({"jasm.codnod.io/replicated-from": "vault-x", "jasm.codnod.io/source": "vault"});
    let until = async |awaited: &str, namespace: &str, labels: &Value, words: &str| {
        for kind in Kind::BOTH {
            eventually(awaited, async || {
                let answer = create(kind, namespace, labels.clone()).await;
                if answer.said.contains(words) { Ok(()) } else { Err(format!("{answer:?}")) }
            })
            .await;
        }
    };
    until("the binding of all namespaces to be gone", team.name(), &replica, " cannot create resource ").await;
    let bind = format!("kubectl create rolebinding jasm-agent --clusterrole=jasm-agent --serviceaccount={}", account());
    kubectl(&format!("{bind} -n {}", team.name()));
    until("a refusal for want of a label", team.name(), &replica, "lacks the label jasm.codnod.io/enabled=true").await;
    // Now that the component is in force.
    for kind in Kind::BOTH {
        create(kind, MASTERS_NAMESPACE, master.clone()).await.accepted("a master");
        let refused = create(kind, MASTERS_NAMESPACE, replica.clone()).await;
        refused.refused("jasm-agent-shape", "jasm:shape masters and records", "a replica among masters");
    }
    kubectl(&format!("kubectl label namespace {} jasm.codnod.io/enabled=true", team.name()));
    until("a replica to be let through", team.name(), &replica, "\"creationTimestamp\"").await;
    no_other_policy_refuses_a_probe(&surroundings, &node).await;
}

/// Which of several refusals the API server tells is its own matter: a probe must be refused by the one alone that answers it.
async fn no_other_policy_refuses_a_probe(surroundings: &Surroundings, node: &AgentNode) {
    let kubectl = |arguments: &[&str]| surroundings.kubectl(arguments).unwrap_or_else(|error| panic!("{error}"));
    kubectl(&["delete", "validatingadmissionpolicybinding", "jasm-agent-ownership"]);
    let agent = node.client(surroundings).await;
    let masters = TestNamespace::shared(surroundings, MASTERS_NAMESPACE).await;
    for (label, before, after) in [("source-kind", "ssm", "vault"), ("record", "replicas", "replicas")] {
        let object = |node: &str, value: &str| {
            let mut object = agents_secret(node, label);
            object["kind"] = json!("ConfigMap");
            object["metadata"]["labels"][format!("jasm.codnod.io/{label}")] = json!(value);
            object
        };
        let stored: ConfigMap = masters.add(object("another-node", before)).await;
        let mut probe = object(node.name(), after);
        probe["metadata"]["annotations"]["jasm.codnod.io/probe"] = json!("true");
        let path = format!("/api/v1/namespaces/{MASTERS_NAMESPACE}/configmaps/{}?dryRun=All", stored.name_any());
        eventually("a probe to be let through", async || {
            let answer = send(&agent, None, Method::PUT, &path, "application/json", &probe.to_string()).await;
            if answer.code == 200 { Ok(()) } else { Err(format!("{label}: {answer:?}")) }
        })
        .await;
    }
}
