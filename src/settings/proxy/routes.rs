#![forbid(unsafe_code)]
//! Routes out of the configuration file: names become places in a list, and a list without loops.

use std::collections::HashMap;

use super::reader::{Found, Table, Value, unknown};
use super::{
    Commands, Failure, Failures, Order, Pool, ROUTES_MAX, Rate, Route, RouteId, Rule, Wait,
};

/// How deep routes may lie in one another.
const DEPTH_MAX: usize = 16;
/// How many sends one request may cause on all its ways.
const SENDS_MAX: usize = 64;
const CHILDREN_MAX: usize = 32;
const RULES_MAX: usize = 256;
const KEY_MAX: usize = 250;

const KINDS: [&str; 14] = [
    "pool", "match", "failover", "fanout", "random", "tier", "warmup", "migrate", "shadow",
    "rewrite", "limit", "null", "error", "fault",
];

/// What a route costs at most.
#[derive(Clone, Copy)]
struct Cost {
    depth: usize,
    sends: usize,
}

pub(super) struct Routes<'doc> {
    pools: HashMap<String, usize>,
    named: Vec<(&'doc str, Value<'doc>)>,
    built: HashMap<&'doc str, RouteId>,
    /// Those being built, outermost first: a name among them is a loop.
    open: Vec<&'doc str>,
    nodes: Vec<Route>,
    costs: Vec<Cost>,
}

