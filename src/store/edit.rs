#![forbid(unsafe_code)]
//! Deleting, marking stale, counting.

use std::sync::atomic::Ordering::Relaxed;

use super::chain::Version;
use super::raw::{PairGuard, Place, flag};
use super::{Arith, COUNT_MAX, Counted, Cx, Delete, Deleted, Inner, Mode, Put, Store, Stored};

/// Digits of the largest number.
const DIGITS_MAX: usize = 20;
/// What numbers that have become shorter are usually filled up from.
const BLANKS: [u8; 64] = [b' '; 64];

impl Store {
    pub fn delete(&self, cx: Cx<'_>, key: &[u8], hash: u64, how: &Delete) -> Deleted {
        let inner = &self.inner;
        // The tombstone's memory is taken before the lock.
        let mut tombstone = None;
        if how.drop_value {
            let put = Put {
                flags: how.flags,
                expires: how.touch.unwrap_or(0),
                ..Put::new(Mode::Set, key, hash)
            };
            match inner.allocate(cx, &put, 0) {
                Some(upload) => tombstone = Some(upload),
                None => return Deleted::NoMemory,
            }
        }
        let (mut guard, found) = inner.find(cx, key, hash);
        let Ok(place) = found else {
            drop(guard);
            return Deleted::NotFound;
        };
        let item = guard.item(&place);
        if how.cas.is_some_and(|cas| cas != item.cas()) {
            return Deleted::Exists;
        }
        let deleted = Deleted::Deleted {
            class: inner.class_of(&item),
            length: item.length(),
        };
        let old_cas = item.cas();
        let before = inner.before(&item);
        let mut old = None;
        let kept = match tombstone.and_then(|upload| upload.into_slot(cx, inner)) {
            Some(slot) => {
                let new = slot.item();
                let head = new.head();
                inner
                    .arena
                    .set_cas(slot.handle(), how.new_cas.unwrap_or(old_cas));
                new.seal();
                inner.count_in(cx, &new);
                inner.count_out(cx, &item);
                inner.leave_census(&item);
                inner.note_expiry(slot.handle(), head.expires.load(Relaxed));
                let handle = slot.handle();
                old = guard.replace(&place, slot, super::raw::State::Main, 0);
                debug_assert_eq!(place.handle(), handle);
                inner.enter_census(&guard.item(&place));
                true
            }
            None => false,
        };
        if how.stale {
            let item = guard.item(&place);
            if let Some(expires) = how.touch {
                inner.set_expiry(item.handle(), expires);
            }
            item.head()
                .update(|word| word.with_flags((word.flags() | flag::STALE) & !flag::TOKEN_SENT));
            inner
                .arena
                .set_cas(item.handle(), inner.next_cas(how.new_cas));
        } else if !kept {
            inner.unlink(cx, guard, place, hash);
            return deleted;
        }
        inner.log_stored(&guard.item(&place), before);
        drop(guard);
        if let Some(old) = old {
            inner.give(old);
        }
        deleted
    }

