//! Sockets that listen: TCP with or without TLS, and a unix socket.
//!
//! Invariants: a port is known before anything is served on it, so that port 0 works; a unix socket
//! replaces one that a crashed run left behind, never one that answers and never another file, and its
//! file goes away with it; an address that can't be had is told with what to do about it.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::tls::{Tls, TlsError};
use crate::config;

/// Pause after an `accept` that failed for lack of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the server could not start to listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address can't be had.
    #[error("can't listen on {address}: {}", why_not(.reason, .setting))]
    Tcp {
        /// What was asked for.
        address: SocketAddr,
        /// What asked for it, as a person is told to change it.
        setting: &'static str,
        /// Why not.
        reason: io::Error,
    },
    /// The unix socket can't be had.
    #[error("can't listen on {}: {reason}; choose another place with server.unix_socket", path.display())]
    Unix {
        /// What was asked for.
        path: PathBuf,
        /// Why not.
        reason: io::Error,
    },
    /// The certificate or key can't be used.
    #[error("can't use the certificate: {0}")]
    Tls(#[from] TlsError),
}

/// Why an address can't be had, and what to do about it.
fn why_not(error: &io::Error, setting: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process listens there; stop that one, or choose another port ({setting})"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; 0.0.0.0 and :: stand for all that it has".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            format!("{error}; choose a port above 1023 ({setting})")
        }
        _ => error.to_string(),
    }
}

/// Sockets that are bound and listening, so that a test knows its port before it serves.
#[derive(Debug)]
pub struct Listeners {
    tcp: TcpListener,
    address: SocketAddr,
    unix: Option<UnixSocket>,
    tls: Option<Tls>,
}

impl Listeners {
    /// Binds what the settings name. Must be called inside the async runtime.
    pub fn bind(settings: &config::Server) -> Result<Self, ListenError> {
        let wanted = SocketAddr::new(settings.host, settings.port);
        let tls = match settings.tls_cert.as_os_str().is_empty() {
            true => None,
            false => Some(Tls::load(&settings.tls_cert, &settings.tls_key)?),
        };
        let failed = |reason| ListenError::Tcp {
            address: wanted,
            setting: "--port or server.port",
            reason,
        };
        let tcp = bind_tcp(wanted, settings.backlog, settings.send_buffer_bytes).map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        let unix = match settings.unix_socket.as_os_str().is_empty() {
            true => None,
            false => Some(UnixSocket::bind(&settings.unix_socket).map_err(|reason| {
                ListenError::Unix {
                    path: settings.unix_socket.clone(),
                    reason,
                }
            })?),
        };
        Ok(Self {
            tcp,
            address,
            unix,
            tls,
        })
    }

    /// The TCP address, with the port that was chosen if the settings said 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether the TCP address speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What it speaks TLS with, to have that read its files again.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    pub(super) async fn accept(&self) -> io::Result<AcceptedSocket> {
        let unix = async {
            match &self.unix {
                Some(socket) => socket.listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.tcp.accept() => accepted.map(|(stream, peer)| AcceptedSocket::Tcp(stream, peer)),
            accepted = unix => accepted.map(|(stream, _)| AcceptedSocket::Unix(stream)),
        }
    }
}

pub(super) enum AcceptedSocket {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// A listening socket. Must be called inside the async runtime. `send_buffer_bytes` is what the system
/// takes of an answer before the client does; 0 leaves it to the system.
pub fn bind_tcp(
    address: SocketAddr,
    backlog: u32,
    send_buffer_bytes: usize,
) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for connections of the last run to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if send_buffer_bytes > 0 {
        // Each accepted socket inherits it; Linux doubles it for its own records.
        socket.set_send_buffer_size(send_buffer_bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

/// A unix socket whose file goes away with it.
#[derive(Debug)]
struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixSocket {
    fn bind(path: &Path) -> io::Result<Self> {
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is a file of another kind at this path",
                ));
            }
            // Only a socket on which no process answers is left over from a run that crashed.
            match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?
                }
                Ok(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::AddrInUse,
                        "another process answers on this socket",
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // If it is gone already, that is what was wanted.
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// Descriptors or memory ran out: waiting helps, trying again at once does not.
pub fn is_exhausted(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(
        code,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_unix_socket_left_over_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("onrush.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("left over"));
        let socket = UnixSocket::bind(&path).expect("replaced");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        assert_eq!(
            UnixSocket::bind(&path).expect_err("alive").kind(),
            io::ErrorKind::AddrInUse
        );
        drop(socket);
        assert!(!path.exists());
        std::fs::write(&path, "a file").expect("written");
        assert_eq!(
            UnixSocket::bind(&path).expect_err("a file").kind(),
            io::ErrorKind::AlreadyExists
        );
    }
}
