//! JASM: puts external secrets where pods ask for them.
#![warn(missing_docs)]

pub mod annotations;
pub mod changes;
pub mod clock;
pub mod error;
pub mod kubernetes;
pub mod limits;
pub mod mapping;
pub mod metrics;
pub mod pod;
pub mod policy;
pub mod policy_file;
pub mod progress;
pub mod provider;
pub mod request;
pub mod secret_value;
pub mod target;
pub mod workload;
