//! Files that are written: whole or not at all, under the name that was asked for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{listing, tensor};
use quantize::error::{Error, Result};
use quantize::files::input::Input;
use quantize::files::output::Output;
use quantize::files::safetensors::{Safetensors, create};
use quantize::files::{Container, StoredDtype};

fn write_one(path: &Path, overwrite: bool) -> Result<()> {
    let mut writer = create(Output::create(path, overwrite)?, &[tensor("w", StoredDtype::U8, &[3])], &BTreeMap::new())?;
    writer.write(0, 1, &[2, 3])?;
    writer.write(0, 0, &[1])?;
    writer.finish()
}

#[test]
fn an_unfinished_output_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let mut output = Output::create(&path, false).unwrap();
    output.write(0, b"half").unwrap();
    drop(output);
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn an_existing_file_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    fs::write(&path, "old").unwrap();
    let error = write_one(&path, false).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    write_one(&path, true).unwrap();
    assert_eq!(Safetensors::new(Input::open(&path).unwrap()).unwrap().tensors().len(), 1);
    assert_eq!(listing(folder.path()), ["out"]);
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let output = Output::create(&path, false).unwrap();
    fs::write(&path, "of somebody else").unwrap();
    assert!(output.finish().is_err());
    assert_eq!(fs::read(&path).unwrap(), b"of somebody else");
    assert_eq!(listing(folder.path()), ["out"]);
}

#[test]
fn an_output_that_cannot_be_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("missing").join("out"), folder.path().to_path_buf(), folder.path().join("x".repeat(300))] {
        assert!(matches!(Output::create(&path, true), Err(Error::Io { .. })), "{}", path.display());
    }
    assert!(listing(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn permissions_are_those_of_the_replaced_file_or_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (folder.path().join("out"), folder.path().join("plain"));
    fs::write(&plain, "").unwrap();
    write_one(&path, false).unwrap();
    assert_eq!(mode(&path), mode(&plain));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    write_one(&path, true).unwrap();
    assert_eq!(mode(&path), 0o640);
}

#[cfg(unix)]
#[test]
fn a_symbolic_link_is_followed_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("real")).unwrap();
    let (path, link) = (folder.path().join("real").join("out"), folder.path().join("link"));
    fs::write(&path, "old").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    write_one(&link, true).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_ne!(fs::read(&path).unwrap(), b"old");
    assert_eq!(listing(&folder.path().join("real")), ["out"]);
}
