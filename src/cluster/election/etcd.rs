#![forbid(unsafe_code)]
//! etcd's v3 JSON gateway over HTTP: several endpoints, TLS, user and password.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::Builder;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Error};

use super::RETRY;
use super::directory::{Directory, Failed};
use crate::settings;

/// What is called when something has changed at etcd.
pub type Bell = dyn Fn() + Send + Sync;

/// Answers are read up to this many bytes.
const ANSWER_MAX: u64 = 16 << 20;

/// A stream of changes that says nothing for so long is opened anew.
const QUIET: Duration = Duration::from_secs(60);

/// gRPC codes.
const DEADLINE_EXCEEDED: i64 = 4;
const UNAVAILABLE: i64 = 14;
const UNAUTHENTICATED: i64 = 16;

/// What all connections to one etcd share.
#[derive(Clone)]
pub struct Etcd {
    agent: Agent,
    endpoints: Arc<[String]>,
    /// The one that answered last.
    at: usize,
    user: Option<Arc<(String, String)>>,
    token: Option<String>,
    patience: Duration,
}

impl Etcd {
    /// `patience`: how long an answer may take.
    ///
    /// # Errors
    /// Certificates or credentials that cannot be read, as a line for the user.
    pub fn new(settings: &settings::Etcd, patience: Duration) -> Result<Etcd, String> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.ca {
            let certificates = certificates(path)?;
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        if let Some((chain, key)) = &settings.identity {
            let pem = read(key)?;
            let key_of = PrivateKey::from_pem(pem.as_bytes())
                .map_err(|error| format!("{}: {error}", key.display()))?;
            let client = ClientCert::new_with_certs(&certificates(chain)?, key_of);
            tls = tls.client_cert(Some(client));
        }
        let user = match &settings.user_file {
            Some(path) => {
                let text = read(path)?;
                let (name, password) = text
                    .trim_end()
                    .split_once(':')
                    .ok_or_else(|| format!("{}: `user:password` is expected", path.display()))?;
                Some(Arc::new((name.to_owned(), password.to_owned())))
            }
            None => None,
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(patience))
            .tls_config(tls.build())
            .build();
        Ok(Etcd {
            agent: config.new_agent(),
            endpoints: settings.endpoints.clone().into(),
            at: 0,
            user,
            token: None,
            patience,
        })
    }

