//! A process that asks for tokens when told to, and can be killed without a goodbye; and the
//! history of what it was told.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::installation::Installation;

/// Asks once for each line it reads: the token belongs to this shell, not to `ephor token`.
const SCRIPT: &str = r#"while read -r audience ttl; do "$EPHOR" token --audience "$audience" $ttl || echo "refused $?"; done"#;

/// A token as its holder got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The token.
    pub token: String,
    /// Its `jti`.
    pub jti: String,
    /// Seconds between `iat` and `exp`.
    pub life: u64,
    /// `exp`.
    pub expires_at: u64,
    /// Process that holds it.
    pub pid: u32,
}

/// See the module. Killed when dropped.
pub struct Workload {
    shell: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    held: Vec<Held>,
}

impl Workload {
    /// Starts the shell; nothing is asked yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(installation: &Installation) -> anyhow::Result<Self> {
        let ephor = installation.ephor();
        let mut command = std::process::Command::new("sh");
        for (name, value) in ephor.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        let mut shell = command
            .args(["-c", SCRIPT])
            .env("EPHOR", ephor.get_program())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(installation.path("workload.log"))?,
            )
            .spawn()?;
        let input = shell.stdin.take();
        let output = BufReader::new(shell.stdout.take().context("no standard output")?);
        Ok(Self {
            shell,
            input,
            output,
            held: Vec::new(),
        })
    }

    /// Asks for a token; `None` when it was refused.
    ///
    /// # Errors
    /// When the shell is gone or the answer is no token.
    pub fn ask(&mut self, audience: &str) -> anyhow::Result<Option<Held>> {
        self.ask_line(audience)
    }

    /// Asks for a token that lives so long.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_for(&mut self, audience: &str, seconds: u64) -> anyhow::Result<Option<Held>> {
        self.ask_line(&format!("{audience} --ttl={seconds}s"))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shell.id()
    }

    fn ask_line(&mut self, words: &str) -> anyhow::Result<Option<Held>> {
        self.say(words)?;
        self.answer()
    }

    /// Asks without waiting for the answer.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn say(&mut self, words: &str) -> anyhow::Result<()> {
        Ok(writeln!(
            self.input.as_mut().context("the shell was told to end")?,
            "{words}"
        )?)
    }

    /// The answer to [`Self::say`].
    ///
    /// # Errors
    /// When the shell is gone or the answer is no token.
    pub fn answer(&mut self) -> anyhow::Result<Option<Held>> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the shell is gone");
        if line.starts_with("refused") {
            return Ok(None);
        }
        let held = decode(line.trim(), self.shell.id())?;
        if !self.held.contains(&held) {
            self.held.push(held.clone());
        }
        Ok(Some(held))
    }

    /// Everything it was ever given.
    #[must_use]
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// `kill -9`: no goodbye.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.shell.kill()?;
        self.shell.wait()?;
        Ok(())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

fn decode(token: &str, pid: u32) -> anyhow::Result<Held> {
    let claims = token.split('.').nth(1).context("not a JWT")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let number = |name: &str| {
        claims
            .get(name)
            .and_then(Value::as_u64)
            .with_context(|| format!("no {name}"))
    };
    Ok(Held {
        token: token.to_owned(),
        jti: claims
            .get("jti")
            .and_then(Value::as_str)
            .context("no jti")?
            .to_owned(),
        life: number("exp")? - number("iat")?,
        expires_at: number("exp")?,
        pid,
    })
}
