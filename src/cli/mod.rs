#![forbid(unsafe_code)]
//! The command line: from arguments to [`Settings`], and from there to a running server.

mod election;
mod extended;
mod listen;
mod options;
mod proxy;
mod replication;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use crate::command::log_level;
use crate::server;
use crate::settings::Settings;

/// `EX_USAGE`
const USAGE: u8 = 64;

/// Why the command line ends the program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It asked for something to be printed.
    Printed(String),
    /// It is wrong: what to say, and the exit code.
    Refused { message: String, code: u8 },
}

impl Exit {
    fn refused(message: impl Into<String>, code: u8) -> Exit {
        Exit::Refused {
            message: message.into(),
            code,
        }
    }
}

/// The program: options, log, server.
pub fn main() -> ExitCode {
    match settings(std::env::args_os()) {
        Ok((settings, warnings)) => {
            for warning in warnings {
                eprintln!("{warning}");
            }
            start_log(settings.process.verbosity);
            ExitCode::from(server::run(settings) as u8)
        }
        Err(Exit::Printed(text)) => {
            // Whoever closed the pipe has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(Exit::Refused { message, code }) => {
            eprintln!("{message}");
            ExitCode::from(code)
        }
    }
}

/// What a command line asks for, and what it should be told about it.
pub(crate) fn settings(
    arguments: impl Iterator<Item = OsString>,
) -> Result<(Settings, Vec<String>), Exit> {
    let mut draft = options::Draft::default();
    let arguments = proxy::mode(arguments, &mut draft);
    options::read(arguments.into_iter(), &mut draft)?;
    if let Some(proxy) = draft.proxy.take() {
        draft.settings.proxy = Some(proxy.finish()?);
    }
    draft.settings.process.port_file = std::env::var_os("MEMCACHED_PORT_FILENAME").map(Into::into);
    draft.settings.security.sasl_password_file =
        std::env::var_os("MEMCACHED_SASL_PWDB").map(Into::into);
    draft.settings.listen.inherit = true;
    if cfg!(feature = "debug-commands") {
        let taken = std::env::var("T_MEMD_INITIAL_MALLOC").unwrap_or_default();
        draft.settings.store.taken = taken.parse().unwrap_or(0);
    }
    draft.finish()
}

/// `-v` shows what went wrong, `-vv` what clients ask, `-vvv` what the server does about it.
fn start_log(verbosity: u8) {
    // The level itself is one that `verbosity` can change.
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Trace)
        .format(|out, record| writeln!(out, "{}", record.args()))
        .init();
    log::set_max_level(log_level(u32::from(verbosity)));
}

/// A number as C's `atoi` reads it: leading blanks, a sign, digits up to the first other byte; 0
/// where there is none.
fn atoi(text: &str) -> i64 {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(digits.len());
    let value =
        digits[..end]
            .parse::<i64>()
            .unwrap_or(if end == 0 { 0 } else { i64::from(i32::MAX) });
    let value = value.min(i64::from(i32::MAX));
    if negative { -value } else { value }
}

/// A number as C's `atof` reads it.
fn atof(text: &str) -> f64 {
    let text = text.trim_start();
    let end = text
        .find(|letter: char| !(letter.is_ascii_digit() || "+-.eE".contains(letter)))
        .unwrap_or(text.len());
    (0..=end)
        .rev()
        .find_map(|end| text[..end].parse().ok())
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_lenient() {
        for (text, value) in [
            ("64MB", 64),
            ("abc", 0),
            (" 7", 7),
            ("-1", -1),
            ("+3", 3),
            ("", 0),
            ("99999999999", 2_147_483_647),
        ] {
            assert_eq!(atoi(text), value, "{text}");
        }
        for (text, value) in [("1.25", 1.25), ("2x", 2.0), ("x", 0.0), ("1e1", 10.0)] {
            assert!((atof(text) - value).abs() < 1e-9, "{text}");
        }
    }
}
