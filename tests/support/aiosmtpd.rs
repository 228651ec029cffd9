//! A mail server as others wrote it: aiosmtpd of PyPI, in a process and a virtual environment of its
//! own, with TLS and a login.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

pub const USER: &str = "shop";
pub const USER_PASSWORD: &str = "hunter2 密码";

/// Serves until its input ends: with whoever started it.
const SERVER: &str = r#"
import asyncio, os, ssl, sys, threading
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

mode, folder, cert, key, user, password = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)

class Keep:
    count = 0
    async def handle_DATA(self, server, session, envelope):
        Keep.count += 1
        aside = os.path.join(folder, f"{Keep.count}.part")
        with open(aside, "wb") as file:
            file.write(envelope.content)
        os.rename(aside, os.path.join(folder, f"{Keep.count}.eml"))
        return "250 kept by aiosmtpd"

def authenticate(server, session, envelope, mechanism, data):
    fits = isinstance(data, LoginPassword) and data.login == user.encode() and data.password == password.encode()
    return AuthResult(success=fits, handled=False)

def protocol():
    common = dict(authenticator=authenticate, auth_required=True)
    if mode == "starttls":
        return SMTP(Keep(), tls_context=context, require_starttls=True, **common)
    return SMTP(Keep(), auth_require_tls=False, **common)

async def main():
    over = context if mode == "tls" else None
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, ssl=over)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
asyncio.run(main())
"#;

/// A server; dropped, it ends.
pub struct RealMailServer {
    process: Child,
    folder: tempfile::TempDir,
    pub port: u16,
}

impl RealMailServer {
    /// `mode` is `tls` or `starttls`; the certificate must be for `localhost`. `Err` says why this
    /// machine can't.
    pub fn open(mode: &str, cert: &Path, key: &Path) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut process = Command::new(python()?)
            .args(["-c", SERVER, mode])
            .args([folder.path(), cert, key])
            .args([USER, USER_PASSWORD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut line = String::new();
        let mut said = BufReader::new(process.stdout.take().expect("its output"));
        said.read_line(&mut line).expect("it says its port");
        let port = line.trim().parse();
        Ok(Self {
            process,
            folder,
            port: port.expect("aiosmtpd serves"),
        })
    }

    /// Mails that were taken, oldest first.
    pub fn mails(&self) -> Vec<String> {
        let inside = std::fs::read_dir(self.folder.path()).expect("a folder");
        let mut paths: Vec<_> = inside.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|end| end == "eml"));
        paths.sort();
        paths
            .iter()
            .map(|path| std::fs::read_to_string(path).expect("a mail"))
            .collect()
    }
}

impl Drop for RealMailServer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _gone = self.process.kill();
        let _gone = self.process.wait();
    }
}

/// Python with aiosmtpd, installed once and kept beside the tests' own files.
fn python() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(install).clone()
}

fn install() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("aiosmtpd");
    let python = place.join("bin").join("python");
    let run = |program: &Path, args: &[&str]| {
        let output = Command::new(program)
            .args(args)
            .output()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Err(text.lines().last().unwrap_or("it failed").to_owned())
    };
    if run(&python, &["-c", "import aiosmtpd"]).is_err() {
        let place = place.to_str().expect("a path of text");
        run(Path::new("python3"), &["-m", "venv", place])?;
        run(&python, &["-m", "pip", "install", "-q", "aiosmtpd==1.4.6"])?;
    }
    Ok(python)
}

/// A certificate authority, and files with a certificate of its for `localhost`: `(ca, cert, key)`.
pub fn certificates(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let mut of_ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    of_ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let ca = of_ca.self_signed(&ca_key).expect("signed");
    let issuer = rcgen::Issuer::new(of_ca, ca_key);
    let names = vec!["localhost".to_owned()];
    let params = rcgen::CertificateParams::new(names).expect("parameters");
    let key = rcgen::KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, &issuer).expect("signed");
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        let mut file = std::fs::File::create(&path).expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        path
    };
    (
        write("ca.pem", ca.pem()),
        write("cert.pem", cert.pem()),
        write("key.pem", key.serialize_pem()),
    )
}
