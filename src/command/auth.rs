#![forbid(unsafe_code)]
//! Who may come in: the user file of `-Y` for text and meta, SASL PLAIN for binary.
//!
//! Comparing takes the same time whichever user or byte differs: the whole table is gone through,
//! and every presented byte is looked at.

use std::hint::black_box;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::net::address::reason;
use crate::protocol::request::{Op, Refusal, Request, Style};
use crate::protocol::words::words;
use crate::protocol::{Dialect, binary, number};
use crate::settings;

use super::context::{Context, Session};
use super::replies::Replies;
use super::{Next, reply};

/// Entries beyond these are not read.
const USERS_MAX: usize = 64;

/// The longest credentials in text, and the shortest line that can bring them.
const TOKEN_MAX: usize = 16_384;
const LINE_MIN: usize = 6;

/// Bytes without a line end after which a stranger is hung up on.
const LINE_MAX: usize = 2048;

/// The longest name of a SASL mechanism.
const MECHANISM_MAX: usize = 32;

struct User {
    name: Vec<u8>,
    password: Vec<u8>,
}

#[derive(Default)]
struct Users {
    /// `-Y`
    file: Vec<User>,
    /// `MEMCACHED_SASL_PWDB`
    sasl: Vec<User>,
}

/// The tables, exchanged as a whole when they are read again.
#[derive(Default)]
pub struct Credentials {
    users: Mutex<Arc<Users>>,
}

impl Credentials {
    /// Reads what `settings` name.
    ///
    /// # Errors
    /// A user file that cannot be read or understood, as a line for the user.
    pub fn load(settings: &settings::Security) -> Result<Credentials, String> {
        let credentials = Credentials::default();
        credentials.reload(settings)?;
        Ok(credentials)
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// As [`load`](Credentials::load); what was known before stays.
    pub fn reload(&self, settings: &settings::Security) -> Result<(), String> {
        let mut users = Users::default();
        if let Some(path) = &settings.auth_file {
            users.file = read_file(path)?;
        }
        // As in memcached, a password database that is not there lets nobody in.
        if let Some(path) = &settings.sasl_password_file {
            match std::fs::read(path) {
                Ok(text) => users.sasl = parse_sasl(&text),
                Err(error) => log::warn!("SASL database {}: {error}", path.display()),
            }
        }
        *self.lock() = Arc::new(users);
        Ok(())
    }

    /// Whether the user file knows them.
    fn admits(&self, name: &[u8], password: &[u8]) -> bool {
        let users = self.lock().clone();
        check(&users.file, name, password)
    }

    /// Whether either table knows them; those of SASL may bring a realm.
    fn admits_sasl(&self, name: &[u8], password: &[u8]) -> bool {
        let users = self.lock().clone();
        check(&users.sasl, name, password) | check(&users.file, name, password)
    }

    /// Somebody who is let in by nodes with the same tables: name and password.
    pub fn first(&self, dialect: Dialect) -> Option<(String, String)> {
        let users = self.lock().clone();
        let sasl = users.sasl.iter().filter(|_| dialect == Dialect::Binary);
        let user = sasl.chain(&users.file).next()?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        Some((text(&user.name)?, text(&user.password)?))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Users>> {
        self.users
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

fn read_file(path: &Path) -> Result<Vec<User>, String> {
    let text = std::fs::read(path).map_err(|error: io::Error| {
        let reason = reason(&error);
        format!(
            "Could not open authfile [{}] for reading, error {reason}: {reason}",
            path.display()
        )
    })?;
    parse_file(&text).ok_or_else(|| {
        format!(
            "Authfile [{}] has a malformed entry. Should be 'user:password'",
            path.display()
        )
    })
}

/// `user:password`, one a line.
fn parse_file(text: &[u8]) -> Option<Vec<User>> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.split(|&byte| byte == b'\n')
        .take(USERS_MAX)
        .map(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some(User {
                name: line[..colon].to_vec(),
                password: line[colon + 1..].to_vec(),
            })
        })
        .collect()
}

/// `user@realm:password`, one a line, perhaps with more behind another colon.
fn parse_sasl(text: &[u8]) -> Vec<User> {
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let mut fields = line.splitn(3, |&byte| byte == b':');
            Some(User {
                name: fields.next()?.to_vec(),
                password: fields.next()?.to_vec(),
            })
        })
        .take(USERS_MAX)
        .collect()
}

