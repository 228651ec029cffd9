//! Flash sales and claims over HTTP.

use std::sync::Arc;

use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::gate::{Gate, GatePlace, Refusal};
use super::ready::ReadySales;
use super::{Claim, ClaimRequest, SaleError};
use crate::allotment::{NewSale, Sale, SaleId, SaleStatus};
use crate::auth::api::{Access, Tag};
use crate::auth::idempotency::IdempotencyKey;
use crate::auth::{Caller, Role, Scope};
use crate::clock::{Clock, Timestamp};
use crate::config::Settings;
use crate::http::{Body, Created, Failure, OptionalBody, Problem, fails, read_cursor};
use crate::monitor::Metrics;
use crate::order::FollowUps;
use crate::order::api::rate_limited;
use crate::product::ProductId;
use crate::product::stock::StockError;
use crate::store::{Gather, Lane, Store};

impl From<SaleError> for Problem {
    fn from(error: SaleError) -> Self {
        let text = error.to_string();
        match error {
            SaleError::Invalid(errors) => Problem::validation(errors),
            SaleError::NotFound(_) => Problem::not_found("sale_not_found", text),
            SaleError::Stock(StockError::NotFound(_)) => {
                Problem::validation(vec![crate::check::FieldError::new("product_id", text)])
            }
            SaleError::Stock(StockError::Insufficient { .. }) => {
                Problem::conflict("insufficient_stock", text)
            }
            SaleError::Stock(StockError::Store(error)) | SaleError::Store(error) => error.into(),
            SaleError::Overlap => Problem::conflict("sale_overlaps", text),
            SaleError::NotStarted => Problem::conflict("not_started", text),
            SaleError::Ended => Problem::conflict("ended", text),
            SaleError::SoldOut(_) => Problem::conflict("sold_out", text),
            SaleError::LimitReached(_) => Problem::conflict("limit_reached", text),
            SaleError::Order(error) => error.into(),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown | Refusal::Ended => Problem::conflict("ended", "the sale is over"),
            Refusal::NotStarted => Problem::conflict("not_started", "the sale has not started"),
            Refusal::SoldOut => Problem::conflict("sold_out", "not enough units are left"),
            Refusal::LimitReached(units) => SaleError::LimitReached(units).into(),
            Refusal::RateLimited { limit, seconds } => {
                rate_limited("too many attempts in this sale", "attempts", limit, seconds)
            }
            Refusal::Overloaded => Problem::overloaded(1),
        }
    }
}

/// A sale to make.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct SaleBody {
    /// Product
    product_id: i64,
    /// Units to set aside
    #[oai(validator(minimum(value = "1"), maximum(value = "4294967295")))]
    quantity: u32,
    /// Price of one in minor units of the product's currency
    #[oai(validator(minimum(value = "0")))]
    unit_amount: i64,
    /// First moment
    starts_at: Timestamp,
    /// First moment after it
    ends_at: Timestamp,
    /// Units of one buyer at most
    #[oai(
        default = "one",
        validator(minimum(value = "1"), maximum(value = "4294967295"))
    )]
    #[serde(default = "one")]
    per_user_limit: u32,
    /// Attempts of one buyer in a sliding minute
    #[oai(
        default = "three",
        validator(minimum(value = "1"), maximum(value = "1000"))
    )]
    #[serde(default = "three")]
    attempts_per_minute: u32,
    /// Seconds in which a claim must be paid; 0 means no payment step
    #[oai(default, validator(minimum(value = "0")))]
    #[serde(default)]
    payment_window_seconds: i64,
}

impl Example for SaleBody {
    fn example() -> Self {
        Self {
            product_id: 1,
            quantity: 100,
            unit_amount: 1_900,
            starts_at: Timestamp(1_920_585_600_000_000),
            ends_at: Timestamp(1_920_589_200_000_000),
            per_user_limit: 1,
            attempts_per_minute: 3,
            payment_window_seconds: 900,
        }
    }
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

/// What to claim.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct ClaimBody {
    /// Units
    #[oai(
        default = "one",
        validator(minimum(value = "1"), maximum(value = "4294967295"))
    )]
    #[serde(default = "one")]
    quantity: u32,
}

