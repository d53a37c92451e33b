#![forbid(unsafe_code)]
//! `stats` of a proxy: `proxy`, `servers`, `hotkeys`. The others are those of any server.

use super::client::Desk;
use crate::command::emitted;
use crate::protocol::request::Style;

/// Whether these are the words of one that only a proxy has.
pub fn answers(words: &[u8]) -> bool {
    matches!(words.trim_ascii(), b"proxy" | b"servers" | b"hotkeys")
}

/// Appends the answer.
pub fn answer(desk: &mut Desk<'_>, words: &[u8], style: &Style<'_>) {
    let proxy = &*desk.proxy;
    emitted(style, desk.replies, |emit| match words.trim_ascii() {
        b"servers" => proxy.server_stats(emit),
        b"hotkeys" => proxy.hot_key_stats(emit),
        _ => proxy.stats(emit),
    });
}
