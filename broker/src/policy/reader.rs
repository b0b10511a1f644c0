//! Reading TOML tables so that every wrong thing is reported at its place, and reading goes on.
//!
//! serde stops at the first error and loses positions inside tagged or flattened types; a
//! policy is small enough to walk by hand. Nothing here knows what a key means.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{LoadError, Place};
use super::limits::MAX_SHOWN_CHARS;
use super::source::Source;
use super::suggest::nearest;

/// The keys that a table may have.
pub(super) struct Keys {
    /// Enforced by this version.
    pub(super) known: &'static [&'static str],
    /// Of the whole design, but not enforced by this version; never ignored.
    pub(super) later: &'static [&'static str],
}

/// One file being read.
pub(super) struct Reader<'a> {
    source: &'a Source,
    errors: Vec<LoadError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self {
            source,
            errors: Vec::new(),
        }
    }

    pub(super) fn into_errors(self) -> Vec<LoadError> {
        self.errors
    }

    /// What is written for a value, short and printable.
    pub(super) fn written(&self, value: &Spanned<DeValue<'_>>) -> String {
        shown(self.source.text.get(value.span()).unwrap_or_default())
    }

    pub(super) fn place(&self, offset: usize) -> Place {
        self.source.place(offset)
    }

    pub(super) fn refuse(&mut self, at: usize, what: impl Into<String>, hint: impl Into<String>) {
        let place = self.place(at);
        self.errors.push(LoadError {
            place,
            what: what.into(),
            hint: hint.into(),
        });
    }

    fn wrong_type(&mut self, name: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let found = article(value.get_ref().type_str());
        let raw = self.written(value);
        self.refuse(
            value.span().start,
            format!("{name} {raw} is {found}, not {wanted}"),
            "",
        );
    }
}

/// A string and where it begins.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub(super) value: &'a str,
    pub(super) at: usize,
}

/// A table, what to call it, and where it begins.
pub(super) struct Section<'a> {
    pub(super) title: String,
    pub(super) at: usize,
    pub(super) table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// Refuses every key that is not known, by name.
    pub(super) fn check_keys(&self, reader: &mut Reader<'_>, keys: &Keys) {
        for (key, value) in self.table.iter() {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            if keys.known.contains(&name) {
                continue;
            }
            if keys.later.contains(&name) {
                reader.refuse(at, not_supported(name), WHY_REFUSED);
                continue;
            }
            let guess = guess(name, keys.known.iter().chain(keys.later).copied());
            let mut hint = format!("Keys here: {}.", keys.known.join(", "));
            if value.get_ref().is_table() && self.title.starts_with("[workload.") {
                hint = format!("{hint} An id with a slash is quoted: [workload.\"orders/web\"].");
            }
            let what = format!("{} is no key of {}{guess}", shown(name), self.title);
            reader.refuse(at, what, hint);
        }
    }

    pub(super) fn find(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.get(key)
    }

    /// A string that may be absent.
    pub(super) fn text(&self, reader: &mut Reader<'_>, key: &str) -> Option<Text<'a>> {
        let value = self.find(key)?;
        let text = text_of(value);
        if text.is_none() {
            reader.wrong_type(key, value, "a string");
        }
        text
    }

    /// A string that must be there.
    pub(super) fn required(
        &self,
        reader: &mut Reader<'_>,
        key: &str,
        hint: &str,
    ) -> Option<Text<'a>> {
        self.require(reader, key, hint);
        self.text(reader, key)
    }

    /// Refuses when a key is absent, unless it is only misspelt: that is reported already.
    pub(super) fn require(&self, reader: &mut Reader<'_>, key: &str, hint: &str) {
        let misspelt = || {
            self.table
                .keys()
                .any(|other| nearest(other.get_ref(), [key]).is_some())
        };
        if self.find(key).is_none() && !misspelt() {
            reader.refuse(self.at, format!("{} has no {key}", self.title), hint);
        }
    }

    /// A whole number in a range, that may be absent.
    pub(super) fn number(
        &self,
        reader: &mut Reader<'_>,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u32> {
        let value = self.find(key)?;
        let number = (value.get_ref().as_integer())
            .and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok())
            .filter(|number| range.contains(number))
            .and_then(|number| u32::try_from(number).ok());
        if number.is_none() {
            let raw = reader.written(value);
            let (least, most) = (range.start(), range.end());
            let what = format!("{key} {raw} is no whole number from {least} to {most}");
            reader.refuse(value.span().start, what, "");
        }
        number
    }

    /// `true` or `false`; absent is `false`.
    pub(super) fn flag(&self, reader: &mut Reader<'_>, key: &str) -> bool {
        let Some(value) = self.find(key) else {
            return false;
        };
        value.get_ref().as_bool().unwrap_or_else(|| {
            reader.wrong_type(key, value, "true or false");
            false
        })
    }

    /// A list that may be absent.
    pub(super) fn list(
        &self,
        reader: &mut Reader<'_>,
        key: &str,
    ) -> Option<&'a [Spanned<DeValue<'a>>]> {
        let value = self.find(key)?;
        let list = value.get_ref().as_array();
        if list.is_none() {
            reader.wrong_type(key, value, "an array");
        }
        list.map(|array| &**array)
    }

    /// A list of strings that may be absent; entries that are none are reported and left out.
    pub(super) fn texts(&self, reader: &mut Reader<'_>, key: &str) -> Option<Vec<Text<'a>>> {
        let list = self.list(reader, key)?;
        let mut texts = Vec::with_capacity(list.len());
        for item in list {
            match text_of(item) {
                Some(text) => texts.push(text),
                None => reader.wrong_type(&format!("an item of {key}"), item, "a string"),
            }
        }
        Some(texts)
    }

    /// A table that may be absent.
    pub(super) fn section(&self, reader: &mut Reader<'_>, key: &str, title: &str) -> Option<Self> {
        let (at, value) = (self.key_at(key)?, self.find(key)?);
        section_of(reader, key, value, title.to_owned(), at)
    }

    /// The tables below this one, as in `[workload."…"]`, in the order of their names.
    pub(super) fn children(&self, reader: &mut Reader<'_>, kind: &str) -> Vec<(&'a str, Self)> {
        let mut children = Vec::new();
        for (key, value) in self.table.iter() {
            let name = key.get_ref().as_ref();
            let title = format!("[{kind}.{}]", quoted(name));
            let at = key.span().start;
            if let Some(section) = section_of(reader, &title.clone(), value, title, at) {
                children.push((name, section));
            }
        }
        children
    }

    /// Where a key is written.
    pub(super) fn key_at(&self, key: &str) -> Option<usize> {
        self.table
            .get_key_value(key)
            .map(|(key, _)| key.span().start)
    }
}

