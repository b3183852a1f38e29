//! What a vault holds: secrets, each with its versions.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// The secrets of one vault, by name in lower case: the real one finds `DB` as `db`.
#[derive(Debug, Default)]
pub(super) struct Vault(BTreeMap<String, Secret>);

#[derive(Debug)]
struct Secret {
    /// As the first `put` spelt it.
    name: String,
    /// Oldest first, never empty.
    versions: Vec<Version>,
    deleted: bool,
}

/// One version of a secret, with what an answer about it says.
#[derive(Debug, Clone)]
pub(super) struct Version {
    /// The secret's name as the vault has it.
    pub(super) name: String,
    /// 32 hex digits.
    pub(super) id: String,
    pub(super) value: String,
    pub(super) enabled: bool,
    pub(super) created: i64,
    pub(super) updated: i64,
}

impl Vault {
    /// Adds a version and returns its id. A secret that was deleted begins anew, as after a purge.
    pub(super) fn put(&mut self, name: &str, value: &str) -> String {
        assert!(is_name(name), "a vault takes 1 to 127 letters, digits and dashes as a name, and not {name:?}");
        let key = name.to_lowercase();
        self.0.retain(|other, secret| *other != key || !secret.deleted);
        let secret =
            self.0.entry(key).or_insert_with(|| Secret { name: name.to_owned(), versions: Vec::new(), deleted: false });
        let (id, now) = (version_id(), Timestamp::now().as_second());
        secret.versions.push(Version {
            name: secret.name.clone(),
            id: id.clone(),
            value: value.to_owned(),
            enabled: true,
            created: now,
            updated: now,
        });
        id
    }

    /// Disables the newest version. Older ones stay as they are, and do not step in.
    pub(super) fn disable(&mut self, name: &str) {
        let newest = self.secret(name).versions.last_mut().expect("a secret has a version");
        (newest.enabled, newest.updated) = (false, Timestamp::now().as_second());
    }

    /// Deletes a secret, all versions, so that it can be recovered.
    pub(super) fn delete(&mut self, name: &str) {
        self.secret(name).deleted = true;
    }

    /// Takes back a deletion.
    pub(super) fn recover(&mut self, name: &str) {
        self.secret(name).deleted = false;
    }

    /// Ends a secret that was deleted, for good.
    pub(super) fn purge(&mut self, name: &str) {
        assert!(self.secret(name).deleted, "only what was deleted can be purged");
        self.0.remove(&name.to_lowercase());
    }

    /// Whether it was deleted, and not purged.
    pub(super) fn is_recoverable(&self, name: &str) -> bool {
        self.0.get(&name.to_lowercase()).is_some_and(|secret| secret.deleted)
    }

    /// A version by its id, or the newest one; nothing where it is not, or was deleted.
    pub(super) fn get(&self, name: &str, version: Option<&str>) -> Option<Version> {
        let secret = self.0.get(&name.to_lowercase()).filter(|secret| !secret.deleted)?;
        match version {
            None => secret.versions.last().cloned(),
            Some(id) => secret.versions.iter().find(|version| version.id == id).cloned(),
        }
    }

    fn secret(&mut self, name: &str) -> &mut Secret {
        self.0.get_mut(&name.to_lowercase()).unwrap_or_else(|| panic!("nothing was ever put as {name}"))
    }
}

/// The rule of the real one.
pub(super) fn is_name(name: &str) -> bool {
    (1..=127).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn version_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}
