#![forbid(unsafe_code)]
//! What is asked of the service that decides, and what it knows.

use serde_json::Value;

/// Something that answers as etcd's JSON gateway does.
pub trait Directory {
    /// # Errors
    /// See [`Failed`].
    fn call(&mut self, path: &str, body: &Value) -> Result<Value, Failed>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// There was no answer. What was asked may have been done, or may still be.
    Unreachable(String),
    /// It was not done.
    Refused { code: i64, message: String },
}

/// The code of what is not there, a lease for example.
pub const NOT_FOUND: i64 = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Grant {
        seconds: u64,
    },
    Renew {
        lease: u64,
    },
    Revoke {
        lease: u64,
    },
    Read,
    /// Says where this node is.
    Register {
        lease: u64,
    },
    /// Says how much this node has. `since` is the revision of the members in sync it stands against.
    Stand {
        lease: u64,
        epoch: u64,
        applied: u64,
        since: u64,
    },
    /// To lead, if nobody does and the members in sync are still those of revision `since` (0: there
    /// never were any). The epoch is at least `floor`.
    Campaign {
        lease: u64,
        since: u64,
        floor: u64,
        members: Vec<Member>,
    },
    /// To have the leader's key again, which was lost with a lease, if nobody has led meanwhile.
    Reclaim {
        lease: u64,
        since: u64,
        epoch: u64,
    },
    /// Other members in sync, if this node still leads by the key of revision `leading`.
    Agree {
        leading: u64,
        since: u64,
        epoch: u64,
        members: Vec<Member>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Granted(u64),
    /// Whether the lease still lived.
    Renewed(bool),
    Revoked,
    View(View),
    /// The revision of what was written; nothing if a condition did not hold.
    Written(Option<u64>),
}

/// One process of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// The node's name, which the next process has as well.
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    pub id: u64,
    pub name: String,
    /// Where copies connect to.
    pub copies: String,
    /// Where clients connect to.
    pub clients: String,
    pub epoch: u64,
    /// The revision at which the key came to be.
    pub created: u64,
    /// What the key hangs on.
    pub lease: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InSync {
    pub members: Vec<Member>,
    /// Who wrote this: the leader of that time.
    pub by: u64,
    /// The revision of the last change.
    pub modified: u64,
}

impl InSync {
    pub fn has(&self, id: u64) -> bool {
        self.members.iter().any(|member| member.id == id)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: u64,
    pub name: String,
    pub epoch: u64,
    pub applied: u64,
    pub since: u64,
}

/// A node that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    pub id: u64,
    pub name: String,
    pub group: String,
    pub copies: String,
    pub clients: String,
}

/// What the service knows of one group, and of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    pub revision: u64,
    pub leader: Option<Leader>,
    pub in_sync: Option<InSync>,
    pub candidates: Vec<Candidate>,
    pub nodes: Vec<Registered>,
}

impl View {
    /// The process is over: another has its name now.
    pub fn is_superseded(&self, member: &Member) -> bool {
        self.nodes
            .iter()
            .any(|node| node.name == member.name && node.id != member.id)
    }
}
