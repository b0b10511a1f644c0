//! `runs`: which process is a workload.
//!
//! Every refusal here is about a rule that would match more than its author meant: an
//! interpreter (anybody's script), a file of any content, everything on a host.

use ephor_proto::spiffe::HostPattern;
use toml::Spanned;
use toml::de::DeValue;

use super::limits::{MAX_EXE_BYTES, MAX_HOSTS, MAX_UNIT_BYTES, MAX_USER_BYTES};
use super::model::Run;
use super::reader::{Keys, Reader, Section, parsed_hex, section_of, shown};

const RUN: Keys = Keys {
    known: &["user", "uid", "exe", "sha256", "systemd", "hosts"],
    later: &["container", "group", "gid", "groups"],
};

/// One item of `runs`.
pub(super) fn run(
    reader: &mut Reader<'_>,
    item: &Spanned<DeValue<'_>>,
    owner: &str,
) -> Option<Run> {
    let title = format!("runs of {owner}");
    let section = section_of(
        reader,
        &format!("an item of {title}"),
        item,
        title,
        item.span().start,
    )?;
    section.check_keys(reader, &RUN);
    let run = Run {
        user: user(reader, &section),
        uid: uid(reader, &section),
        exe: exe(reader, &section),
        sha256: sha256(reader, &section),
        unit: unit(reader, &section),
        hosts: hosts(reader, &section),
    };
    whole(reader, &section);
    interpreter(reader, &section, &run);
    Some(run)
}

/// What a rule may not be as a whole.
fn whole(reader: &mut Reader<'_>, section: &Section<'_>) {
    let has = |key| section.find(key).is_some();
    // A misspelt key is reported already; the rule without it means nothing.
    let all_known = section
        .table
        .keys()
        .all(|key| RUN.known.contains(&key.get_ref().as_ref()));
    if all_known && !["user", "uid", "exe", "systemd"].into_iter().any(has) {
        let hint = "Name at least one of user, uid, exe and systemd.";
        reader.refuse(
            section.at,
            format!("{} match every process of a host", section.title),
            hint,
        );
    }
    if has("user") && has("uid") {
        let hint = "Keep uid where host and login names may differ, else user.";
        reader.refuse(
            section.at,
            format!("{} name both user and uid", section.title),
            hint,
        );
    }
    if has("sha256") && !has("exe") {
        let hint = "Name the path too, so that an interpreter is noticed.";
        reader.refuse(
            section.at,
            format!("{} have sha256 without exe", section.title),
            hint,
        );
    }
}

