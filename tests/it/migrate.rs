//! docs/migrate.md, walked as it stands: its manifests and commands are taken from the page. The other products are not
//! there; their Secrets are made as those write them, and their kinds are served without a controller.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::support::cluster::TestNamespace;
use crate::support::control_plane::project;
use crate::support::object;
use crate::support::scene::{Scene, annotation, later_than};
use crate::support::wait::{eventually, try_within};

/// The garbage collector looks for new kinds every 30 s.
const COLLECTED: Duration = Duration::from_secs(90);
/// What the page calls namespace, old and new Secret.
const NAMESPACE: &str = "team-a";
const OLD: &str = "app-config";
const NEW: &str = "app-credentials";
const VALUES: [(&str, &str); 2] = [("DB_HOST", "db.internal"), ("DB_PASSWORD", "made-up-1")];

/// A fenced block of the page.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    language: String,
    text: String,
}

/// The blocks below a heading, up to the next of the same depth. In a list they are indented.
fn blocks(page: &str, heading: &str) -> Vec<Block> {
    let lines = page.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.starts_with("## "));
    let (mut blocks, mut open): (Vec<Block>, Option<usize>) = (Vec::new(), None);
    for line in lines {
        let indent = line.len() - line.trim_start().len();
        match (line.trim_start().strip_prefix("```"), open) {
            (Some(language), None) => {
                blocks.push(Block { language: language.to_owned(), text: String::new() });
                open = Some(indent);
            }
            (Some(_), Some(_)) => open = None,
            (None, Some(indent)) => {
                let block = blocks.last_mut().expect("a block is open");
                block.text += line.get(indent..).unwrap_or_default();
                block.text += "\n";
            }
            (None, None) => {}
        }
    }
    assert!(!blocks.is_empty(), "the page has no blocks below {heading:?}");
    blocks
}

/// A section of the page in a namespace of the test's own.
struct Section<'a> {
    scene: &'a Scene,
    blocks: Vec<Block>,
}

impl<'a> Section<'a> {
    fn of(scene: &'a Scene, heading: &str) -> Self {
        Self::in_page(scene, "docs/migrate.md", heading)
    }

