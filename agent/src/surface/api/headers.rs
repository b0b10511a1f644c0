//! Who may not speak here: browsers, proxies, and whoever was talked into forging a URL.
//!
//! A page can make a browser send a request to a loopback port, a server can be talked into
//! fetching a URL (SSRF, the reason for IMDSv2), and DNS can be made to point here. None of them
//! can set `Ephor-Local`, and what they cannot help sending is refused.

use ephor_proto::http::agent::LOCAL_HEADER;
use ephor_proto::problem::Code;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;

use crate::request::BadRequest;

/// Headers that only browsers and proxies send.
const PROXIED: [&str; 6] = [
    "origin",
    "referer",
    "cookie",
    "forwarded",
    "via",
    "x-real-ip",
];
/// Beginnings of such headers' names.
const PROXIED_PREFIXES: [&str; 2] = ["sec-fetch-", "x-forwarded-"];

/// Checks everything about a request but its path.
///
/// # Errors
/// The first rule that it breaks.
pub fn check(head: &Parts) -> Result<(), BadRequest> {
    if let Some(name) = head
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .find(|name| is_proxied(name))
    {
        let detail = format!(
            "the header `{name}` shows a browser or proxy in between; call the agent's socket directly"
        );
        return Err(BadRequest {
            code: Code::Proxied,
            detail,
        });
    }
    let mut local = head.headers.get_all(LOCAL_HEADER).iter();
    if local.next().is_none_or(|value| value != "1") || local.next().is_some() {
        let detail = "send the header `Ephor-Local: 1` with every call".to_owned();
        return Err(BadRequest {
            code: Code::HeaderRequired,
            detail,
        });
    }
    if head.uri.authority().is_some() || head.uri.scheme().is_some() {
        return Err(BadRequest::invalid(
            "the target must be a path, as /v1/token",
        ));
    }
    if head.headers.contains_key(CONTENT_ENCODING) {
        let detail = "send the body as it is, without Content-Encoding".to_owned();
        return Err(BadRequest {
            code: Code::UnsupportedMediaType,
            detail,
        });
    }
    if head.headers.contains_key(UPGRADE) {
        return Err(BadRequest::invalid("no upgrade is offered here"));
    }
    if head.headers.contains_key(CONTENT_LENGTH) && head.headers.contains_key(TRANSFER_ENCODING) {
        return Err(BadRequest::invalid(
            "Content-Length and Transfer-Encoding contradict each other",
        ));
    }
    Ok(())
}

fn is_proxied(name: &str) -> bool {
    PROXIED.contains(&name)
        || PROXIED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(target: &str, headers: &[(&str, &str)]) -> Parts {
        let request = http::Request::builder().uri(target);
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_browsers_and_proxies_send_is_refused() {
        for name in [
            "Origin",
            "Sec-Fetch-Site",
            "Sec-Fetch-Mode",
            "Sec-Fetch-Dest",
            "Sec-Fetch-User",
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "X-Forwarded-Proto",
            "X-Forwarded-Anything",
            "Forwarded",
            "Via",
            "X-Real-IP",
            "Referer",
            "Cookie",
        ] {
            let refused =
                check(&head("/v1/token", &[("Ephor-Local", "1"), (name, "")])).unwrap_err();
            assert_eq!(refused.code, Code::Proxied, "{name}");
            assert_eq!(refused.code.status(), 403);
        }
    }

    #[test]
    fn the_local_header_is_required_exactly() {
        for headers in [
            &[][..],
            &[("Ephor-Local", "0")],
            &[("Ephor-Local", "")],
            &[("Ephor-Local", "1"), ("Ephor-Local", "1")],
        ] {
            let refused = check(&head("/v1/token", headers)).unwrap_err();
            assert_eq!(
                (refused.code, refused.code.status()),
                (Code::HeaderRequired, 403),
                "{headers:?}"
            );
        }
        for headers in [
            &[("ephor-local", "1")][..],
            &[("EPHOR-LOCAL", "1"), ("Host", "x"), ("User-Agent", "curl")],
        ] {
            check(&head("/v1/token", headers)).unwrap();
        }
    }

    #[test]
    fn other_forms_are_refused() {
        let local = ("Ephor-Local", "1");
        for (target, header, status) in [
            ("http://evil/v1/token", ("x", "y"), 400),
            ("/v1/token", ("Content-Encoding", "gzip"), 415),
            ("/v1/token", ("Upgrade", "h2c"), 400),
        ] {
            let refused = check(&head(target, &[local, header])).unwrap_err();
            assert_eq!(refused.code.status(), status, "{target} {header:?}");
        }
        let both = [
            local,
            ("Content-Length", "3"),
            ("Transfer-Encoding", "chunked"),
        ];
        assert_eq!(
            check(&head("/v1/credentials", &both))
                .unwrap_err()
                .code
                .status(),
            400
        );
    }
}
