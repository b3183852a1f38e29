//! The cases of `tests/corpus`, whose README.md has the format.
//!
//! Two walks read them: the one here, against the real agent, and `src/corpus.rs`, through the pure layers. So this file
//! knows nothing of either.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Who may have what while the cases are walked.
pub(crate) const POLICY: &str = include_str!("../../corpus/policy.yaml");
/// The reason of a case for which nothing happens.
const NOTHING: &str = "none";

/// One annotation, what lies in the store, and what has to come of both.
pub(crate) struct Case {
    /// `group/name`.
    pub(crate) name: String,
    /// The text of the annotation, unless the pod has none.
    pub(crate) text: Option<String>,
    /// The text that it is edited to.
    pub(crate) then: Option<String>,
    /// What the store holds under [`Case::path`].
    pub(crate) value: Option<Value>,
    /// The rest of its pod, where that is not a plain one.
    pub(crate) pod: Option<String>,
    /// What has to come of it.
    pub(crate) want: Want,
}

/// What lies in the store.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Text(String),
    Bytes(Vec<u8>),
}

impl Value {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The file `NAME.want`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Want {
    reason: OneOrMore,
    /// What the notes of its Events say, each in one of them at least.
    #[serde(default)]
    pub(crate) says: Vec<String>,
    #[serde(default)]
    secrets: BTreeMap<String, BTreeMap<String, Content>>,
    /// The type of these Secrets.
    #[serde(default = "opaque")]
    pub(crate) r#type: String,
    asks: Option<Vec<String>>,
    #[serde(default)]
    generate: Generated,
    api_server: Option<ApiServer>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum ApiServer {
    Refuses,
}

/// What would be a large file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Generated {
    text: Option<Repeated>,
    value: Option<Repeated>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Repeated {
    #[serde(default)]
    before: String,
    repeat: String,
    times: usize,
    #[serde(default)]
    after: String,
}

impl Repeated {
    fn text(&self) -> String {
        [self.before.as_str(), &self.repeat.repeat(self.times), &self.after].concat()
    }
}

/// A value in a Secret.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Encoded { base64: String },
    Repeated(Repeated),
}

impl Content {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Encoded { base64 } => BASE64.decode(base64).expect("what is called base64 in a .want file is that"),
            Self::Repeated(repeated) => repeated.text().into_bytes(),
        }
    }
}

fn opaque() -> String {
    "Opaque".to_owned()
}

impl Want {
    /// The reasons of all Events, sorted.
    pub(crate) fn reasons(&self) -> Vec<&str> {
        let mut reasons: Vec<&str> = match &self.reason {
            OneOrMore::One(reason) if reason == NOTHING => Vec::new(),
            OneOrMore::One(reason) => vec![reason],
            OneOrMore::More(reasons) => reasons.iter().map(String::as_str).collect(),
        };
        reasons.sort_unstable();
        reasons
    }

    /// The data of each Secret that has to be there afterwards. There is no other.
    pub(crate) fn secrets(&self) -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
        let mut secrets = BTreeMap::new();
        for (name, data) in &self.secrets {
            let data = data.iter().map(|(key, content)| (key.clone(), content.bytes()));
            secrets.insert(name.clone(), data.collect());
        }
        secrets
    }

    /// Whether the API server takes a pod with such an annotation.
    pub(crate) fn reaches_the_agent(&self) -> bool {
        !matches!(self.api_server, Some(ApiServer::Refuses))
    }
}

impl Case {
    /// Where its value lies in the store.
    pub(crate) fn path(&self) -> String {
        let (_, name) = self.name.split_once('/').expect("a case lies in a group");
        format!("corpus/values/{name}")
    }

    /// What the store is asked for: nothing, where the request is refused before.
    pub(crate) fn asks(&self) -> Vec<String> {
        const BEFORE: [&str; 3] = ["AnnotationInvalid", "ProviderUnsupported", "PolicyDenied"];
        match &self.want.asks {
            Some(paths) => paths.clone(),
            None if self.want.reasons().iter().all(|reason| BEFORE.contains(reason)) => Vec::new(),
            None => vec![self.path()],
        }
    }
}

/// All cases, by name.
///
/// # Panics
/// With the file's name, where one cannot be read, or belongs to no case.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut files = 0;
    for group in list(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")).iter().filter(|path| path.is_dir()) {
        let in_group = list(group);
        files += in_group.len();
        let wants = in_group.iter().filter(|path| path.extension().is_some_and(|extension| extension == "want"));
        cases.extend(wants.map(|want| read(want)));
    }
    let parts = |case: &Case| {
        let value = case.value.is_some() && case.want.generate.value.is_none();
        let text = case.text.is_some() && case.want.generate.text.is_none();
        1 + [text, value, case.then.is_some(), case.pod.is_some()].into_iter().filter(|there| *there).count()
    };
    assert_eq!(cases.iter().map(parts).sum::<usize>(), files, "each file of the corpus belongs to a case");
    cases
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = read.unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    paths.sort();
    paths
}

fn read(file: &Path) -> Case {
    let want: Want = yaml(file);
    let text = |extension: &str| {
        beside(file, extension).map(|bytes| {
            String::from_utf8(bytes).unwrap_or_else(|_| panic!("{} beside it is no UTF-8: {extension}", file.display()))
        })
    };
    let generated = |repeated: &Option<Repeated>| repeated.as_ref().map(Repeated::text);
    let value = text("value").or_else(|| generated(&want.generate.value)).map(Value::Text);
    let name = file.with_extension("");
    let words: Vec<_> = name.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy()).collect();
    Case {
        name: format!("{}/{}", words[1], words[0]),
        text: text("yaml").or_else(|| generated(&want.generate.text)),
        then: text("then"),
        value: value.or_else(|| beside(file, "binary").map(Value::Bytes)),
        pod: text("pod"),
        want,
    }
}

fn beside(file: &Path, extension: &str) -> Option<Vec<u8>> {
    let file = file.with_extension(extension);
    let there = file.exists();
    there.then(|| fs::read(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display())))
}

fn yaml<T: DeserializeOwned>(file: &Path) -> T {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()))
}
