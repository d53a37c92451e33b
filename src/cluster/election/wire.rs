#![forbid(unsafe_code)]
//! Requests in the words of etcd's v3 JSON gateway, and its answers understood.
//!
//! The gateway writes 64-bit numbers as strings, leaves out what is zero, and keys and values are
//! base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::directory::{Answer, Candidate, InSync, Leader, Member, Registered, Request, View};

/// This node as others are to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    pub id: u64,
    pub name: String,
    pub group: String,
    /// Where copies connect to.
    pub copies: String,
    /// Where clients connect to.
    pub clients: String,
}

/// Where a cluster's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    cluster: String,
}

impl Keys {
    pub fn new(cluster: &str) -> Keys {
        Keys {
            cluster: format!("/larder/{cluster}/"),
        }
    }

    /// All of the cluster, as a range.
    pub fn all(&self) -> (String, String) {
        range(&self.cluster)
    }

    pub fn groups(&self) -> String {
        format!("{}g/", self.cluster)
    }

    pub fn group(&self, group: &str) -> String {
        format!("{}g/{group}/", self.cluster)
    }

    pub fn nodes(&self) -> String {
        format!("{}nodes/", self.cluster)
    }

    /// The path and the body of a request.
    pub fn encode(&self, me: &Me, request: &Request) -> (&'static str, Value) {
        let group = self.group(&me.group);
        let leader = format!("{group}leader");
        let isr = format!("{group}isr");
        match request {
            Request::Grant { seconds } => ("/v3/lease/grant", json!({"TTL": seconds.to_string()})),
            Request::Renew { lease } => ("/v3/lease/keepalive", json!({"ID": lease.to_string()})),
            Request::Revoke { lease } => ("/v3/lease/revoke", json!({"ID": lease.to_string()})),
            Request::Read => {
                let (key, end) = range(&group);
                let (nodes, nodes_end) = range(&self.nodes());
                let ranges = json!([
                    {"request_range": {"key": key, "range_end": end}},
                    {"request_range": {"key": nodes, "range_end": nodes_end}},
                ]);
                txn(json!([]), ranges)
            }
            Request::Register { lease } => {
                let value = json!({
                    "id": hex(me.id),
                    "group": me.group,
                    "copies": me.copies,
                    "clients": me.clients,
                });
                let key = format!("{}{}", self.nodes(), me.name);
                txn(json!([]), json!([put(&key, &value, *lease)]))
            }
            Request::Stand {
                lease,
                epoch,
                applied,
                since,
            } => {
                let value = json!({
                    "id": hex(me.id), "epoch": epoch, "applied": applied, "since": since,
                });
                let key = format!("{group}candidate/{}", me.name);
                txn(json!([]), json!([put(&key, &value, *lease)]))
            }
            Request::Campaign {
                lease,
                since,
                floor,
                members,
            } => {
                let candidate = format!("{group}candidate/{}", me.name);
                let writes = json!([
                    put(&leader, &self.leading(me, 0, *floor), *lease),
                    put(&isr, &in_sync(members, me), 0),
                    {"request_delete_range": {"key": encoded(&candidate)}},
                ]);
                txn(json!([absent(&leader), unchanged(&isr, *since)]), writes)
            }
            Request::Reclaim {
                lease,
                since,
                epoch,
            } => txn(
                json!([absent(&leader), unchanged(&isr, *since)]),
                json!([put(&leader, &self.leading(me, *epoch, 0), *lease)]),
            ),
            Request::Agree {
                leading,
                since,
                members,
                ..
            } => {
                let leads = json!({
                    "key": encoded(&leader), "target": "CREATE", "result": "EQUAL",
                    "create_revision": leading.to_string(),
                });
                txn(
                    json!([leads, unchanged(&isr, *since)]),
                    json!([put(&isr, &in_sync(members, me), 0)]),
                )
            }
        }
    }

