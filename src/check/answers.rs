//! What the agent would say to a request: admitted by which rule, or what it would tell the pod's owner. Asks nobody.

use serde_json::json;

use super::{
    Checked, Verdict,
    manifest::{self, Found},
};
use crate::{
    config::Question,
    error::{Reason, SyncError},
    pod::PodView,
    policy::{Policy, Requester},
    provider::Catalogue,
    request::{self, RequestError, SecretRequest},
};

/// Where the agents are unless an overlay moves them; from outside of a cluster that cannot be told.
const OWN_NAMESPACE: &str = "jasm-system";

/// Answers so far.
pub(super) struct Answers<'a> {
    policy: &'a Policy,
    catalogue: &'a Catalogue,
    /// Whether the agent looks at annotations of workloads.
    workload_annotations: bool,
    /// Where masters are, in central mode.
    masters: Option<&'a str>,
    lines: Vec<String>,
    admitted: usize,
    refused: usize,
}

impl<'a> Answers<'a> {
    pub(super) fn new(
        policy: &'a Policy,
        catalogue: &'a Catalogue,
        workload_annotations: bool,
        masters: Option<&'a str>,
    ) -> Self {
        Self { policy, catalogue, workload_annotations, masters, lines: Vec::new(), admitted: 0, refused: 0 }
    }

    /// Asks for what an annotation with this provider and path alone asks for.
    pub(super) fn ask(&mut self, question: &Question) {
        let Question { namespace, service_account, provider, path } = question;
        let annotation = json!({"provider": provider, "path": path, "secretName": "any"}).to_string();
        let pod = json!({"metadata": {"namespace": namespace}, "spec": {"serviceAccountName": service_account}});
        let who = format!("{namespace}/{service_account}");
        match serde_json::from_value(pod) {
            Ok(pod) => self.read(&annotation).into_iter().for_each(|ask| self.answer(&who, &pod, ask)),
            Err(error) => self.refuse("RequestInvalid", &who, &error.to_string()),
        }
    }

    /// Asks for all that the pods of a manifest ask for.
    pub(super) fn ask_manifest(&mut self, text: &str, default_namespace: &str) {
        for found in manifest::read(text, default_namespace, self.workload_annotations) {
            match found {
                Found::Pod { who, pod, text, inherited } => {
                    for ask in self.read(&text) {
                        let says_where = |error| match &inherited {
                            Some(inherited) => inherited.says_where(error),
                            None => error,
                        };
                        self.answer(&who, &pod, ask.map_err(says_where));
                    }
                }
                Found::Ignored { who, why } => self.line("ignored", &who, why),
                Found::Invalid { who, problem } => self.refuse("ManifestInvalid", &who, &problem),
            }
        }
    }

    /// All answers, and how many there are.
    pub(super) fn finish(mut self) -> Checked {
        self.lines.push(match (self.admitted, self.refused) {
            (0, 0) => "nothing asks for a secret".to_owned(),
            (admitted, refused) => format!("admitted: {admitted}, refused: {refused}"),
        });
        let verdict = if self.refused == 0 { Verdict::Good } else { Verdict::Refused };
        Checked { text: self.lines.join("\n"), verdict }
    }

    fn read(&self, annotation: &str) -> Vec<Result<SecretRequest, RequestError>> {
        request::parse(annotation, self.catalogue).unwrap_or_else(|error| vec![Err(error.into())])
    }

    fn answer(&mut self, who: &str, pod: &PodView, ask: Result<SecretRequest, RequestError>) {
        if let Some(why) = self.closed(pod.namespace().as_str()) {
            return self.refuse(Reason::SecretWriteFailed.as_str(), who, why);
        }
        let admitted = ask.map_err(SyncError::from).and_then(|ask| Ok(self.policy.admit(ask, &Requester::of(pod))?));
        match admitted {
            Ok(admitted) => {
                let remote = &admitted.request().remote;
                self.line("admitted", who, &format!("{} {} by {}", remote.provider, remote.path, admitted.rule()));
                self.admitted += 1;
            }
            Err(error) => self.refuse(error.reason().as_str(), who, &error.to_string()),
        }
    }

