//! The API server's grammar for names of objects. Pure.

/// The longest name, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 253;

/// A DNS-1123 subdomain, as the names of Secrets, nodes and workloads are.
pub(crate) fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !label.is_empty() && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

/// A DNS-1123 label, as the names of namespaces are.
pub(crate) fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && is_label(name)
}

/// The longest data key of a Secret, in bytes.
pub(crate) const MAX_DATA_KEY_BYTES: usize = 253;

/// A key that a Secret's data can have.
pub(crate) fn is_data_key(key: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    // `.` and `..`, and keys that begin with `..`, would leave the volume's folder; the API server refuses them.
    (1..=MAX_DATA_KEY_BYTES).contains(&key.len()) && key.chars().all(allowed) && key != "." && !key.starts_with("..")
}