/// Whether one of the users has this name, with or without its realm, and this password.
fn check(users: &[User], name: &[u8], password: &[u8]) -> bool {
    let mut found = false;
    for user in users {
        let bare = user.name.split(|&byte| byte == b'@').next().unwrap_or(b"");
        let named = same(name, &user.name) | same(name, bare);
        found |= black_box(named & same(password, &user.password));
    }
    found
}

/// Equality that looks at every byte of `given`, whatever `known` is.
fn same(given: &[u8], known: &[u8]) -> bool {
    let mut differ = given.len() ^ known.len();
    for (place, byte) in given.iter().enumerate() {
        differ |= usize::from(byte ^ known.get(place).copied().unwrap_or(0));
        differ = black_box(differ);
    }
    differ == 0
}

/// What became of a stranger's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// More has to arrive first.
    Incomplete,
    /// So many bytes are done with, and answered.
    Taken(usize),
    /// Hang up without a word.
    Close,
}

/// Takes the place of the parser for text as long as the session is locked: `set KEY FLAGS EXP
/// LENGTH` with `user password` for a value opens it.
pub fn admit(
    cx: &Context<'_>,
    session: &mut Session,
    input: &[u8],
    replies: &mut Replies,
) -> Admission {
    let Some(end) = memchr::memchr(b'\n', input) else {
        return if input.len() > LINE_MAX {
            Admission::Close
        } else {
            Admission::Incomplete
        };
    };
    if end < LINE_MIN {
        return Admission::Close;
    }
    let line = &input[..end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let length = words(line)
        .nth(4)
        .filter(|_| line.starts_with(b"set"))
        .and_then(number::unsigned)
        .and_then(|length| u32::try_from(length).ok());
    let Some(length) = length else {
        replies.line(b"CLIENT_ERROR unauthenticated");
        return Admission::Taken(end + 1);
    };
    let length = length as usize;
    if length > TOKEN_MAX {
        replies.line(b"CLIENT_ERROR auth token too long");
        return Admission::Taken(end + 1);
    }
    let taken = end + 1 + length + 2;
    let Some(value) = input.get(end + 1..taken) else {
        return Admission::Incomplete;
    };
    let answer: &[u8] = match value.strip_suffix(b"\r\n") {
        None => b"CLIENT_ERROR bad command line termination",
        Some(token) => match memchr::memchr(b' ', token) {
            None => b"CLIENT_ERROR bad authentication token format",
            Some(blank) => {
                let admitted = cx
                    .shared
                    .credentials
                    .admits(&token[..blank], &token[blank + 1..]);
                count(cx, admitted);
                if admitted {
                    session.open();
                    b"STORED"
                } else {
                    b"CLIENT_ERROR authentication failure"
                }
            }
        },
    };
    replies.line(answer);
    Admission::Taken(taken)
}

fn count(cx: &Context<'_>, admitted: bool) {
    cx.counters.general.auth_cmds.add(1);
    if !admitted {
        cx.counters.general.auth_errors.add(1);
    }
}

/// Refuses what a stranger asks for; `None` lets it pass.
#[cold]
pub fn refuse_stranger(request: &Request<'_>, replies: &mut Replies) -> Option<Next> {
    let Style::Binary { opcode, opaque, .. } = request.style else {
        // Text is let in by `admit` alone.
        replies.line(b"CLIENT_ERROR unauthenticated");
        return Some(Next::Close);
    };
    if OPEN_TO_ALL.contains(&opcode) {
        return None;
    }
    reply::binary_error(opcode, opaque, reply::STATUS_AUTH, replies);
    Some(Next::Close)
}

/// Binary VERSION and the three of SASL.
const OPEN_TO_ALL: [u8; 4] = [0x0b, 0x20, 0x21, 0x22];

/// What a stranger is told whose binary request is wrong in itself: not what is wrong, unless the
/// opcode is open to all or the header makes no sense.
#[cold]
pub fn refuse_wrong(input: &[u8], reply: Refusal) -> Refusal {
    match binary::sound(input) {
        Some((opcode, opaque)) if !OPEN_TO_ALL.contains(&opcode) => Refusal::Binary {
            opcode,
            opaque,
            status: reply::STATUS_AUTH,
            text: reply::status_text(reply::STATUS_AUTH),
        },
        _ => reply,
    }
}

/// SASL requests; `value` is what the client sent along.
pub fn sasl(
    cx: &Context<'_>,
    session: &mut Session,
    op: &Op<'_>,
    (opcode, opaque): (u8, u32),
    value: &[u8],
    replies: &mut Replies,
) {
    let mut answer = |status: u16, body: &[u8]| {
        reply::binary(opcode, opaque, status, 0, body, replies);
    };
    let unknown = reply::status_text(reply::STATUS_UNKNOWN).as_bytes();
    let invalid = reply::status_text(reply::STATUS_INVALID).as_bytes();
    let failure = reply::status_text(reply::STATUS_AUTH).as_bytes();
    if !cx.shared.settings.security.sasl {
        return answer(reply::STATUS_UNKNOWN, unknown);
    }
    let (mechanism, first) = match op {
        Op::SaslAuth { mechanism, .. } => (*mechanism, true),
        Op::SaslStep { mechanism, .. } => (*mechanism, false),
        _ => return answer(reply::STATUS_OK, b"PLAIN"),
    };
    if mechanism.len() > MECHANISM_MAX {
        return answer(reply::STATUS_INVALID, invalid);
    }
    let known = mechanism == b"PLAIN";
    let started = std::mem::replace(&mut session.sasl_started, false);
    if first && known && value.is_empty() {
        session.sasl_started = true;
        return answer(reply::STATUS_CONTINUE, b"");
    }
    // Asking to act as another than oneself is not supported.
    let mut fields = value.splitn(3, |&byte| byte == 0);
    let (actor, name, password) = (fields.next(), fields.next(), fields.next());
    let admitted = (first || started)
        && known
        && match (actor, name, password) {
            (Some(actor), Some(name), Some(password)) => {
                (actor.is_empty() || actor == name)
                    & cx.shared.credentials.admits_sasl(name, password)
            }
            _ => false,
        };
    count(cx, admitted);
    if admitted {
        session.open();
        answer(reply::STATUS_OK, b"Authenticated");
    } else {
        // Whoever was somebody before is nobody now.
        session.lock();
        answer(reply::STATUS_AUTH, failure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read() {
        for (text, users) in [
            (&b""[..], None),
            (b"a:b\n", Some(1)),
            (b"a:b\nc:d", Some(2)),
            (b"a:b\r\nc:d:e\r\n", Some(2)),
            (b"ab\n", None),
            (b"a:b\n\nc:d\n", None),
        ] {
            assert_eq!(parse_file(text).map(|users| users.len()), users, "{text:?}");
        }
        assert_eq!(
            parse_file("u:p\n".repeat(100).as_bytes()).unwrap().len(),
            64
        );
    }

    #[test]
    fn only_the_right_pair_gets_in() {
        let file = parse_file(b"foo:bar\nme:two words\nempty:\n").unwrap();
        let sasl = parse_sasl(b"joe@host:secret\n# nobody\nann:pw:more\n");
        for (users, name, password, admitted) in [
            (&file, "foo", "bar", true),
            (&file, "foo", "ba", false),
            (&file, "foo", "barr", false),
            (&file, "fo", "bar", false),
            (&file, "me", "two words", true),
            (&file, "me", "bar", false),
            (&file, "empty", "", true),
            (&file, "", "", false),
            (&sasl, "joe", "secret", true),
            (&sasl, "joe@host", "secret", true),
            (&sasl, "joe@other", "secret", false),
            (&sasl, "ann", "pw", true),
            (&sasl, "ann", "pw:more", false),
        ] {
            let checked = check(users, name.as_bytes(), password.as_bytes());
            assert_eq!(checked, admitted, "{name} {password}");
        }
    }

    #[test]
    fn a_bad_file_leaves_what_was_known() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"foo:bar\n").unwrap();
        let settings = settings::Security {
            auth_file: Some(file.path().to_owned()),
            ..settings::Security::default()
        };
        let credentials = Credentials::load(&settings).unwrap();
        std::fs::write(file.path(), b"foo\n").unwrap();
        let message = credentials.reload(&settings).unwrap_err();
        assert!(message.ends_with("has a malformed entry. Should be 'user:password'"));
        assert!(credentials.admits(b"foo", b"bar"));
        std::fs::write(file.path(), b"foo:new\n").unwrap();
        credentials.reload(&settings).unwrap();
        assert!(!credentials.admits(b"foo", b"bar"));
        assert!(credentials.admits(b"foo", b"new"));
    }
}
