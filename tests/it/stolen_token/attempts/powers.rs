//! To become somebody else, to get more rights, or to get rid of what bounds it.

use http::Method;
use serde_json::{Value, json};

use super::super::thief::{Attempt, Thief, Want, attempt, below};
use super::Row;
use crate::support::node::{AGENT_ACCOUNT, AGENT_NAMESPACE};
use Want::{Impersonation, Path, Rbac};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// To become somebody else.
pub(super) fn identities() -> Vec<Row> {
    let (get, post) = (Method::GET, Method::POST);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let token = |namespace, account: &str| below(namespace, "", &format!("serviceaccounts/{account}/token"));
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}});
    let access = json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {
        "user": "x", "resourceAttributes": {"verb": "get", "resource": "secrets"}}});
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let csr = json!({"metadata": {"name": "x"}, "spec": {
        "request": "eA==", "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
    vec![
        (
            "make a token of its own that lives on",
            post.clone(),
            token(AGENT_NAMESPACE, AGENT_ACCOUNT),
            request.clone(),
            Rbac("create", "serviceaccounts/token"),
        ),
        (
            "make a token of another account",
            post.clone(),
            token("kube-system", "default"),
            request,
            Rbac("create", "serviceaccounts/token"),
        ),
        (
            "read service accounts",
            get.clone(),
            below("kube-system", "", "serviceaccounts"),
            Value::Null,
            Rbac("list", "serviceaccounts"),
        ),
        (
            "make a service account",
            post.clone(),
            below(AGENT_NAMESPACE, "", "serviceaccounts"),
            json!({"metadata": {"name": "x"}}),
            Rbac("create", "serviceaccounts"),
        ),
        (
            "look into tokens",
            post.clone(),
            "/apis/authentication.k8s.io/v1/tokenreviews".to_owned(),
            review,
            Rbac("create", "tokenreviews.authentication.k8s.io"),
        ),
        (
            "ask for the rights of others",
            post.clone(),
            "/apis/authorization.k8s.io/v1/subjectaccessreviews".to_owned(),
            access,
            Rbac("create", "subjectaccessreviews.authorization.k8s.io"),
        ),
        (
            "ask for a certificate",
            post,
            csrs.to_owned(),
            csr,
            Rbac("create", "certificatesigningrequests.certificates.k8s.io"),
        ),
        (
            "approve a certificate",
            Method::PATCH,
            format!("{csrs}/x/approval"),
            json!({}),
            Rbac("patch", "certificatesigningrequests.certificates.k8s.io/approval"),
        ),
        (
            "read requests for certificates",
            get,
            csrs.to_owned(),
            Value::Null,
            Rbac("list", "certificatesigningrequests.certificates.k8s.io"),
        ),
    ]
}

pub(super) fn impersonations(thief: &Thief) -> Vec<Attempt> {
    let read = |name, want| attempt(name, Method::GET, thief.secret("foreign"), Value::Null, want);
    vec![
        read("be an administrator", Impersonation).with("impersonate-user", "kubernetes-admin"),
        read("be of the group of masters", Impersonation)
            .with("impersonate-user", "x")
            .with("impersonate-group", "system:masters"),
        read("be another service account", Impersonation)
            .with("impersonate-user", "system:serviceaccount:kube-system:default"),
    ]
}

/// To get more rights. `bind` and `escalate` have nothing to work on without these.
pub(super) fn rights(thief: &Thief) -> Vec<Row> {
    let subject = json!([{"kind": "ServiceAccount", "name": AGENT_ACCOUNT, "namespace": AGENT_NAMESPACE}]);
    let admin = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
    let binding = json!({"metadata": {"name": "stolen"}, "roleRef": admin, "subjects": subject});
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
    let role = |name: &str| json!({"metadata": {"name": name}, "rules": rules});
    let group = "rbac.authorization.k8s.io/v1";
    let (post, patch, put) = (Method::POST, Method::PATCH, Method::PUT);
    vec![
        (
            "bind itself to cluster-admin",
            post.clone(),
            format!("{RBAC}/clusterrolebindings?dryRun=All"),
            binding.clone(),
            Rbac("create", "clusterrolebindings.rbac.authorization.k8s.io"),
        ),
        (
            "bind itself in a namespace",
            post.clone(),
            thief.path(group, "rolebindings"),
            binding,
            Rbac("create", "rolebindings.rbac.authorization.k8s.io"),
        ),
        (
            "widen its own role",
            put,
            format!("{RBAC}/clusterroles/jasm-agent?dryRun=All"),
            role("jasm-agent"),
            Rbac("update", "clusterroles.rbac.authorization.k8s.io"),
        ),
        (
            "patch its own role",
            patch.clone(),
            format!("{RBAC}/clusterroles/jasm-agent?dryRun=All"),
            json!({}),
            Rbac("patch", "clusterroles.rbac.authorization.k8s.io"),
        ),
        (
            "patch its own binding",
            patch,
            format!("{RBAC}/clusterrolebindings/jasm-agent?dryRun=All"),
            json!({}),
            Rbac("patch", "clusterrolebindings.rbac.authorization.k8s.io"),
        ),
        (
            "make a role",
            post.clone(),
            thief.path(group, "roles"),
            role("stolen"),
            Rbac("create", "roles.rbac.authorization.k8s.io"),
        ),
        (
            "make a role for the cluster",
            post,
            format!("{RBAC}/clusterroles?dryRun=All"),
            role("stolen"),
            Rbac("create", "clusterroles.rbac.authorization.k8s.io"),
        ),
        (
            "read roles",
            Method::GET,
            format!("{RBAC}/clusterroles"),
            Value::Null,
            Rbac("list", "clusterroles.rbac.authorization.k8s.io"),
        ),
    ]
}

/// To get rid of what bounds it.
pub(super) fn admission() -> Vec<Row> {
    let at = |rest: &str| format!("{ADMISSION}/{rest}?dryRun=All");
    let named = || json!({"metadata": {"name": "stolen"}});
    let policies = "validatingadmissionpolicies.admissionregistration.k8s.io";
    let bindings = "validatingadmissionpolicybindings.admissionregistration.k8s.io";
    let (policy, binding) =
        ("validatingadmissionpolicies/jasm-agent-shape", "validatingadmissionpolicybindings/jasm-agent-shape");
    vec![
        ("delete a policy", Method::DELETE, at(policy), Value::Null, Rbac("delete", policies)),
        ("patch a policy", Method::PATCH, at(policy), json!({}), Rbac("patch", policies)),
        ("delete a policy's binding", Method::DELETE, at(binding), Value::Null, Rbac("delete", bindings)),
        ("patch a policy's binding", Method::PATCH, at(binding), json!({}), Rbac("patch", bindings)),
        (
            "read the policies",
            Method::GET,
            format!("{ADMISSION}/validatingadmissionpolicies"),
            Value::Null,
            Rbac("list", policies),
        ),
        (
            "install a webhook that sees all",
            Method::POST,
            at("mutatingwebhookconfigurations"),
            named(),
            Rbac("create", "mutatingwebhookconfigurations.admissionregistration.k8s.io"),
        ),
        (
            "install a webhook that refuses all",
            Method::POST,
            at("validatingwebhookconfigurations"),
            named(),
            Rbac("create", "validatingwebhookconfigurations.admissionregistration.k8s.io"),
        ),
    ]
}

pub(super) fn cluster(thief: &Thief) -> Vec<Row> {
    let get = |name, path: &str, want| (name, Method::GET, path.to_owned(), Value::Null, want);
    let post =
        |name, path: &str, want| (name, Method::POST, path.to_owned(), json!({"metadata": {"name": "stolen"}}), want);
    let node = format!("/api/v1/nodes/{}", thief.node.name());
    vec![
        get("read its node", &node, Rbac("get", "nodes")),
        get("reach a kubelet through the API server", &format!("{node}/proxy/pods"), Rbac("get", "nodes/proxy")),
        (
            "forge the state of its node",
            Method::PATCH,
            format!("{node}/status"),
            json!({}),
            Rbac("patch", "nodes/status"),
        ),
        ("add a label to its node", Method::PATCH, node, json!({}), Rbac("patch", "nodes")),
        get("list the namespaces", "/api/v1/namespaces", Rbac("list", "namespaces")),
        post("make a namespace", "/api/v1/namespaces?dryRun=All", Rbac("create", "namespaces")),
        post(
            "define a resource",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?dryRun=All",
            Rbac("create", "customresourcedefinitions.apiextensions.k8s.io"),
        ),
        post(
            "serve an API group",
            "/apis/apiregistration.k8s.io/v1/apiservices?dryRun=All",
            Rbac("create", "apiservices.apiregistration.k8s.io"),
        ),
        post("claim a volume", &thief.path("", "persistentvolumeclaims"), Rbac("create", "persistentvolumeclaims")),
        get("read the API server's metrics", "/metrics", Path),
        get("read the API server's logs", "/logs/", Path),
        get("profile the API server", "/debug/pprof/heap", Path),
    ]
}