    /// Calls `changed` whenever something between two keys (encoded) has changed, and once at the
    /// beginning, until that returns false or the stream ends. Blocks.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn watch(
        &mut self,
        (key, end): &(String, String),
        mut changed: impl FnMut() -> bool,
    ) -> Result<(), Failed> {
        let body = json!({"create_request": {"key": key, "range_end": end}});
        self.log_in()?;
        let url = self.url("/v3/watch");
        let mut request = self
            .agent
            .post(&url)
            .config()
            .timeout_recv_response(Some(self.patience))
            .timeout_per_read(Some(QUIET))
            .build();
        if let Some(token) = &self.token {
            request = request.header("Authorization", token);
        }
        let lost = |error: &dyn std::fmt::Display| Failed::Unreachable(format!("{url}: {error}"));
        let answer = request
            .content_type("application/json")
            .send(body.to_string())
            .inspect_err(|_| self.at += 1)
            .map_err(|error| lost(&error))?;
        if answer.status() != 200 {
            self.token = None;
            self.at += 1;
            return Err(lost(&answer.status()));
        }
        let mut lines = BufReader::new(answer.into_body().into_reader());
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut lines).take(ANSWER_MAX).read_until(b'\n', &mut line) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(&error)),
            }
            if let Some(why) = given_up(&line) {
                // Perhaps the token has grown old: the stream stays open all the same.
                self.token = None;
                return Err(lost(&why));
            }
            if !changed() {
                return Ok(());
            }
        }
    }

    /// Rings whenever something between two keys (encoded) may have changed, on a thread of its own,
    /// for as long as there is a bell. It is a bell and nothing more: what has changed is read, so that
    /// nothing is missed between two streams, and compaction of old revisions concerns nobody.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start_watch(mut self, range: (String, String), bell: Weak<Bell>) -> io::Result<()> {
        // Nobody joins it: it may be listening for a while after the bell has gone.
        Builder::new()
            .name("watch-etcd".to_owned())
            .spawn(move || {
                while bell.strong_count() > 0 {
                    let ring = || bell.upgrade().map(|ring| ring()).is_some();
                    if let Err(Failed::Unreachable(why) | Failed::Refused { message: why, .. }) =
                        self.watch(&range, ring)
                    {
                        log::debug!("no word of changes from etcd: {why}");
                    }
                    std::thread::sleep(Duration::from_millis(RETRY));
                }
            })
            .map(drop)
    }

    fn url(&self, path: &str) -> String {
        let endpoint = &self.endpoints[self.at % self.endpoints.len()];
        format!("{endpoint}{path}")
    }

    fn log_in(&mut self) -> Result<(), Failed> {
        let (Some(user), None) = (self.user.clone(), &self.token) else {
            return Ok(());
        };
        let body = json!({"name": user.0, "password": user.1});
        let answer = self.post("/v3/auth/authenticate", &body)?;
        self.token = answer["token"].as_str().map(str::to_owned);
        Ok(())
    }

    /// Asks the endpoint that answered last, and the others where that cannot be connected to.
    fn post(&mut self, path: &str, body: &Value) -> Result<Value, Failed> {
        let mut told = String::new();
        for _ in 0..self.endpoints.len() {
            match self.post_once(path, body) {
                Ok(answer) => return answer,
                Err((error, sent)) => {
                    told = format!("{}: {error}", self.url(""));
                    self.at += 1;
                    if sent {
                        break;
                    }
                }
            }
        }
        Err(Failed::Unreachable(told))
    }

    /// An error comes with whether the request may have been sent.
    fn post_once(&self, path: &str, body: &Value) -> Result<Result<Value, Failed>, (Error, bool)> {
        let mut request = self
            .agent
            .post(self.url(path))
            .config()
            .timeout_global(Some(self.patience))
            .build();
        if let Some(token) = &self.token {
            request = request.header("Authorization", token);
        }
        let mut answer = request
            .content_type("application/json")
            .send(body.to_string())
            .map_err(|error| {
                let sent = !is_before_sending(&error);
                (error, sent)
            })?;
        let status = answer.status();
        let text = answer
            .body_mut()
            .with_config()
            .limit(ANSWER_MAX)
            .read_to_string()
            .map_err(|error| (error, true))?;
        Ok(understood(status.as_u16(), &text))
    }
}

/// What an answer says. etcd's members tell of their own trouble in the same way as of ours.
fn understood(status: u16, text: &str) -> Result<Value, Failed> {
    // A stream of one answer is one line.
    let line = text.lines().next().unwrap_or_default();
    let Ok(mut answer) = serde_json::from_str::<Value>(line) else {
        return Err(Failed::Unreachable(format!("HTTP status {status}")));
    };
    let in_stream = answer["error"].is_object();
    if status == 200 && !in_stream {
        return Ok(match answer.get_mut("result") {
            Some(result) => result.take(),
            None => answer,
        });
    }
    let error = if in_stream {
        answer["error"].take()
    } else {
        answer
    };
    let code = [&error["code"], &error["grpc_code"]]
        .into_iter()
        .find_map(Value::as_i64)
        .unwrap_or(0);
    let message = [&error["message"], &error["error"]]
        .into_iter()
        .find_map(Value::as_str)
        .unwrap_or("no reason given")
        .to_owned();
    match code {
        DEADLINE_EXCEEDED | UNAVAILABLE => Err(Failed::Unreachable(message)),
        _ if status >= 500 && code == 0 => Err(Failed::Unreachable(message)),
        _ => Err(Failed::Refused { code, message }),
    }
}

