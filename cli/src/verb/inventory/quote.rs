//! How names of a server we only looked at stand in a script that an administrator will run. Any
//! name is possible there: quotes, line breaks, `$$`, characters that turn the direction of text.
//! None may end the place it stands in, and none may look like another one.

use crate::show;

/// An identifier.
pub fn ident(name: &str) -> String {
    quoted(name, '"')
}

/// A text.
pub fn literal(text: &str) -> String {
    quoted(text, '\'')
}

/// Doubled quotes; what does not show as it is, as an escape (`U&"..."`, SQL:2003 §5.2). Right
/// while `standard_conforming_strings` is on.
fn quoted(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    let hides = show::value(text) != text;
    if hides {
        out.push_str("U&");
    }
    out.push(quote);
    for c in text.chars() {
        let mut buffer = [0; 4];
        let one: &str = c.encode_utf8(&mut buffer);
        if c == quote || (hides && c == '\\') {
            out.push(c);
            out.push(c);
        } else if show::value(one) != one {
            out.push_str(&format!("\\+{:06x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out.push(quote);
    out
}

/// A text in a comment: one line, nothing hidden.
pub fn comment(text: &str) -> String {
    show::value(text).into_owned()
}

/// psql's command to go on in another database with the same login, if it can be written: a
/// parameter of a connection string in psql's quotes.
pub fn connect(database: &str) -> Option<String> {
    if show::value(database) != database {
        return None;
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
    if !database.is_empty() && database.bytes().all(plain) {
        return Some(format!("\\connect {database}"));
    }
    let value = database.replace('\\', "\\\\").replace('\'', "\\'");
    let parameter = format!("dbname='{value}'").replace('"', "\"\"");
    Some(format!("\\connect -reuse-previous=on \"{parameter}\""))
}

/// A dollar quote that does not occur in `body`.
pub fn dollar(body: &str) -> String {
    let mut tag = "$do$".to_owned();
    while body.contains(&tag) {
        tag.insert(1, 'x');
    }
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_its_quotes_or_hides() {
        assert_eq!(ident("plain"), "\"plain\"");
        assert_eq!(ident("a\"; DROP ROLE x; --"), "\"a\"\"; DROP ROLE x; --\"");
        assert_eq!(ident("it's a\\b"), "\"it's a\\b\"");
        assert_eq!(literal("it's a\\b"), "'it''s a\\b'");
        assert_eq!(
            ident("a\n\u{202e}\"\\b"),
            "U&\"a\\+00000a\\+00202e\"\"\\\\b\""
        );
        assert_eq!(literal("a\u{200b}'"), "U&'a\\+00200b'''");
        assert_eq!(comment("a\nDROP ROLE x;"), "a\\nDROP ROLE x;");
        assert_eq!(dollar("a $do$ b $xdo$"), "$xxdo$");
    }

    #[test]
    fn databases_of_any_name() {
        assert_eq!(
            connect("orders_1.x").as_deref(),
            Some("\\connect orders_1.x")
        );
        let odd = connect("a b\"'\\=");
        assert_eq!(
            odd.as_deref(),
            Some(r#"\connect -reuse-previous=on "dbname='a b""\'\\='""#)
        );
        assert_eq!(connect("a\nb"), None);
        assert_eq!(
            connect("").as_deref(),
            Some("\\connect -reuse-previous=on \"dbname=''\"")
        );
    }
}