impl Default for ClaimBody {
    fn default() -> Self {
        Self { quantity: 1 }
    }
}

/// A flash sale.
#[derive(Serialize, Object)]
struct SaleView {
    /// Key
    id: i64,
    /// Product
    product_id: i64,
    /// `scheduled`, `running`, `sold_out`, `ended` or `stopped`
    state: String,
    /// Units set aside for it
    quantity: i64,
    /// Units that can still be claimed
    remaining: i64,
    /// Units sold
    sold: i64,
    /// Units claimed and not yet paid
    held: i64,
    /// Units that went back to the free stock
    returned: i64,
    /// Price of one in minor units
    unit_amount: i64,
    /// ISO 4217
    currency: String,
    /// First moment
    starts_at: Timestamp,
    /// First moment after it
    ends_at: Timestamp,
    /// Units of one buyer at most
    per_user_limit: i64,
    /// Attempts of one buyer in a sliding minute
    attempts_per_minute: i64,
    /// Seconds in which a claim must be paid
    payment_window_seconds: i64,
    /// When it was made
    created_at: Timestamp,
}

impl SaleView {
    fn new(sale: &Sale, now: Timestamp) -> Self {
        Self {
            state: sale.state(now).to_owned(),
            id: sale.id.0,
            product_id: sale.product_id.0,
            quantity: sale.quantity,
            remaining: sale.remaining,
            sold: sale.sold,
            held: sale.held,
            returned: sale.returned,
            unit_amount: sale.unit_amount,
            currency: sale.currency.clone(),
            starts_at: sale.starts_at,
            ends_at: sale.ends_at,
            per_user_limit: sale.per_user_limit,
            attempts_per_minute: sale.attempts_per_minute,
            payment_window_seconds: sale.payment_window_seconds,
            created_at: sale.created_at,
        }
    }
}

/// One page of sales.
#[derive(Serialize, Object)]
struct SalePage {
    /// Sales, newest first
    items: Vec<SaleView>,
    /// Pass it as `cursor` for the next page
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A claim that was granted.
#[derive(Serialize, Object)]
struct ClaimedView {
    /// UUIDv7
    claim_id: String,
    /// The order that it became
    order_id: i64,
    /// The order's state: `paid`, or `pending_payment` until `expires_at`
    state: String,
    /// Units left in the sale right after
    remaining: i64,
    /// Until when it must be paid
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

/// A claim as it stands now.
#[derive(Serialize, Object)]
struct ClaimView {
    /// UUIDv7
    claim_id: String,
    /// Sale
    sale_id: i64,
    /// The order that it became
    order_id: i64,
    /// Units
    quantity: u32,
    /// The order's state now
    state: String,
    /// When it was granted
    created_at: Timestamp,
}

type ClaimResult = Result<
    Created<ClaimedView>,
    Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT | fails::RATE_LIMITED }>,
>;

/// What a buyer asks for units of.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// This sale.
    Sale(SaleId),
    /// The sale of this product that runs now, or else the next to come.
    Product(ProductId),
}

/// Sales and claims.
#[derive(Clone)]
pub struct FlashSaleApi {
    store: Store,
    claims: Claims,
    ready: ReadySales,
    clock: Clock,
    settings: Arc<Settings>,
    metrics: Metrics,
    gate: Gate,
    follow_ups: FollowUps,
}

/// A claim that the gate let in.
struct Seated {
    now: Timestamp,
    request: ClaimRequest,
    place: GatePlace,
}

/// Claims of each sale, granted together.
type Claims = Gather<SaleId, Seated, Claim, SaleError>;

