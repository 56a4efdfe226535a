//! A folder in which the program runs over random-weight models, and helpers around it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test crate uses a part of it"
)]

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use celslm_model::synthetic::SyntheticModel;
use celslm_reports::{Sample, read_samples};
use sha2::{Digest as _, Sha256};

pub const BIN: &str = env!("CARGO_BIN_EXE_celslm");

/// A folder with everything that a run needs: models, their descriptions, links, data.
pub struct Lab {
    pub dir: tempfile::TempDir,
}

pub const CLOUD: SyntheticModel = SyntheticModel {
    architecture: "qwen2",
    num_layers: 7,
    num_heads: 4,
    num_kv_heads: 2,
    head_dim: 32,
    quantised: false,
    seed: 11,
};
/// Of a third model, `tiny-other`, whose tokens are longer than the bytes of the others.
pub const MERGES: [(&str, &str); 3] = [("a", "m"), ("e", "r"), ("b", "er")];
pub const EDGE: SyntheticModel = SyntheticModel {
    num_layers: 5,
    num_heads: 4,
    num_kv_heads: 4,
    head_dim: 32,
    seed: 12,
    ..CLOUD
};

impl Lab {
    pub fn new() -> Self {
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for folder in [
            "configs/models",
            "configs/links",
            "configs/experiments",
            "data",
            "store",
        ] {
            std::fs::create_dir_all(lab.path(folder)).unwrap();
        }
        for (name, model, merges) in [
            ("tiny-cloud", CLOUD, &[][..]),
            ("tiny-edge", EDGE, &[]),
            ("tiny-other", EDGE, &MERGES),
        ] {
            let file = lab.path(&format!("store/{name}.gguf"));
            model.write_with_merges(&file, merges).unwrap();
            let bytes = std::fs::read(&file).unwrap();
            let digest: String = Sha256::digest(&bytes)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            let spec = format!(
                "name = \"{name}\"\ndescription = \"random weights\"\narchitecture = \"qwen2\"\n\
                 file = \"{name}.gguf\"\nsha256 = \"{digest}\"\nbytes = {}\nlicence = \"none\"\n",
                bytes.len()
            );
            std::fs::write(lab.path(&format!("configs/models/{name}.toml")), spec).unwrap();
        }
        let question = |id: &str, text: &str| {
            serde_json::json!({"id": id, "question": text,
                "answers": [{"text": "amber", "answer_start": 0}]})
        };
        let article = |title: &str| {
            let text: String = (0..60)
                .map(|i| format!("{title} {} amber. ", i * i % 97))
                .collect();
            serde_json::json!({"title": title, "paragraphs": [{"context": text, "qas": [
                question(&format!("{title}-1"), "Which lamp?"),
                question(&format!("{title}-2"), "What does it mean when it blinks?"),
            ]}]})
        };
        let data =
            serde_json::json!({"version": "1.1", "data": [article("lamps"), article("horns")]});
        std::fs::write(lab.path("data/squad.json"), data.to_string()).unwrap();
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes an experiment over the tiny models.
    pub fn experiment(&self, name: &str, rest: &str) {
        let text = format!(
            "data_dir = \"{data}\"\n[experiment]\nname = \"{name}\"\nseed = 3\n\
             [models]\ncloud = \"tiny-cloud\"\nedge = \"tiny-edge\"\n\
             [generation]\nmax_tokens = 6\n{rest}\n\
             [links.brisk]\nname = \"brisk\"\ndescription = \"for tests\"\nsource = \"made up\"\n\
             uplink = {{ rate_mbit = 40.0, delay_ms = 2.0 }}\n\
             downlink = {{ rate_mbit = 40.0, delay_ms = 2.0 }}\n",
            data = self.path("data").display()
        );
        std::fs::write(self.path(&format!("configs/experiments/{name}.toml")), text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BIN);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("CELSLM_MODELS", self.path("store"))
            .env("CELSLM_OFFLINE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn samples(&self, experiment: &str) -> Vec<Sample> {
        let cells = self.path(&format!("results/{experiment}/cells"));
        let mut samples = Vec::new();
        for cell in std::fs::read_dir(cells).unwrap() {
            let file = cell.unwrap().path().join("samples.jsonl");
            if file.exists() {
                samples.extend(read_samples(&file).unwrap().samples);
            }
        }
        samples.sort_by_key(|sample| sample.order);
        samples
    }
}

/// Exit code with both outputs at hand when it is another.
#[track_caller]
pub fn assert_code(output: &Output, code: i32) -> String {
    let text = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// The emulating backend needs root or user namespaces, and TUN or veth.
pub fn can_emulate() -> bool {
    let output = Command::new(BIN).arg("doctor").output().unwrap();
    let able = Command::new("test")
        .args(["-w", "/dev/net/tun"])
        .status()
        .is_ok_and(|s| s.success());
    if !able {
        println!(
            "skipped: /dev/net/tun cannot be opened here\n{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    able
}

/// A run in the background; killed when the test ends early.
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process whose command line holds all of these.
pub fn find_process(parts: &[&str]) -> Option<u32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .find_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            parts.iter().all(|part| line.contains(part)).then_some(id)
        })
}

pub fn wait_until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(value) = found() {
            return value;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("waited in vain for {what}");
}

/// What a process has printed, read while it runs.
pub struct Log {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Log {
    /// The text read up to now.
    pub fn so_far(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// The whole text. A process that has ended is not yet read to its end: its last words are
    /// here once nobody holds the pipe any more.
    pub fn whole(&self) -> String {
        wait_until("the end of a log", || {
            self.reader.is_finished().then_some(())
        });
        self.so_far()
    }
}

pub fn follow(mut stream: impl Read + Send + 'static) -> Log {
    let text = Arc::new(Mutex::new(String::new()));
    let collected = Arc::clone(&text);
    let reader = std::thread::spawn(move || {
        let mut buffer = [0u8; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            collected
                .lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    });
    Log { text, reader }
}
