//! Where a login comes from, and the places that an account has logged in from before: networks, and
//! browsers that hold a device cookie (as OWASP's "device cookies" describe them).
//!
//! Invariants: a place only ever lets its caller be throttled by itself instead of with strangers; it
//! is worth nothing without the password. Only a success makes one; each account has a bounded number
//! of each kind, of which the one unused for longest gives way. Stored are digests: of a random token,
//! and of networks so that a look at the table shows no addresses (which a search through all of them
//! would find out).

use std::net::IpAddr;

use super::throttle::KnownPlace;
use super::{PlaceKind, Token, UserId, hash_token, sql};
use crate::clock::Timestamp;
use crate::http::{RequestInfo, network_of};
use crate::monitor::security::Who;
use crate::store::{StoreError, Tx};

/// Beginning of a device's token.
pub(super) const DEVICE_PREFIX: &str = "ond_";

/// Where a login comes from.
#[derive(Clone)]
pub struct Origin {
    /// The client's address.
    pub address: IpAddr,
    /// The request.
    info: RequestInfo,
    /// The device token that it sent.
    device: Option<Token>,
    /// Whether it keeps a device token.
    is_browser: bool,
    /// Whether another site's page sent it.
    pub(super) is_foreign: bool,
}

impl Origin {
    /// Of this request; a browser may hold the token of an earlier login there.
    pub fn new(info: RequestInfo, device_token: Option<&str>, is_browser: bool) -> Self {
        let device = device_token
            .filter(|token| token.starts_with(DEVICE_PREFIX))
            .map(|token| Token {
                text: token.to_owned(),
                hash: hash_token(token),
            });
        Self {
            address: info.client().0,
            info,
            is_browser: is_browser || device.is_some(),
            device,
            is_foreign: false,
        }
    }

    /// This origin as an event tells of it.
    pub(super) fn who(&self) -> Who<'_> {
        Who {
            address: Some(self.address),
            request_id: Some(self.info.id().as_str()),
            ..Who::default()
        }
    }

    /// Notes whether another site's page sent it.
    pub fn foreign(mut self, is_foreign: bool) -> Self {
        self.is_foreign = is_foreign;
        self
    }

    /// A client that asks for a cookie keeps cookies.
    pub fn keeps_cookies(mut self, keeps: bool) -> Self {
        self.is_browser |= keeps;
        self
    }

    fn address_hash(&self) -> String {
        hash_token(&format!("network {}", network_of(self.address)))
    }

    /// The place that this account is known to log in from, if this is one; a browser is told apart
    /// from others at its address, so it comes first.
    pub(super) fn known_to(
        &self,
        tx: &mut Tx<'_>,
        user: UserId,
    ) -> Result<Option<PlaceKind>, StoreError> {
        if let Some(device) = &self.device
            && sql::is_known_place(tx, &device.hash, user)?
        {
            return Ok(Some(PlaceKind::Device));
        }
        Ok(sql::is_known_place(tx, &self.address_hash(), user)?.then_some(PlaceKind::Address))
    }

    /// This place as the throttle counts it.
    pub(super) fn place(&self, kind: PlaceKind) -> KnownPlace<'_> {
        match (kind, &self.device) {
            (PlaceKind::Device, Some(device)) => KnownPlace::Device(&device.hash),
            (PlaceKind::Device | PlaceKind::Address, _) => KnownPlace::Address(self.address),
        }
    }

    /// Notes that the account has logged in from here; answers the device token that a browser is to
    /// hold from now on.
    pub(super) fn remember(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        user: UserId,
        fresh: &Token,
        places_max: u32,
    ) -> Result<Option<String>, StoreError> {
        let most = i64::from(places_max);
        sql::note_place(tx, now, &self.address_hash(), user, PlaceKind::Address)?;
        sql::forget_places_beyond(tx, user, PlaceKind::Address, most)?;
        if !self.is_browser {
            return Ok(None);
        }
        // A token that no login here ever handed out may have been planted. Several accounts may
        // share a browser, and so a token.
        let device = match &self.device {
            Some(held) if sql::is_device(tx, &held.hash)? => held,
            _ => fresh,
        };
        sql::note_place(tx, now, &device.hash, user, PlaceKind::Device)?;
        sql::forget_places_beyond(tx, user, PlaceKind::Device, most)?;
        Ok(Some(device.text.clone()))
    }
}

/// Forgets places that were not used for so many seconds, a bounded number at once.
pub fn purge_places(
    tx: &mut Tx<'_>,
    now: Timestamp,
    unused_seconds: i64,
) -> Result<u64, StoreError> {
    sql::purge_places(tx, now.plus_seconds(-unused_seconds))
}
