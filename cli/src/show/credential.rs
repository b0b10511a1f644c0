//! Credentials in people's words.

use ephor_proto::http::admin::Credential;
use ephor_proto::postgres::short_login;
use ephor_proto::state::credential::CredentialState;

/// `jwt` is a `token` to people; a word from a newer broker stays as it is.
pub fn kind_word(kind: &str) -> &str {
    match kind {
        "jwt" => "token",
        "x509" => "cert",
        "postgres" => "login",
        other => other,
    }
}

/// `token k-7q2m for billing`, `login eph_orders_7kq2 (k-7q2m)`; a certificate of one's own is for nobody in particular.
pub fn credential_line(kind: &str, id: &str, scope: &str) -> String {
    match scope {
        // It is called by its name everywhere else.
        role if kind == "postgres" && !role.is_empty() => {
            format!("{} {} ({id})", kind_word(kind), short_login(role))
        }
        "" => format!("{} {id}", kind_word(kind)),
        scope => format!("{} {id} for {scope}", kind_word(kind)),
    }
}

/// What is only published is called *listed*, never dead.
pub fn state_word(state: &str) -> &str {
    if state == CredentialState::Contained.as_str() {
        "listed"
    } else {
        state
    }
}

/// `spiffe://TD/orders/web` as `orders/web`: an installation has one trust domain.
pub fn path_of(spiffe_id: &str) -> &str {
    let rest = spiffe_id.strip_prefix("spiffe://");
    rest.and_then(|rest| rest.split_once('/'))
        .map_or(spiffe_id, |(_, path)| path)
}

/// How many of these are neither refused nor listed yet, or are late.
pub fn unsettled(credentials: &[Credential]) -> usize {
    let settled = |c: &Credential| {
        let state = c.state.parse::<CredentialState>();
        c.overdue.is_none() && state.is_ok_and(CredentialState::is_settled)
    };
    credentials
        .iter()
        .filter(|credential| !settled(credential))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!((kind_word("jwt"), kind_word("ssh")), ("token", "ssh"));
        assert_eq!(
            (state_word("contained"), state_word("dead")),
            ("listed", "dead")
        );
        assert_eq!(path_of("spiffe://dev.ephor/dev/bo"), "dev/bo");
        assert_eq!(
            (path_of("spiffe://dev.ephor"), path_of("x")),
            ("spiffe://dev.ephor", "x")
        );
    }
}