fn user(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<String> {
    let text = section.text(reader, "user")?;
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/' | '*');
    let number = text.value.bytes().all(|b| b.is_ascii_digit());
    if text.value.is_empty() || text.value.len() > MAX_USER_BYTES || text.value.chars().any(odd) {
        let what = format!("user {} is no login name", shown(text.value));
        reader.refuse(text.at, what, "Write it as `getent passwd` shows it.");
    } else if number {
        let hint = format!("Write uid = {}.", text.value);
        reader.refuse(text.at, format!("user {} is a number", text.value), hint);
    } else {
        return Some(text.value.to_owned());
    }
    None
}

fn uid(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<u32> {
    let value = section.find("uid")?;
    let number = value.get_ref().as_integer();
    let uid = number.and_then(|n| u32::from_str_radix(n.as_str(), n.radix()).ok());
    // 2^32-1 is "no user" to the kernel (chown(2), setreuid(2)).
    let uid = uid.filter(|uid| *uid != u32::MAX);
    if uid.is_none() {
        let hint = "Write a number without quotes, such as uid = 1000.";
        let what = format!(
            "uid {} is no user id (0 to 4294967294)",
            reader.written(value)
        );
        reader.refuse(value.span().start, what, hint);
    }
    uid
}

fn exe(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<String> {
    let text = section.text(reader, "exe")?;
    let value = text.value;
    let step = |part: &str| matches!(part, "" | "." | "..");
    let problem = match value.strip_prefix('/') {
        _ if value.contains(['*', '?', '[']) => "is a pattern, which could cross a '/'",
        None => "is not an absolute path",
        Some(_) if value.len() > MAX_EXE_BYTES => "is longer than 4096 bytes",
        Some(_) if value.chars().any(char::is_control) => "has control characters",
        Some(rest) if rest.split('/').any(step) => "has empty, '.' or '..' steps",
        Some(_) => return Some(value.to_owned()),
    };
    let hint = "Write one path as `readlink /proc/PID/exe` shows it.";
    reader.refuse(text.at, format!("exe {} {problem}", shown(value)), hint);
    None
}

fn sha256(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<[u8; 32]> {
    let text = section.text(reader, "sha256")?;
    let digest = parsed_hex(text.value);
    if digest.is_none() {
        let what = format!(
            "sha256 {} is not 64 lower-case hexadecimal digits",
            shown(text.value)
        );
        reader.refuse(text.at, what, "Copy it from `sha256sum FILE`.");
    }
    digest
}

fn unit(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<String> {
    let text = section.text(reader, "systemd")?;
    let value = text.value;
    // The characters of systemd.unit(5), "string escaping" included.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    let stem = value
        .strip_suffix(".service")
        .or_else(|| value.strip_suffix(".scope"));
    let (problem, hint) = match stem {
        _ if value.contains('*') => ("is a pattern", String::from("Write one whole unit name.")),
        None => (
            "is no unit that holds processes",
            format!("Write {}.service?", shown(value)),
        ),
        Some("" | "@") => ("has no name", String::from("Write one whole unit name.")),
        Some(_) if value.len() > MAX_UNIT_BYTES || !value.bytes().all(allowed) => (
            "has characters that no unit has",
            String::from("Write it as `systemctl` shows it."),
        ),
        Some(_) => return Some(value.to_owned()),
    };
    reader.refuse(text.at, format!("systemd {} {problem}", shown(value)), hint);
    None
}

fn hosts(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<HostPattern> {
    let Some(texts) = section.texts(reader, "hosts") else {
        return Vec::new();
    };
    let at = section.key_at("hosts").unwrap_or(section.at);
    if texts.is_empty() {
        reader.refuse(
            at,
            "hosts is empty, so no host matches",
            "Leave it out for every host.",
        );
    }
    if texts.len() > MAX_HOSTS {
        reader.refuse(
            at,
            format!("{} hosts, more than {MAX_HOSTS}", texts.len()),
            "Use a pattern.",
        );
    }
    let mut hosts = Vec::with_capacity(texts.len());
    for text in texts {
        match text.value.parse() {
            Ok(pattern) => hosts.push(pattern),
            Err(_) => {
                let problem = match text.value.contains('/') {
                    true => "could cross a '/'",
                    false => "is no host name or pattern",
                };
                let what = format!("hosts {} {problem}", shown(text.value));
                reader.refuse(
                    text.at,
                    what,
                    "Write a name such as web-3, or web-* for several.",
                );
            }
        }
    }
    hosts
}

/// An interpreter runs anybody's script, and so proves nothing about who runs; a unit does,
/// since only root starts one.
fn interpreter(reader: &mut Reader<'_>, section: &Section<'_>, run: &Run) {
    let (Some(exe), false) = (&run.exe, section.find("systemd").is_some()) else {
        return;
    };
    if is_interpreter(exe) {
        let at = section
            .text(reader, "exe")
            .map_or(section.at, |text| text.at);
        let what = format!("exe {} is an interpreter: it runs any script", shown(exe));
        reader.refuse(
            at,
            what,
            "Add systemd = \"NAME.service\", or name a program of its own.",
        );
    }
}

/// Programs that run what a file, an argument or standard input says. A version may follow.
const INTERPRETERS: [&str; 86] = [
    "Rscript",
    "ash",
    "awk",
    "bash",
    "beam.smp",
    "bun",
    "busybox",
    "bwrap",
    "chroot",
    "cscript",
    "csh",
    "dash",
    "dbus-run-session",
    "deno",
    "doas",
    "dotnet",
    "elixir",
    "emacs",
    "env",
    "erl",
    "escript",
    "expect",
    "firejail",
    "fish",
    "flock",
    "gawk",
    "gdb",
    "ghci",
    "groovy",
    "guile",
    "iex",
    "ionice",
    "ipython",
    "irb",
    "java",
    "jjs",
    "jrunscript",
    "jshell",
    "jython",
    "ksh",
    "ld.so",
    "lua",
    "luajit",
    "make",
    "mawk",
    "mksh",
    "mono",
    "nawk",
    "nice",
    "node",
    "nodejs",
    "nohup",
    "nsenter",
    "parallel",
    "perl",
    "php",
    "php-cgi",
    "php-fpm",
    "pwsh",
    "pypy",
    "python",
    "qjs",
    "racket",
    "rbash",
    "ruby",
    "runuser",
    "sash",
    "scala",
    "script",
    "setpriv",
    "setsid",
    "sh",
    "ssh-agent",
    "stdbuf",
    "strace",
    "su",
    "sudo",
    "systemd-run",
    "tclsh",
    "tcsh",
    "timeout",
    "toybox",
    "unshare",
    "wish",
    "xargs",
    "zsh",
];

fn is_interpreter(exe: &str) -> bool {
    let name = exe.rsplit('/').next().unwrap_or(exe);
    // The dynamic loader runs any program named to it.
    if name.starts_with("ld-") && name.contains(".so") {
        return true;
    }
    INTERPRETERS.contains(&name) || INTERPRETERS.contains(&family(name))
}

/// The name without its version: `python3.11-dbg`, `python3.13t`, `zsh-5.9`, `lua5.4`.
fn family(name: &str) -> &str {
    let suffixes = ["-dbg", "-debug", "-static"];
    let name = suffixes
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name);
    // Build flags of an interpreter follow its version.
    let without_flag = name.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let flagged = without_flag.ends_with(|c: char| c.is_ascii_digit());
    let name = if flagged { without_flag } else { name };
    name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_by_family() {
        for exe in [
            "/bin/sh",
            "/usr/bin/bash",
            "/bin/dash",
            "/usr/bin/zsh",
            "/usr/bin/python",
            "/usr/bin/python3",
            "/usr/bin/python3.11",
            "/usr/bin/python3.11-dbg",
            "/usr/bin/python3.13t",
            "/usr/bin/perl5.36.0",
            "/usr/bin/node",
            "/usr/bin/ruby3.1",
            "/usr/lib/jvm/java-17/bin/java",
            "/usr/bin/php8.2",
            "/usr/bin/env",
            "/bin/busybox",
            "/lib64/ld-linux-x86-64.so.2",
            "/opt/node18",
            "/usr/bin/lua5.4",
            "/lib/ld-musl-x86_64.so.1",
            "/usr/sbin/php-fpm8.2",
            "/usr/bin/zsh-5.9",
        ] {
            assert!(is_interpreter(exe), "{exe}");
        }
        for exe in [
            "/usr/bin/orders-web",
            "/usr/bin/shipping",
            "/usr/bin/envoy",
            "/usr/bin/nodemanager",
            "/opt/perlite/bin/app",
            "/usr/bin/ld-app",
            "/usr/bin/node-exporter",
            "/usr/bin/env-agent",
            "/usr/bin/make-order",
            "/usr/bin/shd",
            "/usr/bin/1",
        ] {
            assert!(!is_interpreter(exe), "{exe}");
        }
    }
}
