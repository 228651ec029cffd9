//! Probes and metrics: `/livez`, `/readyz`, `/health`, `/metrics`.
//!
//! Invariant: they touch no database and wait for nothing, so they answer while all else is stuck.

use poem::endpoint::make_sync;
use poem::http::StatusCode;
use poem::http::header::{self, HeaderValue};
use poem::{Endpoint, Request, Response, Route, get};

use super::json::json_response;
use crate::monitor::{Health, Metrics, TEXT_FORMAT};

const HEALTH_JSON: HeaderValue = HeaderValue::from_static("application/health+json");

/// `/livez` (the process answers), `/readyz` (traffic that reads is welcome; with `?writes`, also what
/// writes), `/health` (all checks by name).
pub fn add_health(route: Route, health: &Health) -> Route {
    let ready = health.clone();
    let all = health.clone();
    route
        .at(
            "/livez",
            get(make_sync(|_| {
                Response::builder().content_type("text/plain").body("ok\n")
            })),
        )
        .at(
            "/readyz",
            get(make_sync(move |request: Request| {
                let report = ready.report();
                let is_ready = match request.uri().query() {
                    Some("writes") => report.is_ready_to_write(),
                    _ => report.is_ready(),
                };
                health_response(is_ready, &report)
            })),
        )
        .at(
            "/health",
            get(make_sync(move |_| {
                let report = all.report();
                health_response(!report.fails(), &report)
            })),
        )
}

/// `/metrics` for Prometheus.
pub fn metrics_page(metrics: &Metrics) -> impl Endpoint<Output = Response> + use<> {
    let metrics = metrics.clone();
    make_sync(move |_| {
        Response::builder()
            .content_type(TEXT_FORMAT)
            .body(metrics.render())
    })
}

fn health_response(well: bool, report: &impl serde::Serialize) -> Response {
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = json_response(status, report);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HEALTH_JSON);
    response
}
