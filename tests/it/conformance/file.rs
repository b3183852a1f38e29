//! A folder of files.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Faults, Outcome, Skipped, Subject, WrongCredentials, conforms};
use crate::support::agent::AgentBuilder;
use crate::support::surroundings::Surroundings;
use crate::support::unique;

const NO_VERSIONS: Skipped = Skipped("a file has no versions");
const NO_SERVER: Skipped = Skipped("a file is read, and no server asked");
const NO_CREDENTIALS: Skipped = Skipped("a file is read without credentials");

#[tokio::test]
async fn files() {
    let folder = Surroundings::get().await.folder(&unique("files"));
    conforms(Files(folder)).await;
}

struct Files(PathBuf);

#[async_trait(?Send)]
impl Subject for Files {
    fn kind(&self) -> &'static str {
        "file"
    }

    async fn set_up(&self, builder: AgentBuilder) -> AgentBuilder {
        let instance = json!({"name": "file", "kind": "file", "directory": self.0});
        builder.providers(&json!({"providers": [instance]}).to_string())
    }

    fn path(&self) -> String {
        format!("{}.json", unique("case"))
    }

    fn largest(&self) -> usize {
        // The key counts, too.
        1024 * 1024 - 1
    }

    async fn put(&self, path: &str, value: &Value) -> String {
        std::fs::write(self.0.join(path), value.to_string()).expect("a file");
        String::new()
    }

    fn has_versions(&self) -> Outcome {
        Err(NO_VERSIONS)
    }

    async fn put_bytes(&self, path: &str, bytes: &[u8]) -> Outcome {
        std::fs::write(self.0.join(path), bytes).expect("a file");
        Ok(())
    }

    async fn delete(&self, path: &str) -> &'static str {
        std::fs::remove_file(self.0.join(path)).expect("removed");
        "has no secret"
    }

    async fn unreadable(&self) -> Result<Vec<(String, &'static str)>, Skipped> {
        let (folder, outside) = (self.path(), self.path());
        std::fs::create_dir(self.0.join(&folder)).expect("a folder");
        std::os::unix::fs::symlink("/etc/hostname", self.0.join(&outside)).expect("a link");
        Ok(vec![(folder, "it is no file"), (outside, "a link to outside the folder")])
    }

    async fn allow(&self, path: &str, allowed: bool) -> Outcome {
        use std::os::unix::fs::PermissionsExt as _;
        let file = self.0.join(path);
        if file.metadata().expect("a file").uid() == 0 {
            return Err(Skipped("these tests run as root, who may read every file"));
        }
        let mode = if allowed { 0o600 } else { 0o000 };
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).expect("a mode");
        Ok(())
    }

    async fn rotate(&self) -> Outcome {
        Err(NO_CREDENTIALS)
    }

    fn wrong_credentials(&self) -> Result<WrongCredentials, Skipped> {
        Err(NO_CREDENTIALS)
    }

    fn faults(&self) -> Result<&dyn Faults, Skipped> {
        Err(NO_SERVER)
    }
}
