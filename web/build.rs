//! Puts the admin page into `$OUT_DIR/ui`, from where `src/app.rs` embeds it.
//!
//! Three ways, the first that applies: a ready-made page from `ONRUSH_UI_DIST`; without the feature
//! `admin-ui` the small fallback page; else npm and Vite build it from this folder. Invariants:
//! packages are installed only when the lock file changed, and none of their scripts run; outside
//! `$OUT_DIR` only `web/node_modules` is written.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// What the page is made of. Cargo looks through folders itself.
const SOURCES: [&str; 7] = [
    "src",
    "public",
    "index.html",
    "package.json",
    "package-lock.json",
    ".npmrc",
    "vite.config.js",
];
const FALLBACK: &str = "fallback.html";
const READY_MADE: &str = "ONRUSH_UI_DIST";

fn main() {
    if let Err(reason) = build() {
        println!("cargo::error={}", reason.replace('\n', " "));
    }
}

fn build() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed={READY_MADE}");
    println!("cargo::rerun-if-changed=web/build.rs");
    let variable = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
    let web = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("web");
    let out = PathBuf::from(variable("OUT_DIR")?).join("ui");
    if let Err(error) = fs::remove_dir_all(&out)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(format!("{} can't be emptied: {error}", out.display()));
    }

    if let Some(ready_made) = env::var_os(READY_MADE).filter(|value| !value.is_empty()) {
        let ready_made = PathBuf::from(ready_made);
        println!("cargo::rerun-if-changed={}", ready_made.display());
        if !ready_made.join("index.html").is_file() {
            return Err(format!(
                "{READY_MADE} names {}, which holds no index.html.",
                ready_made.display()
            ));
        }
        return copy(&ready_made, &out)
            .map_err(|error| format!("{} can't be copied: {error}", ready_made.display()));
    }
    if env::var_os("CARGO_FEATURE_ADMIN_UI").is_none() {
        println!("cargo::rerun-if-changed=web/{FALLBACK}");
        return fs::create_dir_all(&out)
            .and_then(|()| fs::copy(web.join(FALLBACK), out.join("index.html")))
            .map(drop)
            .map_err(|error| format!("web/{FALLBACK} can't be copied: {error}"));
    }
    for source in SOURCES {
        println!("cargo::rerun-if-changed=web/{source}");
    }
    install(&web)?;
    npm(
        &web,
        Command::new("npm")
            .args([
                "run",
                "build",
                "--",
                "--logLevel",
                "warn",
                "--emptyOutDir",
                "--outDir",
            ])
            .arg(&out),
    )
}

/// Installs what the lock file names, unless the same lock file was installed before.
fn install(web: &Path) -> Result<(), String> {
    let wanted = fs::read(web.join("package-lock.json"))
        .map_err(|error| format!("web/package-lock.json can't be read: {error}"))?;
    let installed = web.join("node_modules/.installed-lock.json");
    if fs::read(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    npm(
        web,
        Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]),
    )?;
    fs::write(&installed, wanted)
        .map_err(|error| format!("{} can't be written: {error}", installed.display()))
}

fn npm(web: &Path, command: &mut Command) -> Result<(), String> {
    let output = match command.current_dir(web).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(
                "The admin page is built with npm, which is not on the PATH: install \
                        Node.js 20.19 or newer, or build with --no-default-features."
                    .to_owned(),
            );
        }
        Err(error) => return Err(format!("npm can't be started: {error}")),
    };
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!(
        "The admin page was not built (`npm {}`): {}",
        command
            .get_args()
            .map(|argument| argument.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" "),
        String::from_utf8_lossy(&text).trim()
    ))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
