//! Mails: written here, handed to the shop's mail server, or put into `outbox/` without one.
//!
//! Invariants: a mail is a task, made in the transaction that it tells of; its `Message-ID` is the
//! task's, so a server or a reader can tell a repetition; a server that is away or says 4xx is asked
//! again, one that refuses the mail itself (5xx) is not, and its words are kept. `outbox/` is bounded
//! by number and age.

mod letter;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use letter::Letter;

use crate::auth::registration::{self, Notice};
use crate::auth::{self, Recipient, UserId};
use crate::check;
use crate::clock::Timestamp;
use crate::config::{self, Language, MailTls, ms};
use crate::http::tls::certificates;
use crate::store::{StoreError, Tx};
use crate::task::{
    self, Handler, NewTask, TaskContext, TaskError, TaskFailure, TaskId, TaskOutcome,
};

/// Mails between two looks at how many there are in `outbox/`.
const WRITES_PER_LOOK: usize = 50;
/// What the server says about our own login: the mail is not at fault, so it is tried again.
const LOGIN_CODES: &[u16] = &[432, 454, 530, 534, 535, 538];

/// Why mails can't be sent with these settings.
#[derive(Debug, thiserror::Error)]
pub enum MailSetupError {
    /// The sender is no address.
    #[error("mail.from: {0}; write name@example.com, or Name <name@example.com>")]
    From(String),
    /// The certificate authorities can't be used.
    #[error("mail.smtp_ca: {0}")]
    Ca(String),
    /// The server's name can't be used for TLS.
    #[error("mail.smtp_host: {0}")]
    Host(String),
}

/// The way out for mails; clones share it.
#[derive(Clone)]
pub struct Mailer(Arc<Inner>);

struct Inner {
    rules: config::Mail,
    from: Mailbox,
    smtp: Option<AsyncSmtpTransport<Tokio1Executor>>,
    outbox: PathBuf,
    writes: AtomicUsize,
    has_said: AtomicBool,
}

impl Mailer {
    /// With the server of the settings; without one, `outbox` is where mails are written.
    pub fn new(rules: config::Mail, outbox: PathBuf) -> Result<Self, MailSetupError> {
        let from: Mailbox = rules
            .from
            .parse()
            .map_err(|error| MailSetupError::From(format!("{error}")))?;
        check::address(from.email.as_ref())
            .map_err(|reason| MailSetupError::From(reason.to_owned()))?;
        let smtp = (!rules.smtp_host.is_empty())
            .then(|| transport(&rules, &from))
            .transpose()?;
        Ok(Self(Arc::new(Inner {
            rules,
            from,
            smtp,
            outbox,
            writes: AtomicUsize::new(0),
            has_said: AtomicBool::new(false),
        })))
    }

    /// The language of somebody's mails.
    pub fn language(&self, recipient: &Recipient) -> Language {
        recipient.language.unwrap_or(self.0.rules.language)
    }

    /// The shop's name.
    pub fn shop_name(&self) -> &str {
        &self.0.rules.shop_name
    }

    /// Sends a letter, as the mail of this task.
    pub async fn send(
        &self,
        task: TaskId,
        now: Timestamp,
        recipient: &Recipient,
        letter: &Letter,
    ) -> Result<Value, TaskFailure> {
        let address: Address = recipient.email.parse().map_err(|error| {
            TaskFailure::discard(format!("the address can't be written to: {error}"))
        })?;
        let message = self
            .message(
                task,
                now,
                Mailbox::new(recipient.name.clone(), address),
                letter,
            )
            .map_err(|error| TaskFailure::discard(format!("the mail can't be written: {error}")))?;
        match &self.0.smtp {
            Some(smtp) => self.send_by(smtp, message).await,
            None => self.keep(task, now, message.formatted()).await,
        }
    }

