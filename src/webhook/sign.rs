//! Signatures as [Standard Webhooks](https://www.standardwebhooks.com) writes them down.
//!
//! Invariants: a secret has at least 192 random bits; what is signed is `id.timestamp.body`, byte
//! for byte what is sent; with two secrets there are two signatures, the new one's first.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use rand::TryRngCore;
use sha2::Sha256;

/// What every secret begins with.
const PREFIX: &str = "whsec_";
/// Random bytes of a new secret.
const NEW_BYTES: usize = 32;

/// A signing secret. Its debug output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret {
    text: String,
    key: Vec<u8>,
}

impl SigningSecret {
    /// A new one; `None` if the system gave no random numbers.
    pub fn random() -> Option<Self> {
        let mut key = vec![0u8; NEW_BYTES];
        rand::rngs::OsRng.try_fill_bytes(&mut key).ok()?;
        let text = format!("{PREFIX}{}", STANDARD.encode(&key));
        Some(Self { text, key })
    }

    /// Reads `whsec_` and 24 to 64 bytes in base64.
    pub fn parse(text: &str) -> Option<Self> {
        let key = STANDARD.decode(text.strip_prefix(PREFIX)?).ok()?;
        (24..=64).contains(&key.len()).then(|| Self {
            text: text.to_owned(),
            key,
        })
    }

    /// The secret itself, for its owner and for its row.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Its beginning, enough to tell it from another.
    pub fn masked(&self) -> String {
        let shown: String = self.text.chars().take(PREFIX.len() + 4).collect();
        format!("{shown}…")
    }

    /// `v1,` and the HMAC-SHA256 in base64.
    pub fn sign(&self, id: &str, seconds: i64, body: &str) -> Option<String> {
        // HMAC takes a key of any length; the type does not know that.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(format!("{id}.{seconds}.").as_bytes());
        mac.update(body.as_bytes());
        Some(format!(
            "v1,{}",
            STANDARD.encode(mac.finalize().into_bytes())
        ))
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest;

    use super::*;

    /// HMAC as RFC 2104 writes it, on nothing but the hash.
    fn by_hand(key: &[u8], message: &[u8]) -> String {
        let mut block = [0u8; 64];
        block[..key.len()].copy_from_slice(key);
        let pad = |with: u8| block.map(|byte| byte ^ with);
        let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message);
        let outer = Sha256::new().chain_update(pad(0x5c));
        STANDARD.encode(outer.chain_update(inner.finalize()).finalize())
    }

    #[test]
    fn the_published_example_comes_out() {
        let secret = SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("valid");
        assert_eq!(
            secret.sign(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                "{\"test\": 2432232314}"
            ),
            Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned())
        );
    }

    #[test]
    fn another_computation_agrees_and_secrets_stay_hidden() {
        let secret = SigningSecret::random().expect("random");
        let again = SigningSecret::parse(secret.reveal()).expect("its own text is valid");
        assert_eq!(again, secret);
        let signed = secret.sign("evt_1", 5, "杯子").expect("signed");
        let expected = by_hand(&secret.key, "evt_1.5.杯子".as_bytes());
        assert_eq!(signed, format!("v1,{expected}"));
        assert!(!format!("{secret:?}").contains(secret.reveal()));
        for bad in [
            "",
            "whsec_",
            "whsec_MfKQ",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_?",
        ] {
            assert_eq!(SigningSecret::parse(bad), None, "{bad}");
        }
    }
}
