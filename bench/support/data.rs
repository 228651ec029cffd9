//! A data directory with nothing in it but an operator, made through the library while no server runs.

use std::path::PathBuf;

use onrush::app;
use onrush::auth::{self, AuthError, NewAccount, NewKey, Role, Scope};
use onrush::config::Settings;

use crate::support::temporary;

/// See the module. It is gone when dropped.
pub struct Data {
    /// Where it is.
    pub path: PathBuf,
    /// An API key that may do everything an operator may.
    pub key: String,
    _dir: tempfile::TempDir,
}

impl Data {
    /// Makes it.
    pub fn new() -> anyhow::Result<Self> {
        let dir = temporary()?;
        let mut settings = Settings::default();
        settings.data.dir = dir.path().join("data");
        let opened = app::open_data(&settings)?;
        let (store, now) = (&opened.store, opened.clock.now());
        let email = "operator@example.com";
        let operator = NewAccount::checked(email, "Operator", "a long enough one", &settings.auth)?;
        let key = store
            .write::<_, AuthError>(move |tx| {
                auth::create_account(tx, now, &operator, Role::Admin)?;
                let new = NewKey {
                    name: "bench".to_owned(),
                    scopes: vec![
                        Scope::Catalogue,
                        Scope::Orders,
                        Scope::Payments,
                        Scope::Sales,
                        Scope::Tasks,
                        Scope::Work,
                        Scope::Reports,
                        Scope::System,
                        Scope::Cache,
                    ],
                    expires_at: None,
                };
                auth::create_api_key_for(tx, now, email, &new, 1).map(|(_, key)| key)
            })
            .blocking()?;
        opened.close();
        Ok(Self {
            path: settings.data.dir,
            key,
            _dir: dir,
        })
    }
}
