//! Which version of its API the engine is spoken to in.
//!
//! An engine answers requests without a version in its own newest one, whose answers this agent may not know. So every
//! request but the first names a version that both know.

use std::{fmt, io, path::Path, time::Duration};

use axum::http::{Uri, uri::PathAndQuery};
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker, errors::Error, models::SystemVersion};
use serde::Serialize;
use tokio::time::timeout;

use super::transport::{self, Unheard};

/// How long the engine may take for an answer. A manager that has lost its leader takes several seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The oldest API version that is spoken (Docker 19.03): the first one of swarms with a data path port.
const OLDEST: Api = Api(1, 40);

/// A version of the Engine API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Api(usize, usize);

impl Api {
    /// The newest one that the client library knows.
    fn newest() -> Self {
        Self(API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version)
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The engine's program and the API version that is used with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineVersion {
    /// As `docker version` shows it: `28.5.2`.
    pub engine: String,
    /// The version of every request.
    pub api: String,
    /// The engine's own newest one.
    pub newest_api: String,
}

/// A client of the engine at `socket` that speaks a version of the API which the engine knows, and the count of what
/// its stream of events has said: set to 0 with each event that is taken from it.
///
/// # Errors
/// When the engine does not answer, or no version is known to both; then what to upgrade.
pub(super) async fn connect(socket: &Path) -> Result<(Docker, EngineVersion, Unheard), String> {
    let unheard = Unheard::default();
    let (at, count) = (socket.to_owned(), unheard.clone());
    let transport = move |request| transport::send(at.clone(), count.clone(), request);
    let docker = Docker::connect_with_custom_transport(
        transport,
        Some("http://localhost"),
        PATIENCE.as_secs(),
        API_DEFAULT_VERSION,
    )
    .map_err(said)?;
    let answer = timeout(PATIENCE, docker.version()).await.map_err(|_| silent())?;
    let answer = answer.map_err(|error| match error {
        Error::IOError { err } if err.kind() == io::ErrorKind::NotFound => {
            format!("socket not found: {}", socket.display())
        }
        Error::IOError { err } => format!("cannot connect to {}: {err}", socket.display()),
        error => said(error),
    })?;
    let (api, version) = choose(&answer)?;
    Ok((docker.with_request_modifier(move |request| versioned(request, api)), version, unheard))
}

/// What to say of an error. The client's own text leaves out the causes.
pub(super) fn said(error: Error) -> String {
    match error {
        Error::RequestTimeoutError => silent(),
        Error::DockerResponseServerError { status_code, message } => format!("{status_code}: {}", message.trim()),
        error => match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {}", root(cause)),
            None => error.to_string(),
        },
    }
}

/// The innermost cause of an error.
fn root(mut error: &dyn std::error::Error) -> String {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

/// What to say of an engine that does not answer.
fn silent() -> String {
    format!("no answer within {} s", PATIENCE.as_secs())
}

fn choose(said: &SystemVersion) -> Result<(Api, EngineVersion), String> {
    let engine = said.version.clone().unwrap_or_else(|| "of unknown version".into());
    let read = |text: &Option<String>| text.as_deref().and_then(Api::parse);
    let newest = read(&said.api_version).ok_or_else(|| format!("engine {engine} does not say which API it speaks"))?;
    // Engines before 1.24 do not say, and are too old anyway.
    let oldest = read(&said.min_api_version).unwrap_or(newest);
    if newest < OLDEST {
        return Err(format!(
            "engine {engine} is too old: it speaks API versions up to {newest}, this agent needs {OLDEST} (Docker 19.03) or \
             later; upgrade the engine"
        ));
    }
    if oldest > Api::newest() {
        return Err(format!(
            "engine {engine} is too new: it speaks API versions from {oldest} on, this agent up to {}; upgrade Hiveway",
            Api::newest()
        ));
    }
    let api = newest.min(Api::newest());
    Ok((api, EngineVersion { engine, api: api.to_string(), newest_api: newest.to_string() }))
}

fn versioned(mut request: BollardRequest, api: Api) -> BollardRequest {
    let mut parts = request.uri().clone().into_parts();
    let path = parts.path_and_query.as_ref().map_or("/", PathAndQuery::as_str);
    parts.path_and_query = format!("/v{api}{path}").parse().ok().or(parts.path_and_query);
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(newest: &str, oldest: &str) -> SystemVersion {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        SystemVersion {
            version: text("9.9"),
            api_version: text(newest),
            min_api_version: text(oldest),
            ..<_>::default()
        }
    }

    #[test]
    fn a_version_that_both_know_or_a_reason() {
        let chosen = |newest: &str, oldest: &str| choose(&said(newest, oldest)).map(|(api, _)| api.to_string());
        let ours = Api::newest();
        assert_eq!(chosen("1.41", "1.12"), Ok("1.41".into()));
        assert_eq!(chosen("1.41", ""), Ok("1.41".into()));
        assert_eq!(chosen("1.999", "1.44"), Ok(ours.to_string()));
        assert_eq!(choose(&said("1.999", "1.44")).unwrap().1.newest_api, "1.999");
        let why = |newest: &str, oldest: &str| chosen(newest, oldest).unwrap_err();
        assert!(why("1.39", "1.12").contains("too old: it speaks API versions up to 1.39, this agent needs 1.40"));
        assert!(
            why("2.3", "2.0")
                .contains(&format!("too new: it speaks API versions from 2.0 on, this agent up to {ours}"))
        );
        assert!(why("", "").contains("does not say"));
    }
}
