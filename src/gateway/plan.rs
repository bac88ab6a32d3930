//! What a configuration says about serving requests, ready to serve them: all of it is prepared here,
//! before any port is bound, and before a reload changes anything.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Settings;
use crate::limits::{RouteKey, Tiers};
use crate::modules::{Registry, RegistryError};
use crate::route::{BuildError, Route, Table, Target};
use crate::sandbox::{Files, FilesError, Prepared};
use crate::telemetry::logging::AccessLog;
use crate::telemetry::metrics::RouteMetrics;
use crate::upstream::{self, Group, GroupError};

/// All that may change while the gateway runs. Swapped as one unit; a request keeps the plan it began
/// with, so it never sees one half of a change.
pub struct Plan {
    pub(super) settings: Settings,
    pub(super) tiers: Tiers,
    /// Which requests have a line in the log.
    pub(super) access_log: AccessLog,
    pub(super) control_plane: axum::Router,
    /// What is known of the servers, for the plan after this one.
    upstreams: upstream::Registry,
    pub(super) table: Table,
    /// By the index of the route in the configuration, as [`Table::find`] reports it.
    planned: Vec<Planned>,
}

/// What a plan is made of.
pub struct Parts {
    pub settings: Settings,
    pub tiers: Tiers,
    pub access_log: AccessLog,
    pub control_plane: axum::Router,
    pub routes: Vec<Route>,
}

/// What serves one route.
pub(super) struct Planned {
    pub metrics: RouteMetrics,
    /// Whose rate-limit buckets its callers draw from.
    pub key: RouteKey,
    pub service: Service,
}

pub(super) enum Service {
    Guest {
        module: Arc<Prepared>,
        files: Option<Arc<Files>>,
    },
    Upstreams(Box<Group>),
    /// The answer is in the route itself.
    Fixed,
}

/// Why the routes can't be served.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Table(Vec<BuildError>),
    #[error("route `{route}`: {error}")]
    Module { route: String, error: RegistryError },
    #[error("route `{route}`: files: {error}")]
    Files { route: String, error: FilesError },
    #[error("route `{route}`: {error}")]
    Upstreams { route: String, error: GroupError },
}

impl Plan {
    /// Compiles the modules, reads their files, groups the upstreams and builds the table. What
    /// `before`, the plan in use, has of the same kind keeps its state: code that is compiled, and
    /// what is known of upstreams.
    pub async fn prepare(
        parts: Parts,
        registry: &Registry,
        before: Option<&Plan>,
    ) -> Result<Plan, PlanError> {
        let Parts {
            settings,
            tiers,
            access_log,
            control_plane,
            routes,
        } = parts;
        let mut planned = Vec::with_capacity(routes.len());
        let mut trees = Trees::default();
        let upstreams = before.map(|plan| plan.upstreams.clone());
        let upstreams = upstreams.unwrap_or_default();
        for route in &routes {
            planned.push(Planned {
                metrics: RouteMetrics::new(&route.name),
                key: RouteKey::of(&route.name),
                service: service(route, registry, &mut trees, &upstreams).await?,
            });
        }
        let table = Table::build(routes).map_err(PlanError::Table)?;
        Ok(Plan {
            settings,
            tiers,
            access_log,
            control_plane,
            upstreams,
            table,
            planned,
        })
    }

    /// A route, by the index that [`Table::find`] gave.
    pub(super) fn route(&self, index: u32) -> Option<&Route> {
        self.table.routes().get(index as usize)
    }

    /// The upstreams of the route with this index, where it is a proxy.
    pub(super) fn group(&self, index: u32) -> Option<&Group> {
        match &self.planned(index)?.service {
            Service::Upstreams(group) => Some(group),
            Service::Guest { .. } | Service::Fixed => None,
        }
    }

    /// What serves the route with this index.
    pub(super) fn planned(&self, index: u32) -> Option<&Planned> {
        self.planned.get(index as usize)
    }

    pub fn route_count(&self) -> usize {
        self.planned.len()
    }
}

async fn service(
    route: &Route,
    registry: &Registry,
    trees: &mut Trees,
    upstreams: &upstream::Registry,
) -> Result<Service, PlanError> {
    let name = || route.name.clone();
    match &route.target {
        Target::Execute(execute) => {
            let prepared = registry.prepare_source(&execute.module).await;
            let module = prepared.map_err(|error| PlanError::Module {
                route: name(),
                error,
            })?;
            let files = trees.get(execute.files.as_deref());
            let files = files.map_err(|error| PlanError::Files {
                route: name(),
                error,
            })?;
            Ok(Service::Guest { module, files })
        }
        // Made anew even where the rules are the same, because the files of its TLS may not be. What is
        // known of its servers stays known.
        Target::Proxy(proxy) => {
            let group = Group::new(proxy.upstreams.clone(), upstreams);
            let group = group.map_err(|error| PlanError::Upstreams {
                route: name(),
                error,
            })?;
            Ok(Service::Upstreams(Box::new(group)))
        }
        Target::Redirect(_) | Target::Respond(_) => Ok(Service::Fixed),
    }
}

/// The trees of files read so far: routes that name the same directory share one.
#[derive(Default)]
struct Trees(HashMap<PathBuf, Arc<Files>>);

impl Trees {
    /// Reads at most 64 MiB from the disk, for which the runtime's other tasks don't wait.
    fn get(&mut self, directory: Option<&Path>) -> Result<Option<Arc<Files>>, FilesError> {
        let Some(directory) = directory else {
            return Ok(None);
        };
        if let Some(files) = self.0.get(directory) {
            return Ok(Some(Arc::clone(files)));
        }
        let loaded = tokio::task::block_in_place(|| Files::load(directory));
        let files = Arc::new(loaded?);
        self.0.insert(directory.to_owned(), Arc::clone(&files));
        Ok(Some(files))
    }
}