impl<'doc> Routes<'doc> {
    pub(super) fn new(pools: &[Pool]) -> Routes<'doc> {
        Routes {
            pools: pools
                .iter()
                .enumerate()
                .map(|(index, pool)| (pool.name.clone(), index))
                .collect(),
            named: Vec::new(),
            built: HashMap::new(),
            open: Vec::new(),
            nodes: Vec::new(),
            costs: Vec::new(),
        }
    }

    /// Gives a route a name. It is built when something leads to it.
    pub(super) fn name(&mut self, name: &'doc str, value: Value<'doc>) -> Found<()> {
        if self.pools.contains_key(name) {
            return Err(value.wrong(format!("`{name}` is the name of a pool already")));
        }
        self.named.push((name, value));
        Ok(())
    }

    /// Checks what nothing leads to as well.
    pub(super) fn rest_is_sound(&mut self) -> Found<()> {
        for (name, value) in self.named.clone() {
            self.reference(name, &value)?;
        }
        Ok(())
    }

    pub(super) fn into_nodes(self) -> Vec<Route> {
        self.nodes
    }

    /// A name, or a route written where it is used.
    pub(super) fn build(&mut self, value: &Value<'doc>) -> Found<RouteId> {
        if value.is_text() {
            return self.reference(value.text()?, value);
        }
        let table = value.table()?;
        let route = self.route(&table)?;
        table.done()?;
        self.add(route, value)
    }

    fn reference(&mut self, name: &str, at: &Value<'doc>) -> Found<RouteId> {
        if let Some(&pool) = self.pools.get(name) {
            return self.add(Route::Pool { pool }, at);
        }
        if let Some(&id) = self.built.get(name) {
            return Ok(id);
        }
        let Some((name, value)) = self.named.iter().find(|(known, _)| *known == name).cloned()
        else {
            let mut names: Vec<&str> = self.pools.keys().map(String::as_str).collect();
            names.extend(self.named.iter().map(|(name, _)| *name));
            names.sort_unstable();
            return Err(at.wrong(unknown("pool or route", name, names.into_iter())));
        };
        if let Some(start) = self.open.iter().position(|open| *open == name) {
            let way = self.open[start..].join(" -> ");
            return Err(at.wrong(format!("routes lead in a circle: {way} -> {name}")));
        }
        self.open.push(name);
        let id = self.build(&value)?;
        self.open.pop();
        self.built.insert(name, id);
        Ok(id)
    }

    pub(super) fn add(&mut self, route: Route, at: &Value<'doc>) -> Found<RouteId> {
        if let Route::Pool { .. } = route
            && let Some(id) = self.nodes.iter().position(|known| *known == route)
        {
            return Ok(id);
        }
        if self.nodes.len() == ROUTES_MAX {
            return Err(at.wrong(format!("there are more than {ROUTES_MAX} routes")));
        }
        let cost = self.cost(&route);
        if cost.depth > DEPTH_MAX {
            return Err(at.wrong(format!("routes lie more than {DEPTH_MAX} deep")));
        }
        if cost.sends > SENDS_MAX {
            return Err(at.wrong(format!(
                "one request could be sent {} times; at most {SENDS_MAX}",
                cost.sends
            )));
        }
        self.nodes.push(route);
        self.costs.push(cost);
        Ok(self.nodes.len() - 1)
    }

    fn cost(&self, route: &Route) -> Cost {
        let mut children = Vec::new();
        route.for_each_child(|child| children.push(self.costs[child]));
        let depth = 1 + children.iter().map(|cost| cost.depth).max().unwrap_or(0);
        let all: usize = children.iter().map(|cost| cost.sends).sum();
        let one = children.iter().map(|cost| cost.sends).max().unwrap_or(0);
        let sends = match route {
            Route::Pool { .. } => 1,
            Route::Match { .. } | Route::Random { .. } => one,
            // What fills the nearer one is a send of its own.
            Route::Tier { .. } | Route::Warmup { .. } | Route::Moving { .. } => 2 * all,
            _ => all,
        };
        Cost { depth, sends }
    }

    fn route(&mut self, table: &Table<'doc>) -> Found<Route> {
        let kinds: Vec<&'static str> = KINDS.into_iter().filter(|kind| table.has(kind)).collect();
        let kind = match kinds[..] {
            [kind] => kind,
            [] => {
                return Err(table.wrong(format!("a route is one of {}", KINDS.join(", "))));
            }
            [first, second, ..] => {
                return Err(table.wrong(format!("a route is `{first}` or `{second}`, not both")));
            }
        };
        let value = table.needed(kind)?;
        match kind {
            "pool" => {
                let name = value.text()?;
                match self.pools.get(name) {
                    Some(&pool) => Ok(Route::Pool { pool }),
                    None => Err(value.wrong(unknown(
                        "pool",
                        name,
                        self.pools.keys().map(String::as_str),
                    ))),
                }
            }
            "match" => self.rules(&value, table),
            "failover" => self.failover(&value, table),
            "fanout" => {
                let mut wait = Wait::default();
                table.set("wait", &mut wait, |value| {
                    value.choice(
                        "way to wait",
                        &[
                            ("all", Wait::All),
                            ("first", Wait::First),
                            ("majority", Wait::Majority),
                            ("primary", Wait::Primary),
                            ("none", Wait::None),
                        ],
                    )
                })?;
                Ok(Route::Fanout {
                    children: self.children(&value)?,
                    wait,
                })
            }
            "random" => Ok(Route::Random {
                children: self.children(&value)?,
            }),
            "null" => match value.flag()? {
                true => Ok(Route::Null),
                false => Err(value.wrong("it can only be true")),
            },
            "error" => Ok(Route::Error {
                message: words(&value)?,
            }),
            _ => {
                let inner = value.table()?;
                let route = self.nested(kind, &inner)?;
                inner.done()?;
                Ok(route)
            }
        }
    }

    /// Routes that are a table of their own.
    fn nested(&mut self, kind: &str, table: &Table<'doc>) -> Found<Route> {
        match kind {
            "tier" => Ok(Route::Tier {
                near: self.to(table, "near")?,
                far: self.to(table, "far")?,
                ttl: table.needed("ttl")?.ttl()?,
            }),
            "warmup" => Ok(Route::Warmup {
                cold: self.to(table, "cold")?,
                warm: self.to(table, "warm")?,
                ttl: table.get("ttl").map(|value| value.ttl()).transpose()?,
            }),
            "migrate" => Ok(Route::Migrate {
                from: self.to(table, "from")?,
                to: self.to(table, "to")?,
                start: table.needed("start")?.moment()?,
                length: table.needed("over")?.duration_ms(1000..=366 * 86_400_000)? / 1000,
            }),
            "shadow" => Ok(Route::Shadow {
                main: self.to(table, "main")?,
                copies: self.to(table, "copies")?,
                share: table.needed("share")?.real(0.0..=1.0)?,
            }),
            "rewrite" => self.rewrite(table),
            "limit" => self.limit(table),
            _ => {
                let mut delay_ms = 0;
                table.set("delay", &mut delay_ms, |value| {
                    value.duration_ms(0..=3_600_000)
                })?;
                let error = match table.get("error") {
                    Some(value) => Some(words(&value)?),
                    None => None,
                };
                if error.is_none() && delay_ms == 0 {
                    return Err(table.wrong("a fault has a `delay`, an `error` or both"));
                }
                let mut share = 1.0;
                table.set("share", &mut share, |value| value.real(0.0..=1.0))?;
                Ok(Route::Fault {
                    to: self.to(table, "to")?,
                    share,
                    delay_ms,
                    error,
                })
            }
        }
    }

    fn to(&mut self, table: &Table<'doc>, name: &'static str) -> Found<RouteId> {
        let value = table.needed(name)?;
        self.build(&value)
    }

    fn children(&mut self, value: &Value<'doc>) -> Found<Vec<RouteId>> {
        let values = value.list()?;
        if values.is_empty() || values.len() > CHILDREN_MAX {
            return Err(value.wrong(format!("1 to {CHILDREN_MAX} routes are expected")));
        }
        values.iter().map(|value| self.build(value)).collect()
    }

    fn rules(&mut self, value: &Value<'doc>, table: &Table<'doc>) -> Found<Route> {
        let values = value.list()?;
        if values.len() > RULES_MAX {
            return Err(value.wrong(format!("there are more than {RULES_MAX} rules")));
        }
        let mut rules = Vec::new();
        for value in values {
            let table = value.table()?;
            let mut prefixes = vec![Vec::new()];
            if let Some(value) = table.get("prefix") {
                prefixes.clear();
                for value in value.one_or_more()? {
                    prefixes.push(key_part(&value)?);
                }
            }
            let mut command = Commands::ALL;
            table.set("command", &mut command, commands)?;
            let listener = match table.get("listener") {
                Some(value) => Some(value.text()?.to_owned()),
                None => None,
            };
            if command == Commands::ALL && listener.is_none() && prefixes.iter().any(Vec::is_empty)
            {
                return Err(value.wrong(
                    "a rule has a `prefix`, a `command` or a `listener`; `otherwise` has the rest",
                ));
            }
            let to = self.to(&table, "to")?;
            table.done()?;
            rules.extend(prefixes.into_iter().map(|prefix| Rule {
                prefix,
                commands: command,
                listener: listener.clone(),
                to,
            }));
        }
        if rules.len() > RULES_MAX {
            return Err(value.wrong(format!("there are more than {RULES_MAX} prefixes")));
        }
        Ok(Route::Match {
            rules,
            otherwise: self.to(table, "otherwise")?,
        })
    }

    fn failover(&mut self, value: &Value<'doc>, table: &Table<'doc>) -> Found<Route> {
        let mut on = Failures::USUAL;
        if let Some(value) = table.get("on") {
            let choices = Failure::ALL.map(|failure| (failure.name(), failure));
            on = Failures::NONE;
            for value in value.one_or_more()? {
                on = on.with(value.choice("failure", &choices)?);
            }
        }
        let mut order = Order::default();
        table.set("order", &mut order, |value| {
            value.choice(
                "order",
                &[
                    ("given", Order::Given),
                    ("key", Order::Key),
                    ("host", Order::Host),
                ],
            )
        })?;
        let ttl_max = match table.get("ttl_max") {
            Some(value) => Some(value.ttl()?),
            None => None,
        };
        Ok(Route::Failover {
            children: self.children(value)?,
            on,
            ttl_max,
            order,
            rate: rate(table)?,
        })
    }

    fn rewrite(&mut self, table: &Table<'doc>) -> Found<Route> {
        let part = |name| -> Found<Vec<u8>> {
            match table.get(name) {
                Some(value) => key_part(&value),
                None => Ok(Vec::new()),
            }
        };
        let ttl = |name| -> Found<Option<u32>> {
            match table.get(name) {
                Some(value) => Ok(Some(value.ttl()?)),
                None => Ok(None),
            }
        };
        let (strip, prefix, suffix) = (part("strip")?, part("prefix")?, part("suffix")?);
        let (fixed, ttl_max) = (ttl("ttl")?, ttl("ttl_max")?);
        Ok(Route::Rewrite {
            to: self.to(table, "to")?,
            strip,
            prefix,
            suffix,
            ttl: fixed,
            ttl_max,
        })
    }

    fn limit(&mut self, table: &Table<'doc>) -> Found<Route> {
        let mut counted = Commands::ALL;
        table.set("command", &mut counted, commands)?;
        let in_flight = match table.get("in_flight") {
            Some(value) => Some(value.number(1..=1 << 24)? as u32),
            None => None,
        };
        let rate = rate(table)?;
        if rate.is_none() && in_flight.is_none() {
            return Err(table.wrong("a limit has a `rate`, `in_flight` or both"));
        }
        Ok(Route::Limit {
            to: self.to(table, "to")?,
            commands: counted,
            rate,
            in_flight,
        })
    }
}

