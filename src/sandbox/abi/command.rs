//! A plain program: the body on standard input, the answer on standard output.

use super::{ArgsAndEnv, Request};

/// `argv[0]` is the part of the path that the route matched, as for `wagi`; the configured
/// arguments follow. The program sees nothing of the request but its body and its id, so that one
/// written for a shell runs unchanged.
pub(super) fn args_and_env(request: &Request<'_>, args: &[String]) -> ArgsAndEnv {
    let argv = std::iter::once(request.route_path.to_owned())
        .chain(args.iter().cloned())
        .collect();
    let env = vec![("X_REQUEST_ID".to_owned(), request.request_id.to_owned())];
    (argv, env)
}
