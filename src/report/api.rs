//! Sales reports over HTTP.

use std::sync::Arc;

use poem::http::header::{self, HeaderValue};
use poem::{IntoResponse, Response};
use poem_openapi::param::Query;
use poem_openapi::registry::{MetaMediaType, MetaResponses, MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::tasks::{GenerateSalesReport, SalesReportArgs};
use super::{Figures, Report, ReportError, TopProduct, csv_of, key_of};
use crate::auth::api::{Access, Tag};
use crate::auth::{Role, Scope};
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::config;
use crate::http::json::{Accepted, etag_of};
use crate::http::{Body, Failure, Problem, Tagged, fails};
use crate::task::{Enqueued, NewTask, Tasks, Unique, Until};

impl From<ReportError> for Problem {
    fn from(error: ReportError) -> Self {
        let text = error.to_string();
        match error {
            ReportError::Invalid(errors) => Problem::validation(errors),
            ReportError::TooLarge(_) => {
                Problem::validation(vec![FieldError::new("end_date", text)])
            }
            ReportError::NotReady => Problem::not_found("report_not_ready", text),
            ReportError::Store(error) => error.into(),
        }
    }
}

/// Days to report on, in the shop's time zone.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct SalesReportBody {
    /// First day
    #[oai(validator(pattern = r"^\d{4}-\d{2}-\d{2}$"))]
    start_date: String,
    /// Last day
    #[oai(validator(pattern = r"^\d{4}-\d{2}-\d{2}$"))]
    end_date: String,
    /// Make it anew though there is one that may still be shown
    #[oai(default)]
    #[serde(default)]
    refresh: bool,
}

impl Example for SalesReportBody {
    fn example() -> Self {
        Self {
            start_date: "2026-11-01".to_owned(),
            end_date: "2026-11-30".to_owned(),
            refresh: false,
        }
    }
}

/// The task that makes a report.
#[derive(Serialize, Object)]
struct ReportTaskView {
    /// Key of the task
    id: uuid::Uuid,
    /// `enqueued`, or `duplicate` where the same report is being made already
    outcome: String,
    /// Where the report will be
    report: String,
}

/// Orders, units and money.
#[derive(Serialize, Object)]
struct FiguresView {
    /// Orders
    orders: i64,
    /// Units in them
    units: i64,
    /// What they cost together, in minor units
    gross_amount: i64,
}

impl From<Figures> for FiguresView {
    fn from(figures: Figures) -> Self {
        Self {
            orders: figures.orders,
            units: figures.units,
            gross_amount: figures.gross_amount,
        }
    }
}

/// All that was sold in one currency. Sold is what is paid.
#[derive(Serialize, Object)]
struct TotalView {
    /// ISO 4217
    currency: String,
    /// Orders that are paid
    orders: i64,
    /// Units in them
    units: i64,
    /// What they cost together, in minor units: the turnover
    gross_amount: i64,
    /// Orders that wait for their payment; in no other figure but `states`
    unpaid: FiguresView,
    /// Orders whose money is to be paid back; in no other figure but `states`
    refund_due: FiguresView,
}

/// What was sold in one currency on one day.
#[derive(Serialize, Object)]
struct DayView {
    /// The day
    date: String,
    /// ISO 4217
    currency: String,
    /// Orders that are paid
    orders: i64,
    /// Units in them
    units: i64,
    /// What they cost together, in minor units
    gross_amount: i64,
}

/// A product among those that sold best in one currency.
#[derive(Serialize, Object)]
struct TopProductView {
    /// From 1
    rank: u32,
    /// ISO 4217
    currency: String,
    /// Key of the product
    product_id: i64,
    /// The shop's own article number
    #[serde(skip_serializing_if = "Option::is_none")]
    sku: Option<String>,
    /// Name
    name: String,
    /// Units sold
    units: i64,
    /// What they cost together, in minor units
    gross_amount: i64,
}