fn rate(table: &Table<'_>) -> Found<Option<Rate>> {
    let Some(value) = table.get("rate") else {
        return match table.get("burst") {
            Some(value) => Err(value.wrong("there is no `rate`")),
            None => Ok(None),
        };
    };
    let per_second = value.real(0.001..=1e9)?;
    let mut burst = per_second.ceil().clamp(1.0, 1e9) as u32;
    table.set("burst", &mut burst, |value| {
        Ok(value.number(1..=1 << 30)? as u32)
    })?;
    Ok(Some(Rate { per_second, burst }))
}

fn commands(value: &Value<'_>) -> Found<Commands> {
    let mut commands = Commands::NONE;
    for value in value.one_or_more()? {
        let name = value.text()?;
        let more = Commands::named(name).ok_or_else(|| {
            let names = super::Command::ALL.iter().map(|command| command.name());
            value.wrong(unknown(
                "command",
                name,
                names.chain(["read", "write", "all"]),
            ))
        })?;
        commands = commands.and(more);
    }
    Ok(commands)
}

/// Bytes that may stand in a key.
fn key_part(value: &Value<'_>) -> Found<Vec<u8>> {
    let text = value.text()?;
    if text.len() > KEY_MAX || text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(value.wrong(format!(
            "no key has this in it: at most {KEY_MAX} bytes, and neither blanks nor control characters"
        )));
    }
    Ok(text.as_bytes().to_vec())
}

/// What can follow `SERVER_ERROR` on its line.
fn words(value: &Value<'_>) -> Found<String> {
    let text = value.text()?;
    if text.is_empty() || text.len() > 200 || text.chars().any(char::is_control) {
        return Err(value.wrong("a line of 1 to 200 bytes is expected"));
    }
    Ok(text.to_owned())
}
