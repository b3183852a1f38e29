//! The pods that a manifest would make, and the annotations that the agent would read for them. Pure.
//!
//! A manifest is its operator's own file; the annotation in it is read as strictly as always, by others than this.

use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use crate::{
    annotations::quoted,
    names::{is_dns_label, is_dns_subdomain},
    pod::{PodView, SYNC_ANNOTATION},
    workload::{Kind, Workload},
    workload_annotations::Inherited,
};

/// Argo's Rollout copies its annotations to its ReplicaSets, where the agent reads them.
const COPIES: (&str, &str) = ("argoproj.io", "Rollout");

/// What there is in a manifest.
#[derive(Debug)]
pub(super) enum Found {
    /// A pod that asks for something.
    Pod {
        /// The object that it comes from.
        who: String,
        pod: Box<PodView>,
        /// Its annotation.
        text: String,
        /// The same, where it stands on the workload.
        inherited: Option<Inherited>,
    },
    /// An annotation that the agent does not look at.
    Ignored { who: String, why: &'static str },
    /// Nothing that the API server would take.
    Invalid { who: String, problem: String },
}

/// What the documents of a manifest ask for, in their order.
pub(super) fn read(text: &str, default_namespace: &str, workload_annotations: bool) -> Vec<Found> {
    let mut found = Vec::new();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let who = format!("document {}", index + 1);
        match parse(document) {
            Ok(Value::Null) => {}
            Ok(object) => read_object(&object, &who, default_namespace, workload_annotations, &mut found),
            Err(problem) => {
                found.push(Found::Invalid { who, problem });
                // What follows a text that is no YAML cannot be told from it.
                break;
            }
        }
    }
    found
}

fn parse(document: serde_yaml::Deserializer<'_>) -> Result<Value, String> {
    let mut value = serde_yaml::Value::deserialize(document).map_err(|error| error.to_string())?;
    value.apply_merge().map_err(|error| error.to_string())?;
    serde_json::to_value(&value).map_err(|error| error.to_string())
}

fn read_object(object: &Value, who: &str, namespace: &str, workload_annotations: bool, found: &mut Vec<Found>) {
    let Some(kind) = object["kind"].as_str() else {
        let problem = "is no object of Kubernetes: it has no kind".to_owned();
        return found.push(Found::Invalid { who: who.to_owned(), problem });
    };
    if let (true, Some(items)) = (kind.ends_with("List"), object["items"].as_array()) {
        return items.iter().for_each(|item| read_object(item, who, namespace, workload_annotations, found));
    }
    let object = Object { object, kind, default_namespace: namespace };
    found.extend(object.asks(workload_annotations));
}

/// One object of a manifest.
struct Object<'a> {
    object: &'a Value,
    kind: &'a str,
    default_namespace: &'a str,
}