    fn message(
        &self,
        task: TaskId,
        now: Timestamp,
        to: Mailbox,
        letter: &Letter,
    ) -> Result<Message, lettre::error::Error> {
        let micros = u64::try_from(now.0).unwrap_or(0);
        let from = &self.0.from;
        Message::builder()
            .from(from.clone())
            .to(to)
            .subject(letter.subject())
            .message_id(Some(format!("<{task}@{}>", from.email.domain())))
            .date(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
            .multipart(MultiPart::alternative_plain_html(
                letter.text(),
                letter.html(),
            ))
    }

    async fn send_by(
        &self,
        smtp: &AsyncSmtpTransport<Tokio1Executor>,
        message: Message,
    ) -> Result<Value, TaskFailure> {
        let limit = ms(self.0.rules.timeout_ms);
        match tokio::time::timeout(limit, smtp.send(message)).await {
            Ok(Ok(answer)) => {
                let words: Vec<&str> = answer.message().collect();
                Ok(json!({"sent": true, "answer": words.join(" ")}))
            }
            Ok(Err(error)) => Err(refusal(&error)),
            Err(_) => Err(TaskFailure::retry(format!(
                "the mail server did not take it within {} ms",
                limit.as_millis()
            ))),
        }
    }

    async fn keep(
        &self,
        task: TaskId,
        now: Timestamp,
        bytes: Vec<u8>,
    ) -> Result<Value, TaskFailure> {
        if !self.0.has_said.swap(true, Ordering::AcqRel) {
            tracing::info!(
                outbox = %self.0.outbox.display(),
                "there is no mail server (mail.smtp_host); mails are written to files"
            );
        }
        let inner = Arc::clone(&self.0);
        let kept = tokio::task::spawn_blocking(move || {
            let path = write_file(&inner.outbox, task, &bytes)?;
            let writes = inner.writes.fetch_add(1, Ordering::AcqRel);
            if writes.is_multiple_of(WRITES_PER_LOOK)
                && let Err(error) = prune(&inner.outbox, now, &inner.rules)
            {
                // The mail is written; what is too much goes the next time.
                tracing::warn!(%error, "old mails in outbox/ could not be removed");
            }
            Ok::<_, std::io::Error>(path)
        })
        .await
        .map_err(|error| TaskFailure::retry(error.to_string()))?;
        match kept {
            Ok(path) => Ok(
                json!({"sent": false, "file": path.file_name().map(|name| name.to_string_lossy())}),
            ),
            Err(error) => Err(TaskFailure::retry(format!(
                "outbox/ can't be written: {error}"
            ))),
        }
    }
}

fn transport(
    rules: &config::Mail,
    from: &Mailbox,
) -> Result<AsyncSmtpTransport<Tokio1Executor>, MailSetupError> {
    let tls = || {
        let mut parameters = TlsParameters::builder(rules.smtp_host.clone());
        if !rules.smtp_ca.as_os_str().is_empty() {
            let authorities = certificates(&rules.smtp_ca)
                .map_err(|error| MailSetupError::Ca(error.to_string()))?;
            for authority in authorities {
                let authority = Certificate::from_der(authority.to_vec())
                    .map_err(|error| MailSetupError::Ca(error.to_string()))?;
                parameters = parameters.add_root_certificate(authority);
            }
        }
        parameters
            .build_rustls()
            .map_err(|error| MailSetupError::Host(error.to_string()))
    };
    let (tls, customary) = match rules.smtp_tls {
        MailTls::Tls => (Tls::Wrapper(tls()?), 465),
        MailTls::Starttls => (Tls::Required(tls()?), 587),
        MailTls::None => (Tls::None, 25),
    };
    let port = match rules.smtp_port {
        0 => customary,
        port => port,
    };
    let mut builder =
        AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(rules.smtp_host.clone())
            .port(port)
            .tls(tls)
            .hello_name(ClientId::Domain(from.email.domain().to_owned()))
            .timeout(Some(ms(rules.timeout_ms)));
    if !rules.smtp_user.is_empty() {
        builder = builder.credentials(Credentials::new(
            rules.smtp_user.clone(),
            rules.smtp_password.reveal().to_owned(),
        ));
    }
    Ok(builder.build())
}

/// What a failed attempt means for the mail.
fn refusal(error: &lettre::transport::smtp::Error) -> TaskFailure {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let is_about_login = error
        .status()
        .is_some_and(|code| LOGIN_CODES.contains(&u16::from(code)));
    if error.is_permanent() && !is_about_login {
        TaskFailure::discard(text)
    } else {
        TaskFailure::retry(text)
    }
}

/// Written aside and renamed, so that whoever looks into the folder sees whole mails only. The same
/// task writes the same file again.
fn write_file(outbox: &Path, task: TaskId, bytes: &[u8]) -> std::io::Result<PathBuf> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(outbox)?;
    let aside = outbox.join(format!("{task}.part"));
    let path = outbox.join(format!("{task}.eml"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&aside, &path)?;
    Ok(path)
}

/// Removes what is too old or too much, the oldest first: names begin with the time.
fn prune(outbox: &Path, now: Timestamp, rules: &config::Mail) -> std::io::Result<()> {
    let seconds = i64::try_from(rules.outbox_seconds).unwrap_or(i64::MAX);
    let oldest = now.plus_seconds(-seconds);
    let mut mails = Vec::new();
    for entry in fs::read_dir(outbox)? {
        let entry = entry?;
        let written = match entry.metadata() {
            Ok(metadata) => metadata.modified()?,
            // Another mail was just renamed, or removed by hand.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let since = written.duration_since(SystemTime::UNIX_EPOCH);
        let micros = since.map_or(0, |since| {
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        });
        mails.push((entry.path(), Timestamp(micros)));
    }
    mails.sort();
    let surplus = mails.len().saturating_sub(rules.outbox_files_max);
    for (at, (path, written)) in mails.iter().enumerate() {
        if at < surplus || *written < oldest {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

/// Welcomes somebody who has registered.
pub struct SendWelcomeEmail {
    mailer: Mailer,
}

impl SendWelcomeEmail {
    /// With the way out.
    pub fn new(mailer: Mailer) -> Self {
        Self { mailer }
    }

    /// Enqueues it, in the transaction of the registration.
    pub fn enqueue(tx: &mut Tx<'_>, now: Timestamp, user: UserId) -> Result<(), StoreError> {
        let task = NewTask::of::<Self>(&SendWelcomeEmailArgs { user_id: user.0 })?;
        task::enqueue(tx, now, &task).map_err(|error| match error {
            TaskError::Store(error) => error,
            other => StoreError::Bug(other.to_string()),
        })?;
        Ok(())
    }
}

/// Writes to an address that somebody has registered: how it is proven, or that it has an account.
pub struct SendConfirmationEmail {
    mailer: Mailer,
    hours: u64,
}

impl SendConfirmationEmail {
    /// With the way out; what it says is good for so many seconds.
    pub fn new(mailer: Mailer, seconds: u64) -> Self {
        Self {
            mailer,
            hours: (seconds / 3_600).max(1),
        }
    }

    /// Enqueues it, in the transaction of the registration.
    pub fn enqueue(tx: &mut Tx<'_>, now: Timestamp, id: i64) -> Result<(), StoreError> {
        let args = SendConfirmationEmailArgs {
            registration_id: id,
        };
        let task = NewTask::of::<Self>(&args)?;
        task::enqueue(tx, now, &task).map_err(|error| match error {
            TaskError::Store(error) => error,
            other => StoreError::Bug(other.to_string()),
        })?;
        Ok(())
    }

    /// The link, or without a page of the shop what is entered there.
    fn way(&self, token: &str) -> String {
        match self.mailer.0.rules.confirm_url.as_str() {
            "" => token.to_owned(),
            page => format!("{page}#token={token}"),
        }
    }
}

/// About which registration.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendConfirmationEmailArgs {
    /// Key of the registration.
    pub registration_id: i64,
}

impl Handler for SendConfirmationEmail {
    type Args = SendConfirmationEmailArgs;
    const NAME: &'static str = "send_confirmation_email";
    const QUEUE: &'static str = "mail";
    const ABOUT: &'static str = "Has the address of a registration proven by mail.";
    const MAX_ATTEMPTS: u32 = MAIL_ATTEMPTS;
    const TIMEOUT_MS: i64 = MAIL_TIMEOUT_MS;

    async fn run(
        &self,
        context: TaskContext,
        args: SendConfirmationEmailArgs,
    ) -> Result<TaskOutcome, TaskFailure> {
        let (now, id) = (context.now(), args.registration_id);
        let notice = context
            .store()
            .write(move |tx| registration::notice(tx, now, id))
            .await
            .map_err(|error| TaskFailure::retry(error.to_string()))?;
        let (shop, default) = (self.mailer.shop_name(), self.mailer.0.rules.language);
        let (email, letter) = match notice {
            None => {
                return Ok(TaskOutcome::Done(Some(
                    json!({"skipped": "the registration is used up or out of date"}),
                )));
            }
            Some(Notice::Prove {
                email,
                language,
                token,
            }) => {
                let language = language.unwrap_or(default);
                (
                    email,
                    letter::proof(language, shop, &self.way(&token), self.hours),
                )
            }
            Some(Notice::HasAccount { email, language }) => (
                email,
                letter::has_account(language.unwrap_or(default), shop),
            ),
        };
        let recipient = Recipient {
            email,
            name: None,
            language: None,
        };
        let sent = self
            .mailer
            .send(context.id(), context.now(), &recipient, &letter)
            .await?;
        Ok(TaskOutcome::Done(Some(sent)))
    }
}

/// Whom.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendWelcomeEmailArgs {
    /// Key of the account.
    pub user_id: i64,
}

/// How often a mail is tried: over about two days.
pub const MAIL_ATTEMPTS: u32 = 15;
/// Longest run of a task that sends a mail.
pub const MAIL_TIMEOUT_MS: i64 = 600_000;

impl Handler for SendWelcomeEmail {
    type Args = SendWelcomeEmailArgs;
    const NAME: &'static str = "send_welcome_email";
    const QUEUE: &'static str = "mail";
    const ABOUT: &'static str = "Welcomes a new account by mail.";
    const MAX_ATTEMPTS: u32 = MAIL_ATTEMPTS;
    const TIMEOUT_MS: i64 = MAIL_TIMEOUT_MS;

    async fn run(
        &self,
        context: TaskContext,
        args: SendWelcomeEmailArgs,
    ) -> Result<TaskOutcome, TaskFailure> {
        let user = UserId(args.user_id);
        let recipient = context
            .store()
            .point(move |tx| auth::recipient(tx, user))
            .await?;
        let Some(recipient) = recipient else {
            return Ok(TaskOutcome::Done(Some(
                json!({"skipped": "there is no such account with an address"}),
            )));
        };
        let language = self.mailer.language(&recipient);
        let name = recipient.name.as_deref();
        let letter = letter::welcome(language, self.mailer.shop_name(), name);
        let sent = self
            .mailer
            .send(context.id(), context.now(), &recipient, &letter)
            .await?;
        Ok(TaskOutcome::Done(Some(sent)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outbox_is_bounded_by_number_and_age_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = dir.path().join("outbox");
        let now = Timestamp(1_700_000_000_000_000);
        let ids: Vec<TaskId> = (0..5).map(|_| TaskId::next(now)).collect();
        for id in &ids {
            write_file(&outbox, *id, b"mail").expect("written");
            write_file(&outbox, *id, b"mail").expect("the same again");
        }
        let left = || {
            let mut names: Vec<String> = fs::read_dir(&outbox)
                .expect("a folder")
                .map(|entry| {
                    entry
                        .expect("an entry")
                        .file_name()
                        .to_string_lossy()
                        .into_owned()
                })
                .collect();
            names.sort();
            names
        };
        let rules = config::Mail {
            outbox_files_max: 2,
            ..config::Mail::default()
        };
        prune(&outbox, Timestamp(0), &rules).expect("pruned");
        assert_eq!(
            left(),
            [format!("{}.eml", ids[3]), format!("{}.eml", ids[4])]
        );
        prune(&outbox, Timestamp(i64::MAX), &rules).expect("pruned");
        assert_eq!(left(), Vec::<String>::new());
    }
}
