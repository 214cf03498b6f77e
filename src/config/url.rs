//! A database's url: `postgres://role:password@host:port/database?sslmode=verify-full`.
//!
//! What libpq would understand and we do not is refused by name, never passed over: a url that says
//! one thing and does another is worse than none.

use std::path::PathBuf;

use crate::{
    postgres::{Address, TlsMode},
    secret::Secret,
};

/// Reads a url, or says everything that is wrong with it. No problem repeats the url: it may hold a
/// password.
pub fn address(url: &str) -> Result<Address, Vec<String>> {
    let Some(rest) = ["postgres://", "postgresql://"].iter().find_map(|scheme| url.strip_prefix(scheme))
    else {
        return Err(vec!["expected postgres://role@host:port/database".to_owned()]);
    };
    // Behind a `/` or `?` of a password comes an `@` too late: what stands before it would be shown as a host, a port, a
    // database.
    if rest.split_once(['/', '?']).is_some_and(|(_, behind)| behind.contains('@')) {
        return Err(vec![
            "there is an `@` behind the first `/` or `?`: in a password write `/` as %2F and `?` as %3F, in any other part `@` as %40"
                .to_owned(),
        ]);
    }
    let mut problems = Vec::new();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let Some((credentials, place)) = authority.rsplit_once('@') else {
        // A role and its password may well stand here, as a host and its port, with whatever follows: none of it is shown.
        return Err(vec!["no role: expected postgres://role@host:port/database".to_owned()]);
    };
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let mut note = |what: &str, decoded: Result<String, String>| match decoded {
        Ok(text) => text,
        Err(problem) => {
            problems.push(format!("{what}: {problem}"));
            String::new()
        }
    };
    let user = note("role", decode(user));
    let password = note("password", decode(password));
    let database = note("database", decode(database));
    let (host, port) = match host_and_port(place) {
        Ok(found) => found,
        Err(problem) => {
            problems.push(problem);
            (String::new(), 0)
        }
    };
    if user.is_empty() && problems.is_empty() {
        problems.push("no role: expected postgres://role@host:port/database".to_owned());
    }
    if database.is_empty() && problems.is_empty() {
        problems.push("no database: expected postgres://role@host:port/database".to_owned());
    }
    let (tls, tls_root) = tls(query, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Address {
        host,
        port,
        user,
        password: Secret::new(password),
        password_file: None,
        database,
        tls,
        tls_root,
    })
}

/// Writes an address as [`address`] reads it and libpq does, without its password.
pub fn url(address: &Address) -> String {
    let host = if address.host.contains(':') { format!("[{}]", address.host) } else { encode(&address.host) };
    let root = match &address.tls_root {
        Some(root) => format!("&sslrootcert={}", encode(&root.display().to_string())),
        // Where none is named, libpq wants one in its user's home; and it takes this word (16 on) beside no other mode.
        None if address.tls == TlsMode::VerifyFull => "&sslrootcert=system".to_owned(),
        None => String::new(),
    };
    format!(
        "postgres://{}@{host}:{}/{}?sslmode={}{root}",
        encode(&address.user),
        address.port,
        encode(&address.database),
        mode_name(address.tls)
    )
}

fn mode_name(mode: TlsMode) -> &'static str {
    match mode {
        TlsMode::Disable => "disable",
        TlsMode::Prefer => "prefer",
        TlsMode::Require => "require",
        TlsMode::VerifyCa => "verify-ca",
        TlsMode::VerifyFull => "verify-full",
    }
}

