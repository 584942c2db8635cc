//! Which numbers this node gave to which label sets and workloads, across restarts.
//!
//! Invariant: a number stands for one label set (or workload) from its allocation until
//! `ID_REUSE_AFTER` after its release, also if the process dies in between: the caller saves the
//! registry before it uses a new number. No clock: the caller passes Unix seconds.
use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    limits,
    source::WorkloadKey,
    types::{EndpointId, IdentityId, Labels},
};

/// Numbers in use and recently released.
#[derive(Debug, Default)]
pub(super) struct Registry {
    identities: HashMap<String, Identity>,
    identity_ids: HashSet<IdentityId>,
    endpoints: BTreeMap<WorkloadKey, Endpoint>,
    endpoint_ids: HashSet<u32>,
    dirty: bool,
}

/// The allocation of one label set.
#[derive(Debug)]
struct Identity {
    id: IdentityId,
    users: usize,
    /// When the last user went, Unix seconds. Of a loaded entry: never used by this process.
    released: Option<i64>,
}

#[derive(Debug)]
struct Endpoint {
    id: EndpointId,
    used: bool,
    released: Option<i64>,
}

/// Why the state file can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("set corrupt {path} aside")]
    SetAside { path: PathBuf, source: io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: String,
    cluster_id: u32,
    identities: Vec<FileIdentity>,
    endpoints: Vec<FileEndpoint>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIdentity {
    id: IdentityId,
    labels: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    released: Option<i64>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEndpoint {
    id: EndpointId,
    namespace: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    released: Option<i64>,
}

impl Registry {
    pub(super) fn identity(&self, labels: &str) -> Option<IdentityId> {
        self.identities.get(labels).map(|identity| identity.id)
    }

    /// Random numbers of `first..=last` that nobody here holds; fewer if nearly all are held.
    pub(super) fn candidates(&self, first: IdentityId, last: IdentityId) -> Vec<IdentityId> {
        let free = |id: &IdentityId| !self.identity_ids.contains(id);
        let mut random = rand::rng();
        let picks = (0..limits::IDENTITY_PICKS_MAX)
            .map(|_| IdentityId(random.random_range(first.0..=last.0)));
        picks.filter(free).collect()
    }

    /// Notes that `id` stands for `labels`, and that what either stood for before is over.
    pub(super) fn set_identity(&mut self, id: IdentityId, labels: &Arc<Labels>) {
        let text = labels.to_string();
        if self.identity(&text) == Some(id) {
            return;
        }
        if self.identity_ids.contains(&id) {
            self.identities.retain(|_, entry| entry.id != id);
        }
        let entry = self.identities.entry(text).or_insert_with(|| Identity {
            id,
            users: 0,
            released: None,
        });
        self.identity_ids.remove(&entry.id);
        entry.id = id;
        self.identity_ids.insert(id);
        self.dirty = true;
    }

    /// True if no workload has these labels.
    pub(super) fn is_unused(&self, labels: &str) -> bool {
        self.identities
            .get(labels)
            .is_none_or(|identity| identity.users == 0)
    }

    /// One more workload has these labels.
    pub(super) fn retain_identity(&mut self, labels: &str) {
        if let Some(identity) = self.identities.get_mut(labels) {
            identity.users += 1;
            self.dirty |= identity.released.take().is_some();
        }
    }

    /// One workload fewer has these labels; yields how many are left.
    pub(super) fn release_identity(&mut self, labels: &str, now: i64) -> usize {
        let Some(identity) = self.identities.get_mut(labels) else {
            return 0;
        };
        identity.users = identity.users.saturating_sub(1);
        if identity.users == 0 {
            identity.released = Some(now);
            self.dirty = true;
        }
        identity.users
    }

    /// The workload's number, new if it has none; `None` if all are held.
    pub(super) fn endpoint(&mut self, key: &WorkloadKey) -> Option<EndpointId> {
        if let Some(endpoint) = self.endpoints.get_mut(key) {
            endpoint.used = true;
            self.dirty |= endpoint.released.take().is_some();
            return Some(endpoint.id);
        }
        let start = rand::rng().random_range(1..=limits::ENDPOINT_ID_MAX);
        let mut order = (start..=limits::ENDPOINT_ID_MAX).chain(1..start);
        let id = EndpointId(order.find(|id| !self.endpoint_ids.contains(id))?);
        self.endpoint_ids.insert(id.0);
        self.endpoints.insert(
            key.clone(),
            Endpoint {
                id,
                used: true,
                released: None,
            },
        );
        self.dirty = true;
        Some(id)
    }

    /// The workload is gone.
    pub(super) fn release_endpoint(&mut self, key: &WorkloadKey, now: i64) {
        if let Some(endpoint) = self.endpoints.get_mut(key) {
            endpoint.used = false;
            endpoint.released = Some(now);
            self.dirty = true;
        }
    }

    /// All that exists was seen: what was loaded and not used since is released.
    pub(super) fn release_unused(&mut self, now: i64) {
        for identity in self.identities.values_mut() {
            if identity.users == 0 && identity.released.is_none() {
                identity.released = Some(now);
                self.dirty = true;
            }
        }
        for endpoint in self.endpoints.values_mut() {
            if !endpoint.used && endpoint.released.is_none() {
                endpoint.released = Some(now);
                self.dirty = true;
            }
        }
    }

    /// Takes out what was released long enough ago.
    pub(super) fn purge(&mut self, now: i64) {
        let keep = i64::try_from(limits::ID_REUSE_AFTER.as_secs()).unwrap_or(i64::MAX);
        // A clock that was set back must not keep an entry forever: its wait starts again.
        let over = |released: &mut Option<i64>| match released {
            Some(at) if *at > now => {
                *at = now;
                false
            }
            Some(at) => now - *at >= keep,
            None => false,
        };
        let before = (self.identities.len(), self.endpoints.len());
        let ids = &mut self.identity_ids;
        self.identities.retain(|_, entry| {
            let keep = !over(&mut entry.released);
            if !keep {
                ids.remove(&entry.id);
            }
            keep
        });
        let ids = &mut self.endpoint_ids;
        self.endpoints.retain(|_, entry| {
            let keep = !over(&mut entry.released);
            if !keep {
                ids.remove(&entry.id.0);
            }
            keep
        });
        self.dirty |= before != (self.identities.len(), self.endpoints.len());
    }

    /// Reads the file of `cluster`; a missing one is an empty registry. A file that does not
    /// parse, or belongs to another cluster, is renamed to `<name>.corrupt` and reported.
    pub(super) async fn load(
        path: &Path,
        cluster: &str,
        range: (u32, IdentityId, IdentityId),
    ) -> Result<Self, FileError> {
        let read = |source| FileError::Read {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        match tokio::fs::File::open(path).await {
            Ok(file) => {
                let mut file = file.take(limits::IDENTITIES_FILE_BYTES_MAX);
                file.read_to_end(&mut bytes).await.map_err(read)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(read(error)),
        }
        match Self::from_bytes(&bytes, cluster, range) {
            Ok(registry) => Ok(registry),
            Err(reason) => {
                let aside = path.with_extension("json.corrupt");
                tracing::error!(
                    path = %path.display(),
                    aside = %aside.display(),
                    error = %reason,
                    "Identity file is unusable and was set aside; identities will be renumbered"
                );
                tokio::fs::rename(path, &aside)
                    .await
                    .map_err(|source| FileError::SetAside {
                        path: path.to_owned(),
                        source,
                    })?;
                Ok(Self::default())
            }
        }
    }

    fn from_bytes(
        bytes: &[u8],
        cluster: &str,
        (cluster_id, first, last): (u32, IdentityId, IdentityId),
    ) -> Result<Self, String> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if file.cluster != cluster || file.cluster_id != cluster_id {
            return Err(format!(
                "it belongs to cluster {:?} with another name or id",
                file.cluster
            ));
        }
        let mut registry = Self::default();
        for FileIdentity {
            id,
            labels,
            released,
        } in file.identities
        {
            if !(first..=last).contains(&id) || !registry.identity_ids.insert(id) {
                return Err(format!("identity {id} is out of range or occurs twice"));
            }
            // Parsed and printed, so that equal sets are equal texts.
            let labels = Labels::parse(&labels).to_string();
            let entry = Identity {
                id,
                users: 0,
                released,
            };
            if registry.identities.insert(labels, entry).is_some() {
                return Err(format!("labels of identity {id} occur twice"));
            }
        }
        for FileEndpoint {
            id,
            namespace,
            name,
            released,
        } in file.endpoints
        {
            let in_range = (1..=limits::ENDPOINT_ID_MAX).contains(&id.0);
            let key = WorkloadKey { namespace, name };
            let entry = Endpoint {
                id,
                used: false,
                released,
            };
            if !in_range
                || !registry.endpoint_ids.insert(id.0)
                || registry.endpoints.insert(key, entry).is_some()
            {
                return Err(format!("endpoint {id} is out of range or occurs twice"));
            }
        }
        Ok(registry)
    }

    /// Writes the file if anything changed since: the old file stays whole until the new one is
    /// on disk. After an error the next call tries again.
    pub(super) async fn save(
        &mut self,
        path: &Path,
        cluster: &str,
        cluster_id: u32,
    ) -> Result<(), FileError> {
        if !self.dirty {
            return Ok(());
        }
        let bytes = self.to_bytes(cluster, cluster_id);
        write_atomically(path, &bytes)
            .await
            .map_err(|source| FileError::Write {
                path: path.to_owned(),
                source,
            })?;
        self.dirty = false;
        Ok(())
    }

    fn to_bytes(&self, cluster: &str, cluster_id: u32) -> Vec<u8> {
        let identities = self.identities.iter().map(|(labels, entry)| FileIdentity {
            id: entry.id,
            labels: labels.clone(),
            released: entry.released,
        });
        let endpoints = self.endpoints.iter().map(|(key, entry)| FileEndpoint {
            id: entry.id,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            released: entry.released,
        });
        let mut file = File {
            cluster: cluster.to_owned(),
            cluster_id,
            identities: identities.collect(),
            endpoints: endpoints.collect(),
        };
        file.identities.sort_by_key(|entry| entry.id);
        // Strings and numbers always serialize.
        serde_json::to_vec_pretty(&file).unwrap_or_default()
    }
}

async fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    tokio::fs::create_dir_all(directory).await?;
    let temporary = path.with_extension("json.tmp");
    let mut file = tokio::fs::File::create(&temporary).await?;
    file.write_all(bytes).await?;
    file.sync_all().await?;
    drop(file);
    tokio::fs::rename(&temporary, path).await?;
    // The rename itself must survive a power cut too.
    tokio::fs::File::open(directory).await?.sync_all().await
}

/// Who an address belongs to while several workloads claim it: the first keeps it, the next takes
/// over when it goes. Each claimant occurs once per address.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_address: HashMap<std::net::IpAddr, Vec<WorkloadKey>>,
}

impl Claims {
    /// Adds a claim; true if the claimant owns the address now.
    pub(super) fn claim(&mut self, address: std::net::IpAddr, key: &WorkloadKey) -> bool {
        let claimants = self.by_address.entry(address).or_default();
        if !claimants.contains(key) {
            claimants.push(key.clone());
        }
        claimants.first() == Some(key)
    }

    /// Takes a claim back. `None` if the claimant was not the owner, else the next owner if any.
    pub(super) fn release(
        &mut self,
        address: std::net::IpAddr,
        key: &WorkloadKey,
    ) -> Option<Option<WorkloadKey>> {
        let Entry::Occupied(mut entry) = self.by_address.entry(address) else {
            return None;
        };
        let at = entry.get().iter().position(|claimant| claimant == key)?;
        entry.get_mut().remove(at);
        let next = entry.get().first().cloned();
        if next.is_none() {
            entry.remove();
        }
        (at == 0).then_some(next)
    }

    pub(super) fn owns(&self, address: std::net::IpAddr, key: &WorkloadKey) -> bool {
        self.by_address
            .get(&address)
            .and_then(|claimants| claimants.first())
            == Some(key)
    }
}