fn gathered(store: &Store) -> Claims {
    store.gather(
        |tx, sale, seated: &[Seated]| {
            let asked: Vec<(Timestamp, &ClaimRequest)> =
                seated.iter().map(|one| (one.now, &one.request)).collect();
            super::claim_many(tx, *sale, &asked)
        },
        |_, seated, done| match done {
            Ok(Claim::Granted(_)) => seated.place.decide(true),
            Err(SaleError::LimitReached(_)) => seated.place.limit_reached(seated.request.user_id),
            // A replay took no units now: its place is free again.
            Ok(Claim::Replayed(_)) | Err(_) => seated.place.decide(false),
        },
    )
}

impl FlashSaleApi {
    /// With the handles that it works on.
    pub fn new(
        ready: ReadySales,
        clock: Clock,
        settings: Arc<Settings>,
        metrics: Metrics,
        gate: Gate,
        follow_ups: FollowUps,
    ) -> Self {
        Self {
            store: ready.store.clone(),
            claims: gathered(&ready.store),
            ready,
            clock,
            settings,
            metrics,
            gate,
            follow_ups,
        }
    }

    async fn claim_of(
        &self,
        caller: &Caller,
        wanted: Wanted,
        quantity: u32,
        key: Option<String>,
    ) -> ClaimResult {
        caller.require(Role::Customer, Scope::Orders)?;
        if quantity == 0 {
            return Err(vec![crate::check::FieldError::new(
                "quantity",
                "must be at least 1",
            )]
            .into());
        }
        let sale = match wanted {
            Wanted::Sale(id) => Some(id),
            Wanted::Product(id) => self.gate.sale_of(id.0, self.clock.now()),
        };
        let key = key
            .map(|key| {
                let asked = sale.map(|sale| super::asked(sale, quantity));
                let seconds = self.settings.orders.idempotency_seconds;
                IdempotencyKey::new(&key, &asked.unwrap_or_default(), seconds)
            })
            .transpose()?;
        let result = match wanted {
            Wanted::Sale(id) => self.decide(caller, id, quantity, key).await,
            Wanted::Product(id) => {
                self.decide_of_product(caller, id, sale, quantity, key)
                    .await
            }
        };
        let outcome = match &result {
            Ok(claimed) if claimed.is_replay() => "replayed",
            Ok(_) => {
                self.metrics.orders_created_total.inc();
                "accepted"
            }
            Err(problem) => problem.code(),
        };
        self.metrics
            .flash_sale_claims_total
            .with_label_values(&[outcome])
            .inc();
        Ok(result?)
    }

    /// A claim in the product's sale of now. A buyer who asks again once that is over, or when another has begun,
    /// hears the first answer again.
    async fn decide_of_product(
        &self,
        caller: &Caller,
        product_id: ProductId,
        sale: Option<SaleId>,
        quantity: u32,
        key: Option<IdempotencyKey>,
    ) -> Result<Created<ClaimedView>, Problem> {
        let (now, user_id) = (self.clock.now(), caller.user_id);
        let refused = match sale {
            Some(sale) => match self.decide(caller, sale, quantity, key.clone()).await {
                Ok(claimed) => return Ok(claimed),
                Err(problem) => problem,
            },
            None => Problem::not_found("sale_not_found", "the product has no flash sale"),
        };
        if let Some(key) = key {
            let before = self.store.point(move |tx| {
                super::granted_before(tx, now, user_id, product_id, quantity, &key)
            });
            if let Some(answer) = before.await? {
                return Ok(Created::replay(answer.body, answer.location));
            }
        }
        Err(refused)
    }

    async fn decide(
        &self,
        caller: &Caller,
        sale_id: SaleId,
        quantity: u32,
        key: Option<IdempotencyKey>,
    ) -> Result<Created<ClaimedView>, Problem> {
        let (now, user_id) = (self.clock.now(), caller.user_id);
        let place = match self.gate.enter(sale_id, user_id, quantity, now).await {
            Ok(place) => place,
            Err(refusal) => return self.refused(refusal, sale_id, caller, key).await,
        };
        let request = ClaimRequest {
            follow_ups: self.follow_ups.clone(),
            sale_id,
            user_id,
            quantity,
            key,
        };
        let seated = Seated {
            now,
            request,
            place,
        };
        let claim = self.claims.write(&self.store, sale_id, seated).await?;
        Ok(match claim {
            Claim::Granted(answer) => Created::printed(answer.body, answer.location),
            Claim::Replayed(answer) => Created::replay(answer.body, answer.location),
        })
    }