    fn in_page(scene: &'a Scene, page: &str, heading: &str) -> Self {
        let page = std::fs::read_to_string(project().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        Self { scene, blocks: blocks(&page.replace(NAMESPACE, scene.namespace.name()), heading) }
    }

    /// The manifest of this kind.
    fn manifest(&self, kind: &str) -> Value {
        let texts = self.blocks.iter().filter(|block| block.language == "yaml").map(|block| &block.text);
        let mut found = texts.flat_map(|text| serde_yaml::Deserializer::from_str(text)).filter_map(|document| {
            let manifest = Value::deserialize(document).unwrap_or_else(|error| panic!("no YAML: {error}"));
            (manifest["kind"] == kind).then_some(manifest)
        });
        found.next().unwrap_or_else(|| panic!("the section has no {kind}"))
    }

    /// The commands behind `$ ` that begin so, as one text.
    fn commands(&self, begin: &str) -> String {
        let consoles = self.blocks.iter().filter(|block| block.language == "console");
        let commands = consoles.flat_map(|block| block.text.lines()).filter_map(|line| line.strip_prefix("$ "));
        let commands: Vec<_> = commands.filter(|command| command.starts_with(begin)).collect();
        assert!(!commands.is_empty(), "the section has no command {begin:?}");
        commands.join("\n")
    }

    /// The only text of commands without prompts.
    fn script(&self) -> &str {
        let mut scripts = self.blocks.iter().filter(|block| block.language == "sh");
        let script = scripts.next().expect("the section has a block of commands");
        assert_eq!(scripts.next(), None, "one block of commands");
        &script.text
    }

    /// Runs commands as an administrator does.
    fn run(&self, commands: &str) -> String {
        self.scene.surroundings.bash(commands).unwrap_or_else(|error| panic!("{error}"))
    }

    /// `kubectl apply` of a manifest.
    fn apply(&self, manifest: &Value) {
        self.run(&format!("kubectl apply -f - <<'END'\n{manifest}\nEND"));
    }

    fn uid(&self, kind: &str, name: &str) -> String {
        let namespace = self.scene.namespace.name();
        self.run(&format!("kubectl get {kind} -n {namespace} {name} -o jsonpath='{{.metadata.uid}}'"))
    }

    /// A pod of the Deployment as its controller makes it, which no test has: a new ReplicaSet for each roll-out.
    async fn roll_out(&self, deployment: &Value, number: usize) -> Pod {
        self.apply(deployment);
        let name = deployment["metadata"]["name"].as_str().expect("a name");
        let hash = format!("5d4f6c7b{number}");
        let uid = self.uid("deployment", name);
        let mut template = deployment["spec"]["template"].clone();
        template["metadata"]["labels"]["pod-template-hash"] = json!(hash);
        let owner = |kind: &str, name: &str, uid: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true}]);
        let set: ReplicaSet = self
            .scene
            .namespace
            .add(json!({
                "metadata": {"name": format!("{name}-{hash}"), "ownerReferences": owner("Deployment", name, &uid)},
                "spec": {"selector": {"matchLabels": template["metadata"]["labels"]}, "template": template},
            }))
            .await;
        let mut pod = template;
        pod["metadata"]["name"] = json!(format!("{name}-{hash}-x"));
        pod["metadata"]["ownerReferences"] = owner("ReplicaSet", &set.name_any(), &set.uid().unwrap_or_default());
        pod["spec"]["nodeName"] = json!(self.scene.builder.node().name());
        self.scene.namespace.add(pod).await
    }

    /// While the old Secret has the name, a pod that asks for it is told so, and not a byte changes.
    async fn refused(&self, deployment: &Value, number: usize) {
        let old = self.scene.namespace.wait_for_secret(OLD).await;
        let deployment = text_replaced(deployment, NEW, OLD);
        let pod = self.roll_out(&deployment, number).await;
        let event = self.scene.namespace.wait_for_event(&pod, "SecretConflict").await;
        let note = event.note.unwrap_or_default();
        assert!(note.contains(OLD) && note.contains("not managed by JASM"), "{note}");
        assert_eq!(self.scene.namespace.wait_for_secret(OLD).await, old);
    }

    /// A pod that asks is served, by a Secret with just these values.
    async fn served(&self, deployment: &Value, number: usize, secret: &str) -> Secret {
        let pod = self.roll_out(deployment, number).await;
        self.scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
        self.scene.namespace.wait_for_data(secret, VALUES).await
    }
}

fn text_replaced(manifest: &Value, from: &str, to: &str) -> Value {
    serde_json::from_str(&manifest.to_string().replace(from, to)).expect("names are plain in JSON")
}

/// Lets the API server take objects of a kind that nobody acts on.
async fn serve_kind(scene: &Scene, group: &str, kind: &str) {
    let plural = if kind.ends_with('s') { format!("{kind}es") } else { format!("{kind}s") }.to_lowercase();
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let kinds: Api<CustomResourceDefinition> = Api::all(scene.surroundings.admin().await);
    let definition = object(json!({
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"kind": kind, "singular": kind.to_lowercase(), "plural": plural},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": any}}],
        },
    }));
    kinds.create(&PostParams::default(), &definition).await.unwrap_or_else(|error| panic!("no kind {kind}: {error}"));
    eventually(&format!("{kind} to be served"), async || {
        scene.surroundings.kubectl(&["get", &format!("{plural}.{group}"), "-A"]).map(|_| ())
    })
    .await;
}

/// A Secret of another product, with the values that JASM will write.
async fn foreign(scene: &Scene, metadata: Value) -> Secret {
    let mut secret = json!({"metadata": metadata, "type": "Opaque", "stringData": BTreeMap::from(VALUES)});
    secret["metadata"]["name"] = json!(OLD);
    scene.namespace.add(secret).await
}

/// What the page's paths hold.
async fn store(scene: &Scene, value: Value) {
    scene.store.put(&format!("/prod/{}/config", scene.namespace.name()), &value.to_string()).await;
}

async fn gone(scene: &Scene, name: &str, limit: Duration) {
    let awaited = format!("the end of the Secret {name}");
    let found = try_within(limit, &awaited, async || {
        scene.namespace.secret(name).await.map_or(Ok(()), |_| Err("that it is there".to_owned()))
    });
    found.await.unwrap_or_else(|message| panic!("{message}"));
}

fn nested() -> Value {
    json!({"db": {"host": "db.internal"}, "password": "made-up-1", "other": "x"})
}

