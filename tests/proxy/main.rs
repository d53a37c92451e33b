//! `larder proxy`, in front of real servers and of some that misbehave.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/gateway.rs"]
mod gateway;
#[path = "../common/group.rs"]
mod group;

mod discovery;
mod entering;
mod failing;
mod fleet;
mod forwarding;
mod hot;
mod long_keys;
mod misbehaviour;
mod probing;
mod reloading;
mod routing;
mod siege;
