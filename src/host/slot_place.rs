//! The slot folder of a backend, wherever the configuration says to look at it.

use std::time::Duration;

use super::{
    mounted_folder::MountedFolder,
    slot_files::{FileName, Found, Listed, SlotFiles, SlotFilesError, Survey, Surveyed},
    slot_folder::SlotFolder,
};

/// [`SlotFiles`] on the server, or on this machine.
#[derive(Clone, Debug)]
pub(super) enum SlotPlace {
    /// Over SSH.
    Server(SlotFolder),
    /// Where its share is mounted on this machine.
    Mounted(MountedFolder),
}

impl SlotFiles for SlotPlace {
    async fn survey(&self, what: Survey<'_>) -> Result<Surveyed, SlotFilesError> {
        match self {
            Self::Server(folder) => folder.survey(what).await,
            Self::Mounted(folder) => folder.survey(what).await,
        }
    }

    async fn keep(
        &self,
        unfinished: &FileName,
        name: &FileName,
        bytes: u64,
        within: Duration,
    ) -> Result<Option<Found>, SlotFilesError> {
        match self {
            Self::Server(folder) => folder.keep(unfinished, name, bytes, within).await,
            Self::Mounted(folder) => folder.keep(unfinished, name, bytes, within).await,
        }
    }

    async fn digest(&self, name: &FileName, within: Duration) -> Result<Option<String>, SlotFilesError> {
        match self {
            Self::Server(folder) => folder.digest(name, within).await,
            Self::Mounted(folder) => folder.digest(name, within).await,
        }
    }

    async fn words(&self, name: &FileName, count: usize) -> Result<Vec<u32>, SlotFilesError> {
        match self {
            Self::Server(folder) => folder.words(name, count).await,
            Self::Mounted(folder) => folder.words(name, count).await,
        }
    }

    async fn list(&self, suffix: &str) -> Result<Listed, SlotFilesError> {
        match self {
            Self::Server(folder) => folder.list(suffix).await,
            Self::Mounted(folder) => folder.list(suffix).await,
        }
    }

    async fn remove(&self, names: &[FileName]) -> Result<(), SlotFilesError> {
        match self {
            Self::Server(folder) => folder.remove(names).await,
            Self::Mounted(folder) => folder.remove(names).await,
        }
    }
}