/// Why nothing more will come on a stream of changes, if its line says that.
fn given_up(line: &[u8]) -> Option<String> {
    let told: Value = serde_json::from_slice(line).ok()?;
    let words = |value: &Value| value.as_str().map(str::to_owned);
    if told["error"].is_object() {
        return words(&told["error"]["message"]).or(Some("an error".to_owned()));
    }
    let result = &told["result"];
    (result["canceled"] == true)
        .then(|| words(&result["cancel_reason"]).unwrap_or("the watch was ended".to_owned()))
}

fn is_before_sending(error: &Error) -> bool {
    match error {
        Error::HostNotFound | Error::ConnectionFailed => true,
        Error::Timeout(which) => matches!(which, ureq::Timeout::Connect | ureq::Timeout::Resolve),
        Error::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
        _ => false,
    }
}

impl Directory for Etcd {
    fn call(&mut self, path: &str, body: &Value) -> Result<Value, Failed> {
        self.log_in()?;
        match self.post(path, body) {
            Err(Failed::Refused { code, .. }) if code == UNAUTHENTICATED && self.user.is_some() => {
                // Tokens are good for a while only.
                self.token = None;
                self.log_in()?;
                self.post(path, body)
            }
            outcome => outcome,
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let pem = read(path)?;
    let mut found = Vec::new();
    for item in parse_pem(pem.as_bytes()) {
        let item = item.map_err(|error| format!("{}: {error}", path.display()))?;
        if let PemItem::Certificate(certificate) = item {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(format!("{}: no certificate (PEM) in it", path.display()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::super::gateway::Gateway;
    use super::*;

    /// A loaded machine takes its time.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn to(endpoints: &[String], user_file: Option<&Path>) -> Etcd {
        waiting(PATIENCE, endpoints, user_file)
    }

    fn waiting(patience: Duration, endpoints: &[String], user_file: Option<&Path>) -> Etcd {
        let settings = settings::Etcd {
            endpoints: endpoints.to_vec(),
            user_file: user_file.map(Path::to_owned),
            ..settings::Etcd::default()
        };
        Etcd::new(&settings, patience).unwrap()
    }

    fn grant(etcd: &mut Etcd) -> Result<Value, Failed> {
        etcd.call("/v3/lease/grant", &json!({"TTL": "5"}))
    }

    #[test]
    fn the_next_endpoint_is_asked_where_one_is_not_there() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = format!("http://{}", nobody.local_addr().unwrap());
        drop(nobody);
        let gateway = Gateway::start();
        let mut etcd = to(&[gone.clone(), gateway.url()], None);
        assert_eq!(grant(&mut etcd).unwrap()["TTL"], json!("5"));
        let renewed = etcd.call("/v3/lease/keepalive", &json!({"ID": "7001"}));
        assert_eq!(renewed.unwrap()["TTL"], json!("5"), "a stream of one");
        let refused = etcd.call("/v3/lease/revoke", &json!({"ID": "1"}));
        assert!(matches!(refused, Err(Failed::Refused { code: 5, .. })));
        let mut alone = to(&[gone], None);
        assert!(matches!(grant(&mut alone), Err(Failed::Unreachable(_))));
    }

    #[test]
    fn whoever_does_not_answer_is_not_waited_for() {
        let (deaf, other) = (Gateway::start(), Gateway::start());
        deaf.set_deaf(true);
        let patience = Duration::from_millis(300);
        let mut etcd = waiting(patience, &[deaf.url(), other.url()], None);
        let since = Instant::now();
        assert!(matches!(grant(&mut etcd), Err(Failed::Unreachable(_))));
        assert!(since.elapsed() >= patience);
        // A loaded machine may make it late, then it is asked again after the deaf one.
        let answers = (0..20).any(|_| grant(&mut etcd).is_ok());
        assert!(answers, "the other one");
    }

    #[test]
    fn users_log_in_and_do_so_again() {
        let gateway = Gateway::start_for(Some(("larder", "se:cret")));
        assert!(matches!(
            grant(&mut to(&[gateway.url()], None)),
            Err(Failed::Refused { code: 16, .. })
        ));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("user");
        fs::write(&file, "larder:se:cret\n").unwrap();
        let mut etcd = to(&[gateway.url()], Some(&file));
        grant(&mut etcd).unwrap();
        gateway.forget_tokens();
        grant(&mut etcd).unwrap();
        fs::write(&file, "larder:wrong\n").unwrap();
        let mut etcd = to(&[gateway.url()], Some(&file));
        assert!(matches!(grant(&mut etcd), Err(Failed::Refused { .. })));
        fs::write(&file, "no colon\n").unwrap();
        let settings = settings::Etcd {
            user_file: Some(file),
            ..settings::Etcd::default()
        };
        assert!(Etcd::new(&settings, PATIENCE).is_err());
    }

    #[test]
    fn changes_are_told() {
        let gateway = Gateway::start();
        let mut etcd = to(&[gateway.url()], None);
        let mut calls = 0;
        let range = super::super::wire::range("/x/");
        let put = json!({"success": [{"request_put": {"key": "YQ=="}}]});
        etcd.watch(&range, || {
            calls += 1;
            gateway.with(|store| store.call("/v3/kv/txn", &put, 0).unwrap());
            calls < 3
        })
        .unwrap();
        assert_eq!(calls, 3);
    }

    #[test]
    fn a_watch_that_is_ended_or_not_allowed_is_told_of() {
        let gateway = Gateway::start_for(Some(("larder", "secret")));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("user");
        fs::write(&file, "larder:secret\n").unwrap();
        let mut etcd = to(&[gateway.url()], Some(&file));
        let range = super::super::wire::range("/x/");
        let mut calls = 0;
        let ended = etcd.watch(&range, || {
            calls += 1;
            gateway.end_watches();
            true
        });
        let told = format!("{ended:?}");
        assert!(calls == 1 && told.contains("compacted"), "{calls} {told}");
        // The token of the last time, which etcd does not know any more, is not asked with for ever.
        grant(&mut etcd).unwrap();
        gateway.forget_tokens();
        assert!(etcd.watch(&range, || true).is_err());
        assert_eq!(etcd.watch(&range, || false), Ok(()));
    }

    #[test]
    fn the_bell_is_rung_until_it_has_gone() {
        let gateway = Gateway::start();
        let etcd = to(&[gateway.url()], None);
        let (rung, rings) = std::sync::mpsc::channel();
        let bell: Arc<Bell> = Arc::new(move || {
            let _ = rung.send(());
        });
        etcd.start_watch(super::super::wire::range("/x/"), Arc::downgrade(&bell))
            .unwrap();
        let patience = Duration::from_secs(30);
        rings.recv_timeout(patience).expect("it watches");
        // Whatever has happened meanwhile is told of by the next stream's beginning.
        gateway.end_watches();
        rings.recv_timeout(patience).expect("it watches again");
        let put = json!({"success": [{"request_put": {"key": "YQ=="}}]});
        gateway.with(|store| store.call("/v3/kv/txn", &put, 0).unwrap());
        rings.recv_timeout(patience).expect("there is a change");
        drop(bell);
        let gone = || gateway.with(|store| store.call("/v3/kv/txn", &put, 0).unwrap());
        let since = Instant::now();
        while rings.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
            assert!(since.elapsed() < patience, "nobody holds the bell");
            gone();
        }
    }

    #[test]
    fn the_trouble_of_etcd_is_no_refusal() {
        let text = r#"{"error":"etcdserver: request timed out","message":"etcdserver: request timed out","code":14}"#;
        assert!(matches!(understood(503, text), Err(Failed::Unreachable(_))));
        let text = r#"{"error":{"grpc_code":4,"http_code":408,"message":"late"}}"#;
        assert!(matches!(understood(200, text), Err(Failed::Unreachable(_))));
        assert!(matches!(
            understood(502, "<html>"),
            Err(Failed::Unreachable(_))
        ));
        let text = r#"{"error":"etcdserver: permission denied","code":7}"#;
        assert!(matches!(
            understood(403, text),
            Err(Failed::Refused { code: 7, .. })
        ));
    }
}
