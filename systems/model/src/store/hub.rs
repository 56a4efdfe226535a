//! The model's official home, and the cache that hub clients share.

use std::env;
use std::fs;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::clock;
use super::error::{Failure, StoreError};
use super::progress::Progress;
use super::sources::Sources;
use super::spec::{HubSource, ModelSpec};

/// How often the waiting side looks at the transfer.
const POLL: Duration = Duration::from_millis(200);

/// How often a transfer that broke off after it had moved is taken up again.
const MAX_RESUMES: usize = 3;

/// Looks for the file in the shared cache `cache_dir`, by revision and, because large files lie there
/// under their sha256, by content. Nothing is written.
pub(super) fn find_cached(
    cache_dir: &Path,
    hub: &HubSource,
    spec: &ModelSpec,
) -> Result<PathBuf, String> {
    let cache = Cache::new(cache_dir.to_owned()).repo(repo_of(hub));
    // Clients note no reference for a revision that is itself a commit, hence the second place.
    let places = [
        cache.get(&hub.file),
        Some(cache.pointer_path(&hub.revision).join(&hub.file)),
        Some(cache.blob_path(&spec.sha256.to_string())),
    ];
    let mut reason = format!(
        "{} {} is not in {}",
        hub.repo,
        hub.revision,
        cache_dir.display()
    );
    for place in places.into_iter().flatten() {
        // Entries are links into the blobs; a hard link made from one must not link the link.
        let Ok(path) = fs::canonicalize(place) else {
            continue;
        };
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() && metadata.len() == spec.bytes => return Ok(path),
            Ok(metadata) => {
                reason = format!(
                    "{} has {} bytes, expected {}",
                    path.display(),
                    metadata.len(),
                    spec.bytes
                );
            }
            Err(_) => {}
        }
    }
    Err(reason)
}