    /// A buyer who won and asks again under the same key hears the same again, sold out or not.
    async fn refused(
        &self,
        refusal: Refusal,
        sale_id: SaleId,
        caller: &Caller,
        key: Option<IdempotencyKey>,
    ) -> Result<Created<ClaimedView>, Problem> {
        let (now, user_id) = (self.clock.now(), caller.user_id);
        if let Some(key) = key
            && let Some(answer) = self
                .store
                .point(move |tx| key.look_up(tx, now, user_id))
                .await?
        {
            return Ok(Created::replay(answer.body, answer.location));
        }
        if refusal == Refusal::Unknown {
            // Closed or never there: the row knows.
            self.store.point(move |tx| super::get(tx, sale_id)).await?;
        }
        Err(refusal.into())
    }
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::FlashSales")]
impl FlashSaleApi {
    /// Make a flash sale
    ///
    /// Its units leave the product's free stock and are set aside until it ends. For staff.
    #[oai(
        path = "/flash-sales",
        method = "post",
        operation_id = "create_flash_sale"
    )]
    async fn create(
        &self,
        access: Access,
        body: Body<SaleBody>,
    ) -> Result<Created<SaleView>, Failure<{ fails::SECURED | fails::CONFLICT }>> {
        access.0.require(Role::Staff, Scope::Sales)?;
        let body = body.0;
        let new = NewSale {
            product_id: ProductId(body.product_id),
            quantity: body.quantity,
            unit_amount: body.unit_amount,
            starts_at: body.starts_at,
            ends_at: body.ends_at,
            per_user_limit: body.per_user_limit,
            attempts_per_minute: body.attempts_per_minute,
            payment_window_seconds: body.payment_window_seconds,
        };
        let (now, settings, gate) = (
            self.clock.now(),
            self.settings.flash_sales.clone(),
            self.gate.clone(),
        );
        let events = self.follow_ups.events.clone();
        let sale = self
            .store
            .write(move |tx| super::create(tx, now, &settings, &events, &new))
            .then(move |done| {
                if let Ok(sale) = done {
                    gate.open(sale.clone());
                }
            })
            .await
            .map_err(Problem::from)?;
        let location = format!("/api/v1/flash-sales/{}", sale.id);
        Ok(Created::new(SaleView::new(&sale, now), location))
    }

    /// List flash sales
    #[oai(
        path = "/flash-sales",
        method = "get",
        operation_id = "list_flash_sales"
    )]
    async fn list(
        &self,
        /// Where the page before ended
        cursor: Query<Option<String>>,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<i64>,
    ) -> Result<Body<SalePage>, Failure<{ fails::NOTHING }>> {
        let before = read_cursor(cursor.0.as_deref())?;
        let (rows, now) = (limit.0, self.clock.now());
        let sales = self
            .store
            .read_in(Lane::List, move |tx| super::list(tx, before, rows))
            .await
            .map_err(Problem::from)?;
        let next_cursor = (sales.len() as i64 == rows)
            .then(|| sales.last().map(|sale| sale.id.to_string()))
            .flatten();
        Ok(Body(SalePage {
            items: sales
                .into_iter()
                .map(|sale| SaleView::new(&sale, now))
                .collect(),
            next_cursor,
        }))
    }

    /// Read a flash sale
    #[oai(
        path = "/flash-sales/:id",
        method = "get",
        operation_id = "get_flash_sale"
    )]
    async fn get(
        &self,
        /// Key of the sale
        id: Path<i64>,
    ) -> Result<Body<SaleView>, Failure<{ fails::NOT_FOUND }>> {
        let id = SaleId(id.0);
        let found = self.ready.get(id).await.map_err(Problem::from)?;
        let sale = found
            .ok_or(SaleError::NotFound(id))
            .map_err(Problem::from)?;
        Ok(Body(SaleView::new(&sale, self.clock.now())))
    }

    /// Stop a flash sale
    ///
    /// What is left goes back to the free stock. Stopped twice it is stopped once. For staff.
    #[oai(
        path = "/flash-sales/:id/stop",
        method = "post",
        operation_id = "stop_flash_sale"
    )]
    async fn stop(
        &self,
        access: Access,
        /// Key of the sale
        id: Path<i64>,
    ) -> Result<Body<SaleView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        access.0.require(Role::Staff, Scope::Sales)?;
        let (now, gate, id) = (self.clock.now(), self.gate.clone(), SaleId(id.0));
        let events = self.follow_ups.events.clone();
        let sale = self
            .store
            .write(move |tx| {
                super::close(tx, now, &events, id, SaleStatus::Stopped)?;
                super::get(tx, id)
            })
            .then(move |done| {
                if done.is_ok() {
                    gate.close(id);
                }
            })
            .await
            .map_err(Problem::from)?;
        Ok(Body(SaleView::new(&sale, now)))
    }

    /// Claim units
    ///
    /// 201 means that the units are yours: it is on disk. Repeat a request freely under the same
    /// `Idempotency-Key`.
    #[oai(
        path = "/flash-sales/:id/claims",
        method = "post",
        operation_id = "claim_flash_sale"
    )]
    async fn claim(
        &self,
        access: Access,
        /// Key of the sale
        id: Path<i64>,
        /// Any text that is new for each claim, kept for 24 hours
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Header<Option<String>>,
        body: OptionalBody<ClaimBody>,
    ) -> ClaimResult {
        let wanted = Wanted::Sale(SaleId(id.0));
        self.claim_of(&access.0, wanted, body.0.quantity, idempotency_key.0)
            .await
    }

    /// Read a claim
    #[oai(path = "/claims/:id", method = "get", operation_id = "get_claim")]
    async fn get_claim(
        &self,
        access: Access,
        /// UUID of the claim
        id: Path<String>,
    ) -> Result<Body<ClaimView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        let caller = access.0;
        caller.require(Role::Customer, Scope::Orders)?;
        let owner = (!caller.is_staff()).then_some(caller.user_id);
        let claim_id = id.0.clone();
        let found = self
            .store
            .point(move |tx| super::claim_on_record(tx, &claim_id, owner))
            .await
            .map_err(Problem::from)?;
        let claim =
            found.ok_or_else(|| Problem::not_found("claim_not_found", "there is no such claim"))?;
        Ok(Body(ClaimView {
            claim_id: id.0,
            sale_id: claim.sale_id.0,
            order_id: claim.order_id.0,
            quantity: claim.quantity,
            state: claim.state.word().to_owned(),
            created_at: claim.created_at,
        }))
    }
}

fn default_limit() -> i64 {
    50
}

/// The short way for a buyer's button: a claim in the product's running sale.
pub struct SeckillApi(FlashSaleApi);

impl SeckillApi {
    /// Over the same rules.
    pub fn new(sales: FlashSaleApi) -> Self {
        Self(sales)
    }
}

#[OpenApi(tag = "Tag::FlashSales")]
impl SeckillApi {
    /// Claim a product
    ///
    /// A claim in the product's running flash sale. Repeat a request freely under the same
    /// `Idempotency-Key`: also when the sale is over, the first answer comes again.
    #[oai(
        path = "/seckill/:product_id",
        method = "post",
        operation_id = "claim_product"
    )]
    async fn seckill(
        &self,
        access: Access,
        /// Key of the product
        product_id: Path<i64>,
        /// Any text that is new for each claim, kept for 24 hours
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Header<Option<String>>,
        body: OptionalBody<ClaimBody>,
    ) -> ClaimResult {
        let wanted = Wanted::Product(ProductId(product_id.0));
        self.0
            .claim_of(&access.0, wanted, body.0.quantity, idempotency_key.0)
            .await
    }
}
