//! How a guest gets its request and gives its response.

mod command;
pub mod wagi;

use std::net::SocketAddr;

use super::Strings;

/// A way to speak HTTP with a guest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Abi {
    /// The request body on standard input; standard output is the response body.
    Command,
    /// CGI/1.1 (RFC 3875): variables in the environment, the body on standard input, headers and
    /// then the body on standard output.
    Wagi,
}

/// The HTTP request as an ABI needs it.
pub struct Request<'a> {
    pub method: &'a http::Method,
    /// Path and query as received, percent-encoding kept.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a http::HeaderMap,
    pub version: http::Version,
    /// Host without port, and the port the client connected to.
    pub server_name: &'a str,
    pub server_port: u16,
    pub https: bool,
    pub client: Option<SocketAddr>,
    /// The part of the path that the route matched (CGI's SCRIPT_NAME); the rest is PATH_INFO.
    pub route_path: &'a str,
    /// `{param}` captures of the route.
    pub params: &'a [(String, String)],
    /// Who is calling, as an opaque id, and how it showed that; `None` for anonymous (CGI's AUTH_TYPE
    /// and REMOTE_USER).
    pub principal: Option<(AuthType, &'a str)>,
    pub request_id: &'a str,
    /// Length of the body, where there is one and it is known before it has arrived.
    pub content_length: Option<u64>,
}

/// How a caller showed who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthType {
    /// An API key.
    Bearer,
    /// A client certificate.
    Certificate,
}

impl AuthType {
    /// CGI's name of it (RFC 3875 section 4.1.1).
    pub fn as_str(self) -> &'static str {
        match self {
            AuthType::Bearer => "Bearer",
            AuthType::Certificate => "Certificate",
        }
    }
}

/// What a guest finds when it starts: `argv` and the environment.
pub type ArgsAndEnv = (Strings, Strings);

impl Abi {
    /// `argv` and environment of a guest for one HTTP request. `args` and `env` are what the route
    /// was configured with. `args` follow the program's name (`wagi` defines its own and ignores
    /// them); `env` is added to the request's variables and wins over those of the same name, so
    /// that a client can't replace what an operator has set.
    pub fn args_and_env(
        self,
        request: &Request<'_>,
        args: &[String],
        env: &[(String, String)],
    ) -> ArgsAndEnv {
        let (args, mut variables) = match self {
            Abi::Command => command::args_and_env(request, args, env),
            Abi::Wagi => wagi::args_and_env(request, env),
        };
        for (name, value) in env {
            variables.add_variable(name, value);
        }
        (args, variables)
    }
}

/// Adds a variable of the request's, unless one of its name is configured.
fn add_request_variable(
    variables: &mut Strings,
    name: &str,
    value: &str,
    configured: &[(String, String)],
) {
    if !configured.iter().any(|(other, _)| other == name) {
        variables.add_variable(name, value);
    }
}

#[cfg(test)]
mod tests;
