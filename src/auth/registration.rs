//! Customers who make their own accounts: at once, or once a mail has proven that the address is theirs.
//!
//! Invariants: how many may try is bounded for an address, its wider network and in all, and their hashing
//! waits behind everyone's log-in. Where addresses are proven, a registration looks nobody up: known and
//! unknown addresses cost the same and are answered alike, and what differs is said in the mail, to whom
//! the address belongs. That mail holds nothing that was sent with the registration but the address, and
//! few go to one address. Its token makes the account only together with the password of the registration:
//! an owner of the address who opens the link of a stranger's registration gets no account by that.

use super::place::Origin;
use super::throttle::Verdict;
use super::{
    Auth, AuthError, Carrier, Lane, Login, NewSession, RegistrationRow, Role, check_account,
    check_known_password, check_token, hash_token, new_token, sql,
};
use crate::clock::Timestamp;
use crate::config::Language;
use crate::monitor::security::Event;
use crate::store::{StoreError, Tx};

/// What follows from a registration that waits for its proof, by the key of its row, in its transaction.
pub type OnAsked = Box<dyn Fn(&mut Tx<'_>, Timestamp, i64) -> Result<(), StoreError> + Send + Sync>;

/// What came of a registration.
pub enum Registered {
    /// The account is there, and logged in.
    Account(Box<Login>),
    /// A mail goes to the address.
    Asked,
}

/// What the mail about a registration says.
#[derive(Debug)]
pub enum Notice {
    /// How the registration is completed.
    Prove {
        /// Where it goes.
        email: String,
        /// In which language.
        language: Option<Language>,
        /// What is sent to complete it.
        token: String,
    },
    /// That there is an account already.
    HasAccount {
        /// Where it goes.
        email: String,
        /// In which language.
        language: Option<Language>,
    },
}

impl Auth {
    /// Makes a customer's account and logs it in, or has the address proven first.
    pub async fn register(
        &self,
        email: &str,
        name: &str,
        password: &str,
        language: Option<Language>,
        origin: Origin,
    ) -> Result<Registered, AuthError> {
        let (email, name) = check_account(email, name, password).map_err(AuthError::Invalid)?;
        let throttle = &self.0.throttle;
        let attempt = match throttle.registration_begins(origin.address) {
            Verdict::Go(attempt) => attempt,
            Verdict::Wait(seconds) => {
                self.tell(Event::RateLimitExceeded, &origin, None, "registration");
                return Err(AuthError::Crowded(seconds));
            }
            Verdict::Busy => return Err(AuthError::Overloaded),
        };
        let hash = match self.newcomers_hash(&origin, password).await {
            Ok(hash) => hash,
            Err(error) => {
                attempt.unchecked();
                return Err(error);
            }
        };
        attempt.failed();
        let asked = RegistrationRow {
            id: 0,
            email,
            name,
            password_hash: hash,
            language: language.map(|language| language.word().to_owned()),
        };
        if self.0.surroundings.on_asked.is_some() {
            self.ask_for_proof(asked).await?;
            return Ok(Registered::Asked);
        }
        let login = self.make_account(asked, origin, None).await?;
        Ok(Registered::Account(Box::new(login)))
    }

    async fn newcomers_hash(&self, origin: &Origin, password: &str) -> Result<String, AuthError> {
        let _share = self.share(origin)?;
        let passwords = &self.0.passwords;
        passwords
            .hash(Lane::Newcomer, origin.address, password)
            .await
    }

    async fn ask_for_proof(&self, asked: RegistrationRow) -> Result<(), AuthError> {
        // The answer is the same in any case, so that no client learns how often an address was registered.
        if !self.0.throttle.may_write_to(&asked.email) {
            return Ok(());
        }
        let (auth, now) = (self.clone(), self.0.clock.now());
        let seconds = i64::try_from(self.0.settings.confirm_seconds).unwrap_or(i64::MAX);
        self.0
            .store
            .write(move |tx| {
                let id = sql::insert_registration(tx, &asked, now.plus_seconds(seconds))?;
                match &auth.0.surroundings.on_asked {
                    Some(follow) => follow(tx, now, id).map_err(AuthError::from),
                    None => Ok(()),
                }
            })
            .await
    }

    /// Makes the account of a registration whose address is proven by the token of its mail, and logs it in.
    pub async fn confirm(
        &self,
        token: &str,
        password: &str,
        origin: Origin,
    ) -> Result<Login, AuthError> {
        check_token(token)?;
        check_known_password(password).map_err(|fault| AuthError::Invalid(vec![fault]))?;
        let (hash, now) = (hash_token(token), self.0.clock.now());
        let key = hash.clone();
        let found = self
            .0
            .store
            .point(move |tx| sql::registration(tx, now, &key))
            .await?;
        let Some(asked) = found else {
            return Err(self.wrong_secret("confirm", &origin, AuthError::NoRegistration));
        };
        let attempt = match self.0.throttle.secret_begins(&hash, origin.address) {
            Verdict::Go(attempt) => attempt,
            Verdict::Wait(seconds) => return Err(AuthError::Throttled(seconds)),
            Verdict::Busy => return Err(AuthError::Overloaded),
        };
        let (stored, client) = (asked.password_hash.clone(), origin.address);
        let passwords = &self.0.passwords;
        match passwords
            .verify(Lane::Newcomer, client, password, stored)
            .await
        {
            Ok(true) => attempt.succeeded(),
            Ok(false) => {
                attempt.failed();
                self.tell(Event::LoginFail, &origin, None, "confirm");
                return Err(AuthError::Wrong);
            }
            Err(error) => {
                attempt.unchecked();
                return Err(error);
            }
        }
        self.make_account(asked, origin, Some(hash)).await
    }

    /// `token_hash` is that of the proof.
    async fn make_account(
        &self,
        asked: RegistrationRow,
        origin: Origin,
        token_hash: Option<String>,
    ) -> Result<Login, AuthError> {
        let now = self.0.clock.now();
        let (auth, new) = (
            self.clone(),
            NewSession::new(Carrier::Bearer, origin.clone())?,
        );
        let login = self
            .0
            .store
            .write(move |tx| {
                let is_proven = match &token_hash {
                    // Of two at once, one makes the account.
                    Some(hash) if !sql::take_registration(tx, asked.id, hash)? => {
                        return Err(AuthError::NoRegistration);
                    }
                    Some(_) => true,
                    None => false,
                };
                let hash = Some(&*asked.password_hash);
                let (email, name) = (&asked.email, &asked.name);
                let id = sql::insert_account(tx, now, email, name, hash, Role::Customer)?;
                if is_proven {
                    sql::prove(tx, now, id)?;
                }
                if let Some(language) = &asked.language {
                    sql::set_language(tx, id, language)?;
                }
                let login = auth.begin_session(tx, now, id, &new)?;
                (auth.0.surroundings.on_registered)(tx, now, &login.account)?;
                Ok(login)
            })
            .await?;
        let id = Some(login.account.id);
        self.tell(Event::UserCreated, &origin, id, Role::Customer.word());
        Ok(login)
    }
}

/// What the mail about a registration says; `None` once it is used up or out of date. Each call makes the
/// token of the one before worthless.
pub fn notice(tx: &mut Tx<'_>, now: Timestamp, id: i64) -> Result<Option<Notice>, AuthError> {
    let token = new_token("reg_")?;
    let Some(asked) = sql::set_registration_token(tx, now, id, &token.hash)? else {
        return Ok(None);
    };
    let RegistrationRow {
        email, language, ..
    } = asked;
    let language = language.as_deref().and_then(Language::from_word);
    if sql::account_by_email(tx, &email)?.is_none() {
        return Ok(Some(Notice::Prove {
            email,
            language,
            token: token.text,
        }));
    }
    Ok(Some(Notice::HasAccount { email, language }))
}

/// Drops registrations past their end, a bounded number at once; answers how many.
pub fn purge(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    sql::purge_registrations(tx, now)
}
