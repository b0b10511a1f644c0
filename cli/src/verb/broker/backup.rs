//! `ephor broker backup`

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ephor_proto::http::admin::{Backup, BackupStage, BackupState};

use crate::client::Peer;
use crate::exit::{Failure, Outcome};
use crate::show;
use crate::words::shell_quoted;

/// Between two looks at a backup that is being made.
const LOOK: Duration = Duration::from_millis(200);

/// Has the broker copy its store, and puts the copy where it was asked for.
pub async fn backup(broker: &Peer, to: &Path, with_master_key: bool) -> Outcome {
    let to = std::path::absolute(to).map_err(|why| Failure::usage(format!("--to: {why}")))?;
    if to.exists() {
        let why = format!(
            "--to: {} is there already; name a new directory",
            to.display()
        );
        return Err(Failure::usage(why));
    }
    let ask = Backup {
        to: to.display().to_string(),
        with_master_key,
    };
    let mut state: BackupState = broker.post("/v1/backup", &ask).await?;
    while state.state == BackupStage::Running {
        tokio::time::sleep(LOOK).await;
        state = broker.read("/v1/backup").await?;
    }
    if let Some(why) = &state.error {
        return Err(Failure::local("no backup was made", why));
    }
    let made = PathBuf::from(&state.at);
    // The broker may write below its own directory only; we may write where we were told to.
    fetch(&made, &to).map_err(|why| {
        let what = format!(
            "the backup is whole in {}, and could not be moved to {}",
            made.display(),
            to.display()
        );
        Failure::local(what, why)
    })?;
    let place = shell_quoted(&to.display().to_string());
    let key = match &state.master_key {
        Some(file) => format!(
            "Without the master key it opens nothing; keep {file} elsewhere, not beside it."
        ),
        None => "The master key is in it: whoever has this directory is the broker.".to_owned(),
    };
    show::to_stdout(&format!(
        "{} events, {} bytes, in {}.\n{key}\nTo put it back, with no broker running:  ephor-broker restore --from {place}\n",
        state.log_size,
        state.bytes,
        to.display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Copies the directory file by file under a passing name, makes it durable, and removes the first.
fn fetch(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut name = to.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    DirBuilder::new().mode(0o700).create(&partial)?;
    let copied = std::fs::read_dir(from)?.try_for_each(|entry| {
        let entry = entry?;
        let mut source = File::open(entry.path())?;
        let mut target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(partial.join(entry.file_name()))?;
        std::io::copy(&mut source, &mut target)?;
        target.sync_all()
    });
    let parent = to.parent().unwrap_or(Path::new("/"));
    let moved = copied
        .and_then(|()| File::open(&partial)?.sync_all())
        .and_then(|()| std::fs::rename(&partial, to))
        .and_then(|()| File::open(parent)?.sync_all());
    if moved.is_err() {
        let _ = std::fs::remove_dir_all(&partial);
        return moved;
    }
    std::fs::remove_dir_all(from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_moved_whole_and_only_its_owner_reads_it() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("ephor.db"), "copy").unwrap();
        fetch(&from, &to).unwrap();
        assert_eq!(std::fs::read(to.join("ephor.db")).unwrap(), b"copy");
        assert_eq!(
            to.join("ephor.db").metadata().unwrap().mode() & 0o777,
            0o600
        );
        assert_eq!(to.metadata().unwrap().mode() & 0o777, 0o700);
        assert!(!from.exists());
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(to.join("x")).unwrap();
        assert!(fetch(&from, &to).is_err(), "never over what is there");
        assert!(from.exists());
    }
}
