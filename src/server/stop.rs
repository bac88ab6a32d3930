//! Why the gateway stops: a signal, or a new process that has taken its place.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::upgrade::Handover;

/// What ends the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Terminate,
    Interrupt,
    Quit,
    /// A new process serves in its place.
    Succeeded,
    /// The process that it was to follow has given it up, and goes on.
    Late,
}

impl Stop {
    pub(super) fn name(self) -> &'static str {
        match self {
            Stop::Terminate => "SIGTERM",
            Stop::Interrupt => "SIGINT",
            Stop::Quit => "SIGQUIT",
            Stop::Succeeded => "a new process has taken over",
            Stop::Late => "the process before goes on",
        }
    }

    /// Whether nobody serves afterwards.
    pub(super) fn ends_the_service(self) -> bool {
        match self {
            Stop::Terminate | Stop::Interrupt | Stop::Quit => true,
            Stop::Succeeded | Stop::Late => false,
        }
    }
}

/// How this program was started, to start its successor in the same way.
#[derive(Debug)]
pub(super) struct Successor {
    program: PathBuf,
    args: Vec<OsString>,
    /// SIGUSR2.
    asked: Signal,
}

impl Successor {
    /// Call at the start: later the file may have been replaced, and would be found under another name;
    /// and until then SIGUSR2 ends the process.
    pub(super) fn of_this(config: Option<&std::path::Path>) -> std::io::Result<Successor> {
        // The name it was started by may be a link that will lead to the new version.
        let named = std::env::args_os().next().map(PathBuf::from);
        let program = match named.filter(|name| name.components().count() > 1) {
            Some(name) => std::path::absolute(name)?,
            None => std::env::current_exe()?,
        };
        let mut args = vec![OsString::from("serve"), OsString::from("--upgrade")];
        if let Some(config) = config {
            args.push("--config".into());
            args.push(config.into());
        }
        let asked = signal(SignalKind::user_defined2())?;
        Ok(Successor {
            program,
            args,
            asked,
        })
    }

    /// Starts it on each SIGUSR2, one at a time; for ever.
    pub(super) async fn start_on_request(mut self) {
        while self.asked.recv().await.is_some() {
            tracing::info!(program = %self.program.display(), "SIGUSR2: starting a new process");
            let child = Command::new(&self.program)
                .args(&self.args)
                .stdin(Stdio::null())
                .spawn();
            // This process ends when the new one serves, so this is only seen when it fails.
            match child {
                Ok(mut child) => {
                    let status = self.wait_for(&mut child).await;
                    tracing::error!(
                        status = status.map_or_else(|error| error.to_string(), |s| s.to_string()),
                        "the new process ended; this one goes on"
                    );
                }
                Err(error) => {
                    tracing::error!(%error, "no new process can be started; this one goes on");
                }
            }
        }
    }
}

impl Successor {
    /// Waits for its end. Whoever asks for another one meanwhile is told what there is to do.
    async fn wait_for(&mut self, child: &mut Child) -> std::io::Result<ExitStatus> {
        let pid = child.id();
        loop {
            tokio::select! {
                biased;
                status = child.wait() => return status,
                Some(()) = self.asked.recv() => tracing::warn!(
                    pid,
                    "SIGUSR2: the new process is starting already; wait for it, or end it and ask again"
                ),
            }
        }
    }
}

/// Waits for the first reason to stop; a signal after that ends the process at once.
pub(super) async fn stop(handover: Option<&Handover>) -> std::io::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    // Tools that rotate logs send it, and by itself it ends a process. Taken, it does nothing.
    let _rotated = signal(SignalKind::user_defined1())?;
    let successor = async {
        match handover {
            Some(handover) => handover.successor().await,
            None => std::future::pending().await,
        }
    };
    let stop = tokio::select! {
        _ = terminate.recv() => Stop::Terminate,
        _ = interrupt.recv() => Stop::Interrupt,
        _ = quit.recv() => Stop::Quit,
        () = successor => Stop::Succeeded,
    };
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(stop)
}
