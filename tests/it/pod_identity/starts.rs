//! What an agent does not start with.

use serde_json::{Value, json};

use super::KIND;
use crate::program::run;
use crate::support::surroundings::Surroundings;
use crate::support::unique;

/// What the program says with this instance, and that it ends.
async fn refused(instance: Value, mode: &str) -> String {
    let folder = Surroundings::get().await.folder(&unique("providers"));
    let (providers, policy) = (folder.join("providers.yaml"), folder.join("policy.yaml"));
    std::fs::write(&providers, json!({"providers": [instance]}).to_string()).expect("written");
    std::fs::write(&policy, "rules: []").expect("written");
    let (providers, policy) = (providers.display().to_string(), policy.display().to_string());
    let env = [
        ("NODE_NAME", "node"),
        ("JASM_MODE", mode),
        ("AWS_REGION", "us-east-1"),
        ("JASM_PROVIDERS_FILE", providers.as_str()),
        ("JASM_POLICY_FILE", policy.as_str()),
    ];
    let ended = run(&[], &env);
    assert_ne!(ended.code, Some(0));
    ended.stderr
}

#[tokio::test]
async fn settings_that_contradict_each_other_end_the_start_and_are_named() {
    let of = |more: Value| {
        let mut instance = json!({"name": "store", "kind": KIND});
        instance.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        instance
    };
    let role = "arn:aws:iam::123456789012:role/x";
    let vault = |more: Value| {
        let mut auth = json!({"role": "x"});
        auth.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        json!({"name": "store", "kind": "vault", "address": "https://vault", "auth": {"kubernetes": auth}})
    };
    let by_pod = |mut instance: Value| {
        instance["identity"] = json!("pod");
        instance
    };
    let azure = json!({"name": "store", "kind": "azure-keyvault", "vaultUrl": "https://x.vault.azure.net",
                       "auth": {"managedIdentity": {}}});
    for (case, instance, mode, want) in [
        ("central and pods", by_pod(of(json!({}))), "central", "not for --mode central"),
        (
            "central and tags",
            of(json!({"roleArn": role, "sessionTags": ["namespace"]})),
            "central",
            "not for --mode central",
        ),
        ("pods and a role", by_pod(of(json!({"roleArn": role}))), "direct", "`roleArn` is not for `identity: pod`"),
        ("pods and the node's role", by_pod(of(json!({"imds": true}))), "direct", "`imds` is not for `identity: pod`"),
        ("tags without a role", of(json!({"sessionTags": ["namespace"]})), "direct", "go with `roleArn`"),
        ("an id without a role", of(json!({"externalId": "x"})), "direct", "go with `roleArn`"),
        ("EKS without pods", of(json!({"eksPodIdentity": true})), "direct", "goes with `identity: pod`"),
        ("a tag that is none", of(json!({"roleArn": role, "sessionTags": ["pod"]})), "direct", "unknown variant `pod`"),
        ("an identity that is none", of(json!({"identity": "node"})), "direct", "unknown variant `node`"),
        (
            "files and pods",
            json!({"name": "store", "kind": "file", "directory": "/x", "identity": "pod"}),
            "direct",
            "is not for kind file",
        ),
        ("Vault, pods and a file", by_pod(vault(json!({"tokenFile": "/x"}))), "direct", "without `tokenFile`"),
        ("Vault and an audience", vault(json!({"audience": "x"})), "direct", "`audience` goes with `identity: pod`"),
        ("Azure, pods and more", by_pod(azure), "direct", "`identity: pod` goes with `auth"),
    ] {
        let said = refused(instance, mode).await;
        assert!(said.contains(want) && said.contains("store"), "case: {case}: {said}");
    }
}