    /// Where nothing is written, whatever the policy says: as the shipped admission policies have it.
    fn closed(&self, namespace: &str) -> Option<&'static str> {
        match namespace {
            OWN_NAMESPACE => Some("nothing is written in the agents' own namespace"),
            name if name.starts_with("kube-") => Some("nothing is written in kube-*"),
            name if Some(name) == self.masters => Some("nothing is written in the namespace of the masters"),
            _ => None,
        }
    }

    fn refuse(&mut self, reason: &str, who: &str, problem: &str) {
        self.line(reason, who, problem);
        self.refused += 1;
    }

    fn line(&mut self, label: &str, who: &str, text: &str) {
        self.lines.push(format!("{label:<20}{who}: {text}"));
    }
}

#[cfg(all(test, feature = "aws"))]
mod tests {
    use super::*;
    use crate::provider::{Kind, ProviderName};

    const POLICY: &str = "
rules:
- {namespaces: [team-a], serviceAccounts: [web], providers: [aws], paths: ['/prod/{namespace}/**']}
- {namespaces: ['team-*'], serviceAccounts: ['*'], providers: [aws], paths: [/shared]}
";
    const ASKS: &str = r#"{jasm.codnod.io/secret-sync: "{provider: aws, path: /shared, secretName: app}"}"#;
    const ASKS_MORE: &str =
        r#"{jasm.codnod.io/secret-sync: "{provider: aws, path: /prod/team-a/db, secretName: app}"}"#;
    const ASKS_WRONG: &str = r#"{jasm.codnod.io/secret-sync: "{provider: aws, path: /shared, secretname: app}"}"#;

