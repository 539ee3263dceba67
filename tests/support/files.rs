//! Files that settings name, in a folder that is removed at the end.

#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test uses its part of it, and a failure here is a failed test"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A folder of its own.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hypercache-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder can be made");
        Self(path)
    }

    /// Where a file of that name is.
    pub fn path(&self, name: &str) -> String {
        let path = self.0.join(name);
        path.to_str().expect("a plain path").to_owned()
    }

    /// Writes a file, in the place of one that may be there, and says where it is.
    pub fn file(&self, name: &str, text: &str) -> String {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).expect("a file can be written");
        let path = self.path(name);
        fs::rename(new, &path).expect("a file can be renamed");
        path
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("the file is there");
    }

    /// Writes a file as a kubelet mounts a Secret: `name` leads through `..data` to a
    /// folder that is replaced as a whole.
    pub fn secret(&self, name: &str, text: &str) -> String {
        self.replace_secret(name, text);
        let path = self.path(name);
        symlink(format!("..data/{name}"), &path).expect("a link can be made");
        path
    }

    /// Replaces what [`Folder::secret`] has written.
    pub fn replace_secret(&self, name: &str, text: &str) {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("..{number}");
        fs::create_dir(self.path(&folder)).expect("a folder can be made");
        fs::write(self.path(&format!("{folder}/{name}")), text).expect("a file can be written");
        symlink(&folder, self.path("..data_tmp")).expect("a link can be made");
        fs::rename(self.path("..data_tmp"), self.path("..data")).expect("a link can be renamed");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
