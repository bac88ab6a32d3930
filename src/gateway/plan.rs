//! The routes, ready to serve: what a request needs is prepared here, before any port is bound.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::modules::{Registry, RegistryError};
use crate::route::{BuildError, Route, Table, Target};
use crate::sandbox::{Files, FilesError, Prepared};
use crate::telemetry::metrics::RouteMetrics;
use crate::upstream::{Group, NoServers};

/// All routes with what serves them. Swapped as one unit; a request keeps the plan it began with.
pub struct Plan {
    pub(super) table: Table,
    /// By the index of the route in the configuration, as [`Table::find`] reports it.
    planned: Vec<Planned>,
}

/// What serves one route.
pub(super) struct Planned {
    pub metrics: RouteMetrics,
    pub service: Service,
}

pub(super) enum Service {
    Guest {
        module: Arc<Prepared>,
        files: Option<Arc<Files>>,
    },
    Upstreams(Group),
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
    Upstreams { route: String, error: NoServers },
}

impl Plan {
    /// Compiles the modules, reads their files, groups the upstreams and builds the table.
    pub async fn prepare(routes: Vec<Route>, registry: &Registry) -> Result<Plan, PlanError> {
        let mut planned = Vec::with_capacity(routes.len());
        let mut trees = Trees::default();
        for route in &routes {
            let service = match &route.target {
                Target::Execute(execute) => {
                    let prepared = registry.prepare_source(&execute.module).await;
                    let module = prepared.map_err(|error| PlanError::Module {
                        route: route.name.clone(),
                        error,
                    })?;
                    let files = trees.get(execute.files.as_deref());
                    let files = files.map_err(|error| PlanError::Files {
                        route: route.name.clone(),
                        error,
                    })?;
                    Service::Guest { module, files }
                }
                Target::Proxy(settings) => {
                    let group = Group::new(settings.clone());
                    Service::Upstreams(group.map_err(|error| PlanError::Upstreams {
                        route: route.name.clone(),
                        error,
                    })?)
                }
                Target::Redirect(_) | Target::Respond(_) => Service::Fixed,
            };
            planned.push(Planned {
                metrics: RouteMetrics::new(&route.name),
                service,
            });
        }
        let table = Table::build(routes).map_err(PlanError::Table)?;
        Ok(Plan { table, planned })
    }

    /// A route, by the index that [`Table::find`] gave.
    pub(super) fn route(&self, index: u32) -> Option<&Route> {
        self.table.routes().get(index as usize)
    }

    /// What serves the route with this index.
    pub(super) fn planned(&self, index: u32) -> Option<&Planned> {
        self.planned.get(index as usize)
    }
}

/// The trees of files read so far: routes that name the same directory share one.
#[derive(Default)]
struct Trees(HashMap<PathBuf, Arc<Files>>);

impl Trees {
    /// Reads at most 64 MiB from the disk, and nobody is served yet, so the thread may wait for it.
    fn get(&mut self, directory: Option<&Path>) -> Result<Option<Arc<Files>>, FilesError> {
        let Some(directory) = directory else {
            return Ok(None);
        };
        if let Some(files) = self.0.get(directory) {
            return Ok(Some(Arc::clone(files)));
        }
        let files = Arc::new(Files::load(directory)?);
        self.0.insert(directory.to_owned(), Arc::clone(&files));
        Ok(Some(files))
    }
}
