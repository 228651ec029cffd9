//! Sockets, greetings and the way of one connection.
//!
//! Invariants: connections are bounded, in all and per address; guessing the password is slowed down;
//! a client that does not greet, says half a command or does not
//! read costs a connection for a bounded time; a failing `accept` never spins; a job whose worker
//! went away before it was told of it waits again at once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::commands::Session;
use super::job::hex;
use super::wire::{Answer, Heard, Patience, Wire};
use super::workers::Introduction;
use super::{Inner, Listener, Stage};
use crate::auth::throttle::Verdict;
use crate::config::ms;
use crate::http::connections::{Connections, NoSeat, RequestTurn, Seat};
use crate::http::listen::{ACCEPT_PAUSE, is_exhausted};
use crate::http::tls::Tls;
use crate::monitor::security::Event;

/// The version of the protocol.
const VERSION: u64 = 2;
/// Longest greeting of a client that has not shown a password.
const HELLO_BYTES_MAX: usize = 8_192;
/// Longest of the texts that a worker says of itself.
const NAME_CHARS_MAX: usize = 200;
const LABELS_MAX: usize = 50;
const TOO_MANY_OF_ADDRESS: &[u8] = b"-ERR too many connections from this address\r\n";
const TOO_MANY: &[u8] = b"-ERR too many connections\r\n";