    fn checked(workload_annotations: bool, ask: impl FnOnce(&mut Answers<'_>)) -> Checked {
        let policy = Policy::parse([("policy.yaml", POLICY)]).expect("a policy");
        let catalogue =
            Catalogue::new(crate::config::Mode::Direct, [(ProviderName::for_test("aws"), Kind::for_test())]);
        let mut answers = Answers::new(&policy, &catalogue, workload_annotations, Some("jasm-masters"));
        ask(&mut answers);
        answers.finish()
    }

    fn of_manifest(manifest: &str) -> Checked {
        checked(true, |answers| answers.ask_manifest(manifest, "default"))
    }

    /// A workload whose template and self have these annotations, and whose pods have this service account.
    fn workload(kind: &str, on_template: &str, on_self: &str, account: &str) -> String {
        let api = if kind.ends_with("Job") { "batch/v1" } else { "apps/v1" };
        let template = format!(
            "template: {{metadata: {{annotations: {on_template}}}, spec: {{serviceAccountName: {account}, containers: []}}}}"
        );
        let spec = if kind == "CronJob" { format!("jobTemplate: {{spec: {{{template}}}}}") } else { template };
        format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: web, namespace: team-a, annotations: {on_self}}}\nspec: {{{spec}}}\n"
        )
    }

    #[test]
    fn questions_are_answered_as_the_agent_would() {
        let cases = [
            ("team-a,web,aws,/prod/team-a/db", "admitted            team-a/web: aws /prod/team-a/db by rule 1"),
            ("team-b,x,aws,/shared", "admitted            team-b/x: aws /shared by rule 2"),
            (
                "team-a,web,aws,/prod/team-ab/db",
                "PolicyDenied        team-a/web: no policy rule lets service account web",
            ),
            ("team-b,web,aws,/prod/team-b/db", "paths: [\"/prod/team-b/db\"]}"),
            ("team-a,web,aws,/prod/team-a/../db", "AnnotationInvalid   team-a/web: annotation jasm"),
            ("team-a,web,aws,/prod/team-a/d\u{435}v", "AnnotationInvalid"),
            ("team-a,web,aw,/shared", "ProviderUnsupported team-a/web: provider `aw` is not configured"),
            ("team-a,web,aws,", "AnnotationInvalid"),
            ("kube-system,web,aws,/shared", "SecretWriteFailed   kube-system/web: nothing is written in kube-*"),
            ("jasm-system,web,aws,/shared", "jasm-system/web: nothing is written in the agents' own namespace"),
            ("jasm-masters,web,aws,/shared", "jasm-masters/web: nothing is written in the namespace of the masters"),
        ];
        for (question, want) in cases {
            let got = checked(true, |answers| answers.ask(&question.parse().expect("a question")));
            assert!(got.text.contains(want), "{question}: {}", got.text);
            let good = if want.starts_with("admitted") { Verdict::Good } else { Verdict::Refused };
            assert_eq!(got.verdict, good, "{question}");
        }
    }

    #[test]
    fn copies_of_an_annotation_count_where_the_agent_finds_them() {
        let rollout = workload("Deployment", "{}", ASKS, "web")
            .replace("apps/v1", "argoproj.io/v1alpha1")
            .replace("kind: Deployment", "kind: Rollout");
        let got = of_manifest(&rollout);
        assert!(got.text.contains("Rollout team-a/web: aws /shared by rule 2"), "{}", got.text);
        let of_jobs = workload("CronJob", "{}", "{}", "web")
            .replace("jobTemplate: {", &format!("jobTemplate: {{metadata: {{annotations: {ASKS}}}, "));
        let got = of_manifest(&of_jobs);
        assert!(got.text.contains("ignored") && got.text.contains("stands on the Jobs"), "{}", got.text);
    }

    #[test]
    fn each_kind_that_makes_pods_is_read_and_the_pods_annotation_wins() {
        for kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"] {
            let cases = [
                ("of the pods", workload(kind, ASKS_MORE, "{}", "web"), "web: aws /prod/team-a/db by rule 1"),
                ("of the workload", workload(kind, "{}", ASKS_MORE, "web"), "web: aws /prod/team-a/db by rule 1"),
                ("of the workload alone", workload(kind, "", ASKS, "web"), "web: aws /shared by rule 2"),
                ("of both", workload(kind, ASKS, ASKS_MORE, "web"), "web: aws /shared by rule 2"),
                (
                    "of another account",
                    workload(kind, ASKS_MORE, "{}", "x"),
                    "web: no policy rule lets service account x",
                ),
                ("malformed", workload(kind, ASKS_WRONG, "{}", "web"), "did you mean `secretName`"),
                (
                    "malformed elsewhere",
                    workload(kind, "{}", ASKS_WRONG, "web"),
                    "/web) field `secretname` is not known",
                ),
                ("none", workload(kind, "{}", "{}", "web"), "nothing asks for a secret"),
            ];
            for (case, manifest, want) in cases {
                let got = of_manifest(&manifest);
                assert!(got.text.contains(want), "{kind}, {case}: {}", got.text);
                assert!(
                    got.text.starts_with("nothing") || got.text.contains(&format!("{kind} team-a/web: ")),
                    "{}",
                    got.text
                );
            }
        }
    }

    #[test]
    fn a_pod_is_read_as_the_api_server_would_complete_it() {
        let pod = |metadata: &str, spec: &str| {
            format!("{{apiVersion: v1, kind: Pod, metadata: {{{metadata}}}, spec: {{{spec}}}}}")
        };
        let with = |annotations: &str| format!("name: web, annotations: {annotations}");
        let cases = [
            (
                "of its own namespace",
                pod(&format!("namespace: team-b, {}", with(ASKS)), ""),
                "Pod team-b/web: aws /shared by rule 2",
            ),
            (
                "of the default one",
                pod(&with(ASKS), ""),
                "no policy rule lets service account default in namespace default",
            ),
            (
                "the old field",
                pod(&format!("namespace: team-a, {}", with(ASKS_MORE)), "serviceAccount: web"),
                "by rule 1",
            ),
            (
                "an empty field",
                pod(&format!("namespace: team-a, {}", with(ASKS_MORE)), "serviceAccountName: ''"),
                "service account default",
            ),
            (
                "a generated name",
                pod(&format!("namespace: team-b, generateName: web-, annotations: {ASKS}"), ""),
                "Pod team-b/web-: aws",
            ),
            (
                "a namespace that cannot be",
                pod(&format!("namespace: 'a*', {}", with(ASKS)), ""),
                "ManifestInvalid     Pod a*/web: `a*` cannot be",
            ),
            (
                "an object for a text",
                pod("name: web, annotations: {jasm.codnod.io/secret-sync: {provider: aws}}", ""),
                "ManifestInvalid     Pod default/web: the API server would not take",
            ),
        ];
        for (case, manifest, want) in cases {
            let got = of_manifest(&manifest);
            assert!(got.text.contains(want), "case: {case}: {}", got.text);
        }
    }

    #[test]
    fn several_documents_lists_and_other_objects() {
        let list = r#"{provider: aws, path: /shared, secretName: a}, {provider: aws, path: /other, secretName: b}"#;
        let several = format!(r#"{{jasm.codnod.io/secret-sync: "[{list}]"}}"#);
        let manifest = [
            "# nothing\n".to_owned(),
            workload("Deployment", &several, "{}", "web"),
            format!("{{apiVersion: v1, kind: Service, metadata: {{name: web, annotations: {ASKS}}}}}"),
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: web}, data: {a: b}}".to_owned(),
            format!(
                "{{apiVersion: v1, kind: List, items: [{{kind: Pod, metadata: {{name: x, namespace: team-b, annotations: {ASKS}}}}}]}}"
            ),
            format!(
                "{{apiVersion: argoproj.io/v1alpha1, kind: Rollout, metadata: {{name: r, namespace: team-b, annotations: {ASKS_MORE}}}, spec: {{template: {{metadata: {{annotations: {ASKS}}}, spec: {{containers: []}}}}}}}}"
            ),
            format!(
                "{{apiVersion: argoproj.io/v1alpha1, kind: Rollout, metadata: {{name: s, namespace: team-b, annotations: {ASKS}}}, spec: {{template: {{spec: {{containers: []}}}}}}}}"
            ),
            "[]".to_owned(),
        ];
        let got = of_manifest(&manifest.join("\n---\n"));
        let denied = "no policy rule lets service account web in namespace team-a have `/other` from aws; an operator can add to \
            the agent's policy.yaml: - {namespaces: [team-a], serviceAccounts: [web], providers: [aws], paths: [\"/other\"]}";
        let want = [
            "admitted            Deployment team-a/web: aws /shared by rule 2",
            &format!("PolicyDenied        Deployment team-a/web: {denied}"),
            "ignored             Service default/web: the annotation stands on an object that makes no pods; nobody reads it",
            "admitted            Pod team-b/x: aws /shared by rule 2",
            "admitted            Rollout team-b/r: aws /shared by rule 2",
            "admitted            Rollout team-b/s: aws /shared by rule 2",
            "ManifestInvalid     document 7: is no object of Kubernetes: it has no kind",
            "admitted: 4, refused: 2",
        ];
        assert_eq!(got.text.lines().collect::<Vec<_>>(), want);
        assert_eq!(got.verdict, Verdict::Refused);
    }

    #[test]
    fn what_is_no_yaml_ends_the_manifest() {
        let got = of_manifest("kind: [\n---\nkind: Pod\n");
        assert!(got.text.starts_with("ManifestInvalid     document 1: ") && got.text.contains("line "), "{}", got.text);
        assert_eq!((got.text.lines().count(), got.verdict), (2, Verdict::Refused));
        assert_eq!(of_manifest("").text, "nothing asks for a secret");
    }

    #[test]
    fn an_agent_that_reads_no_workloads_is_asked_as_such() {
        let manifest = workload("Deployment", "{}", ASKS, "web");
        let got = checked(false, |answers| answers.ask_manifest(&manifest, "default"));
        assert!(got.text.contains("ignored             Deployment team-a/web"), "{}", got.text);
        let protected = manifest.replace("team-a", "kube-system");
        assert!(of_manifest(&protected).text.contains("ignored"), "nor does it read them in kube-*");
    }
}