    pub fn arith(&self, cx: Cx<'_>, key: &[u8], hash: u64, how: &Arith) -> Counted {
        let inner = &self.inner;
        loop {
            let (mut guard, found) = inner.find(cx, key, hash);
            let Ok(place) = found else {
                drop(guard);
                let Some((value, expires)) = how.create else {
                    return Counted::NotFound;
                };
                match self.create_number(cx, key, hash, value, expires, how.new_cas) {
                    // Somebody else was faster: count what they stored.
                    Some(Counted::NotStored) => continue,
                    Some(counted) => return counted,
                    None => return Counted::NoMemory,
                }
            };
            let item = guard.item(&place);
            let gathered;
            let text = match item.inline() {
                // Behind a long key, even a number may lie in two pieces.
                None if item.length() <= COUNT_MAX => {
                    gathered = item.value();
                    Some(&gathered[..])
                }
                text => text,
            };
            if text != Some(b"") && how.cas.is_some_and(|cas| cas != item.cas()) {
                return Counted::Exists;
            }
            let Some(text) = text.filter(|text| (1..=COUNT_MAX).contains(&text.len())) else {
                return Counted::NonNumeric;
            };
            let Some(old) = parse(text) else {
                return Counted::NonNumeric;
            };
            let value = if how.up {
                old.wrapping_add(how.delta)
            } else {
                old.saturating_sub(how.delta)
            };
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(value).as_bytes();
            let (class, old_length, word) = (inner.class_of(&item), text.len(), item.word());
            let (handle, old_cas) = (item.handle(), item.cas());
            // memcached takes an id before it looks whether one was given.
            let next = inner.next_cas(None);
            let cas = how.new_cas.unwrap_or(next);
            let before = item.head().expires.load(Relaxed);
            let logged = inner.before(&item);
            let number = |guard: &PairGuard<'_>, place: &Place<'_>| {
                let item = guard.item_of(place);
                if let Some(expires) = how.touch {
                    inner.set_expiry(item.handle(), expires);
                }
                inner.log_stored(&item, logged);
                Counted::Number {
                    value,
                    cas: item.cas(),
                    expires: before,
                    class,
                    created: false,
                }
            };
            // As memcached does: the length stays, and blanks fill what the number no longer needs.
            let padding = old_length.saturating_sub(digits.len());
            let padded;
            let parts = if padding <= BLANKS.len() {
                [digits, &BLANKS[..padding]]
            } else {
                padded = [digits, &vec![b' '; padding]].concat();
                [&padded[..], &[]]
            };
            if digits.len() <= old_length && !word.has(flag::LARGE) {
                let flags = item.client_flags();
                let size = inner.arena.slot_size(word.bin());
                guard.overwrite(&place, size, flags, 0, &parts);
                let item = guard.item(&place);
                inner.arena.set_cas(item.handle(), cas);
                item.seal();
                inner.bump_time(&item, cx.now);
                return number(&guard, &place);
            }
            let put = Put {
                flags: item.client_flags(),
                expires: how.touch.unwrap_or(before),
                new_cas: Some(cas),
                ..Put::new(Mode::Replace, key, hash)
            };
            if inner.overwrite(cx, &mut guard, &place, put.flags, 0, &parts) {
                inner.renew(cx, &guard.item(&place), cas, put.expires, 0);
                return number(&guard, &place);
            }
            // It needs another slot: it is linked only over the item it was counted from.
            let version = Version {
                handle,
                length: old_length,
                cas: old_cas,
            };
            drop(guard);
            let length = digits.len() + padding;
            let Some(mut upload) = inner.allocate(cx, &put, length) else {
                return Counted::NoMemory;
            };
            if parts.iter().any(|part| upload.write(cx, part).is_err()) {
                return Counted::NoMemory;
            }
            let Some(slot) = upload.into_slot(cx, inner) else {
                return Counted::NoMemory;
            };
            if length == old_length {
                // Behind a long key it is written anew, and to its readers the same item all the same.
                let kept = flag::FETCHED | flag::STALE | flag::TOKEN_SENT | flag::BINARY_KEY;
                let marks = word.flags() & kept;
                let head = inner.arena.head(slot.handle());
                head.update(|word| word.with_flags(word.flags() | marks));
            }
            if let Some(stored) = inner.link_over(cx, &put, slot, cas, version, None) {
                let cas = match stored {
                    Stored::Stored { cas, .. } => cas,
                    _ => cas,
                };
                return Counted::Number {
                    value,
                    cas,
                    expires: before,
                    class,
                    created: false,
                };
            }
        }
    }

    /// Stores a first number. `NotStored` says that the key exists by now.
    fn create_number(
        &self,
        cx: Cx<'_>,
        key: &[u8],
        hash: u64,
        value: u64,
        expires: u32,
        new_cas: Option<u64>,
    ) -> Option<Counted> {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(value);
        debug_assert!(digits.len() <= DIGITS_MAX);
        let put = Put {
            expires,
            new_cas,
            ..Put::new(Mode::Add, key, hash)
        };
        match self.put(cx, &put, digits.as_bytes()) {
            Stored::Stored { cas, class, .. } => Some(Counted::Number {
                value,
                cas,
                expires: 0,
                class,
                created: true,
            }),
            Stored::NoMemory | Stored::TooLarge => None,
            _ => Some(Counted::NotStored),
        }
    }
}

impl Inner {
    /// An access that is not a read: the time moves on, the fetched mark does not.
    pub(super) fn bump_time(&self, item: &super::Item<'_>, now: u32) {
        let head = item.head();
        head.accessed.store(self.stamp(now), Relaxed);
        let word = head.word();
        let counter = word.counter();
        if counter == 0 && head.change(word, word.with_counter(1)) {
            let state = word.state();
            self.census_of(item.handle()).change((state, 0), (state, 1));
        }
    }
}

/// A number as C's `strtoull` would read it from these bytes: blanks, a sign, digits, and then the
/// end or a blank, behind which anything may stand.
fn parse(text: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
    let start = text.iter().position(|byte| !blank(byte))?;
    let text = &text[start..];
    let (negative, text) = match text[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    if digits == 0
        || text
            .get(digits)
            .is_some_and(|byte| !blank(byte) && *byte != 0)
    {
        return None;
    }
    let mut value = 0u64;
    for &digit in &text[..digits] {
        value = value
            .checked_mul(10)?
            .checked_add(u64::from(digit - b'0'))?;
    }
    if negative {
        value = value.wrapping_neg();
        return (value as i64 >= 0).then_some(value);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        let cases: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("10", Some(10)),
            (" 10", Some(10)),
            ("10 ", Some(10)),
            ("10 x", Some(10)),
            ("10a", None),
            ("", None),
            ("   ", None),
            ("-1", None),
            ("-0", Some(0)),
            ("+7", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999", None),
        ];
        for (text, value) in cases {
            assert_eq!(parse(text.as_bytes()), *value, "{text:?}");
        }
    }
}
