//! The stage of the tour: a directory, a policy, and the program `orders-web`, which is this
//! binary under a name of its own, so that policy can tell it from the service.

use std::io::Read;
use std::path::{Path, PathBuf};

use ephor_crypto::digest::{Sha256Hasher, hex};

use crate::exit::Failure;
use crate::verb::dev::{Database, Layout, PolicyFrom};

/// Who the service is to its callers.
pub const AUDIENCE: &str = "billing";
/// What the program asks for.
pub const ENTITLEMENT: &str = "billing-api";
/// Who the service is in TLS.
pub const SERVICE_ID: &str = "spiffe://demo.ephor/billing/api";
/// Who the program is in TLS.
pub const PROGRAM_ID: &str = "spiffe://demo.ephor/orders/web";
/// Name of the program.
pub const PROGRAM: &str = "orders-web";
/// Read at once when hashing.
const PIECE: usize = 1 << 20;

/// The directory with the program in it.
pub struct Scene {
    layout: Layout,
    program: PathBuf,
}

/// Who plays.
pub struct Cast {
    /// Path of the program.
    pub program: PathBuf,
}

impl Scene {
    /// Makes it.
    ///
    /// # Errors
    /// When the directory or the program cannot be made.
    pub fn make() -> Result<Self, Failure> {
        let layout = Layout::make(None, "ephor-demo.")?;
        let program = layout.dir().join(PROGRAM);
        let own = own_path()?;
        // Not a second link: attestation sees the file's change time, which any link made or
        // removed anywhere moves.
        std::fs::copy(&own, &program)
            .map_err(|why| Failure::local(format!("cannot make {}", program.display()), why))?;
        Ok(Self { layout, program })
    }

    /// For those who put something there before it is played.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where everything is.
    pub fn dir(&self) -> &Path {
        self.layout.dir()
    }

    /// With the policy in place.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn into_parts(self, database: Option<&Database>) -> Result<(Layout, Cast), Failure> {
        let hash = sha256(&self.program)?;
        let mut text = policy(&self.program, &own_path()?, &hash, database);
        if let Some(database) = database {
            text.push_str(&database.table("team:orders"));
        }
        let layout = self
            .layout
            .with_policy(PolicyFrom::File("orders.toml", text))?;
        Ok((
            layout,
            Cast {
                program: self.program,
            },
        ))
    }
}

fn own_path() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|why| Failure::local("cannot find this program's own file", why))
}

fn sha256(path: &Path) -> Result<String, Failure> {
    let failed = |why| Failure::local(format!("cannot read {}", path.display()), why);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut hasher = Sha256Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece).map_err(failed)?;
        if read == 0 {
            return Ok(hex(&hasher.finish()));
        }
        hasher.update(piece.get(..read).unwrap_or_default());
    }
}

fn policy(program: &Path, service: &Path, sha256: &str, database: Option<&Database>) -> String {
    let login = database.map_or_else(String::new, |database| {
        format!("{},\n           ", database.give())
    });
    let uid = rustix::process::geteuid().as_raw();
    let quoted = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
    let (program, service) = (quoted(program), quoted(service));
    format!(
        r#"# Made by `ephor demo` for this run.
trust_domain = "demo.ephor"

[ttl]
default = "10m"
max     = "1h"

[ttl.kind]
jwt = "5m"

[workload."orders/web"]
owner = "team:orders"
runs  = [{{ uid = {uid}, exe = {program}, sha256 = "{sha256}" }}]
identity = false

[workload."billing/api"]
owner = "team:billing"
runs  = [{{ uid = {uid}, exe = {service} }}]

[entitlement.{ENTITLEMENT}]
owner   = "team:billing"
purpose = "Charge orders"
who     = ["orders/web"]
gives   = [{login}{{ jwt  = {{ audience = "{AUDIENCE}", claims = {{ plan = "gold" }} }} }},
           {{ x509 = {{}} }}]

[entitlement.billing-checks]
owner   = "team:billing"
purpose = "Check the tokens of callers"
who     = ["billing/api"]
gives   = [{{ introspect = {{ audience = "{AUDIENCE}" }} }}]
"#
    )
}