/// Steps 2 and 3: the new name is served beside the old one, and both hold the same.
async fn by_a_new_name(scene: &Scene, section: &Section<'_>, deployment: &Value, number: usize) {
    let old = scene.namespace.wait_for_secret(OLD).await;
    section.served(deployment, number, NEW).await;
    let compare = Section::of(scene, "## The way").script().to_owned();
    assert_eq!(section.run(&compare), "", "the same in both");
    assert_eq!(scene.namespace.wait_for_secret(OLD).await, old);
}

#[tokio::test]
async fn from_external_secrets_operator() {
    let scene = Scene::set().await;
    serve_kind(&scene, "external-secrets.io", "ExternalSecret").await;
    store(&scene, nested()).await;
    let section = Section::of(&scene, "## From External Secrets Operator");
    section.apply(&section.manifest("ExternalSecret"));
    let uid = section.uid("externalsecret", "app");
    let owner = json!({"apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret", "name": "app", "uid": uid,
        "controller": true, "blockOwnerDeletion": true});
    let metadata = json!({
        "labels": {
            "reconcile.external-secrets.io/managed": "true",
            "reconcile.external-secrets.io/created-by": "5a0c1f6d3e2b4978a1b2c3d4e5f60718293a4b5c6d7e8f9001122334",
        },
        "annotations": {"reconcile.external-secrets.io/data-hash": "00112233445566778899aabbccddeeff00112233445566778899aabb"},
        "ownerReferences": [owner],
    });
    foreign(&scene, metadata.clone()).await;
    let deployment = section.manifest("Deployment");

    section.refused(&deployment, 1).await;
    by_a_new_name(&scene, &section, &deployment, 2).await;
    section.run(&section.commands("kubectl delete externalsecret"));
    gone(&scene, OLD, COLLECTED).await;
    scene.namespace.wait_for_data(NEW, VALUES).await;

    // The name is free now.
    let deployment = text_replaced(&deployment, NEW, OLD);
    let taken = section.served(&deployment, 3, OLD).await;

    // Two owners: the operator adds itself to what it finds, and the next pod is told so.
    later_than(&taken).await;
    section.apply(&section.manifest("ExternalSecret"));
    let mut adopted = metadata;
    adopted["ownerReferences"][0]["uid"] = json!(section.uid("externalsecret", "app"));
    scene.namespace.edit_secret(OLD, json!({"metadata": adopted, "stringData": {"DB_HOST": "made-up-2"}})).await;
    let pod = section.roll_out(&deployment, 4).await;
    let note = scene.namespace.wait_for_event(&pod, "SecretConflict").await.note.unwrap_or_default();
    assert!(note.contains("labels, annotations, ownerReferences of others"), "{note}");
}

