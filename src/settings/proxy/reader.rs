#![forbid(unsafe_code)]
//! Values out of a TOML document that keep their place in it, so that every complaint has a line
//! and the name of a field.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Counted from 1.
    pub line: Option<usize>,
    /// As `pools.main.timeout` or `routes.all.fanout[2]`; empty where the file is no TOML.
    pub field: String,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

pub(super) type Found<T> = Result<T, ConfigError>;

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct Value<'doc> {
    text: &'doc str,
    value: &'doc Spanned<DeValue<'doc>>,
    pub(super) field: String,
}

/// A table whose fields are taken one by one; what nobody took is unknown.
pub(super) struct Table<'doc> {
    text: &'doc str,
    entries: &'doc DeTable<'doc>,
    start: usize,
    pub(super) field: String,
    asked: RefCell<HashSet<&'static str>>,
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

pub(super) fn broken(text: &str, error: &toml::de::Error) -> ConfigError {
    ConfigError {
        line: error.span().map(|span| line_of(text, span.start)),
        field: String::new(),
        message: error.message().to_owned(),
    }
}

/// How a path goes on: bare keys as they are, others in quotes.
pub(super) fn below(path: &str, key: &str) -> String {
    let bare = !key.is_empty()
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    let key = if bare {
        key.to_owned()
    } else {
        format!("{key:?}")
    };
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

/// The word that a wrong one was probably meant to be.
fn nearest<'word>(wrong: &str, words: impl Iterator<Item = &'word str>) -> Option<&'word str> {
    let distance = |word: &str| {
        let mut row: Vec<usize> = (0..=word.len()).collect();
        for (i, left) in wrong.bytes().enumerate() {
            let mut corner = std::mem::replace(&mut row[0], i + 1);
            for (j, right) in word.bytes().enumerate() {
                let change = corner + usize::from(left != right);
                corner = row[j + 1];
                row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
            }
        }
        row[word.len()]
    };
    words
        .map(|word| (distance(word), word))
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .min()
        .map(|(_, word)| word)
}

/// `unknown word, did you mean x?`, or which words there are.
pub(super) fn unknown<'word>(
    what: &str,
    wrong: &str,
    words: impl Iterator<Item = &'word str> + Clone,
) -> String {
    match nearest(wrong, words.clone()) {
        Some(word) => format!("unknown {what} `{wrong}`; did you mean `{word}`?"),
        None => {
            let words: Vec<&str> = words.collect();
            format!("unknown {what} `{wrong}`; there are {}", words.join(", "))
        }
    }
}

