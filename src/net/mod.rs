#![forbid(unsafe_code)]
//! Sockets and buffers. Nothing here knows what the bytes mean.

// Names and ports to socket addresses.
pub mod address;

// Input bytes of one worker.
pub mod buffer;

// SRV records.
pub mod dns;

// Sockets that whoever started the program has opened.
pub mod inherited;

// Listening sockets.
pub mod listen;

// One client's connection.
pub mod stream;

// TLS on connections.
pub mod tls;

pub use buffer::Input;
pub use listen::{Acceptor, Datagrams, ListenError, Listener};
pub use stream::{Progress, Stream};
pub use tls::{Keyring, News, Outward, Ways};