    fn leading(&self, me: &Me, epoch: u64, floor: u64) -> Value {
        json!({
            "node": me.name,
            "id": hex(me.id),
            "copies": me.copies,
            "clients": me.clients,
            "epoch": epoch,
            "floor": floor,
        })
    }

    /// What an answer says; nothing if that cannot be understood.
    pub fn decode(&self, request: &Request, answer: &Value) -> Option<Answer> {
        Some(match request {
            Request::Grant { .. } => {
                Answer::Granted(number(&answer["ID"]).filter(|lease| *lease > 0)?)
            }
            Request::Renew { .. } => {
                Answer::Renewed(number(&answer["TTL"]).is_some_and(|ttl| ttl > 0))
            }
            Request::Revoke { .. } => Answer::Revoked,
            Request::Read => Answer::View(self.view(answer)?),
            _ => {
                let revision = number(&answer["header"]["revision"])?;
                let written = answer["succeeded"] == Value::Bool(true);
                Answer::Written(written.then_some(revision))
            }
        })
    }

    fn view(&self, answer: &Value) -> Option<View> {
        let mut view = View {
            revision: number(&answer["header"]["revision"])?,
            ..View::default()
        };
        for response in answer["responses"].as_array()? {
            for entry in Entry::all(&response["response_range"]) {
                self.take_in(&mut view, &entry);
            }
        }
        Some(view)
    }

    /// What somebody else has written there, or nobody can read, is passed over.
    fn take_in(&self, view: &mut View, entry: &Entry) {
        if let Some(node) = self.node(entry) {
            view.nodes.push(node);
            return;
        }
        let Some((_, rest)) = self.in_group(&entry.key) else {
            return;
        };
        match rest {
            "leader" => view.leader = leader(entry),
            "isr" => {
                view.in_sync = Some(InSync {
                    members: members(&entry.value["members"]),
                    by: unhex(&entry.value["by"]).unwrap_or(0),
                    modified: entry.modified,
                });
            }
            _ => {
                if let Some(name) = rest.strip_prefix("candidate/")
                    && let Some(id) = unhex(&entry.value["id"])
                {
                    let number = |field: &str| entry.value[field].as_u64().unwrap_or(0);
                    view.candidates.push(Candidate {
                        id,
                        name: name.to_owned(),
                        epoch: number("epoch"),
                        applied: number("applied"),
                        since: number("since"),
                    });
                }
            }
        }
    }

    /// The group that a key is of, and what it says of it.
    pub fn in_group<'k>(&self, key: &'k str) -> Option<(&'k str, &'k str)> {
        key.strip_prefix(&self.groups())?.split_once('/')
    }

    /// The node that an entry is of.
    pub fn node(&self, entry: &Entry) -> Option<Registered> {
        let name = entry.key.strip_prefix(&self.nodes())?;
        let text = |field: &str| entry.value[field].as_str().unwrap_or_default().to_owned();
        Some(Registered {
            id: unhex(&entry.value["id"])?,
            name: name.to_owned(),
            group: text("group"),
            copies: text("copies"),
            clients: text("clients"),
        })
    }
}

/// The leader that an entry is of.
pub fn leader(entry: &Entry) -> Option<Leader> {
    let value = &entry.value;
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let given = value["epoch"].as_u64().unwrap_or(0);
    let floor = value["floor"].as_u64().unwrap_or(0);
    Some(Leader {
        id: unhex(&value["id"])?,
        name: text("node"),
        copies: text("copies"),
        clients: text("clients"),
        epoch: if given > 0 {
            given
        } else {
            entry.created.max(floor)
        },
        created: entry.created,
        lease: entry.lease,
    })
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub value: Value,
    pub created: u64,
    pub modified: u64,
    pub lease: u64,
}

