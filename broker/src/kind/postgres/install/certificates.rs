//! Whether a server would let in a login with a certificate of ours: asked without one.
//!
//! `pg_hba.conf` and `ssl_ca_file` are files that the broker's login may not read. But the server says
//! in each handshake which CAs it trusts, and to somebody who comes as `ephor_certificate` by which
//! line it judges him: that role is in itself, as each such login is in it, and lets nobody in.

use std::path::Path;
use std::sync::Arc;

use ephor_crypto::tls::{Wanted, database_client_asking};
use ephor_crypto::x509::CaCertificate;
use ephor_proto::postgres::Address;
use tokio::time::timeout;

use super::check::{Finding, Grade};
use crate::kind::postgres::CERTIFICATE;
use crate::kind::postgres::access::{Access, Tls};
use crate::kind::postgres::connect::{Purpose, config};
use crate::kind::postgres::failed::words;
use crate::kind::postgres::name::Ident;
use crate::kind::postgres::tls::Encrypt;
use crate::limits;

/// What is asked of a server that logins with a certificate are for.
#[derive(Debug, Clone)]
pub struct ByCertificate {
    /// Databases that they are for.
    pub databases: Vec<Ident>,
    /// The CA that issues them now, PEM; none: nobody could be asked.
    pub issuing: Option<String>,
    /// All CAs that the server needs, one that is to follow included, PEM.
    pub all: String,
}

/// How a server took somebody who came without a certificate.
enum Line {
    /// It wants one of ours.
    Certificate,
    /// It would, and trusts no CA at all.
    NoCa,
    /// There is no line for him, or one that refuses.
    None,
    /// A line before it asks for something else.
    Another(&'static str),
    /// It could not be told.
    Unknown(String),
}

/// Looks at every host that is written to, for each of the databases.
pub async fn check_certificates(access: &Access, wanted: &ByCertificate) -> Vec<Finding> {
    let mut found = Vec::new();
    for host in &access.hosts {
        let Tls::VerifyFull { ca_file } = &access.tls else {
            found.push(Finding::not(
                Grade::Wrong,
                format!("{host} is reached without TLS, in which alone a certificate is shown"),
                "tls = \"verify-full\" and a host in `url`",
            ));
            continue;
        };
        let asked = Arc::new(Wanted::default());
        let mut lines = Vec::new();
        for database in &wanted.databases {
            let line = line(host, database, ca_file, &asked).await;
            lines.push(told(host, database, &line));
        }
        found.extend(cas(host, wanted, &asked));
        found.extend(lines);
    }
    found
}

/// Comes without a certificate and without a password.
async fn line(host: &Address, database: &Ident, ca_file: &Path, asked: &Arc<Wanted>) -> Line {
    let roots = match tokio::fs::read(ca_file).await {
        Ok(roots) => roots,
        Err(why) => return Line::Unknown(format!("CA file {}: {why}", ca_file.display())),
    };
    let tls = match database_client_asking(&roots, asked) {
        Ok(tls) => Encrypt::of(Arc::new(tls)),
        Err(why) => return Line::Unknown(format!("CA file {}: {why}", ca_file.display())),
    };
    let purpose = Purpose {
        database: database.as_str(),
        lock_wait: limits::PG_MINT_LOCK,
    };
    let mut config = config(CERTIFICATE, host, purpose);
    config.ssl_mode(tokio_postgres::config::SslMode::Require);
    match timeout(limits::PG_CONNECT, config.connect(tls)).await {
        Ok(Ok(_)) => Line::Another("nothing"),
        Ok(Err(why)) => of(&why),
        Err(_) => Line::Unknown("no answer".to_owned()),
    }
}

/// By the server's words, in whatever language it has: what is not known is not guessed.
fn of(why: &tokio_postgres::Error) -> Line {
    let said = words(why);
    let says = |part: &str| said.contains(part);
    if says("requires a valid client certificate") {
        Line::Certificate
    } else if says("root certificate store") {
        Line::NoCa
    } else if says("pg_hba.conf") {
        Line::None
    } else if says("password") {
        Line::Another("a password")
    } else if says("not permitted to log in") {
        Line::Another("nothing")
    } else {
        Line::Unknown(said)
    }
}

fn told(host: &Address, database: &Ident, line: &Line) -> Finding {
    let name = database.quoted();
    let mend = format!(
        "a line in pg_hba.conf, after those of the broker and of people, before those for everybody, then \
         SELECT pg_reload_conf():  \
         hostssl   {name}   +{CERTIFICATE}   all   cert"
    );
    match line {
        Line::Certificate => Finding::ok(format!(
            "{host} asks logins with a certificate for it, in {name}"
        )),
        Line::NoCa => Finding::not(
            Grade::Wrong,
            format!("{host} asks for certificates in {name} and trusts no CA"),
            TRUST,
        ),
        Line::None => Finding::not(
            Grade::Wrong,
            format!("{host} has no line for logins with a certificate, in {name}"),
            mend,
        ),
        Line::Another(what) => Finding::not(
            Grade::Wrong,
            format!("{host} asks logins with a certificate for {what}, in {name}"),
            mend,
        ),
        Line::Unknown(why) => Finding::not(
            Grade::Unknown,
            format!("{host}: whether a login with a certificate is let in, in {name}: {why}"),
            mend,
        ),
    }
}

/// What makes the server trust our CA.
const TRUST: &str = "ephor target ca > FILE, beside the server's data; then \
                     ALTER SYSTEM SET ssl_ca_file = 'FILE'; SELECT pg_reload_conf(). Where SHOW ssl_ca_file \
                     names one already: ephor target ca >> that one, and only the reload";

fn cas(host: &Address, wanted: &ByCertificate, asked: &Wanted) -> Vec<Finding> {
    let Some(issuing) = &wanted.issuing else {
        return vec![Finding::not(
            Grade::Unknown,
            "whether the server trusts the CA of logins with a certificate: the broker was not asked",
            "run this where EPHOR_ADMIN_SOCKET is",
        )];
    };
    if !asked.is_asked_for() {
        return vec![Finding::not(
            Grade::Wrong,
            format!("{host} asks nobody for a certificate: ssl_ca_file is not set"),
            TRUST,
        )];
    }
    let parsed = |pem: &str| CaCertificate::all_from_pem(pem).unwrap_or_default();
    if !parsed(issuing).iter().all(|ca| asked.takes(ca)) {
        return vec![Finding::not(
            Grade::Wrong,
            format!("{host} does not trust the CA of logins with a certificate"),
            TRUST,
        )];
    }
    if !parsed(&wanted.all).iter().all(|ca| asked.takes(ca)) {
        return vec![Finding::not(
            Grade::Weak,
            format!("{host} trusts the CA that issues, and not yet the one that follows it"),
            TRUST,
        )];
    }
    vec![Finding::ok(format!(
        "{host} trusts the CA of logins with a certificate"
    ))]
}