impl From<TopProduct> for TopProductView {
    fn from(product: TopProduct) -> Self {
        Self {
            rank: product.rank,
            currency: product.currency,
            product_id: product.product_id,
            sku: product.sku,
            name: product.name,
            units: product.units,
            gross_amount: product.gross_amount,
        }
    }
}

/// Orders of one currency in one state.
#[derive(Serialize, Object)]
struct StateView {
    /// The state: `paid`, `processed` and `fulfilled` are sold; `pending_payment` is `unpaid` in the
    /// totals; `cancelled` and `expired` are in no other figure of the report
    state: String,
    /// ISO 4217
    currency: String,
    /// Orders in it
    orders: i64,
    /// What they cost together, in minor units
    amount: i64,
}

/// A sales report. An order counts on the day that it was made, once it is paid.
#[derive(Serialize, Object)]
struct ReportView {
    /// First day
    start_date: String,
    /// Last day
    end_date: String,
    /// Whose midnights the days begin at
    time_zone: String,
    /// Of which moment it is
    made_at: Timestamp,
    /// By currency
    totals: Vec<TotalView>,
    /// Every day of the range, for each currency
    days: Vec<DayView>,
    /// The ten products with the most units, for each currency
    top_by_units: Vec<TopProductView>,
    /// The ten products with the largest amounts, for each currency
    top_by_amount: Vec<TopProductView>,
    /// All orders, by currency and state
    states: Vec<StateView>,
}

impl From<Report> for ReportView {
    fn from(report: Report) -> Self {
        let totals = report.totals.into_iter().map(|total| TotalView {
            currency: total.currency,
            orders: total.figures.orders,
            units: total.figures.units,
            gross_amount: total.figures.gross_amount,
            unpaid: total.unpaid.into(),
            refund_due: total.refund_due.into(),
        });
        let days = report.days.into_iter().map(|day| DayView {
            date: day.date,
            currency: day.currency,
            orders: day.figures.orders,
            units: day.figures.units,
            gross_amount: day.figures.gross_amount,
        });
        let states = report.states.into_iter().map(|state| StateView {
            state: state.state.word().to_owned(),
            currency: state.currency,
            orders: state.orders,
            amount: state.amount,
        });
        let list = |products: Vec<TopProduct>| products.into_iter().map(Into::into).collect();
        Self {
            start_date: report.start_date,
            end_date: report.end_date,
            time_zone: report.time_zone,
            made_at: report.made_at,
            totals: totals.collect(),
            days: days.collect(),
            top_by_units: list(report.top_by_units),
            top_by_amount: list(report.top_by_amount),
            states: states.collect(),
        }
    }
}

/// A report in the form that was asked for, with its `ETag`.
enum ReportAnswer {
    Json(Tagged<ReportView>),
    Csv { name: String, text: String },
}

const CSV: &str = "text/csv; charset=utf-8; header=present";

impl IntoResponse for ReportAnswer {
    fn into_response(self) -> Response {
        let (name, text) = match self {
            ReportAnswer::Json(report) => return report.into_response(),
            ReportAnswer::Csv { name, text } => (name, text),
        };
        let etag = etag_of(text.as_bytes());
        let mut response = Response::builder().content_type(CSV).body(text);
        let headers = response.headers_mut();
        headers.insert(header::ETAG, etag);
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("private, no-cache"),
        );
        let disposition = format!("attachment; filename=\"{name}\"");
        if let Ok(value) = HeaderValue::from_str(&disposition) {
            headers.insert(header::CONTENT_DISPOSITION, value);
        }
        response
    }
}

impl ApiResponse for ReportAnswer {
    fn meta() -> MetaResponses {
        let mut meta = Tagged::<ReportView>::meta();
        for response in &mut meta.responses {
            if response.status == Some(200) {
                response.content.push(MetaMediaType {
                    content_type: "text/csv",
                    schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new("string"))),
                });
            }
        }
        meta
    }

    fn register(registry: &mut Registry) {
        Tagged::<ReportView>::register(registry);
    }
}

