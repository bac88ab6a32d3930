//! A plain program: the body on standard input, the answer on standard output.

use super::{ArgsAndEnv, Request, Strings, add_request_variable};

const REQUEST_ID: &str = "X_REQUEST_ID";

/// `argv[0]` is the part of the path that the route matched, as for `wagi`; the configured
/// arguments follow. The program sees nothing of the request but its body and its id, so that one
/// written for a shell runs unchanged. There is room for `env`, the variables that are configured.
pub(super) fn args_and_env(
    request: &Request<'_>,
    args: &[String],
    env: &[(String, String)],
) -> ArgsAndEnv {
    // Exact for most, so that nothing has to grow: it is made for each request.
    let args_bytes = args.iter().map(|arg| arg.len() + 1).sum::<usize>();
    let mut argv = Strings::with_room(request.route_path.len() + 1 + args_bytes);
    argv.add_argument(request.route_path);
    for arg in args {
        argv.add_argument(arg);
    }
    let env_bytes = env.iter().map(|(name, value)| name.len() + value.len() + 2);
    let id_bytes = REQUEST_ID.len() + request.request_id.len() + 2;
    let mut variables = Strings::with_room(id_bytes + env_bytes.sum::<usize>());
    add_request_variable(&mut variables, REQUEST_ID, request.request_id, env);
    (argv, variables)
}
