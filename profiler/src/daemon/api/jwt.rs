//! Tokens of a site's own login (JWT): that its issuer signed them, for this service and until later than now, and what they
//! open.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use jsonwebtoken::{
    DecodingKey, Validation, decode, decode_header,
    jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use serde_json::Value;

use super::token::{Caller, Role};
use crate::daemon::config::Jwt;

/// Clocks may differ by so much, s.
const LEEWAY_S: u64 = 30;
/// Keys of an issuer that are looked at.
const MAX_KEYS: usize = 64;
/// Longer ones are not looked at, bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// Who signs, and what it takes to be let in.
#[derive(Clone)]
pub struct Issuer {
    settings: Jwt,
    keys: Vec<(Jwk, DecodingKey)>,
    validation: Validation,
}

impl Issuer {
    /// Reads the issuer's keys (RFC 7517, a set).
    pub fn load(settings: &Jwt) -> Result<Issuer> {
        let file: &Path = &settings.keys_file;
        let text = crate::text::read_to_parse(file).with_context(|| file.display().to_string())?;
        Issuer::parse(settings, &text).with_context(|| file.display().to_string())
    }

    fn parse(settings: &Jwt, keys: &str) -> Result<Issuer> {
        let set: JwkSet = serde_json::from_str(keys).context("this is no set of keys (JWKS)")?;
        let signs = |key: &Jwk| {
            let any = |of: &PublicKeyUse| *of == PublicKeyUse::Signature;
            key.common.public_key_use.as_ref().is_none_or(any)
        };
        let usable = set.keys.into_iter().filter(signs).take(MAX_KEYS).filter_map(|key| {
            let decoding = DecodingKey::from_jwk(&key).ok()?;
            let fits = settings.algorithms.iter().any(|algorithm| algorithm.family() == decoding.family());
            fits.then_some((key, decoding))
        });
        let keys: Vec<(Jwk, DecodingKey)> = usable.collect();
        let Some(first) = settings.algorithms.first().filter(|_| !keys.is_empty()) else {
            bail!("no key for daemon.jwt.algorithms is in it");
        };
        let mut validation = Validation::new(*first);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&[&settings.audience]);
        (validation.validate_nbf, validation.leeway) = (true, LEEWAY_S);
        Ok(Issuer { settings: settings.clone(), keys, validation })
    }

    /// Who a token names, and what it opens; `None` for one that proves nothing, or opens nothing.
    pub fn caller(&self, given: &str) -> Option<Caller> {
        if given.len() > MAX_TOKEN {
            return None;
        }
        let header = decode_header(given).ok().filter(|of| self.settings.algorithms.contains(&of.alg))?;
        let validation = Validation { algorithms: vec![header.alg], ..self.validation.clone() };
        let mut keys = self.keys.iter().filter(|(key, decoding)| {
            let of = &key.common;
            let is_named = header.kid.is_none() || of.key_id.is_none() || of.key_id == header.kid;
            let is_for = of.key_algorithm.is_none_or(|of| of == KeyAlgorithm::from(header.alg));
            is_named && is_for && decoding.family() == header.alg.family()
        });
        let claims = keys.find_map(|(_, key)| decode::<Value>(given, key, &validation).ok())?.claims;
        let names = |wanted: &[String]| {
            let mut given = words_of(claim(&claims, &self.settings.role_claim));
            given.any(|name| wanted.iter().any(|wanted| wanted == name))
        };
        let role = match () {
            () if names(&self.settings.admins) => Role::Admin,
            () if names(&self.settings.readers) => Role::Reader,
            () => return None,
        };
        let who = claims["sub"].as_str().unwrap_or("without a name").to_owned();
        Some(Caller { role, who, until_unix_s: claims["exp"].as_f64().map(|exp| exp as u64 + LEEWAY_S) })
    }
}

/// A claim by its name, or by the names on the way to it with dots between.
fn claim<'a>(claims: &'a Value, name: &str) -> &'a Value {
    match claims.get(name) {
        Some(found) => found,
        None => name.split('.').fold(claims, |of, name| &of[name]),
    }
}

/// What is in a list of names, or in one text with blanks between them.
fn words_of(claim: &Value) -> impl Iterator<Item = &str> {
    let list = claim.as_array().into_iter().flatten().filter_map(Value::as_str);
    list.chain(claim.as_str().into_iter().flat_map(str::split_whitespace))
}

#[cfg(test)]
pub mod fixtures {
    //! An issuer whose tokens can be made.