/// Does percent-encoding, of everything that might mean something.
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn host_and_port(place: &str) -> Result<(String, u16), String> {
    if place.contains(',') {
        return Err("several hosts are not understood: name the one to read from".to_owned());
    }
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("the IPv6 address lacks its `]`")?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(format!("`{host}` is no IPv6 address"));
        }
        match rest.strip_prefix(':') {
            Some(port) => (host.to_owned(), Some(port)),
            None if rest.is_empty() => (host.to_owned(), None),
            None => return Err("expected [address]:port".to_owned()),
        }
    } else {
        match place.split_once(':') {
            Some((host, port)) => (decode(host)?, Some(port)),
            None => (decode(place)?, None),
        }
    };
    if host.starts_with('/') {
        return Err("a Unix socket is not understood: expected a host name or address".to_owned());
    }
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err("no host: expected postgres://role@host:port/database".to_owned());
    }
    let port = match port {
        None => 5432,
        Some(digits) => match digits.parse() {
            Ok(port) if port > 0 => port,
            // Without what stands there: of `role@tenant:password` it is the password.
            _ => return Err("the port is no number from 1 to 65535".to_owned()),
        },
    };
    Ok((host, port))
}

fn tls(query: &str, problems: &mut Vec<String>) -> (TlsMode, Option<PathBuf>) {
    let (mut mode, mut root) = (None, None);
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        // Behind a `?` of a password stands the rest of it, and the database.
        let named = key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let key = if named { key } else { "a parameter" };
        let value = match decode(value) {
            Ok(value) => value,
            Err(problem) => {
                problems.push(format!("{key}: {problem}"));
                continue;
            }
        };
        let repeated = match key {
            "sslmode" => {
                let Some(found) = tls_mode(&value) else {
                    problems.push(format!(
                        "sslmode: `{value}` is none of disable, prefer, require, verify-ca, verify-full"
                    ));
                    continue;
                };
                mode.replace(found).is_some()
            }
            "sslrootcert" if value.is_empty() => {
                problems.push("sslrootcert: expected a file, or `system`".to_owned());
                continue;
            }
            "sslrootcert" => root.replace(value).is_some(),
            _ => {
                problems.push(format!("{key} is not understood here: only sslmode and sslrootcert are"));
                continue;
            }
        };
        if repeated {
            problems.push(format!("{key}: given twice"));
        }
    }
    // `system` is libpq's word for the certificates the system trusts.
    let root = root.filter(|root| root != "system").map(PathBuf::from);
    (mode.unwrap_or(TlsMode::VerifyFull), root)
}

