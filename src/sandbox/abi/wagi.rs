//! CGI/1.1 over WASI (RFC 3875), as the WAGI project defined it.
//!
//! A request becomes arguments and environment variables ([`args_and_env`]); the guest's output
//! begins with header lines ([`HeadParser`]), and all after them is the body. Scripts that write
//! their own status line ("non-parsed headers", RFC 3875 section 5) are not supported.

mod environment;
mod head;

pub use environment::{ARGS_BYTES_MAX, ENV_BYTES_MAX, args_and_env, is_given};
pub use head::{HEAD_BYTES_MAX, HEAD_LINES_MAX, Head, HeadError, HeadParser};