impl<'doc> Table<'doc> {
    pub(super) fn document(text: &'doc str, entries: &'doc DeTable<'doc>) -> Table<'doc> {
        Table {
            text,
            entries,
            start: 0,
            field: String::new(),
            asked: RefCell::default(),
        }
    }

    pub(super) fn get(&self, name: &'static str) -> Option<Value<'doc>> {
        self.asked.borrow_mut().insert(name);
        self.entries.get(name).map(|value| Value {
            text: self.text,
            value,
            field: below(&self.field, name),
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(super) fn needed(&self, name: &'static str) -> Found<Value<'doc>> {
        self.get(name)
            .ok_or_else(|| self.wrong(format!("`{name}` is missing")))
    }

    /// Every entry, for tables whose keys are the user's names.
    pub(super) fn entries(&self) -> Vec<(&'doc str, Value<'doc>)> {
        let mut entries: Vec<_> = self
            .entries
            .iter()
            .map(|(key, value)| {
                let name: &str = key.get_ref();
                let value = Value {
                    text: self.text,
                    value,
                    field: below(&self.field, name),
                };
                (key.span().start, name, value)
            })
            .collect();
        entries.sort_by_key(|(start, ..)| *start);
        entries
            .into_iter()
            .map(|(_, name, value)| (name, value))
            .collect()
    }

    pub(super) fn wrong(&self, message: impl Into<String>) -> ConfigError {
        ConfigError {
            // What the whole document lacks has no line.
            line: (!self.field.is_empty()).then(|| line_of(self.text, self.start)),
            field: self.field.clone(),
            message: message.into(),
        }
    }

    /// Complains about what nobody asked for.
    pub(super) fn done(self) -> Found<()> {
        let asked = self.asked.borrow();
        let mut words: Vec<&str> = asked.iter().copied().collect();
        words.sort_unstable();
        let stray = self
            .entries
            .keys()
            .filter(|key| !asked.contains(key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        match stray {
            None => Ok(()),
            Some(key) => Err(ConfigError {
                line: Some(line_of(self.text, key.span().start)),
                field: below(&self.field, key.get_ref()),
                message: unknown("field", key.get_ref(), words.iter().copied()),
            }),
        }
    }

    /// Sets a field where the table has one.
    pub(super) fn set<T>(
        &self,
        name: &'static str,
        target: &mut T,
        read: impl FnOnce(&Value<'doc>) -> Found<T>,
    ) -> Found<()> {
        if let Some(value) = self.get(name) {
            *target = read(&value)?;
        }
        Ok(())
    }
}

impl<'doc> Value<'doc> {
    pub(super) fn wrong(&self, message: impl Into<String>) -> ConfigError {
        ConfigError {
            line: Some(line_of(self.text, self.value.span().start)),
            field: self.field.clone(),
            message: message.into(),
        }
    }

    fn expected<T>(&self, what: &str) -> Found<T> {
        let found = match self.value.get_ref() {
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            other => format!("a {}", other.type_str()),
        };
        Err(self.wrong(format!("{what} is expected, not {found}")))
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.get_ref().is_str()
    }

    pub(super) fn is_array(&self) -> bool {
        self.value.get_ref().is_array()
    }

    pub(super) fn text(&self) -> Found<&'doc str> {
        match self.value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => self.expected("a text"),
        }
    }

    pub(super) fn flag(&self) -> Found<bool> {
        match self.value.get_ref().as_bool() {
            Some(value) => Ok(value),
            None => self.expected("true or false"),
        }
    }

    fn integer(&self) -> Option<i64> {
        let number = self.value.get_ref().as_integer()?;
        let digits = number.as_str().replace('_', "");
        i64::from_str_radix(&digits, number.radix()).ok()
    }

    pub(super) fn number(&self, range: RangeInclusive<u64>) -> Found<u64> {
        let what = || format!("a number from {} to {}", range.start(), range.end());
        match self.integer().and_then(|number| u64::try_from(number).ok()) {
            Some(number) if range.contains(&number) => Ok(number),
            _ => self.expected(&what()),
        }
    }

    pub(super) fn real(&self, range: RangeInclusive<f64>) -> Found<f64> {
        let value = match self.value.get_ref() {
            DeValue::Float(number) => number.as_str().replace('_', "").parse().ok(),
            DeValue::Integer(_) => self.integer().map(|number| number as f64),
            _ => None,
        };
        match value {
            Some(number) if range.contains(&number) => Ok(number),
            _ => self.expected(&format!(
                "a number from {} to {}",
                range.start(),
                range.end()
            )),
        }
    }

    /// Milliseconds, written with a unit: `"250ms"`, `"1.5s"`, `"5m"`, `"2h"`, `"1d"`.
    pub(super) fn duration_ms(&self, range: RangeInclusive<u64>) -> Found<u64> {
        const WHAT: &str = "a time with its unit, as \"250ms\", \"10s\", \"5m\", \"2h\" or \"1d\",";
        let DeValue::String(text) = self.value.get_ref() else {
            return self.expected(WHAT);
        };
        let Some(ms) = measure(
            text,
            &[
                ("ms", 1.0),
                ("s", 1e3),
                ("m", 60e3),
                ("h", 3600e3),
                ("d", 86_400e3),
            ],
        ) else {
            return self.expected(WHAT);
        };
        if range.contains(&ms) {
            return Ok(ms);
        }
        Err(self.wrong(format!(
            "`{text}` is outside of {}ms to {}ms",
            range.start(),
            range.end()
        )))
    }

    /// Whole seconds, written like other times.
    pub(super) fn ttl(&self) -> Found<u32> {
        let ms = self.duration_ms(1000..=u64::from(u32::MAX) * 1000)?;
        if ms % 1000 != 0 {
            return Err(self.wrong("a TTL is whole seconds"));
        }
        Ok((ms / 1000) as u32)
    }

    /// Bytes, as a number or with a unit: `"64k"`, `"16m"`, `"1g"`.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Found<u64> {
        let bytes = match self.value.get_ref() {
            DeValue::Integer(_) => self.integer().and_then(|size| u64::try_from(size).ok()),
            DeValue::String(text) => measure(
                &text.to_ascii_lowercase(),
                &[("k", 1024.0), ("m", 1_048_576.0), ("g", 1_073_741_824.0)],
            ),
            _ => None,
        };
        match bytes {
            Some(bytes) if range.contains(&bytes) => Ok(bytes),
            Some(bytes) => Err(self.wrong(format!(
                "{bytes} bytes are outside of {} to {}",
                range.start(),
                range.end()
            ))),
            None => self.expected("a size, as 4096, \"64k\", \"16m\" or \"1g\","),
        }
    }

    /// Seconds since 1970 of a time with its offset from UTC.
    pub(super) fn moment(&self) -> Found<u64> {
        const WHAT: &str = "a moment, as 2026-11-25T09:00:00Z,";
        let Some(moment) = self.value.get_ref().as_datetime() else {
            return self.expected(WHAT);
        };
        match seconds_since_1970(moment) {
            Some(seconds) => Ok(seconds),
            None => Err(self.wrong(format!("{WHAT} is expected: with date, time and offset"))),
        }
    }

    pub(super) fn list(&self) -> Found<Vec<Value<'doc>>> {
        let DeValue::Array(values) = self.value.get_ref() else {
            return self.expected("a list");
        };
        Ok(values
            .iter()
            .enumerate()
            .map(|(index, value)| Value {
                text: self.text,
                value,
                field: format!("{}[{index}]", self.field),
            })
            .collect())
    }

    /// One value, or a list of them.
    pub(super) fn one_or_more(&self) -> Found<Vec<Value<'doc>>> {
        if self.is_array() {
            self.list()
        } else {
            Ok(vec![self.clone()])
        }
    }

    pub(super) fn table(&self) -> Found<Table<'doc>> {
        let DeValue::Table(entries) = self.value.get_ref() else {
            return self.expected("a table");
        };
        // The span of a `[header]` table is its header, that of an inline one its brace.
        Ok(Table {
            text: self.text,
            entries,
            start: self.value.span().start,
            field: self.field.clone(),
            asked: RefCell::default(),
        })
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(&self, what: &str, choices: &[(&str, T)]) -> Found<T> {
        let text = self.text()?;
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, choice)) => Ok(*choice),
            None => Err(self.wrong(unknown(what, text, choices.iter().map(|(word, _)| *word)))),
        }
    }
}

/// A number and a unit. The result is rounded to a whole.
fn measure(text: &str, units: &[(&str, f64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    let value = number.parse::<f64>().ok()? * factor;
    (value < 1e15).then(|| value.round() as u64)
}

fn seconds_since_1970(moment: &toml::value::Datetime) -> Option<u64> {
    let (date, time) = (moment.date?, moment.time?);
    let minutes = match moment.offset? {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    // Days of the proleptic Gregorian calendar, years beginning in March.
    let (year, month) = (i64::from(date.year), i64::from(date.month));
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100
        + year / 400
        + (153 * month + 2) / 5
        + i64::from(date.day)
        - 1
        - 719_468;
    let seconds = i64::from(time.hour) * 3600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0));
    u64::try_from(days * 86_400 + seconds - minutes * 60).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures() {
        let units = [("ms", 1.0), ("s", 1000.0)];
        assert_eq!(measure("250ms", &units), Some(250));
        assert_eq!(measure(" 1.5 s ", &units), Some(1500));
        for text in ["", "5", "s", "5x", "1.2.3s", "-5s", "99999999999999999999s"] {
            assert_eq!(measure(text, &units), None, "{text}");
        }
    }

    #[test]
    fn moments() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-11-25T17:21:26Z", 1_795_627_286),
            ("2026-11-25T17:21:26+01:30", 1_795_621_886),
        ] {
            let moment = text.parse().unwrap();
            assert_eq!(seconds_since_1970(&moment), Some(seconds), "{text}");
        }
        assert_eq!(seconds_since_1970(&"2026-11-25".parse().unwrap()), None);
    }

    #[test]
    fn words_that_were_meant() {
        let words = ["timeout", "connect_timeout", "servers"];
        assert_eq!(nearest("timout", words.into_iter()), Some("timeout"));
        assert_eq!(nearest("server", words.into_iter()), Some("servers"));
        assert_eq!(nearest("zzz", words.into_iter()), None);
    }
}