fn tls_mode(word: &str) -> Option<TlsMode> {
    Some(match word {
        "disable" => TlsMode::Disable,
        "prefer" => TlsMode::Prefer,
        "require" => TlsMode::Require,
        "verify-ca" => TlsMode::VerifyCa,
        "verify-full" => TlsMode::VerifyFull,
        _ => return None,
    })
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, String> {
    let wrong = || "a `%` must be followed by two hexadecimal digits (write `%` itself as %25)".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'%' => {
                let digits =
                    tail.get(..2).filter(|two| two.iter().all(u8::is_ascii_hexdigit)).ok_or_else(wrong)?;
                let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
                rest = &tail[2..];
            }
            b'#' => return Err("a `#` must be written as %23".to_owned()),
            0 => return Err("a zero byte".to_owned()),
            _ => bytes.push(*first),
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8 once decoded".to_owned())?;
    if text.contains('\0') { Err("a zero byte".to_owned()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_who() {
        for (url, host, port, user, password, database) in [
            ("postgres://u@db.internal:5433/shop", "db.internal", 5433, "u", "", "shop"),
            ("postgresql://u:p@h/d", "h", 5432, "u", "p", "d"),
            ("postgres://u@[2001:db8::1]:6000/d", "2001:db8::1", 6000, "u", "", "d"),
            ("postgres://u@[::1]/d", "::1", 5432, "u", "", "d"),
            ("postgres://a%40b:p%3A%2F%25@h/d%20e", "h", 5432, "a@b", "p:/%", "d e"),
            ("postgres://u:p:q@h/d", "h", 5432, "u", "p:q", "d"),
        ] {
            let found = address(url).unwrap_or_else(|problems| panic!("{url}: {problems:?}"));
            let told = (&*found.host, found.port, &*found.user, found.password.reveal(), &*found.database);
            assert_eq!(told, (host, port, user, password, database), "{url}");
            assert_eq!((found.tls, found.tls_root), (TlsMode::VerifyFull, None), "{url}");
        }
    }

    #[test]
    fn tls_is_as_libpq_names_it() {
        for (query, mode, root) in [
            ("", TlsMode::VerifyFull, None),
            ("?sslmode=disable", TlsMode::Disable, None),
            ("?sslmode=prefer", TlsMode::Prefer, None),
            ("?sslmode=require", TlsMode::Require, None),
            ("?sslmode=verify-ca&sslrootcert=/etc/ca.pem", TlsMode::VerifyCa, Some("/etc/ca.pem")),
            ("?sslrootcert=%2Fa%20b.pem&sslmode=verify-full", TlsMode::VerifyFull, Some("/a b.pem")),
            ("?sslrootcert=system", TlsMode::VerifyFull, None),
        ] {
            let found = address(&format!("postgres://u@h/d{query}")).unwrap();
            assert_eq!((found.tls, found.tls_root), (mode, root.map(PathBuf::from)), "{query}");
        }
    }

    #[test]
    fn an_address_is_written_as_it_is_read_without_its_password() {
        for text in [
            "postgres://u@db.internal:5433/shop?sslmode=verify-full&sslrootcert=system",
            "postgres://u@db.internal:5433/shop?sslmode=verify-ca",
            "postgres://u@[2001:db8::1]:6000/d?sslmode=disable",
            "postgres://a%40b@h:5432/d%20e?sslmode=require&sslrootcert=/a%20b.pem",
        ] {
            assert_eq!(url(&address(text).unwrap()), text);
        }
        let secret = address("postgres://u:hunter2@h/d").unwrap();
        assert_eq!(url(&secret), "postgres://u@h:5432/d?sslmode=verify-full&sslrootcert=system");
    }

    #[test]
    fn what_is_not_understood_is_refused_and_the_password_never_repeated() {
        for (url, expected) in [
            ("mysql://u@h/d", "expected postgres://"),
            ("u@h/d", "expected postgres://"),
            ("postgres://h/d", "no role"),
            ("postgres://u@h", "no database"),
            ("postgres://u@h/", "no database"),
            ("postgres://u@/d", "no host"),
            ("postgres://u@%2Fvar%2Frun/d", "Unix socket"),
            ("postgres://u@a,b/d", "several hosts"),
            ("postgres://u:hunter2/d", "no role"),
            ("postgres://u:hunter2%40h:5432/d", "no role"),
            ("postgres://u:hunter?2hunter2/d", "no role"),
            ("postgres://u@tenant:hunter2/d", "the port is no number"),
            ("postgres://u@tenant:5?hunter2/d", "a parameter is not understood"),
            ("postgres://u@h:0/d", "the port is no number"),
            ("postgres://u@h:70000/d", "the port is no number"),
            ("postgres://u@[::1/d", "lacks its `]`"),
            ("postgres://u@[host]/d", "no IPv6 address"),
            ("postgres://u:hunter2%zz@h/d", "password: a `%`"),
            ("postgres://u:hunter2#x@h/d", "password: a `#`"),
            ("postgres://u:hunter2/x@h/d", "`/` as %2F"),
            ("postgres://u:x@hunter2/x@h/d", "`/` as %2F"),
            ("postgres://u:hunter2?x@h/d", "`?` as %3F"),
            ("postgres://u@h/d?sslmode=maybe", "`maybe` is none of"),
            ("postgres://u@h/d?sslmode=disable&sslmode=require", "given twice"),
            ("postgres://u@h/d?options=-csearch_path", "options is not understood"),
            ("postgres://u@h/d?sslcert=a", "sslcert is not understood"),
        ] {
            let problems = address(url).expect_err(url);
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{url}: {problems:?}");
            assert!(!problems.iter().any(|problem| problem.contains("hunter2")), "{url}: {problems:?}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let problems = address("postgres://u@h:x/d%?sslmode=no&port=1").unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:?}");
    }
}
