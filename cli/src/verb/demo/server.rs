//! A PostgreSQL server of the tour's own, where the host has PostgreSQL: Debian's programs, a directory of
//! its own, loopback only.
//!
//! A shell keeps it: when the tour is gone, however it went, the pipe between them closes, and the shell
//! ends the server and removes its directory.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::User;

/// What the keeper does: `$1` programs, `$2` directory, the rest is how to become who runs it.
const KEEPER: &str = r#"
trap '' INT TERM HUP
bin=$1 dir=$2; shift 2
end() { [ -z "${pid:-}" ] || { kill -QUIT "$pid"; wait "$pid"; } 2>/dev/null; rm -rf "$dir"; }
"$@" "$bin/initdb" -U postgres -A trust --no-locale -E UTF8 --no-sync -D "$dir/data" >"$dir/log" 2>&1 || { echo "initdb: $(tail -n 1 "$dir/log")"; end; exit 1; }
printf 'local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n' >"$dir/data/pg_hba.conf"
"$@" "$bin/postgres" -D "$dir/data" -c listen_addresses=127.0.0.1 -c port="$PORT" -c unix_socket_directories="$dir" -c fsync=off >>"$dir/log" 2>&1 &
pid=$!
tries=0
until "$@" "$bin/pg_isready" -q -h "$dir" -p "$PORT"; do
    tries=$((tries + 1))
    kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 200 ] || { echo "postgres: $(tail -n 1 "$dir/log")"; end; exit 1; }
    sleep 0.05
done
"$@" "$bin/psql" -q -h "$dir" -p "$PORT" -U postgres -d postgres -v ON_ERROR_STOP=1 -c 'CREATE DATABASE orders' >>"$dir/log" 2>&1
"$@" "$bin/psql" -q -h "$dir" -p "$PORT" -U postgres -d orders -v ON_ERROR_STOP=1 -c 'CREATE TABLE orders (id int); INSERT INTO orders VALUES (1), (2), (3)' >>"$dir/log" 2>&1 || { echo "psql: $(tail -n 1 "$dir/log")"; end; exit 1; }
echo ready
read -r _
end
"#;

/// The server, running. Ended when dropped.
pub struct Server {
    keeper: Child,
    dir: PathBuf,
    port: u16,
    version: String,
}

/// Why there is none.
pub enum Absent {
    /// PostgreSQL is not installed.
    NotInstalled,
    /// It is, and this was in the way.
    Failed(String),
}

impl Server {
    /// Starts it; takes about two seconds.
    ///
    /// # Errors
    /// Why there is none; the tour goes on without.
    pub fn start() -> Result<Self, Absent> {
        let programs = programs().ok_or(Absent::NotInstalled)?;
        let failed = |why: &dyn std::fmt::Display| Absent::Failed(why.to_string());
        let dir = tempfile::Builder::new()
            .prefix("ephor-demo-pg.")
            .tempdir()
            .map_err(|why| failed(&why))?;
        let mut become_who: Vec<String> = Vec::new();
        if rustix::process::geteuid().is_root() {
            // PostgreSQL refuses to run as root.
            let user = User::from_name("postgres").ok().flatten();
            let user = user.ok_or_else(|| failed(&"there is no user postgres to run it as"))?;
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            chown(dir.path(), Some(uid), Some(gid)).map_err(|why| failed(&why))?;
            become_who = vec![
                "setpriv".to_owned(),
                format!("--reuid={uid}"),
                format!("--regid={gid}"),
                "--clear-groups".to_owned(),
            ];
        } else {
            become_who.push("env".to_owned());
        }
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700))
            .map_err(|why| failed(&why))?;
        let port = free_port().map_err(|why| failed(&why))?;
        let version = version(&programs);
        let dir = dir.keep();
        let mut keeper = Command::new("sh");
        keeper
            .args(["-c", KEEPER, "sh"])
            .arg(&programs)
            .arg(&dir)
            .args(&become_who)
            .env("PORT", port.to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                keeper.env_remove(name);
            }
        }
        let keeper = keeper.spawn().map_err(|why| failed(&why))?;
        let mut server = Self {
            keeper,
            dir,
            port,
            version,
        };
        let mut said = String::new();
        if let Some(out) = server.keeper.stdout.as_mut() {
            let _ = BufReader::new(out).read_line(&mut said);
        }
        match said.trim_end() {
            "ready" => Ok(server),
            why => Err(failed(&why)),
        }
    }

    /// As its superuser, by the socket.
    pub fn url(&self) -> String {
        let dir = crate::words::query_escaped(&self.dir.display().to_string());
        format!("postgres://postgres@/orders?host={dir}&port={}", self.port)
    }

    /// `PostgreSQL 15`
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Tells the keeper.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Where Debian and others keep the server's programs; the newest version.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, entry.path().join("bin")))
        })
        .collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path);
    let mut all = found.into_iter().rev().map(|(_, bin)| bin).chain(on_path);
    all.find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())
}

/// `PostgreSQL 15` of `postgres (PostgreSQL) 15.14 (Debian …)`.
fn version(programs: &Path) -> String {
    let output = Command::new(programs.join("postgres"))
        .arg("--version")
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    let number = text
        .split(") ")
        .nth(1)
        .and_then(|rest| rest.split(['.', ' ', '\n']).next());
    number.map_or_else(
        || "PostgreSQL".to_owned(),
        |number| format!("PostgreSQL {number}"),
    )
}

fn free_port() -> std::io::Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    listener.local_addr().map(|address| address.port())
}
