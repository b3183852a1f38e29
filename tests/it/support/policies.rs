//! Policies as operators write them.

/// What the README shows for a cluster of one tenant.
pub(crate) const ALLOW_ALL: &str = r#"rules:
  - namespaces: ["*"]
    serviceAccounts: ["*"]
    providers: ["*"]
    paths: ["**"]
"#;
