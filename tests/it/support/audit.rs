//! The API server's audit log: what each agent asked for, whatever the answer was.
//!
//! The log is written while the server still holds the answer's end (`--audit-log-mode=blocking`), and a watch as soon
//! as it has begun. [`requests`] also waits for a request of its own to appear, so that all before it have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use http::Request as HttpRequest;
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize as _;
use serde_json::Value;

use super::control_plane::{ControlPlane, project};
use super::node::{AGENT_ACCOUNT, AGENT_NAMESPACE};
use super::unique;
use super::wait::eventually;

/// The claim in a bound token that names its node.
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

/// What [`settle`] asks for begins so.
const MARK: &str = "/version?audit";

/// Where masters are.
pub(crate) const MASTERS_NAMESPACE: &str = "jasm-masters";

/// One request of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The same in all entries about this request.
    pub(crate) id: String,
    /// The node that the token is bound to; empty where it is bound to none.
    pub(crate) node: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` ...
    pub(crate) verb: String,
    /// The API group; empty for the core group.
    pub(crate) group: String,
    /// `secrets`, or empty where the path is that of no resource.
    pub(crate) resource: String,
    /// As in `status`; mostly empty.
    pub(crate) subresource: String,
    /// Empty for what is asked of all namespaces, or lies in none.
    pub(crate) namespace: String,
    /// Empty for collections, and so for `create`.
    pub(crate) name: String,
    /// Path and query.
    pub(crate) uri: String,
    /// Whether it said `dryRun=All`.
    pub(crate) dry_run: bool,
    /// The answer's status; 0 while there is none.
    pub(crate) code: u16,
    /// What the client calls itself.
    pub(crate) user_agent: String,
    /// The API server's own notes: who allowed it, which policy failed.
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Request {
    /// The resource with its group and subresource as rules name it: `replicasets.apps`, `pods/status`.
    pub(crate) fn object(&self) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let subresource = if self.subresource.is_empty() { String::new() } else { format!("/{}", self.subresource) };
        format!("{}{group}{subresource}", self.resource)
    }

    /// The kind of request, as in `create secrets`, `update secrets (dry run)`, `create events.events.k8s.io`.
    pub(crate) fn kind(&self) -> String {
        let object = if self.resource.is_empty() { self.uri.clone() } else { self.object() };
        format!("{} {object}{}", self.verb, if self.dry_run { " (dry run)" } else { "" })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{} by the agent on {:?}: {}", self.kind(), self.namespace, self.name, self.node, self.code)
    }
}

/// How often each kind of request was made: `{"create secrets": 1, "update secrets (dry run)": 1}`.
pub(crate) fn tally<'a>(requests: impl IntoIterator<Item = &'a Request>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for request in requests {
        *tally.entry(request.kind()).or_default() += 1;
    }
    tally
}

/// All requests so far of the agent on `node`, in the order in which they were answered (a watch: begun).
pub(crate) async fn requests(control_plane: &ControlPlane, node: &str) -> Vec<Request> {
    settle(control_plane).await;
    read(control_plane.audit_log(), Some(node))
}

/// All requests so far of all agents of this control plane.
pub(crate) async fn all_requests(control_plane: &ControlPlane) -> Vec<Request> {
    settle(control_plane).await;
    read(control_plane.audit_log(), None)
}

/// Returns when everything that was answered before the call is in the log.
async fn settle(control_plane: &ControlPlane) {
    let mark = unique(MARK);
    let request = HttpRequest::get(&mark).body(Vec::new()).expect("a path is a URL");
    let asked = control_plane.admin().await.request_text(request).await;
    asked.unwrap_or_else(|error| panic!("no answer from the API server: {error}"));
    eventually("the audit log to hold a request just made", async || {
        let is_there = Tail::of(control_plane.audit_log(), |tail| tail.marks.contains(&mark));
        if is_there { Ok(()) } else { Err("that it does not".to_owned()) }
    })
    .await;
}

/// Reads the log as it is: requests of the agents' account, of one node where it is given.
pub(crate) fn read(log: &Path, node: Option<&str>) -> Vec<Request> {
    let is_wanted = |request: &&Request| node.is_none_or(|node| request.node == node);
    once_each(Tail::of(log, |tail| tail.requests.iter().filter(is_wanted).cloned().collect()))
}

/// What was read of a log so far: it is long, and many tests ask again and again.
#[derive(Debug, Default)]
struct Tail {
    offset: u64,
    requests: Vec<Request>,
    marks: BTreeSet<String>,
}

impl Tail {
    /// Something of what the log holds now.
    fn of<T>(log: &Path, look: impl FnOnce(&Self) -> T) -> T {
        static LOGS: Mutex<BTreeMap<PathBuf, Arc<Mutex<Tail>>>> = Mutex::new(BTreeMap::new());
        let tail = {
            let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(logs.entry(log.to_owned()).or_default())
        };
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.read_on(log).unwrap_or_else(|error| panic!("cannot read {}: {error}", log.display()));
        look(&tail)
    }

    fn read_on(&mut self, log: &Path) -> std::io::Result<()> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        loop {
            line.clear();
            let length = reader.read_line(&mut line)?;
            // A line without an end is still being written.
            if !line.ends_with('\n') {
                return Ok(());
            }
            self.offset += length as u64;
            self.note(&line);
        }
    }

    /// Decoding takes far longer than looking: most lines are about others.
    fn note(&mut self, line: &str) {
        if line.contains(AGENT_ACCOUNT) {
            self.requests.extend(parse(line));
        } else if line.contains(MARK) {
            self.marks.extend(decoded(line)["requestURI"].as_str().map(str::to_owned));
        }
    }
}

fn decoded(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("the audit log is not JSON: {error}"))
}

/// One request of the agents' account; nothing where the line is about somebody else.
pub(crate) fn parse(line: &str) -> Option<Request> {
    let entry = decoded(line);
    let account = format!("system:serviceaccount:{AGENT_NAMESPACE}:{AGENT_ACCOUNT}");
    if entry["user"]["username"].as_str() != Some(&account) {
        return None;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &entry["objectRef"];
    let uri = text(&entry["requestURI"]);
    Some(Request {
        id: text(&entry["auditID"]),
        node: text(&entry["user"]["extra"][NODE_CLAIM][0]),
        verb: text(&entry["verb"]),
        group: text(&object["apiGroup"]),
        resource: text(&object["resource"]),
        subresource: text(&object["subresource"]),
        namespace: text(&object["namespace"]),
        name: text(&object["name"]),
        dry_run: uri.split(['?', '&']).skip(1).any(|pair| pair == "dryRun=All"),
        uri,
        code: entry["responseStatus"]["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or_default(),
        user_agent: text(&entry["userAgent"]),
        annotations: serde_json::from_value(entry["annotations"].clone()).unwrap_or_default(),
    })
}

/// A watch has an entry for its start and one for its end, and is one request.
pub(crate) fn once_each(entries: Vec<Request>) -> Vec<Request> {
    let mut seen = BTreeSet::new();
    entries.into_iter().filter(|entry| seen.insert(entry.id.clone())).collect()
}

// ---- rights ----

/// The rules of the cluster roles and roles in `rbac/`, as the files say.
pub(crate) fn shipped_rules() -> Vec<PolicyRule> {
    let folder = project().join("rbac");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    let files = files
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|end| end == "yaml"));
    files.flat_map(|file| rules_in(&file)).collect()
}

fn rules_in(file: &Path) -> Vec<PolicyRule> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    let documents = serde_yaml::Deserializer::from_str(&text).map(|document| {
        Value::deserialize(document).unwrap_or_else(|error| panic!("{} is not YAML: {error}", file.display()))
    });
    let roles = documents.filter(|object| matches!(object["kind"].as_str(), Some("ClusterRole" | "Role")));
    let rules = roles.flat_map(|role| role["rules"].as_array().cloned().unwrap_or_default());
    rules.map(|rule| serde_json::from_value(rule).expect("a role's rules are rules")).collect()
}

/// What an agent asked for beyond these rules, or to read a Secret: nothing, in a run that is in order. Answers do not
/// matter: an agent does not even try.
pub(crate) fn excesses(requests: &[Request], rules: &[PolicyRule]) -> Vec<String> {
    let reads = ["get", "list", "watch", "patch"];
    let excess = |request: &&Request| {
        let reads_secret = request.resource == "secrets" && reads.contains(&request.verb.as_str());
        reads_secret || !rules.iter().any(|rule| grants(rule, request))
    };
    requests.iter().filter(excess).map(ToString::to_string).collect()
}

/// The same for an agent in central mode, which may also read masters, and write ConfigMaps.
pub(crate) fn excesses_in_central_mode(requests: &[Request], masters_namespace: &str) -> Vec<String> {
    let masters = rules_in(&project().join("daemonset/components/central/masters/role.yaml"));
    let is_master =
        |request: &&Request| request.namespace == masters_namespace && masters.iter().any(|rule| grants(rule, request));
    let others: Vec<Request> = requests.iter().filter(|request| !is_master(request)).cloned().collect();
    excesses(&others, &central_rules())
}

/// The rules of `rbac/` with those of the component `pod-identity`.
pub(crate) fn rules_with_tokens() -> Vec<PolicyRule> {
    let mut rules = shipped_rules();
    rules.extend(rules_in(&project().join("rbac/pod-identity/cluster-role.yaml")));
    rules
}

/// The rules of `rbac/` as the component `central` has them.
pub(crate) fn central_rules() -> Vec<PolicyRule> {
    let mut rules = shipped_rules();
    for resources in rules.iter_mut().filter_map(|rule| rule.resources.as_mut()) {
        if resources.iter().any(|one| one == "secrets") {
            resources.push("configmaps".to_owned());
        }
    }
    rules
}

fn grants(rule: &PolicyRule, request: &Request) -> bool {
    if request.resource.is_empty() {
        // Every account may ask for the version (`system:public-info-viewer`), as the agent does at its start.
        return request.verb == "get" && request.uri == "/version";
    }
    let resource = match request.subresource.as_str() {
        "" => request.resource.clone(),
        subresource => format!("{}/{subresource}", request.resource),
    };
    let names = rule.resource_names.as_deref().unwrap_or_default();
    rule.verbs.contains(&request.verb)
        && rule.api_groups.as_deref().unwrap_or_default().contains(&request.group)
        && rule.resources.as_deref().unwrap_or_default().contains(&resource)
        && (names.is_empty() || names.contains(&request.name))
}
