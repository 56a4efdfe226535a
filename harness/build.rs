//! Records what the binary is built from, for the manifest of every run.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    // A commit or a checkout moves HEAD's log; without git there is nothing to watch.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = output("git", &["rev-parse", "--git-path", file])
            && std::path::Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = output("git", &["rev-parse", "--verify", "HEAD"]).unwrap_or_default();
    let dirty = match output("git", &["status", "--porcelain"]) {
        None => "",
        Some(changes) if changes.is_empty() => "false",
        Some(_) => "true",
    };
    let rustc = variable("RUSTC");
    let version = output(&rustc, &["--version"]).unwrap_or_default();
    // Flags arrive separated by the unit separator.
    let flags = variable("CARGO_ENCODED_RUSTFLAGS").replace('\u{1f}', " ");
    for (name, value) in [
        ("CELSLM_COMMIT", commit.as_str()),
        ("CELSLM_DIRTY", dirty),
        ("CELSLM_RUSTC", &version),
        ("CELSLM_RUSTFLAGS", &flags),
        ("CELSLM_TARGET", &variable("TARGET")),
        ("CELSLM_PROFILE", &variable("PROFILE")),
        ("CELSLM_OPT_LEVEL", &variable("OPT_LEVEL")),
        (
            "CELSLM_TARGET_FEATURES",
            &variable("CARGO_CFG_TARGET_FEATURE"),
        ),
    ] {
        println!("cargo::rustc-env={name}={value}");
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// Standard output of a command that succeeds, trimmed.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