impl Object<'_> {
    /// What the pods of this object ask for, by the agent's own rule: the pod's annotation, else the workload's.
    fn asks(&self, workload_annotations: bool) -> Option<Found> {
        let who = self.who();
        let Some(template) = self.template() else {
            let why = "the annotation stands on an object that makes no pods; nobody reads it";
            return self.annotation().map(|_| Found::Ignored { who, why });
        };
        let pod = match self.pod(template) {
            Ok(pod) => Box::new(pod),
            Err(problem) => return Some(Found::Invalid { who, problem }),
        };
        if let Some(text) = pod.asks().map(str::to_owned) {
            return Some(Found::Pod { who, pod, text, inherited: None });
        }
        let Some(text) = self.annotation().filter(|_| self.kind != "Pod") else {
            let why = "the annotation stands on the Jobs, where nobody reads it; move it to the CronJob, or into the pod template";
            return self.annotation_of_jobs().map(|_| Found::Ignored { who, why });
        };
        if !workload_annotations {
            let why = "the annotation stands on a workload, and --workload-annotations is false";
            return Some(Found::Ignored { who, why });
        }
        let counts = Kind::of(self.group(), self.kind).is_some() || (self.group(), self.kind) == COPIES;
        if !counts || !pod.may_inherit() {
            let why = "the annotation does not count on this object; move it into the pod template";
            return Some(Found::Ignored { who, why });
        }
        let Some(text) = text.as_str() else {
            let problem = format!("metadata.annotations[{SYNC_ANNOTATION}] is no text: write `|` behind its name");
            return Some(Found::Invalid { who, problem });
        };
        let workload = Workload::long_lived(self.group(), self.kind, self.name());
        let inherited = Some(Inherited { text: text.into(), workload });
        Some(Found::Pod { who, pod, text: text.to_owned(), inherited })
    }

    /// The part of the object that becomes a pod.
    fn template(&self) -> Option<&Value> {
        let pointer = match self.kind {
            "Pod" => return Some(self.object),
            "CronJob" => "/spec/jobTemplate/spec/template",
            _ => "/spec/template",
        };
        // Others than the known workloads have templates, too, and not all of pods.
        let known = Kind::of(self.group(), self.kind).is_some();
        self.object.pointer(pointer).filter(|template| known || template["spec"]["containers"].is_array())
    }

    /// The pod as the API server would have it.
    fn pod(&self, template: &Value) -> Result<PodView, String> {
        let (namespace, account) = (self.namespace(), service_account(&template["spec"]));
        if !is_dns_label(namespace) {
            return Err(format!("{} cannot be a namespace's name", quoted(namespace)));
        }
        if !is_dns_subdomain(account) {
            return Err(format!("{} cannot be a service account's name", quoted(account)));
        }
        let mut metadata = Map::new();
        metadata.insert("namespace".to_owned(), json!(namespace));
        for field in ["annotations", "deletionTimestamp"] {
            let value = template["metadata"].get(field).filter(|value| !value.is_null());
            metadata.extend(value.map(|value| (field.to_owned(), value.clone())));
        }
        if self.kind != "Pod" {
            let owner = json!({"apiVersion": self.object["apiVersion"].as_str().unwrap_or_default(), "kind": self.kind, "name": self.name(), "uid": "", "controller": true});
            metadata.insert("ownerReferences".to_owned(), json!([owner]));
        }
        let phase = &template["status"]["phase"];
        let pod = json!({"metadata": metadata, "spec": {"serviceAccountName": account}, "status": {"phase": phase}});
        serde_json::from_value(pod).map_err(|error| format!("the API server would not take its pod: {error}"))
    }

    fn annotation(&self) -> Option<&Value> {
        self.object["metadata"]["annotations"].get(SYNC_ANNOTATION)
    }

    /// A CronJob's Jobs get what stands on their template; the agent goes by the CronJob.
    fn annotation_of_jobs(&self) -> Option<&Value> {
        self.object["spec"]["jobTemplate"]["metadata"]["annotations"].get(SYNC_ANNOTATION)
    }

    fn group(&self) -> &str {
        self.object["apiVersion"].as_str().and_then(|version| version.split_once('/')).map_or("", |(group, _)| group)
    }

    fn namespace(&self) -> &str {
        text(&self.object["metadata"]["namespace"]).unwrap_or(self.default_namespace)
    }

    fn name(&self) -> &str {
        let metadata = &self.object["metadata"];
        text(&metadata["name"]).or_else(|| text(&metadata["generateName"])).unwrap_or("?")
    }

    fn who(&self) -> String {
        let plain = |text: &str| match text.chars().all(|c| c.is_ascii_graphic()) {
            true => text.to_owned(),
            false => quoted(text),
        };
        format!("{} {}/{}", plain(self.kind), plain(self.namespace()), plain(self.name()))
    }
}

/// As the API server fills it in.
fn service_account(spec: &Value) -> &str {
    text(&spec["serviceAccountName"]).or_else(|| text(&spec["serviceAccount"])).unwrap_or("default")
}

fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}
