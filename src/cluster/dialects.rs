//! Which dialects a server takes, as it shows by what it answers.
//!
//! A server with `-S` or `-B binary` takes binary requests alone, one with `-Y` or `-B ascii` text alone;
//! nobody tells a proxy which. Clients' requests go to it as they come, in the dialect that they have. What a
//! proxy asks of its own accord goes in one that the server has answered; until there is one, probes try both
//! in turn.
#![forbid(unsafe_code)]

use crate::protocol::Dialect;

/// What is known of one dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Nothing,
    /// A request has been answered.
    Taken,
    /// A probe has not been answered, though somebody was there.
    Silent,
}

/// See the module.
#[derive(Debug)]
pub struct Dialects {
    known: [Known; 2],
    /// That of the last probe that was not answered.
    tried: Dialect,
}

fn other(dialect: Dialect) -> Dialect {
    match dialect {
        Dialect::Text => Dialect::Binary,
        Dialect::Binary => Dialect::Text,
    }
}

impl Default for Dialects {
    /// Nothing is known.
    fn default() -> Dialects {
        Dialects {
            known: [Known::Nothing; 2],
            tried: Dialect::Binary,
        }
    }
}

impl Dialects {
    fn of(&self, dialect: Dialect) -> Known {
        self.known[dialect as usize]
    }

    /// The one that the server is asked in what no client has asked.
    pub fn own(&self) -> Dialect {
        let (text, binary) = (self.of(Dialect::Text), self.of(Dialect::Binary));
        match (text, binary) {
            (Known::Taken, _) => Dialect::Text,
            (_, Known::Taken) => Dialect::Binary,
            (Known::Nothing, _) => Dialect::Text,
            (_, Known::Nothing) => Dialect::Binary,
            (Known::Silent, Known::Silent) => other(self.tried),
        }
    }

    /// A request has been answered.
    pub fn answered(&mut self, dialect: Dialect) {
        self.known[dialect as usize] = Known::Taken;
    }

    /// A probe has not been answered by a server that is there.
    pub fn silent(&mut self, dialect: Dialect) {
        self.known[dialect as usize] = Known::Silent;
        self.tried = dialect;
    }

    /// Whether a connection that fails, or is not answered, shows that the server does: not if that is
    /// because of the dialect. `clients`: theirs were among the requests, and they do not try.
    pub fn counts(&self, dialect: Dialect, clients: bool) -> bool {
        let another = self.of(other(dialect));
        self.of(dialect) == Known::Taken
            || match clients {
                true => another != Known::Taken,
                false => another == Known::Silent,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Dialect::{Binary, Text};

    #[test]
    fn one_that_takes_binary_alone_is_asked_in_binary() {
        let mut dialects = Dialects::default();
        assert_eq!(dialects.own(), Text);
        assert!(
            !dialects.counts(Text, false),
            "the other has not been tried"
        );
        assert!(dialects.counts(Text, true));
        dialects.silent(Text);
        assert_eq!(dialects.own(), Binary);
        dialects.answered(Binary);
        assert_eq!(dialects.own(), Binary);
        assert!(dialects.counts(Binary, false) && dialects.counts(Binary, true));
        // Who asks it in text does not take it from those who ask in binary.
        assert!(!dialects.counts(Text, true) && !dialects.counts(Text, false));
    }

    #[test]
    fn one_that_answers_nobody_is_tried_in_both() {
        let mut dialects = Dialects::default();
        let mut tried = Vec::new();
        for n in 0..6 {
            let dialect = dialects.own();
            assert_eq!(dialects.counts(dialect, false), n > 0);
            assert!(dialects.counts(dialect, true));
            dialects.silent(dialect);
            tried.push(dialect);
        }
        assert_eq!(tried, [Text, Binary, Text, Binary, Text, Binary]);
        // What it takes when it is back may be another.
        dialects.answered(Text);
        assert_eq!(dialects.own(), Text);
    }

    #[test]
    fn text_is_preferred_where_both_are_taken() {
        let mut dialects = Dialects::default();
        dialects.answered(Binary);
        assert_eq!(dialects.own(), Binary);
        dialects.answered(Text);
        assert_eq!(dialects.own(), Text);
        assert!(dialects.counts(Text, false), "it has been taken before");
        dialects.silent(Text);
        assert_eq!(dialects.own(), Binary);
    }
}