/// Downloads the file into `staging`, going on from what an earlier call left there, and returns
/// where it lies.
pub(super) fn download(
    sources: &Sources,
    hub: &HubSource,
    spec: &ModelSpec,
    staging: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Failure> {
    fs::create_dir_all(staging).map_err(StoreError::io("create", staging))?;
    // Complete, but interrupted before it was checked: the client itself would start afresh.
    if let Ok(complete) = find_cached(staging, hub, spec) {
        return Ok(complete);
    }
    let api = api(sources, staging).map_err(|error| Failure::Next(one_line(&error.to_string())))?;
    let url = api.repo(repo_of(hub)).url(&hub.file);
    let proxy = proxy_from(|key| env::var(key).ok());
    probe(
        &url,
        proxy.as_deref(),
        sources.connect_timeout,
        spec,
        progress,
    )?;
    drop_complete_part(staging, hub, spec)?;
    progress.message(&format!(
        "hub: downloading {} from {} at {}",
        hub.file, hub.repo, hub.revision
    ));

    // The client has no time limit of its own, so it works on a thread that can be left behind.
    let received = Arc::new(AtomicU64::new(0));
    let (sender, receiver) = mpsc::sync_channel(1);
    let worker = Transfer {
        api,
        hub: hub.clone(),
        url,
        expected_bytes: spec.bytes,
        received: Arc::clone(&received),
    };
    thread::Builder::new()
        .name("hub-download".to_owned())
        .spawn(move || drop(sender.send(worker.run())))
        .map_err(StoreError::io("start a thread for", staging))?;

    progress.start(&format!("{} from the hub", spec.name), spec.bytes);
    let mut shown = 0;
    let mut moved = clock::now();
    let outcome = loop {
        let event = receiver.recv_timeout(POLL);
        let now = received.load(Ordering::Relaxed);
        if now > shown {
            progress.advance(now - shown);
            shown = now;
            moved = clock::now();
        }
        match event {
            Ok(result) => break result.map_err(Failure::Next),
            Err(RecvTimeoutError::Disconnected) => {
                break Err(Failure::Next(
                    "the hub client failed on what the hub answered".to_owned(),
                ));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if progress.cancelled() {
            break Err(Failure::Stop(StoreError::Cancelled {
                name: spec.name.clone(),
            }));
        }
        if clock::now().duration_since(moved) >= sources.stall_timeout {
            let seconds = sources.stall_timeout.as_secs();
            break Err(Failure::Next(format!(
                "no data for {seconds} s after {shown} bytes"
            )));
        }
    };
    progress.finish();
    outcome
}

fn repo_of(hub: &HubSource) -> Repo {
    Repo::with_revision(hub.repo.clone(), RepoType::Model, hub.revision.clone())
}

/// A client that keeps its files in `staging`: on the store's file system, so that the result is
/// moved and not copied, and apart from the user's cache, which stays as it was. The files are
/// public, so no token is looked for.
fn api(sources: &Sources, staging: &Path) -> Result<Api, ApiError> {
    let mut builder = ApiBuilder::from_cache(Cache::new(staging.to_owned()))
        .with_token(None)
        .with_progress(false);
    if let Some(endpoint) = &sources.hub_endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    builder.build()
}

/// The client would ask for the bytes after the last one of a part file that is complete, which
/// happens when it died just before its rename, and fail for good.
fn drop_complete_part(staging: &Path, hub: &HubSource, spec: &ModelSpec) -> Result<(), StoreError> {
    let blobs = staging.join(repo_of(hub).folder_name()).join("blobs");
    let entries = match fs::read_dir(&blobs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("list", &blobs)(error)),
    };
    for entry in entries.flatten() {
        let is_part = entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "part");
        if is_part
            && entry
                .metadata()
                .is_ok_and(|metadata| metadata.len() >= spec.bytes)
        {
            fs::remove_file(entry.path()).map_err(StoreError::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// What the download thread needs.
struct Transfer {
    api: Api,
    hub: HubSource,
    url: String,
    expected_bytes: u64,
    received: Arc<AtomicU64>,
}

impl Transfer {
    fn run(&self) -> Result<PathBuf, String> {
        let mut resumes = 0;
        loop {
            let before = self.received.load(Ordering::Relaxed);
            let error = match self.attempt() {
                Ok(result) => return result,
                Err(error) => error,
            };
            // The client's own retries lose their place in a part file that they append to, so
            // breaks are mended out here, where each attempt reads the part's length anew.
            let moved = self.received.load(Ordering::Relaxed) > before;
            let broke_off = matches!(error, ApiError::RequestError(_) | ApiError::IoError(_));
            if !(moved && broke_off && resumes < MAX_RESUMES) {
                return Err(one_line(&error.to_string()));
            }
            resumes += 1;
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// Outer error: the hub or the line failed. Inner error: the hub has another file.
    fn attempt(&self) -> Result<Result<PathBuf, String>, ApiError> {
        // The client's progress type cannot refuse a file, so its length is asked for first.
        let found = self.api.metadata(&self.url)?.size() as u64;
        if found != self.expected_bytes {
            return Ok(Err(format!(
                "{} has {found} bytes at revision {}, expected {}",
                self.hub.file, self.hub.revision, self.expected_bytes
            )));
        }
        let counter = Counter(Arc::clone(&self.received));
        let pointer = self
            .api
            .repo(repo_of(&self.hub))
            .download_with_progress(&self.hub.file, counter)?;
        Ok(Ok(fs::canonicalize(pointer)?))
    }
}

/// Counts the bytes of the part file, those of earlier calls included.
struct Counter(Arc<AtomicU64>);

impl hf_hub::api::Progress for Counter {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn update(&mut self, size: usize) {
        self.0.fetch_add(size as u64, Ordering::Relaxed);
    }

    fn finish(&mut self) {}
}

/// Finds out within `timeout` whether `url`, or the proxy on the way to it, accepts a connection.
/// Name look-up has no time limit in the standard library, so this too happens on another thread.
fn probe(
    url: &str,
    proxy: Option<&str>,
    timeout: Duration,
    spec: &ModelSpec,
    progress: &mut dyn Progress,
) -> Result<(), Failure> {
    let (what, target) = match proxy {
        Some(proxy) => ("proxy ", proxy),
        None => ("", url),
    };
    let Some((host, port)) = host_and_port(target) else {
        return Err(Failure::Next(format!("{what}address has no host")));
    };
    let (sender, receiver) = mpsc::sync_channel(1);
    let name = host.clone();
    thread::spawn(move || drop(sender.send(connect(&name, port, timeout))));

    let begun = clock::now();
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(result) => return result.map_err(|reason| Failure::Next(format!("{what}{reason}"))),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::Next(format!("could not reach {what}{host}")));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if progress.cancelled() {
            return Err(Failure::Stop(StoreError::Cancelled {
                name: spec.name.clone(),
            }));
        }
        if clock::now().duration_since(begun) >= timeout {
            let seconds = timeout.as_secs_f64();
            return Err(Failure::Next(format!(
                "no answer from {what}{host} within {seconds} s"
            )));
        }
    }
}

/// Tries the addresses of `host` in turn.
fn connect(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("could not resolve {host}: {error}"))?;
    let mut reason = format!("{host} has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(_) => return Ok(()),
            Err(error) => reason = format!("could not connect to {host} port {port}: {error}"),
        }
    }
    Err(reason)
}

/// The proxy that the hub client will use, by the variables that it reads, in its order.
fn proxy_from(get: impl Fn(&str) -> Option<String>) -> Option<String> {
    [
        "ALL_PROXY",
        "all_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
    ]
    .iter()
    .find_map(|key| get(key).filter(|value| !value.is_empty()))
}

/// Host and port of an address such as `https://user@host:port/path`.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let default_port = match scheme {
        "https" => 443,
        "http" => 80,
        _ => 1080,
    };
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => authority
            .split_once(':')
            .map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// The first line of a message, for lists of reasons.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::progress::Silent;
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (url, host, port) in [
            ("https://hub.example/a/b", "hub.example", 443),
            ("http://hub.example:8080", "hub.example", 8080),
            (
                "http://user:secret@proxy.example:3128/",
                "proxy.example",
                3128,
            ),
            ("https://[::1]:8443/a", "::1", 8443),
            ("https://[::1]/a", "::1", 443),
            ("socks5://proxy.example", "proxy.example", 1080),
            ("proxy.example:3128", "proxy.example", 3128),
        ] {
            assert_eq!(host_and_port(url), Some((host.to_owned(), port)), "{url}");
        }
        assert_eq!(host_and_port("https:///a"), None);
        assert_eq!(host_and_port("https://host:port"), None);
    }

    #[test]
    fn the_proxy_order_is_the_hub_clients() {
        let vars = [
            ("HTTP_PROXY", "c"),
            ("https_proxy", "b"),
            ("HTTPS_PROXY", ""),
        ];
        let get = |key: &str| {
            vars.iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| (*value).to_owned())
        };
        assert_eq!(proxy_from(get).as_deref(), Some("b"));
        assert_eq!(proxy_from(|_| None), None);
    }

    #[test]
    fn a_host_that_never_answers_is_given_up_in_time() {
        // Once the queue of a listener that accepts nothing is full, the kernel drops connection
        // attempts, as a route to nowhere does.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let pause = Duration::from_millis(50);
        let queued: Vec<TcpStream> =
            std::iter::from_fn(|| TcpStream::connect_timeout(&address, pause).ok())
                .take(900)
                .collect();
        assert!(queued.len() < 900, "the queue never filled");

        let spec = super::super::spec::builtin_specs().unwrap().remove(0);
        let begun = clock::now();
        let timeout = Duration::from_millis(500);
        let failure = probe(
            &format!("http://{address}/a"),
            None,
            timeout,
            &spec,
            &mut Silent,
        )
        .unwrap_err();
        let waited = clock::now().duration_since(begun);
        let Failure::Next(reason) = failure else {
            panic!("{failure:?}")
        };
        assert!(reason.contains("127.0.0.1"), "{reason}");
        assert!(waited >= timeout && waited < 10 * timeout, "{waited:?}");
    }
}