pub(super) async fn serve(
    inner: &Arc<Inner>,
    listener: Listener,
    mut shutdown: watch::Receiver<bool>,
) {
    let (stage, stage_seen) = watch::channel(Stage::Run);
    let reload = listener.tls.clone().map(|tls| tokio::spawn(tls.watch()));
    let connections = Arc::new(Connections::new(
        inner.settings.connections_max,
        inner.settings.connections_per_address_max,
    ));
    // Each connection holds a sender; when all are gone, so are the connections.
    let (alive, mut all_gone) = mpsc::channel::<Infallible>(1);
    let accepting = async {
        loop {
            connections.may_accept().await;
            match listener.tcp.accept().await {
                Ok((stream, peer)) => {
                    let place = match Connections::admit(&connections, Some(peer.ip())) {
                        Ok((place, freed)) => {
                            (0..freed).for_each(|_| inner.count_refused("evicted"));
                            place
                        }
                        Err(why) => {
                            let (reason, said) = match why {
                                NoSeat::Client => ("address_limit", TOO_MANY_OF_ADDRESS),
                                NoSeat::Everyone => ("full", TOO_MANY),
                            };
                            inner.count_refused(reason);
                            if listener.tls.is_none() {
                                // Best effort: whoever is over the limit has no claim to more.
                                let _unsent = stream.try_write(said);
                            }
                            continue;
                        }
                    };
                    let seat = Arc::clone(&place.seat);
                    let held = (alive.clone(), place);
                    let (inner, tls) = (Arc::clone(inner), listener.tls.clone());
                    let stage = stage_seen.clone();
                    let of_task = Arc::clone(&seat);
                    let task = tokio::spawn(async move {
                        connection(&inner, stream, (peer, of_task), tls, stage, held).await;
                    });
                    seat.ends_with(task.abort_handle());
                }
                Err(error) if is_exhausted(&error) => {
                    tracing::warn!(%error, "a worker's connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a worker's connection could not be accepted");
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        _stop = shutdown.wait_for(|stop| *stop) => {}
    }
    drop(listener);
    drop(alive);
    if let Some(reload) = reload {
        reload.abort();
    }
    stage.send_replace(Stage::Drain);
    let grace = ms(inner.settings.shutdown_grace_ms);
    if timeout(grace, all_gone.recv()).await.is_err() {
        stage.send_replace(Stage::Cut);
        all_gone.recv().await;
    }
}

/// Counts a connection as open until it is dropped.
struct Open<'a>(&'a Inner);

impl<'a> Open<'a> {
    fn new(inner: &'a Inner) -> Self {
        inner.metrics.faktory_connections_open.inc();
        Inner::count_up(&inner.counts.connections);
        Self(inner)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.metrics.faktory_connections_open.dec();
        let open = &self.0.counts.connections;
        open.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

async fn connection(
    inner: &Arc<Inner>,
    stream: TcpStream,
    who: (SocketAddr, Arc<Seat>),
    tls: Option<Tls>,
    stage: watch::Receiver<Stage>,
    held: impl Send,
) {
    let _open = Open::new(inner);
    // Its places are free before it is counted as closed.
    let _held = held;
    // Small answers must not wait for more to say; failing to say so only costs time.
    let _slower = stream.set_nodelay(true);
    let mut cut = stage.clone();
    let talk = async {
        let Some(tls) = tls else {
            return converse(inner, stream, who, stage).await;
        };
        let wait = ms(inner.settings.handshake_timeout_ms);
        match timeout(wait, tls.accept(stream)).await {
            Ok(Ok(stream)) => converse(inner, stream, who, stage).await,
            Ok(Err(_)) | Err(_) => inner.count_refused("tls"),
        }
    };
    tokio::select! {
        () = talk => {}
        _cut = cut.wait_for(|stage| *stage == Stage::Cut) => {}
    }
}

/// What a client says of itself.
#[derive(Deserialize)]
struct Hello {
    #[serde(default)]
    v: u64,
    #[serde(default)]
    pwdhash: Option<String>,
    #[serde(default)]
    wid: Option<String>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    pid: Option<i64>,
    #[serde(default)]
    labels: Option<Vec<String>>,
}

/// `passes` times SHA-256, in hexadecimal.
fn password_hash(password: &str, salt: &str, passes: u32) -> String {
    let mut digest = Sha256::new()
        .chain_update(password)
        .chain_update(salt)
        .finalize();
    for _ in 1..passes {
        digest = Sha256::digest(digest);
    }
    hex(&digest)
}

fn shortened(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(NAME_CHARS_MAX)
        .collect()
}

/// Greets; answers who it is, or `None` after it was refused.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    inner: &Arc<Inner>,
    wire: &mut Wire<S>,
    peer: SocketAddr,
) -> Option<Session> {
    let settings = &inner.settings;
    let refuse = |reason: &str, why: &str| {
        inner.count_refused(reason);
        Answer::Error("ERR", why.to_owned())
    };
    let salt = (!settings.password.is_empty()).then(|| hex(&rand::random::<[u8; 16]>()));
    // Without spaces: some clients take a greeting apart at them.
    let hi = match &salt {
        Some(salt) => serde_json::json!({"v": VERSION, "i": settings.password_passes, "s": salt}),
        None => serde_json::json!({"v": VERSION}),
    };
    wire.say(&Answer::Line(format!("HI {hi}"))).await.ok()?;
    let wait = ms(settings.handshake_timeout_ms);
    let patience = Patience {
        bytes_max: HELLO_BYTES_MAX,
        idle: wait,
        whole: wait,
    };
    let heard = timeout(wait, wire.line(patience)).await;
    let refusal = match heard.unwrap_or(Heard::Slow) {
        Heard::Line(line) => match line
            .strip_prefix("HELLO ")
            .map(serde_json::from_str::<Hello>)
        {
            Some(Ok(hello)) => match admit(inner, hello, salt.as_deref(), peer).await {
                Ok(session) => {
                    wire.say(&Answer::Ok).await.ok()?;
                    return Some(session);
                }
                Err((reason, why)) => refuse(reason, &why),
            },
            Some(Err(_)) => refuse("greeting", "the HELLO can't be read"),
            None => refuse("greeting", "expected HELLO"),
        },
        Heard::Gone => return None,
        Heard::Idle | Heard::Slow => refuse("greeting", "the HELLO did not come in time"),
        Heard::TooLong => refuse("greeting", "the HELLO is too long"),
        Heard::NoText => refuse("greeting", "the HELLO is no UTF-8"),
    };
    // Whoever is refused has no claim to hear of it.
    let _unheard = wire.say(&refusal).await;
    None
}

async fn admit(
    inner: &Arc<Inner>,
    hello: Hello,
    salt: Option<&str>,
    peer: SocketAddr,
) -> Result<Session, (&'static str, String)> {
    if let Some(salt) = salt {
        // Before the work of comparing, which would be a burden of its own.
        let attempt = loop {
            let settled = inner.passwords.settled();
            match inner.passwords.secret_begins("faktory", peer.ip()) {
                Verdict::Go(attempt) => break attempt,
                // Workers that come back all at once wait for each other, not for nothing.
                Verdict::Busy => settled.await,
                Verdict::Wait(seconds) => {
                    inner.tell(Event::LoginFailMax, peer.ip());
                    let why = format!("too many wrong passwords; try again in {seconds} s");
                    return Err(("throttled", why));
                }
            }
        };
        // Clients of the first version know of one pass only.
        let passes = if hello.v < VERSION {
            1
        } else {
            inner.settings.password_passes
        };
        let expected = password_hash(inner.settings.password.reveal(), salt, passes);
        let given = hello.pwdhash.unwrap_or_default();
        if !bool::from(expected.as_bytes().ct_eq(given.as_bytes())) {
            attempt.failed();
            inner.tell(Event::LoginFail, peer.ip());
            return Err(("password", "Invalid password".to_owned()));
        }
        attempt.succeeded();
    }
    let wid = match hello.wid.filter(|wid| !wid.is_empty()) {
        None => return Ok(Session::new(Arc::clone(inner), None)),
        Some(wid) => wid,
    };
    if wid.chars().count() > NAME_CHARS_MAX || wid.chars().any(char::is_control) {
        return Err((
            "greeting",
            "the wid is too long, or no plain text".to_owned(),
        ));
    }
    let labels = hello.labels.unwrap_or_default();
    let who = Introduction {
        wid: wid.clone(),
        hostname: shortened(&hello.hostname.unwrap_or_default()),
        pid: hello.pid.unwrap_or(0),
        labels: labels
            .iter()
            .take(LABELS_MAX)
            .map(|label| shortened(label))
            .collect(),
        address: peer.to_string(),
    };
    if !inner.workers.join(inner.tasks.clock().now(), who) {
        return Err(("workers", "there are as many workers as may be".to_owned()));
    }
    inner.publish();
    Ok(Session::new(Arc::clone(inner), Some(wid)))
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    inner: &Arc<Inner>,
    stream: S,
    (peer, seat): (SocketAddr, Arc<Seat>),
    mut stage: watch::Receiver<Stage>,
) {
    let settings = &inner.settings;
    let mut wire = Wire::new(stream, ms(settings.write_timeout_ms));
    let Some(session) = greet(inner, &mut wire, peer).await else {
        return wire.close().await;
    };
    // Whoever greeted may wait for long, and outlives those who only connect.
    seat.note_known();
    let patience = Patience {
        bytes_max: settings.command_bytes_max,
        idle: Duration::from_secs(settings.idle_seconds),
        whole: ms(settings.command_timeout_ms),
    };
    loop {
        let has_jobs = session.has_jobs();
        let heard = tokio::select! {
            biased;
            // Who has nothing to report has nothing to wait for.
            _draining = stage.wait_for(|stage| *stage != Stage::Run), if !has_jobs => break,
            heard = wire.line(patience) => heard,
        };
        let last = match heard {
            Heard::Line(line) => {
                // Not cut off for a newcomer in the middle of a command.
                let turn = RequestTurn::new(&seat);
                turn.received();
                if session.obey(&mut wire, &line, &mut stage).await {
                    continue;
                }
                break;
            }
            Heard::Gone => break,
            Heard::Idle => {
                inner.count_refused("idle");
                break;
            }
            Heard::Slow => {
                inner.count_refused("slow");
                "the command did not come in time"
            }
            Heard::TooLong => {
                inner.count_refused("too_long");
                "the command is too long"
            }
            Heard::NoText => {
                inner.count_refused("no_text");
                "the command is no UTF-8"
            }
        };
        // It may have gone; then there is nobody to tell.
        let _unheard = wire.say(&Answer::Error("ERR", last.to_owned())).await;
        break;
    }
    wire.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_hashed_as_clients_do_it() {
        // As the protocol's specification gives it: password, salt, passes.
        assert_eq!(
            password_hash("foobar", "55104dc76695721d", 1545),
            "6d877f8e5544b1f2598768f817413ab8a357afffa924dedae99eb91472d4ec30"
        );
    }
}
