//! A secret's bytes: zeroized when dropped, redacted in `Debug`, never cloned, printed or serialized.

use std::fmt;

use bytes::Bytes;
use zeroize::{Zeroize, Zeroizing};

/// The bytes of one secret version as a store gave them.
///
/// There is no `Display`, `Clone`, `Serialize` or `Deref`: the one way to the bytes is [`expose`](Self::expose),
/// which only `mapping`, `provider/*` and, to write it into a master, `target` call.
pub struct SecretPayload {
    bytes: Zeroizing<Vec<u8>>,
    whole: bool,
    plain: bool,
    name: Option<String>,
    version: String,
}

impl SecretPayload {
    /// Takes ownership of a text and of the store's own id of its version (never a hash of the value).
    pub fn new(text: Vec<u8>, version: impl Into<String>) -> Self {
        Self { bytes: Zeroizing::new(text), whole: false, plain: false, name: None, version: version.into() }
    }

    /// The same for a value that is one key unless the annotation asks for more: one that the store calls binary, or a
    /// parameter, of which each is one setting.
    pub fn whole(bytes: Vec<u8>, version: impl Into<String>) -> Self {
        Self { whole: true, ..Self::new(bytes, version) }
    }

    /// Whether it is taken apart only where that is asked for.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Says whether the store itself calls the value no secret.
    #[must_use]
    pub fn plain(mut self, plain: bool) -> Self {
        self.plain = plain;
        self
    }

    /// Says what the store calls it, where it was not asked for by its name.
    #[must_use]
    pub fn named(mut self, name: Option<String>) -> Self {
        self.name = name;
        self
    }

    /// Whether the store itself calls it no secret.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// What the store calls it, where it says so.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The value itself.
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }

    /// The store's id of this version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the store holds an empty value.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl fmt::Debug for SecretPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretPayload")
            .field("bytes", &format_args!("<{} bytes redacted>", self.len()))
            .field("version", &self.version)
            .finish()
    }
}

/// Adds to bytes that are zeroized. Where there is no room for more, the old memory is zeroized before it is given back.
pub(crate) fn append(bytes: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    let needed = bytes.len() + more.len();
    if needed > bytes.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(2 * bytes.capacity())));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(more);
}

/// Zeroizes bytes that nobody else holds; what others hold stays as it is.
pub(crate) fn wipe(bytes: Bytes) {
    if let Ok(mut own) = bytes.try_into_mut() {
        own.as_mut().zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_size_and_never_the_value() {
        let shown = format!("{:?}", SecretPayload::new(b"hunter2".to_vec(), "v-1"));
        assert_eq!(shown, r#"SecretPayload { bytes: <7 bytes redacted>, version: "v-1" }"#);
    }
}
