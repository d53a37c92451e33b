//! What etcd's v3 JSON gateway does, in memory, as far as Larder asks it: keys with revisions,
//! transactions, leases. [`Store`] knows no clock and no socket; [`Gateway`] gives it both.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// HTTP status, gRPC code, words.
pub type Refusal = (u16, i64, &'static str);

const LEASE_NOT_FOUND: Refusal = (404, 5, "etcdserver: requested lease not found");
const MALFORMED: Refusal = (400, 3, "malformed");

#[derive(Debug, Clone)]
struct Kv {
    value: Vec<u8>,
    created: u64,
    modified: u64,
    lease: u64,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl_ms: u64,
    until: u64,
}

/// Keys and leases.
#[derive(Debug)]
pub struct Store {
    revision: u64,
    kvs: BTreeMap<Vec<u8>, Kv>,
    leases: BTreeMap<u64, Lease>,
    next_lease: u64,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            revision: 1,
            kvs: BTreeMap::new(),
            leases: BTreeMap::new(),
            next_lease: 7000,
        }
    }
}

impl Store {
    /// Ends leases that have run out. As etcd's own clock, it may be behind.
    pub fn expire(&mut self, now: u64) {
        let over: Vec<u64> = self
            .leases
            .iter()
            .filter(|(_, lease)| now >= lease.until)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.revoke(id);
        }
    }

    /// All leases last for their whole time again, as after an election among etcd's members.
    pub fn restart_leases(&mut self, now: u64) {
        for lease in self.leases.values_mut() {
            lease.until = now + lease.ttl_ms;
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn value(&self, key: &str) -> Option<Value> {
        serde_json::from_slice(&self.kvs.get(key.as_bytes())?.value).ok()
    }

    pub fn revoke(&mut self, id: u64) -> bool {
        let known = self.leases.remove(&id).is_some();
        let before = self.kvs.len();
        self.kvs.retain(|_, kv| kv.lease != id || id == 0);
        self.revision += u64::from(self.kvs.len() < before);
        known
    }

    fn header(&self) -> Value {
        json!({"revision": self.revision.to_string(), "raft_term": "2"})
    }

    /// One request at a time `now`, milliseconds.
    pub fn call(&mut self, path: &str, body: &Value, now: u64) -> Result<Value, Refusal> {
        self.expire(now);
        match path {
            "/v3/lease/grant" => {
                let ttl = number(&body["TTL"])?;
                self.next_lease += 1;
                let ttl_ms = ttl * 1000;
                self.leases.insert(
                    self.next_lease,
                    Lease {
                        ttl_ms,
                        until: now + ttl_ms,
                    },
                );
                Ok(json!({
                    "header": self.header(), "ID": self.next_lease.to_string(),
                    "TTL": ttl.to_string(),
                }))
            }
            "/v3/lease/keepalive" => {
                let id = number(&body["ID"])?;
                let mut result = json!({"header": self.header(), "ID": id.to_string()});
                if let Some(lease) = self.leases.get_mut(&id) {
                    lease.until = now + lease.ttl_ms;
                    result["TTL"] = json!((lease.ttl_ms / 1000).to_string());
                }
                Ok(json!({"result": result}))
            }
            "/v3/lease/revoke" => {
                if self.revoke(number(&body["ID"])?) {
                    Ok(json!({"header": self.header()}))
                } else {
                    Err(LEASE_NOT_FOUND)
                }
            }
            "/v3/kv/txn" => self.txn(body),
            "/v3/kv/range" => {
                let mut answer = self.range(body)?;
                answer["header"] = self.header();
                Ok(answer)
            }
            _ => Err((404, 5, "Not Found")),
        }
    }

    fn txn(&mut self, body: &Value) -> Result<Value, Refusal> {
        let mut holds = true;
        for condition in list(&body["compare"]) {
            let kv = self.kvs.get(&bytes(&condition["key"])?);
            let (is, wanted) = match condition["target"].as_str() {
                Some("CREATE") => (kv.map_or(0, |kv| kv.created), &condition["create_revision"]),
                Some("MOD") => (kv.map_or(0, |kv| kv.modified), &condition["mod_revision"]),
                _ => return Err(MALFORMED),
            };
            holds &= is == number(wanted)?;
        }
        let steps = list(&body[if holds { "success" } else { "failure" }]);
        // Whole or not at all.
        for step in steps {
            let lease = number(&step["request_put"]["lease"])?;
            if lease != 0 && !self.leases.contains_key(&lease) {
                return Err(LEASE_NOT_FOUND);
            }
        }
        let writes = steps.iter().any(|step| step.get("request_range").is_none());
        let revision = self.revision + u64::from(writes);
        let mut responses = Vec::new();
        for step in steps {
            if let Some(range) = step.get("request_range") {
                responses.push(json!({"response_range": self.range(range)?}));
            } else if let Some(put) = step.get("request_put") {
                let key = bytes(&put["key"])?;
                let created = self.kvs.get(&key).map_or(revision, |kv| kv.created);
                let kv = Kv {
                    value: bytes(&put["value"])?,
                    created,
                    modified: revision,
                    lease: number(&put["lease"])?,
                };
                self.kvs.insert(key, kv);
                responses.push(json!({"response_put": {}}));
            } else if let Some(delete) = step.get("request_delete_range") {
                self.kvs.remove(&bytes(&delete["key"])?);
                responses.push(json!({"response_delete_range": {}}));
            } else {
                return Err(MALFORMED);
            }
        }
        self.revision = revision;
        let mut answer = json!({"header": self.header(), "responses": responses});
        if holds {
            answer["succeeded"] = json!(true);
        }
        Ok(answer)
    }

    fn range(&self, range: &Value) -> Result<Value, Refusal> {
        let (first, end) = (bytes(&range["key"])?, bytes(&range["range_end"])?);
        let kvs: Vec<Value> = self
            .kvs
            .range(first..end)
            .map(|(key, kv)| {
                json!({
                    "key": STANDARD.encode(key),
                    "value": STANDARD.encode(&kv.value),
                    "create_revision": kv.created.to_string(),
                    "mod_revision": kv.modified.to_string(),
                    "lease": kv.lease.to_string(),
                })
            })
            .collect();
        Ok(json!({"count": kvs.len().to_string(), "kvs": kvs}))
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> Result<u64, Refusal> {
    match value {
        Value::Null => Ok(0),
        Value::String(text) => text.parse().map_err(|_| MALFORMED),
        other => other.as_u64().ok_or(MALFORMED),
    }
}

fn bytes(value: &Value) -> Result<Vec<u8>, Refusal> {
    let text = value.as_str().unwrap_or_default();
    STANDARD.decode(text).map_err(|_| MALFORMED)
}

struct Inner {
    store: Mutex<Store>,
    changed: Condvar,
    began: Instant,
    /// Requests are left unanswered.
    deaf: AtomicBool,
    /// How often all watches were ended.
    ends: AtomicU64,
    over: AtomicBool,
    /// Name, password, and the token they are good for.
    user: Option<(String, String)>,
    token: Mutex<String>,
}

/// A gateway of its own on the loopback; it ends with the value.
pub struct Gateway {
    inner: Arc<Inner>,
    address: SocketAddr,
}

impl Gateway {
    pub fn start() -> Gateway {
        Gateway::start_for(None)
    }

    pub fn start_for(user: Option<(&str, &str)>) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            store: Mutex::default(),
            changed: Condvar::new(),
            began: Instant::now(),
            deaf: AtomicBool::new(false),
            ends: AtomicU64::new(0),
            over: AtomicBool::new(false),
            user: user.map(|(name, password)| (name.to_owned(), password.to_owned())),
            token: Mutex::new("first".to_owned()),
        });
        let serves = inner.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serves.over.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), inner) = (stream, serves.clone()) else {
                    continue;
                };
                std::thread::spawn(move || {
                    let _ = inner.converse(stream);
                });
            }
        });
        Gateway { inner, address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on requests are left unanswered, or answered again.
    pub fn set_deaf(&self, deaf: bool) {
        self.inner.deaf.store(deaf, Ordering::SeqCst);
    }

    /// Tokens that were given out are not good any more.
    pub fn forget_tokens(&self) {
        self.inner.token.lock().unwrap().push('+');
    }

    /// Gives up all watches, as etcd does where the revisions are not there any more.
    pub fn end_watches(&self) {
        self.inner.ends.fetch_add(1, Ordering::SeqCst);
        self.inner.changed.notify_all();
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut Store) -> T) -> T {
        let value = look(&mut self.inner.store.lock().unwrap());
        self.inner.changed.notify_all();
        value
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.inner.over.store(true, Ordering::SeqCst);
        self.inner.changed.notify_all();
        let _ = TcpStream::connect(self.address);
    }
}