/// A value as a table, reported when it is none.
pub(super) fn section_of<'a>(
    reader: &mut Reader<'_>,
    name: &str,
    value: &'a Spanned<DeValue<'a>>,
    title: String,
    at: usize,
) -> Option<Section<'a>> {
    let table = value.get_ref().as_table();
    if table.is_none() {
        reader.wrong_type(name, value, "a table");
    }
    table.map(|table| Section { title, at, table })
}

fn text_of<'a>(value: &'a Spanned<DeValue<'a>>) -> Option<Text<'a>> {
    value.get_ref().as_str().map(|text| Text {
        value: text,
        at: value.span().start,
    })
}

/// Why something of a later version is an error and not ignored.
pub(super) const WHY_REFUSED: &str = "It would not be enforced, so it is refused.";

pub(super) fn not_supported(what: &str) -> String {
    format!("{} is not supported by this version", shown(what))
}

/// ` (NAME?)` with the nearest right name, or nothing.
pub(super) fn guess<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(wrong, names)
        .map(|name| format!(" ({name}?)"))
        .unwrap_or_default()
}

/// A wrong value as an error repeats it: short and printable; quotes stay as they are.
pub(super) fn shown(value: &str) -> String {
    if value.is_empty() {
        return "\"\"".to_owned();
    }
    let mut out = String::new();
    for c in value.chars().take(MAX_SHOWN_CHARS) {
        match c {
            '"' | '\'' | '\\' => out.push(c),
            other => out.extend(other.escape_debug()),
        }
    }
    if value.chars().nth(MAX_SHOWN_CHARS).is_some() {
        out.push_str("...");
    }
    out
}

/// A key as it would be written: bare where TOML allows.
pub(super) fn quoted(name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !name.is_empty() && name.bytes().all(bare) {
        return name.to_owned();
    }
    format!("\"{}\"", shown(name))
}

fn article(type_name: &str) -> String {
    let vowel = type_name.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {type_name}", if vowel { "an" } else { "a" })
}

/// 64 lower-case hexadecimal digits as bytes.
pub(super) fn parsed_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut out = [0; 32];
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(out)
}
