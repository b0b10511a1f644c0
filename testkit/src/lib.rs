//! What the fault tests share: a broker and an agent as processes that can be killed and
//! started again, a small client that writes down what it was told, and a checker that judges
//! the promises from the store, the exported log and that history, never from a daemon's word.

pub mod wait; //          until a condition holds, with a deadline
pub mod daemon; //        one process under test
pub mod installation; //  a broker and an agent in a directory of their own
pub mod http; //          HTTP/1.1 over a Unix socket or TLS
pub mod workload; //      processes that ask for tokens
pub mod checker; //       P1 to P5, judged from outside
