#![forbid(unsafe_code)]
//! What may happen to a request between client and server, as plain data.

use std::fmt;

/// The place of a route in [`super::Proxy::routes`].
pub type RouteId = usize;

/// Routes of one configuration, those without a name counted.
pub const ROUTES_MAX: usize = 1024;

/// One of the fourteen things that are done with requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Route {
    /// To the server of the pool that owns the key.
    Pool { pool: usize },
    /// To the first rule that applies, else to `otherwise`.
    Match {
        rules: Vec<Rule>,
        otherwise: RouteId,
    },
    /// To the first child, and while that fails to the next.
    Failover {
        children: Vec<RouteId>,
        on: Failures,
        /// Seconds: the longest life of what is written to another than the first.
        ttl_max: Option<u32>,
        order: Order,
        /// How many requests a second may go on to the second child.
        rate: Option<Rate>,
    },
    /// To all children.
    Fanout { children: Vec<RouteId>, wait: Wait },
    /// To the less busy of two children drawn at random.
    Random { children: Vec<RouteId> },
    /// Reads come from `near`, and on a miss from `far`, which fills `near`. Writes go to `far`; before
    /// and when they are done `near` forgets the key.
    Tier {
        near: RouteId,
        far: RouteId,
        /// Seconds: the life of what fills `near`.
        ttl: u32,
    },
    /// To `cold`; what that misses is read from `warm` and added to `cold`, before it is changed if
    /// it is to be. What is overwritten or deleted is deleted from `warm` as well.
    Warmup {
        cold: RouteId,
        warm: RouteId,
        /// Seconds; nothing is what the value has left in `warm`, whose servers speak meta then.
        ttl: Option<u32>,
    },
    /// A key that belongs to `new` and belonged to `old` a while ago. Nobody writes this: pools of groups
    /// make it when groups come or go.
    Moving {
        old: RouteId,
        new: RouteId,
        /// As that of `Warmup`.
        ttl: Option<u32>,
        stage: Moving,
    },
    /// From one route to another, key by key, over a time. Deletes go to both meanwhile.
    Migrate {
        from: RouteId,
        to: RouteId,
        /// Seconds since 1970.
        start: u64,
        /// Seconds.
        length: u64,
    },
    /// To `main`, and copies of a share of the keys to `copies`, whose answers nobody awaits.
    Shadow {
        main: RouteId,
        copies: RouteId,
        /// 0 to 1.
        share: f64,
    },
    /// To `to`, changed.
    Rewrite {
        to: RouteId,
        /// Taken off the beginning of the key, where it is there.
        strip: Vec<u8>,
        /// Put before the key.
        prefix: Vec<u8>,
        /// Put behind the key.
        suffix: Vec<u8>,
        /// Seconds: the life of what is written, whatever the client says.
        ttl: Option<u32>,
        /// Seconds: the longest life of what is written.
        ttl_max: Option<u32>,
    },
    /// To `to`, unless too much goes there already.
    Limit {
        to: RouteId,
        /// What counts.
        commands: Commands,
        rate: Option<Rate>,
        /// Requests that wait for their answer.
        in_flight: Option<u32>,
    },
    /// Reads and deletes find nothing, stores are answered `NOT_STORED`.
    Null,
    /// Answered with `SERVER_ERROR` and these words.
    Error { message: String },
    /// For tests: to `to`, a share of the requests delayed, or refused.
    Fault {
        to: RouteId,
        /// 0 to 1.
        share: f64,
        delay_ms: u64,
        /// Answer with this error.
        error: Option<String>,
    },
}

impl Route {
    /// Every route this one may lead to.
    pub fn for_each_child(&self, mut visit: impl FnMut(RouteId)) {
        match self {
            Route::Pool { .. } | Route::Null | Route::Error { .. } => {}
            Route::Match { rules, otherwise } => {
                rules.iter().for_each(|rule| visit(rule.to));
                visit(*otherwise);
            }
            Route::Failover { children, .. }
            | Route::Fanout { children, .. }
            | Route::Random { children } => children.iter().copied().for_each(visit),
            Route::Tier { near, far, .. } => [*near, *far].into_iter().for_each(visit),
            Route::Warmup { cold, warm, .. } => [*cold, *warm].into_iter().for_each(visit),
            Route::Moving { old, new, .. } => [*old, *new].into_iter().for_each(visit),
            Route::Migrate { from, to, .. } => [*from, *to].into_iter().for_each(visit),
            Route::Shadow { main, copies, .. } => [*main, *copies].into_iter().for_each(visit),
            Route::Rewrite { to, .. } | Route::Limit { to, .. } | Route::Fault { to, .. } => {
                visit(*to);
            }
        }
    }
}

/// How far the moving of keys is, after a group has come or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Moving {
    /// They stay where they were, until all proxies know of it.
    #[default]
    Settling,
    /// They are brought over when they are read.
    Bringing,
    /// They are where they belong, or nowhere; until no proxy brings any over.
    Ending,
}

/// A condition and where it leads. All that is given must apply.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Empty applies to every key.
    pub prefix: Vec<u8>,
    pub commands: Commands,
    /// The tag of the listener the client came by.
    pub listener: Option<String>,
    pub to: RouteId,
}