    use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::KeyAlgorithm};
    use serde_json::json;

    use super::*;

    /// A key (P-256) with its name, and the set of keys with its public half.
    pub struct Signer {
        key: EncodingKey,
        name: &'static str,
        /// As the issuer publishes it.
        pub published: String,
    }

    impl Signer {
        pub fn new(name: &'static str) -> Signer {
            let pair = rcgen::KeyPair::generate().unwrap();
            let key = EncodingKey::from_ec_der(&pair.serialize_der());
            let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
            public.common.key_id = Some(name.to_owned()).filter(|name| !name.is_empty());
            public.common.key_algorithm = Some(KeyAlgorithm::ES256);
            let published = json!({ "keys": [public] }).to_string();
            Signer { key, name, published }
        }

        /// A token with these claims, beside those that it needs.
        pub fn token(&self, claims: Value) -> String {
            let mut all =
                json!({ "iss": "https://login.test", "aud": "profiler", "exp": now() + 600, "sub": "ada" });
            all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
            let mut header = Header::new(Algorithm::ES256);
            header.kid = Some(self.name.to_owned()).filter(|name| !name.is_empty());
            jsonwebtoken::encode(&header, &all, &self.key).unwrap()
        }
    }

    /// s since 1970.
    pub fn now() -> u64 {
        jsonwebtoken::get_current_timestamp()
    }

    /// What a configuration says of it.
    pub fn settings(keys_file: &Path) -> Jwt {
        Jwt {
            issuer: "https://login.test".into(),
            audience: "profiler".into(),
            // As by itself: a key is of one family only.
            algorithms: vec![Algorithm::RS256, Algorithm::ES256],
            keys_file: keys_file.to_owned(),
            role_claim: "realm.roles".into(),
            readers: vec!["sre".into()],
            admins: vec!["sre-lead".into()],
        }
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    use serde_json::json;

    use super::{
        fixtures::{Signer, now, settings},
        *,
    };

    #[test]
    fn a_token_opens_what_its_issuer_says_and_only_here_and_now() {
        let signer = Signer::new("a");
        let issuer = Issuer::parse(&settings(Path::new("")), &signer.published).unwrap();
        let role = |claims: Value| issuer.caller(&signer.token(claims)).map(|caller| caller.role);
        let with = |roles: Value| json!({ "realm": { "roles": roles } });
        assert_eq!(role(with(json!(["dev", "sre"]))), Some(Role::Reader));
        assert_eq!(role(with(json!("dev sre-lead"))), Some(Role::Admin));
        assert_eq!(role(json!({ "realm.roles": ["sre"] })), Some(Role::Reader), "a name with a dot");
        assert_eq!(role(with(json!(["dev"]))), None, "neither");
        assert_eq!(role(with(json!([]))), None);
        for wrong in [
            json!({ "iss": "https://else.test" }),
            json!({ "aud": "billing" }),
            json!({ "aud": null }),
            json!({ "exp": now() - 2 * LEEWAY_S }),
            json!({ "exp": "tomorrow" }),
            json!({ "exp": null }),
            json!({ "nbf": now() + 2 * LEEWAY_S }),
        ] {
            let mut claims = with(json!(["sre"]));
            claims.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
            assert_eq!(role(claims), None, "{wrong}");
        }
        let good = signer.token(with(json!(["sre"])));
        assert_eq!(issuer.caller(&good).unwrap().who, "ada");
        assert_eq!(issuer.caller(&Signer::new("a").token(with(json!(["sre"])))).map(|of| of.role), None);
        assert_eq!(issuer.caller(&Signer::new("b").token(with(json!(["sre"])))).map(|of| of.role), None);
    }

    #[test]
    fn neither_an_unsigned_token_nor_one_signed_with_the_public_key_is_believed() {
        let signer = Signer::new("a");
        let issuer = Issuer::parse(&settings(Path::new("")), &signer.published).unwrap();
        let good = signer.token(json!({ "realm": { "roles": ["sre"] } }));
        assert!(issuer.caller(&good).is_some());
        let (_, rest) = good.split_once('.').unwrap();
        let (claims, _) = rest.split_once('.').unwrap();
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"; // {"alg":"none","typ":"JWT"}
        let signed = EncodingKey::from_secret(signer.published.as_bytes());
        let claims_of = json!({ "realm": { "roles": ["sre"] }, "iss": "https://login.test", "aud": "profiler", "exp": now() + 600 });
        let secret = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims_of, &signed).unwrap();
        for token in [
            format!("{none}.{claims}."),
            format!("{none}.{claims}"),
            secret,
            good[..good.len() - 2].to_owned(),
            format!("{good}.x"),
            "x".repeat(MAX_TOKEN + 1),
            String::new(),
        ] {
            assert!(issuer.caller(&token).is_none(), "{token:.80}");
        }
    }

    /// While an issuer changes its keys there are two, and some give them no names.
    #[test]
    fn each_key_of_the_set_is_tried() {
        let (old, new) = (Signer::new(""), Signer::new(""));
        let of =
            |signer: &Signer| serde_json::from_str::<Value>(&signer.published).unwrap()["keys"][0].clone();
        let both = json!({ "keys": [of(&old), of(&new)] }).to_string();
        let issuer = Issuer::parse(&settings(Path::new("")), &both).unwrap();
        for signer in [&old, &new] {
            let caller = issuer.caller(&signer.token(json!({ "realm.roles": "sre" }))).unwrap();
            assert!(caller.until_unix_s.is_some_and(|until| until >= now() + 600));
        }
    }

    #[test]
    fn keys_that_cannot_be_used_are_refused() {
        let signer = Signer::new("a");
        let of =
            |settings: &Jwt, keys: &str| Issuer::parse(settings, keys).map(drop).unwrap_err().to_string();
        let wanted = settings(Path::new(""));
        assert_eq!(of(&wanted, "nonsense"), "this is no set of keys (JWKS)");
        assert_eq!(of(&wanted, "{\"keys\": []}"), "no key for daemon.jwt.algorithms is in it");
        let rsa = Jwt { algorithms: vec![Algorithm::RS256], ..wanted.clone() };
        assert_eq!(of(&rsa, &signer.published), "no key for daemon.jwt.algorithms is in it");
        let encrypts = signer.published.replacen("\"kid\"", "\"use\":\"enc\",\"kid\"", 1);
        assert_eq!(of(&wanted, &encrypts), "no key for daemon.jwt.algorithms is in it");
    }
}
