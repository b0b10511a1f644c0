//! Extra claims of a token: TOML values as JSON, and the names that policy may not take.
//!
//! A claim that a verifier gives meaning to is set by the stages that checked it, never by
//! a line of policy: a `sub` or `scope` there would forge what they prove.

use serde_json::{Map, Number, Value};
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use ephor_proto::limits::MAX_JSON_INTEGER;

use super::limits::{MAX_CLAIM_DEPTH, MAX_CLAIM_NAME_BYTES, MAX_CLAIMS, MAX_CLAIMS_BYTES};
use super::reader::{Reader, Section, shown};

/// Names of the IANA registry "JSON Web Token Claims" (and of OpenID Connect's `s_hash`).
/// Compared without regard to case, since some JSON libraries (Go's `encoding/json`) match
/// names that way.
const REGISTERED: [&str; 132] = [
    "...",
    "_claim_names",
    "_claim_sources",
    "_sd",
    "_sd_alg",
    "ace_profile",
    "acr",
    "act",
    "address",
    "also_known_as",
    "amr",
    "at_hash",
    "at_use_nbr",
    "atc",
    "ath",
    "attest",
    "aud",
    "auth_time",
    "authorization_details",
    "azp",
    "birth_family_name",
    "birth_given_name",
    "birth_middle_name",
    "birthdate",
    "bootcount",
    "bootseed",
    "c_hash",
    "cdnicrit",
    "cdniets",
    "cdniip",
    "cdnistd",
    "cdnistt",
    "cdniuc",
    "cdniv",
    "client_id",
    "cnf",
    "cnonce",
    "crn",
    "dbgstat",
    "dest",
    "div",
    "dloas",
    "eat_nonce",
    "eat_profile",
    "email",
    "email_verified",
    "entitlements",
    "events",
    "exi",
    "exp",
    "family_name",
    "gender",
    "geohash",
    "given_name",
    "groups",
    "htm",
    "htu",
    "hwmodel",
    "hwversion",
    "iat",
    "intuse",
    "iss",
    "jcard",
    "jti",
    "jwks",
    "locale",
    "location",
    "manifests",
    "may_act",
    "measres",
    "measurements",
    "middle_name",
    "mky",
    "msgi",
    "msisdn",
    "name",
    "nationalities",
    "nbf",
    "nickname",
    "nonce",
    "oemboot",
    "oemid",
    "opt",
    "orig",
    "origid",
    "phone_number",
    "phone_number_verified",
    "picture",
    "place_of_birth",
    "preferred_username",
    "profile",
    "rcd",
    "rcdi",
    "rdap_allowed_purposes",
    "rdap_dnt_allowed",
    "roles",
    "rph",
    "s_hash",
    "salutation",
    "scope",
    "sd_hash",
    "sid",
    "sig_val_claims",
    "sip_callid",
    "sip_cseq_num",
    "sip_date",
    "sip_from_tag",
    "sip_via_branch",
    "sph",
    "status",
    "sub",
    "sub_id",
    "sub_jwk",
    "submods",
    "sueids",
    "swname",
    "swversion",
    "title",
    "toe",
    "token_introspection",
    "txn",
    "ueid",
    "updated_at",
    "uptime",
    "vc",
    "vct",
    "verified_claims",
    "vot",
    "vp",
    "vtm",
    "website",
    "zoneinfo",
];

/// The claims of `claims = { … }`.
pub(super) fn claims(reader: &mut Reader<'_>, section: &Section<'_>) -> Map<String, Value> {
    let mut claims = Map::new();
    for (key, value) in section.table.iter() {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        if let Some(problem) = name_problem(name) {
            let what = format!("claim {} {problem}", shown(name));
            reader.refuse(at, what, "Give it a name of your own, such as plan.");
            continue;
        }
        match to_json(value, MAX_CLAIM_DEPTH) {
            Ok(json) => {
                claims.insert(name.to_owned(), json);
            }
            Err((at, problem)) => {
                reader.refuse(at, format!("claim {} {problem}", shown(name)), VALUES)
            }
        }
    }
    if claims.len() > MAX_CLAIMS {
        reader.refuse(
            section.at,
            format!("{} claims, more than {MAX_CLAIMS}", claims.len()),
            "",
        );
    }
    // Serialised size of plain JSON values; writing them cannot fail.
    let size = serde_json::to_string(&claims).map_or(0, |text| text.len());
    if size > MAX_CLAIMS_BYTES {
        let what = format!("the claims are {size} bytes of JSON, more than {MAX_CLAIMS_BYTES}");
        reader.refuse(
            section.at,
            what,
            "Every request carries the token; keep it small.",
        );
    }
    claims
}

const VALUES: &str = "Claims hold strings, whole numbers up to 2^53-1, booleans, lists and tables.";

fn name_problem(name: &str) -> Option<&'static str> {
    if REGISTERED
        .iter()
        .any(|registered| registered.eq_ignore_ascii_case(name))
    {
        return Some("is a registered claim, which policy may not set");
    }
    let odd = name.chars().any(|c| c.is_control() || c.is_whitespace());
    match name {
        "" => Some("has an empty name"),
        long if long.len() > MAX_CLAIM_NAME_BYTES => Some("has a name longer than 128 bytes"),
        _ if odd => Some("has blanks or control characters in its name"),
        _ => None,
    }
}

type NotJson = (usize, &'static str);

fn to_json(value: &Spanned<DeValue<'_>>, depth: usize) -> Result<Value, NotJson> {
    let at = value.span().start;
    match value.get_ref() {
        DeValue::String(text) => Ok(Value::String(text.to_string())),
        DeValue::Boolean(flag) => Ok(Value::Bool(*flag)),
        DeValue::Integer(number) => integer(number).ok_or((at, "is too large a number")),
        DeValue::Float(_) => Err((at, "is a fraction")),
        DeValue::Datetime(_) => Err((at, "is a date")),
        DeValue::Array(_) | DeValue::Table(_) if depth == 0 => Err((at, "is nested too deeply")),
        DeValue::Array(items) => items.iter().map(|item| to_json(item, depth - 1)).collect(),
        DeValue::Table(table) => table_to_json(table, depth - 1),
    }
}

fn table_to_json(table: &DeTable<'_>, depth: usize) -> Result<Value, NotJson> {
    let mut map = Map::new();
    for (key, value) in table.iter() {
        map.insert(key.get_ref().to_string(), to_json(value, depth)?);
    }
    Ok(Value::Object(map))
}

/// Within ±(2^53 - 1): canonical JSON would round anything beyond.
fn integer(number: &DeInteger<'_>) -> Option<Value> {
    let value = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
    (value.unsigned_abs() <= MAX_JSON_INTEGER).then(|| Value::Number(Number::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claims_we_set_and_their_look_alikes_are_taken() {
        for name in [
            "iss",
            "sub",
            "aud",
            "exp",
            "nbf",
            "iat",
            "jti",
            "client_id",
            "scope",
            "cnf",
            "status",
            "act",
            "may_act",
            "azp",
            "Aud",
            "SUB",
            "Exp",
            "nonce",
            "auth_time",
            "roles",
        ] {
            assert!(name_problem(name).is_some(), "{name}");
        }
        for name in ["plan", "tenant", "https://example.com/team", "audience"] {
            assert_eq!(name_problem(name), None, "{name}");
        }
        for name in ["", "a b", "a\n", &"x".repeat(129)] {
            assert!(name_problem(name).is_some(), "{name:?}");
        }
    }

    #[test]
    fn the_list_is_sorted_and_without_doubles() {
        assert!(REGISTERED.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
