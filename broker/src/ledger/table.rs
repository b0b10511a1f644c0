//! The columns of each table. The order of `columns` is that of `bind` and `read`.

mod credential;
mod fleet;
mod policy;
mod request;
mod task;