impl Inner {
    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                if line == "\r\n" {
                    break;
                }
                head.push(line.trim_end().to_owned());
            }
            let field = |name: &str| {
                head.iter().find_map(|line| {
                    let (field, value) = line.split_once(": ")?;
                    field.eq_ignore_ascii_case(name).then(|| value.to_owned())
                })
            };
            let length = field("content-length").map_or(0, |text| text.parse().unwrap());
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let path = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
            while self.deaf.load(Ordering::SeqCst) {
                if self.over.load(Ordering::SeqCst) {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            if path == "/v3/watch" {
                let allowed = self.allows(field("authorization"));
                return self.watch(&mut stream, allowed);
            }
            let (status, answer) = match self.answer(&path, &body, field("authorization")) {
                Ok(answer) => (200, answer),
                Err((status, code, message)) => (
                    status,
                    json!({"error": message, "message": message, "code": code}),
                ),
            };
            let text = answer.to_string();
            write!(
                stream,
                "HTTP/1.1 {status} Some words\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            )?;
        }
    }

    fn allows(&self, token: Option<String>) -> bool {
        self.user.is_none() || token.as_ref() == Some(&*self.token.lock().unwrap())
    }

    fn answer(&self, path: &str, body: &Value, token: Option<String>) -> Result<Value, Refusal> {
        let good = self.token.lock().unwrap().clone();
        if let Some((name, password)) = &self.user {
            if path == "/v3/auth/authenticate" {
                if body["name"] != json!(name) || body["password"] != json!(password) {
                    return Err((400, 3, "etcdserver: authentication failed"));
                }
                return Ok(json!({"header": {}, "token": good}));
            }
            if !self.allows(token) {
                return Err((401, 16, "etcdserver: invalid auth token"));
            }
        }
        let answer = self.store.lock().unwrap().call(path, body, self.now());
        self.changed.notify_all();
        answer
    }

    /// Tells of every change, whatever was asked for.
    fn watch(&self, stream: &mut TcpStream, allowed: bool) -> std::io::Result<()> {
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )?;
        let mut tell = |value: Value| {
            let text = format!("{value}\n");
            write!(stream, "{:x}\r\n{text}\r\n", text.len())
        };
        let mut told = self.store.lock().unwrap().revision;
        let ends = self.ends.load(Ordering::SeqCst);
        if allowed {
            tell(json!({"result": {"created": true}}))?;
        } else {
            // As etcd does, which leaves the stream open.
            let reason = "rpc error: code = PermissionDenied";
            tell(json!({"result": {
                "created": true, "canceled": true, "cancel_reason": reason,
            }}))?;
        }
        let mut store = self.store.lock().unwrap();
        while !self.over.load(Ordering::SeqCst) {
            if allowed && self.ends.load(Ordering::SeqCst) > ends {
                let reason = "etcdserver: mvcc: required revision has been compacted";
                return tell(json!({"result": {"canceled": true, "cancel_reason": reason}}));
            }
            store.expire(self.now());
            if allowed && store.revision > told {
                told = store.revision;
                tell(json!({"result": {"header": store.header(), "events": [{}]}}))?;
            }
            let wait = Duration::from_millis(50);
            store = self.changed.wait_timeout(store, wait).unwrap().0;
        }
        Ok(())
    }
}
