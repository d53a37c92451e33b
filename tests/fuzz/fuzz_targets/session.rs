#![no_main]

#[allow(dead_code)]
#[path = "../entry.rs"]
mod entry;

use std::sync::LazyLock;

use larder::settings::Protocol;

/// Its items stay from one session to the next.
static SERVER: LazyLock<entry::Server> = LazyLock::new(|| entry::Server::new(|_| {}));

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    SERVER.session(Protocol::Negotiate, input);
});
