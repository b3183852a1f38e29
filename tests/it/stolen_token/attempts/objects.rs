//! Pods, and whatever else lies in a namespace.

use http::Method;
use serde_json::{Value, json};

use super::super::thief::{Thief, Want, below};
use super::Row;
use crate::support::node::AGENT_NAMESPACE;
use Want::Rbac;

pub(super) fn removals(thief: &Thief) -> Vec<Row> {
    let delete = |name, path: String, want| (name, Method::DELETE, path, Value::Null, want);
    vec![
        delete("delete somebody's Secret", thief.secret("foreign"), Rbac("delete", "secrets")),
        delete("delete a Secret of the agent's", thief.secret("managed"), Rbac("delete", "secrets")),
        delete("delete all Secrets of a namespace", thief.path("", "secrets"), Rbac("deletecollection", "secrets")),
        delete("delete a pod", thief.path("", "pods/victim"), Rbac("delete", "pods")),
        delete("delete all pods of a namespace", thief.path("", "pods"), Rbac("deletecollection", "pods")),
        delete(
            "delete Events",
            thief.path("events.k8s.io/v1", "events"),
            Rbac("deletecollection", "events.events.k8s.io"),
        ),
        delete(
            "take the agents away",
            below(AGENT_NAMESPACE, "apps/v1", "daemonsets/jasm-agent?dryRun=All"),
            Rbac("delete", "daemonsets.apps"),
        ),
        delete(
            "delete the namespace",
            format!("/api/v1/namespaces/{}?dryRun=All", thief.namespace.name()),
            Rbac("delete", "namespaces"),
        ),
    ]
}

pub(super) fn pods(thief: &Thief) -> Vec<Row> {
    let of = |what: &str| thief.path("", &format!("pods/victim{what}"));
    let (get, post, patch) = (Method::GET, Method::POST, Method::PATCH);
    let container = json!({"name": "c", "image": "registry.k8s.io/pause:3.10"});
    let pod = json!({"metadata": {"name": "thief"}, "spec": {"containers": [container]}});
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "victim"}});
    let binding = json!({"metadata": {"name": "victim"}, "target": {"kind": "Node", "name": thief.node.name()}});
    vec![
        ("run a pod", post.clone(), thief.path("", "pods"), pod.clone(), Rbac("create", "pods")),
        ("run a pod beside the agent", post.clone(), below(AGENT_NAMESPACE, "", "pods"), pod, Rbac("create", "pods")),
        ("read a pod by its name", get.clone(), of(""), Value::Null, Rbac("get", "pods")),
        ("change a pod", patch.clone(), of(""), json!({}), Rbac("patch", "pods")),
        ("run a command in a pod", post.clone(), of("/exec?command=sh"), Value::Null, Rbac("create", "pods/exec")),
        ("run a command by way of GET", get.clone(), of("/exec?command=sh"), Value::Null, Rbac("get", "pods/exec")),
        ("attach to a pod", post.clone(), of("/attach"), Value::Null, Rbac("create", "pods/attach")),
        (
            "forward a port of a pod",
            post.clone(),
            of("/portforward?ports=80"),
            Value::Null,
            Rbac("create", "pods/portforward"),
        ),
        ("reach a pod through the API server", get.clone(), of("/proxy/"), Value::Null, Rbac("get", "pods/proxy")),
        ("read the log of a pod", get, of("/log"), Value::Null, Rbac("get", "pods/log")),
        (
            "debug a pod",
            patch.clone(),
            of("/ephemeralcontainers"),
            json!({}),
            Rbac("patch", "pods/ephemeralcontainers"),
        ),
        ("evict a pod", post.clone(), of("/eviction"), eviction, Rbac("create", "pods/eviction")),
        ("bind a pod to its node", post, of("/binding"), binding, Rbac("create", "pods/binding")),
        ("forge the state of a pod", patch, of("/status"), json!({}), Rbac("patch", "pods/status")),
    ]
}

pub(super) fn objects(thief: &Thief) -> Vec<Row> {
    let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
    let named = |name: &str| json!({"metadata": {"name": name}});
    let allow = json!({"metadata": {"name": "jasm-policy"}, "data": {"policy.yaml": "rules: []"}});
    let event = json!({"metadata": {"name": "x"}, "involvedObject": {"namespace": thief.namespace.name()}});
    let lease = below("kube-node-lease", "coordination.k8s.io/v1", "leases");
    let deployment = thief.path("apps/v1", "deployments/x");
    vec![
        (
            "read a ConfigMap",
            get.clone(),
            below("kube-system", "", "configmaps/extension-apiserver-authentication"),
            Value::Null,
            Rbac("get", "configmaps"),
        ),
        ("list ConfigMaps", get.clone(), "/api/v1/configmaps".to_owned(), Value::Null, Rbac("list", "configmaps")),
        ("write a ConfigMap", post.clone(), thief.path("", "configmaps"), named("x"), Rbac("create", "configmaps")),
        (
            "allow itself everything in JASM's policy",
            put.clone(),
            below(AGENT_NAMESPACE, "", "configmaps/jasm-policy"),
            allow.clone(),
            Rbac("update", "configmaps"),
        ),
        (
            "write that policy where there is none",
            post.clone(),
            below(AGENT_NAMESPACE, "", "configmaps"),
            allow,
            Rbac("create", "configmaps"),
        ),
        ("write an Event of the core group", post.clone(), thief.path("", "events"), event, Rbac("create", "events")),
        (
            "read Events",
            get.clone(),
            thief.path("events.k8s.io/v1", "events"),
            Value::Null,
            Rbac("list", "events.events.k8s.io"),
        ),
        ("take a node's lease", post.clone(), lease.clone(), named("x"), Rbac("create", "leases.coordination.k8s.io")),
        ("renew a node's lease", put, format!("{lease}/x"), named("x"), Rbac("update", "leases.coordination.k8s.io")),
        ("list workloads", get, "/apis/apps/v1/deployments".to_owned(), Value::Null, Rbac("list", "deployments.apps")),
        ("change a workload", Method::PATCH, deployment.clone(), json!({}), Rbac("patch", "deployments.apps")),
        (
            "scale a workload",
            Method::PATCH,
            format!("{deployment}/scale"),
            json!({}),
            Rbac("patch", "deployments.apps/scale"),
        ),
        ("run a Job", post.clone(), thief.path("batch/v1", "jobs"), named("x"), Rbac("create", "jobs.batch")),
        ("answer for a Service", post, thief.path("", "services"), named("x"), Rbac("create", "services")),
    ]
}