#[tokio::test]
async fn from_the_secrets_store_csi_driver() {
    let scene = Scene::set().await;
    serve_kind(&scene, "secrets-store.csi.x-k8s.io", "SecretProviderClass").await;
    store(&scene, nested()).await;
    let section = Section::of(&scene, "## From the Secrets Store CSI driver");
    section.apply(&section.manifest("SecretProviderClass"));
    let deployment = section.manifest("Deployment");

    // What stands there before: the volume, no annotation, and a Secret that belongs to the ReplicaSet.
    let mut before = text_replaced(&deployment, NEW, OLD);
    before["spec"]["template"]["metadata"]["annotations"] = json!({});
    let class = json!({"secretProviderClass": "app"});
    let csi = json!({"driver": "secrets-store.csi.k8s.io", "readOnly": true, "volumeAttributes": class});
    before["spec"]["template"]["spec"]["volumes"] = json!([{"name": "config", "csi": csi}]);
    let pod = section.roll_out(&before, 0).await;
    let owners: Vec<Value> = pod
        .owner_references()
        .iter()
        .map(|owner| json!({"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}))
        .collect();
    let driver = json!({"labels": {"secrets-store.csi.k8s.io/managed": "true"}, "ownerReferences": owners});
    let old = foreign(&scene, driver).await;

    section.refused(&deployment, 1).await;
    by_a_new_name(&scene, &section, &deployment, 2).await;
    section.run(&section.commands("kubectl delete secretproviderclass"));
    assert_eq!(scene.namespace.wait_for_secret(OLD).await, old, "it is the ReplicaSet's");
    section.run(&section.commands("kubectl delete secret "));
    assert_eq!(scene.namespace.secret(OLD).await, None);

    let taken = section.served(&text_replaced(&deployment, NEW, OLD), 3, OLD).await;

    // Two owners: the driver writes over it, and would take the label away.
    let namespace = scene.namespace.name();
    let driver = "system:serviceaccount:kube-system:secrets-store-csi-driver";
    section.run(&format!("kubectl create rolebinding driver -n {namespace} --clusterrole=admin --user={driver}"));
    let metadata = json!({"name": OLD, "labels": {"secrets-store.csi.k8s.io/managed": "true"}});
    let over = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "stringData": {"DB_HOST": "made-up-2"}});
    let replace = format!("kubectl replace -n {namespace} --as={driver} -f - <<'END'\n{over}\nEND");
    eventually("a refusal by the marker policy", async || match scene.surroundings.bash(&replace) {
        Err(error) if error.contains("'jasm-agent-marker'") => Ok(()),
        outcome => Err(format!("{outcome:?}")),
    })
    .await;
    assert_eq!(scene.namespace.wait_for_secret(OLD).await, taken, "it stays JASM's");
}

#[tokio::test]
async fn from_the_original() {
    let scene = Scene::set().await;
    store(&scene, json!({"DB_HOST": "db.internal", "DB_PASSWORD": "made-up-1"})).await;
    let section = Section::of(&scene, "## From the original JASM");
    let deployment = section.manifest("Deployment");
    foreign(&scene, json!({})).await;

    section.refused(&deployment, 1).await;
    let told = section.run(&section.commands("kubectl get events"));
    let told = told.lines().filter(|line| line.starts_with(scene.namespace.name())).collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].contains("web-5d4f6c7b1-x") && told[0].contains(OLD), "{told:?}");

    by_a_new_name(&scene, &section, &text_replaced(&deployment, OLD, NEW), 2).await;

    // Or the name is kept. What the roll-out changes in the template is nothing to the agent.
    section.run(&section.commands("kubectl delete secret"));
    section.run(&section.commands("kubectl rollout restart"));
    section.served(&deployment, 3, OLD).await;
}

#[tokio::test]
async fn away_from_jasm() {
    let scene = Scene::set().await;
    store(&scene, nested()).await;
    let deployment = Section::of(&scene, "## From External Secrets Operator").manifest("Deployment");
    let section = Section::of(&scene, "## Away from JASM");
    let secret = section.served(&deployment, 1, NEW).await;
    assert!(secret.owner_references().is_empty() && secret.finalizers().is_empty());

    later_than(&secret).await;
    section.run(&section.commands("kubectl label secret"));
    let given = scene.namespace.wait_for_secret(NEW).await;
    assert!(given.labels().is_empty(), "{:?}", given.labels());
    let pod = section.roll_out(&deployment, 2).await;
    scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    assert_eq!(scene.namespace.wait_for_secret(NEW).await, given, "no agent writes to it any more");
}

/// docs/admission.md, by somebody who may release, in one namespace alone.
#[tokio::test]
async fn a_secret_is_adopted_and_released_as_the_page_says() {
    let scene = Scene::set().await;
    store(&scene, json!(BTreeMap::from(VALUES))).await;
    let of = |heading| Section::in_page(&scene, "docs/admission.md", heading);
    let (rights, adopt, release) = (of("## Who may release"), of("## Adopt a Secret"), of("## Release a Secret"));
    let namespace = scene.namespace.name();
    let path = format!("/prod/{namespace}/config");
    adopt.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NEW, "namespace": namespace}, "stringData": {"A": "1"}}));
    let web = scene.pod("web-1").asks(&path, NEW).create().await;
    scene.namespace.wait_for_event(&web, "SecretConflict").await;

    let by_carol = |section: &Section<'_>| section.commands("kubectl ").replace("kubectl ", "kubectl --as=carol ");
    rights.run(&format!("kubectl create rolebinding carol -n {namespace} --clusterrole=admin --user=carol"));
    let refused = eventually("carol to be an administrator of the namespace", async || {
        match scene.surroundings.bash(&by_carol(&adopt)) {
            Err(error) if error.contains("jasm-agent-marker") => Ok(error),
            outcome => Err(format!("{outcome:?}")),
        }
    })
    .await;
    assert!(refused.contains("may release secrets.jasm.codnod.io"), "{refused}");
    rights.apply(&rights.manifest("ClusterRole"));
    rights.run(&rights.commands("kubectl create rolebinding").replace("USER", "carol"));
    eventually("carol to adopt", async || scene.surroundings.bash(&by_carol(&adopt))).await;
    scene.pod("web-2").asks(&path, NEW).create().await;
    let taken = scene.namespace.wait_for_data(NEW, VALUES).await;

    adopt.run(&by_carol(&release));
    later_than(&taken).await;
    let web = scene.pod("web-3").asks(&path, NEW).create().await;
    scene.namespace.wait_for_event(&web, "SecretConflict").await;
    scene.namespace.wait_for_data(NEW, VALUES).await;
}