/// Reports.
#[derive(Clone)]
pub struct ReportApi {
    tasks: Tasks,
    rules: Arc<config::Reports>,
}

impl ReportApi {
    /// With the handles that it works on.
    pub fn new(tasks: Tasks, rules: Arc<config::Reports>) -> Self {
        Self { tasks, rules }
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Reports")]
impl ReportApi {
    /// Have a sales report made
    ///
    /// Answered once its task is on disk; then ask for the report until it is there. While the same
    /// report is being made, the answer names that task. A report is kept for an hour and not made
    /// again before, unless `refresh` says so. For staff.
    #[oai(
        path = "/reports/sales",
        method = "post",
        operation_id = "create_sales_report"
    )]
    async fn make(
        &self,
        access: Access,
        body: Body<SalesReportBody>,
    ) -> Result<Accepted<ReportTaskView>, Failure<{ fails::SECURED }>> {
        access.0.require(Role::Staff, Scope::Reports)?;
        let SalesReportBody {
            start_date,
            end_date,
            refresh,
        } = body.0;
        let days = super::days_of(&self.rules, &start_date, &end_date).map_err(Problem::from)?;
        let args = SalesReportArgs {
            start_date,
            end_date,
            refresh,
        };
        let mut task = NewTask::of::<GenerateSalesReport>(&args).map_err(Problem::from)?;
        task.unique = Some(Unique {
            key: key_of(&days),
            until: Until::Finished,
            seconds: None,
        });
        let enqueued = self.tasks.enqueue(task).await.map_err(Problem::from)?;
        let outcome = match enqueued {
            Enqueued::New(_) => "enqueued",
            Enqueued::Duplicate(_) | Enqueued::PutOff(_) => "duplicate",
        };
        let view = ReportTaskView {
            id: enqueued.id().0,
            outcome: outcome.to_owned(),
            report: format!(
                "/api/v1/reports/sales?start_date={}&end_date={}",
                args.start_date, args.end_date
            ),
        };
        let text = serde_json::to_string(&view).map_err(Problem::internal)?;
        let location = format!("/api/v1/tasks/{}", view.id);
        Ok(Accepted::printed(text, location))
    }

    /// Read a sales report
    ///
    /// One that was made within the last hour: 404 with the code `report_not_ready` says that there
    /// is none (yet). Turnover is what is paid. What waits for its payment and what is to be paid
    /// back stand beside it; `cancelled` and `expired` orders are in `states` only; past orders that
    /// were imported count like any other. For staff.
    #[oai(
        path = "/reports/sales",
        method = "get",
        operation_id = "get_sales_report"
    )]
    async fn read(
        &self,
        access: Access,
        /// First day, such as 2026-11-01
        start_date: Query<String>,
        /// Last day, such as 2026-11-30
        end_date: Query<String>,
        /// `json` or `csv`
        #[oai(default = "json_format")]
        format: Query<String>,
        /// Whether CSV begins with a byte-order mark, by which spreadsheet programs know that it is
        /// UTF-8
        #[oai(default = "with_mark")]
        bom: Query<bool>,
    ) -> Result<ReportAnswer, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Staff, Scope::Reports)?;
        let is_csv = match format.0.as_str() {
            "json" => false,
            "csv" => true,
            _ => return Err(vec![FieldError::new("format", "must be json or csv")].into()),
        };
        let days =
            super::days_of(&self.rules, &start_date.0, &end_date.0).map_err(Problem::from)?;
        let now = self.tasks.clock().now();
        let report = self
            .tasks
            .store()
            .read(move |tx| super::kept(tx, now, &days))
            .await
            .map_err(Problem::from)?;
        if !is_csv {
            return Ok(ReportAnswer::Json(Tagged(report.into())));
        }
        Ok(ReportAnswer::Csv {
            name: format!("sales-{}-{}.csv", report.start_date, report.end_date),
            text: csv_of(&report, bom.0).map_err(Problem::from)?,
        })
    }
}

fn json_format() -> String {
    "json".to_owned()
}

fn with_mark() -> bool {
    true
}