/// What a request does, whatever its dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// `get gets mg`, and the binary gets
    Get,
    /// `gat gats`, `mg` with `T`
    Gat,
    Set,
    Add,
    Replace,
    Append,
    Prepend,
    /// A store that compares.
    Cas,
    Incr,
    Decr,
    /// `delete md`
    Delete,
    Touch,
    /// `me`
    Debug,
}

/// So many there are.
pub const COMMANDS: usize = 13;

impl Command {
    pub const ALL: [Command; COMMANDS] = [
        Command::Get,
        Command::Gat,
        Command::Set,
        Command::Add,
        Command::Replace,
        Command::Append,
        Command::Prepend,
        Command::Cas,
        Command::Incr,
        Command::Decr,
        Command::Delete,
        Command::Touch,
        Command::Debug,
    ];

    /// The word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Command::Get => "get",
            Command::Gat => "gat",
            Command::Set => "set",
            Command::Add => "add",
            Command::Replace => "replace",
            Command::Append => "append",
            Command::Prepend => "prepend",
            Command::Cas => "cas",
            Command::Incr => "incr",
            Command::Decr => "decr",
            Command::Delete => "delete",
            Command::Touch => "touch",
            Command::Debug => "debug",
        }
    }

    pub fn is_read(self) -> bool {
        Commands::READS.has(self)
    }
}

/// A set of commands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Commands(u16);

impl Commands {
    pub const NONE: Commands = Commands(0);
    pub const ALL: Commands = Commands((1 << Command::ALL.len()) - 1);
    /// `get` and `debug`: what changes nothing.
    pub const READS: Commands = Commands(1 << Command::Get as u16 | 1 << Command::Debug as u16);
    pub const WRITES: Commands = Commands(Commands::ALL.0 & !Commands::READS.0);

    #[must_use]
    pub fn with(self, command: Command) -> Commands {
        Commands(self.0 | 1 << command as u16)
    }

    #[must_use]
    pub fn and(self, other: Commands) -> Commands {
        Commands(self.0 | other.0)
    }

    #[inline]
    pub fn has(self, command: Command) -> bool {
        self.0 & (1 << command as u16) != 0
    }

    /// A command, `read`, `write` or `all`.
    pub fn named(name: &str) -> Option<Commands> {
        match name {
            "read" => Some(Commands::READS),
            "write" => Some(Commands::WRITES),
            "all" => Some(Commands::ALL),
            name => Command::ALL
                .into_iter()
                .find(|command| command.name() == name)
                .map(|command| Commands::NONE.with(command)),
        }
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Command::ALL
            .into_iter()
            .filter(|&command| self.has(command));
        f.debug_set().entries(names).finish()
    }
}

/// What a failover route goes on for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The server was known to be down, or the connection could not be made or broke.
    Down,
    /// No answer in time.
    Timeout,
    /// Too many requests wait for the server already, or it says so (`SERVER_ERROR 307 busy`).
    Busy,
    /// Any other `SERVER_ERROR`.
    Error,
    /// The key is not there.
    Miss,
}

impl Failure {
    pub const ALL: [Failure; 5] = [
        Failure::Down,
        Failure::Timeout,
        Failure::Busy,
        Failure::Error,
        Failure::Miss,
    ];

    /// The word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Down => "down",
            Failure::Timeout => "timeout",
            Failure::Busy => "busy",
            Failure::Error => "error",
            Failure::Miss => "miss",
        }
    }
}

/// A set of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failures(u8);

impl Failures {
    pub const NONE: Failures = Failures(0);
    /// All but misses.
    pub const USUAL: Failures = Failures(0b1111);

    #[must_use]
    pub fn with(self, failure: Failure) -> Failures {
        Failures(self.0 | 1 << failure as u8)
    }

    pub fn has(self, failure: Failure) -> bool {
        self.0 & (1 << failure as u8) != 0
    }
}

/// Who is first among the children of a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As they are written.
    #[default]
    Given,
    /// By the hash of the key: each child is first for some.
    Key,
    /// By this host's name: each proxy has its own first child.
    Host,
}

/// Which answer of a fan-out the client gets, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// When all have answered, the worst answer.
    #[default]
    All,
    /// The first that is no failure.
    First,
    /// When more than half agree, what they say.
    Majority,
    /// The first child's.
    Primary,
    /// As [`Route::Null`], at once.
    None,
}

/// A bucket of tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    /// As many may come at once; at least 1.
    pub burst: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_commands() {
        assert_eq!(
            Commands::named("get"),
            Some(Commands::NONE.with(Command::Get))
        );
        assert_eq!(Commands::named("gets"), None);
        for command in Command::ALL {
            assert!(Commands::ALL.has(command));
            assert_ne!(Commands::READS.has(command), Commands::WRITES.has(command));
            assert!(!Commands::NONE.has(command));
        }
        assert_eq!(Commands::READS.and(Commands::WRITES), Commands::ALL);
    }

    #[test]
    fn a_miss_is_no_usual_failure() {
        for failure in Failure::ALL {
            assert_eq!(Failures::USUAL.has(failure), failure != Failure::Miss);
        }
    }
}