#[tokio::test]
async fn secrets_that_nobody_asks_for_are_listed_and_no_others() {
    let scene = Scene::set().await;
    let section = Section::of(&scene, "## Secrets that nobody asks for");
    let elsewhere = Section::in_page(&scene, "docs/troubleshooting.md", "## Secrets stay when their pods are gone");
    assert_eq!(section.script(), elsewhere.script(), "two pages, one text");

    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let block = |name: &str| format!("provider: aws-secretsmanager\npath: {path}\nsecretName: {name}\n");
    let entry = |name: &str| json!({"secretName": name, "provider": "aws-secretsmanager", "path": path});
    let namespace = &scene.namespace;
    let ask = async |pod: &str, text: &str, secrets: &[&str]| {
        let pod = scene.pod(pod).request(text).create().await;
        for secret in secrets {
            namespace.wait_for_secret(secret).await;
        }
        pod
    };
    ask("block", &block("asked-block"), &["asked-block"]).await;
    ask("list", &json!([entry("asked-one"), entry("asked-two")]).to_string(), &["asked-one", "asked-two"]).await;
    ask("flow", &format!("{{secretName: 'asked-flow', provider: aws-secretsmanager, path: {path}}}"), &["asked-flow"])
        .await;
    // Without a pod at the moment, and yet asked for.
    let pod = ask("scaled", &block("asked-scaled"), &["asked-scaled"]).await;
    namespace.delete_pod(&pod).await;
    let stateful = namespace.workload("StatefulSet", "scaled").await;
    namespace.annotate_workload(&stateful, "jasm.codnod.io/secret-sync", &block("asked-scaled")).await;
    let pod = ask("due", &block("asked-due"), &["asked-due"]).await;
    namespace.delete_pod(&pod).await;
    let _: CronJob = namespace
        .add(json!({"metadata": {"name": "due"}, "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": {
            "metadata": {"annotations": {"jasm.codnod.io/secret-sync": block("asked-due")}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
        }}}}}))
        .await;
    // Asked for by nobody.
    let pod = ask("gone", &block("left-gone"), &["left-gone"]).await;
    namespace.delete_pod(&pod).await;
    later_than(&namespace.wait_for_secret("left-gone").await).await;
    let pod = ask("done", &block("left-done"), &["left-done"]).await;
    namespace.set_phase(&pod, "Succeeded").await;
    // In another namespace the name is somebody's.
    let other = TestNamespace::create(scene.surroundings).await;
    other.pod("web").on(scene.builder.node()).request(&block("left-gone")).create().await;
    other.wait_for_secret("left-gone").await;
    namespace.add_secret("foreign", &[("A", "1")]).await;

    let listed = section.run(section.script());
    let mut want = String::new();
    for name in ["left-gone", "left-done"] {
        let secret = namespace.wait_for_secret(name).await;
        let through = annotation(&secret, "jasm.codnod.io/synced-through");
        want += &format!("{}\t{name}\t{through}\tpods-and-jobs\n", namespace.name());
    }
    let here = |line: &&str| [namespace.name(), other.name()].iter().any(|name| line.starts_with(name));
    let listed: String = listed.lines().filter(here).map(|line| format!("{line}\n")).collect();
    assert_eq!(listed, want, "the oldest first");
}

#[test]
fn blocks_are_read_as_they_stand() {
    let page = "## a\n```sh\nno\n```\n## b\ntext\n   ```sh\n   one\n     two\n   ```\n```console\n$ c\n```\n## c\n";
    let block = |language: &str, text: &str| Block { language: language.to_owned(), text: text.to_owned() };
    assert_eq!(blocks(page, "## b"), [block("sh", "one\n  two\n"), block("console", "$ c\n")]);
}