impl Entry {
    /// Those of an answer to a range, but for what is no JSON.
    pub fn all(answer: &Value) -> Vec<Entry> {
        let entries = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice);
        let entry = |kv: &Value| {
            Some(Entry {
                key: String::from_utf8(decoded(&kv["key"])?).ok()?,
                value: serde_json::from_slice(&decoded(&kv["value"])?).ok()?,
                created: number(&kv["create_revision"])?,
                modified: number(&kv["mod_revision"])?,
                lease: number(&kv["lease"])?,
            })
        };
        entries.iter().filter_map(entry).collect()
    }
}

/// The first key that begins so, and the first behind them, both encoded.
pub fn range(prefix: &str) -> (String, String) {
    // Prefixes end with a slash, which is not the last of bytes.
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (encoded(prefix), STANDARD.encode(end))
}

fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

fn decoded(value: &Value) -> Option<Vec<u8>> {
    // An empty value is left out.
    STANDARD.decode(value.as_str().unwrap_or_default()).ok()
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Null => Some(0),
        other => other.as_u64(),
    }
}

fn hex(id: u64) -> String {
    format!("{id:016x}")
}

fn unhex(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?, 16).ok()
}

fn in_sync(members: &[Member], by: &Me) -> Value {
    let members: Vec<Value> = members
        .iter()
        .map(|member| json!({"id": hex(member.id), "node": member.name}))
        .collect();
    json!({"members": members, "by": hex(by.id)})
}

fn members(value: &Value) -> Vec<Member> {
    let member = |value: &Value| {
        Some(Member {
            id: unhex(&value["id"])?,
            name: value["node"].as_str()?.to_owned(),
        })
    };
    let all = value.as_array().map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(member).collect()
}

fn txn(conditions: Value, writes: Value) -> (&'static str, Value) {
    (
        "/v3/kv/txn",
        json!({"compare": conditions, "success": writes}),
    )
}

fn put(key: &str, value: &Value, lease: u64) -> Value {
    json!({"request_put": {
        "key": encoded(key),
        "value": encoded(&value.to_string()),
        "lease": lease.to_string(),
    }})
}

fn absent(key: &str) -> Value {
    json!({
        "key": encoded(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0",
    })
}

fn unchanged(key: &str, revision: u64) -> Value {
    json!({
        "key": encoded(key), "target": "MOD", "result": "EQUAL",
        "mod_revision": revision.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_read_is_passed_over() {
        let keys = Keys::new("c");
        let kv = |key: &str, value: &str| {
            json!({
                "key": encoded(key), "value": encoded(value),
                "create_revision": "5", "mod_revision": "7",
            })
        };
        let answer = json!({
            "header": {"revision": "9"}, "succeeded": true,
            "responses": [{"response_range": {"kvs": [
                kv("/larder/c/g/g/leader", "{\"id\":\"00ff\",\"node\":\"a\",\"floor\":3}"),
                kv("/larder/c/g/g/isr", "not JSON"),
                kv("/larder/c/g/g/candidate/x", "{}"),
                kv("/larder/c/nodes/y", "[]"),
                kv("/larder/c/nodes/z", "{\"id\":\"1\"}"),
                {"key": "%%", "value": 3},
            ]}}],
        });
        let Some(Answer::View(view)) = keys.decode(&Request::Read, &answer) else {
            panic!("no view");
        };
        assert_eq!(view.revision, 9);
        let leader = view.leader.unwrap();
        assert_eq!((leader.id, leader.epoch, leader.created), (255, 5, 5));
        assert_eq!((view.in_sync, view.candidates.len()), (None, 0));
        assert_eq!(view.nodes.len(), 1);
        assert_eq!(keys.decode(&Request::Read, &json!({"responses": 7})), None);
    }

    #[test]
    fn a_range_ends_behind_its_prefix() {
        let (first, behind) = range("/larder/c/");
        assert_eq!(STANDARD.decode(first).unwrap(), b"/larder/c/");
        assert_eq!(STANDARD.decode(behind).unwrap(), b"/larder/c0");
    }
}
