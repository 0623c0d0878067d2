//! What a client has to keep over a crash, and where: a small trait that the app implements over its database, and two
//! implementations.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs::{self, File},
    future::Future,
    io::{self, Write},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use crate::error::StorageError;

/// One thing to keep: a value under a key. The key is at most 100 characters from `a-z`, `0-9`, `-`, `.` and `/`; the
/// value is opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Identifies the record. A record with the same key replaces it.
    pub key: String,
    /// The bytes to keep. They contain the session's token, access keys and ciphertexts, but no private key and no
    /// plaintext.
    pub value: Vec<u8>,
}

/// Keeps the records of one client: its session, the messages that are not answered, and the ids of claims. Implement it
/// over the database in which the app keeps its keys and messages, with a table of two columns.
///
/// Writes must be durable when their future resolves: a client that is killed right after must find them.
///
/// ```
/// use std::{collections::BTreeMap, sync::Mutex};
/// use sealwire_client::{Record, Storage};
///
/// /// A table of the app's database.
/// struct Table(Mutex<BTreeMap<String, Vec<u8>>>);
///
/// impl Storage for Table {
///     type Error = std::convert::Infallible;
///
///     async fn load(&self) -> Result<Vec<Record>, Self::Error> {
///         let rows = self.0.lock().unwrap().clone();
///         Ok(rows.into_iter().map(|(key, value)| Record { key, value }).collect())
///     }
///
///     async fn save(&self, record: Record) -> Result<(), Self::Error> {
///         self.0.lock().unwrap().insert(record.key, record.value);
///         Ok(())
///     }
///
///     async fn delete(&self, key: String) -> Result<(), Self::Error> {
///         self.0.lock().unwrap().remove(&key);
///         Ok(())
///     }
/// }
/// ```
pub trait Storage: Send + Sync + 'static {
    /// Why an operation failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Returns all records, in any order.
    ///
    /// # Errors
    /// If they cannot be read.
    fn load(&self) -> impl Future<Output = Result<Vec<Record>, Self::Error>> + Send;

    /// Stores a record, in place of one with the same key.
    ///
    /// # Errors
    /// If it cannot be stored.
    fn save(&self, record: Record) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Deletes the record with this key, if there is one.
    ///
    /// # Errors
    /// If it cannot be deleted.
    fn delete(&self, key: String) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StorageError>> + Send + 'a>>;

/// [`Storage`] as a trait object.
trait DynStorage: Send + Sync {
    fn load(&self) -> Pending<'_, Vec<Record>>;
    fn save(&self, record: Record) -> Pending<'_, ()>;
    fn delete(&self, key: String) -> Pending<'_, ()>;
}

impl<S: Storage> DynStorage for S {
    fn load(&self) -> Pending<'_, Vec<Record>> {
        Box::pin(async { Storage::load(self).await.map_err(StorageError::new) })
    }

    fn save(&self, record: Record) -> Pending<'_, ()> {
        Box::pin(async { Storage::save(self, record).await.map_err(StorageError::new) })
    }

    fn delete(&self, key: String) -> Pending<'_, ()> {
        Box::pin(async { Storage::delete(self, key).await.map_err(StorageError::new) })
    }
}

/// A storage of any type.
#[derive(Clone)]
pub(crate) struct AnyStorage(Arc<dyn DynStorage>);

impl AnyStorage {
    pub(crate) fn new(storage: impl Storage) -> Self {
        Self(Arc::new(storage))
    }

    pub(crate) async fn load(&self) -> Result<Vec<Record>, StorageError> {
        self.0.load().await
    }

    pub(crate) async fn save(&self, record: Record) -> Result<(), StorageError> {
        self.0.save(record).await
    }

    pub(crate) async fn delete(&self, key: String) -> Result<(), StorageError> {
        self.0.delete(key).await
    }
}

/// Keeps records in memory, for tests and for clients that sign in anew at each start. Clones share the records.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl MemoryStorage {
    /// Without records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn records(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for MemoryStorage {
    type Error = Infallible;

    async fn load(&self) -> Result<Vec<Record>, Infallible> {
        Ok(self.records().iter().map(|(key, value)| Record { key: key.clone(), value: value.clone() }).collect())
    }

    async fn save(&self, record: Record) -> Result<(), Infallible> {
        self.records().insert(record.key, record.value);
        Ok(())
    }

    async fn delete(&self, key: String) -> Result<(), Infallible> {
        self.records().remove(&key);
        Ok(())
    }
}

/// Keeps each record in a file of a folder. A record is written to a temporary file that is synced and renamed, so a
/// crash leaves either the old or the new one. The folder is for one client: two processes must not share it. On Unix,
/// only the user can read it.
#[derive(Clone, Debug)]
pub struct FileStorage {
    folder: PathBuf,
}

/// The end of the names of files that are not complete.
const TEMPORARY: &str = ".tmp";

impl FileStorage {
    /// A storage in this folder, which is created if it does not exist.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn open(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder)?;
        Ok(Self { folder })
    }

    /// The file of a record. Keys have slashes; file names do not.
    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(key.replace('/', "_"))
    }

    fn load_now(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.ends_with(TEMPORARY) {
                fs::remove_file(entry.path())?;
                continue;
            }
            records.push(Record { key: name.replace('_', "/"), value: fs::read(entry.path())? });
        }
        Ok(records)
    }

    fn save_now(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.key);
        let mut temporary = path.clone().into_os_string();
        temporary.push(TEMPORARY);
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(&record.value)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        sync_folder(&self.folder)
    }

    fn delete_now(&self, key: &str) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let storage = self.clone();
        tokio::task::spawn_blocking(move || work(&storage)).await.map_err(io::Error::other)?
    }
}

/// Makes renames in the folder durable. Only Unix can and needs to.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

impl Storage for FileStorage {
    type Error = io::Error;

    async fn load(&self) -> io::Result<Vec<Record>> {
        self.blocking(Self::load_now).await
    }

    async fn save(&self, record: Record) -> io::Result<()> {
        self.blocking(move |storage| storage.save_now(&record)).await
    }

    async fn delete(&self, key: String) -> io::Result<()> {
        self.blocking(move |storage| storage.delete_now(&key)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn contract(storage: impl Storage) {
        let record = |key: &str, value: &[u8]| Record { key: key.to_owned(), value: value.to_vec() };
        assert_eq!(storage.load().await.unwrap(), []);
        storage.save(record("outbox/01", b"a")).await.unwrap();
        storage.save(record("session", b"\0\xff")).await.unwrap();
        storage.save(record("outbox/01", b"b")).await.unwrap();
        let mut all = storage.load().await.unwrap();
        all.sort_by(|one, other| one.key.cmp(&other.key));
        assert_eq!(all, [record("outbox/01", b"b"), record("session", b"\0\xff")]);
        storage.delete("outbox/01".to_owned()).await.unwrap();
        storage.delete("outbox/01".to_owned()).await.unwrap();
        assert_eq!(storage.load().await.unwrap(), [record("session", b"\0\xff")]);
    }

    #[tokio::test]
    async fn both_storages_keep_records() {
        contract(MemoryStorage::new()).await;
        let folder = tempfile::tempdir().unwrap();
        contract(FileStorage::open(folder.path().join("new")).unwrap()).await;
    }

    #[tokio::test]
    async fn a_file_that_was_being_written_at_a_crash_is_ignored_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let storage = FileStorage::open(folder.path()).unwrap();
        fs::write(folder.path().join("session.tmp"), b"half").unwrap();
        assert_eq!(Storage::load(&storage).await.unwrap(), []);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
