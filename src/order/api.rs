//! Orders over HTTP.

use std::sync::Arc;

use poem::http::StatusCode;
use poem::http::header::{HeaderName, HeaderValue};
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::pace::Pace;
use super::{
    Buyer, Filter, FollowUps, Order, OrderError, OrderId, OrderStatus, Unpaid, WithinLimit,
};
use crate::allotment::SaleUnits;
use crate::auth::api::{Access, Tag, UserView};
use crate::auth::idempotency::{IdempotencyKey, Stored};
use crate::auth::{Role, Scope, UserId};
use crate::check::FieldError;
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::http::{Body, Created, Failure, Problem, fails, read_cursor};
use crate::monitor::Metrics;
use crate::product::ProductId;
use crate::product::stock::StockError;
use crate::store::{Lane, Store, Tx};
use crate::user::{self, UserError};

/// Told when units return to a sale, after the commit.
pub type OnSaleUnits = Arc<dyn Fn(&[SaleUnits]) + Send + Sync>;

impl From<OrderError> for Problem {
    fn from(error: OrderError) -> Self {
        let text = error.to_string();
        match error {
            OrderError::Invalid(errors) => Problem::validation(errors),
            OrderError::NotFound(_) => Problem::not_found("order_not_found", text),
            OrderError::Stock(StockError::NotFound(_)) => {
                Problem::validation(vec![FieldError::new("items", text)])
            }
            OrderError::Stock(StockError::Insufficient { .. }) => {
                Problem::conflict("insufficient_stock", text)
            }
            OrderError::Stock(StockError::Store(error)) | OrderError::Store(error) => error.into(),
            OrderError::MixedCurrencies => {
                Problem::validation(vec![FieldError::new("items", text)])
            }
            OrderError::Unpaid { what, seconds } => {
                let (field, reason) = match what {
                    Unpaid::Orders { limit } => (
                        "items".to_owned(),
                        format!("at most {limit} orders of a customer may wait for payment"),
                    ),
                    Unpaid::Units { line, limit, held } => (
                        format!("items[{line}].quantity"),
                        format!(
                            "unpaid orders may hold at most {limit} units of a product together; {held} are held already"
                        ),
                    ),
                };
                Problem::conflict("unpaid_orders", text)
                    .field(field, reason)
                    .retry_after(seconds)
            }
            OrderError::State(_) => Problem::conflict("invalid_state", text),
            OrderError::KeyReused => {
                Problem::validation(vec![FieldError::new("Idempotency-Key", text)])
            }
        }
    }
}

/// 429 with what the IETF's draft 10 of RateLimit fields tells a client besides `Retry-After`: of `policy`
/// there are `limit` a minute, and the next in so many seconds.
pub fn rate_limited(
    detail: &'static str,
    policy: &'static str,
    limit: u32,
    seconds: u64,
) -> Problem {
    let field = |text: String| HeaderValue::from_str(&text);
    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
    let problem = problem.retry_after(seconds);
    match (
        field(format!("\"{policy}\";q={limit};w=60")),
        field(format!("\"{policy}\";r=0;t={seconds}")),
    ) {
        (Ok(policy), Ok(left)) => problem
            .header(HeaderName::from_static("ratelimit-policy"), policy)
            .header(HeaderName::from_static("ratelimit"), left),
        _ => problem,
    }
}

/// A line to order.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct LineBody {
    /// Product
    product_id: i64,
    /// Units
    #[oai(validator(minimum(value = "1"), maximum(value = "4294967295")))]
    quantity: u32,
}

/// An order to place.
#[derive(Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example)]
struct OrderBody {
    /// Lines; two lines of one product are summed
    #[oai(validator(min_items = 1))]
    items: Vec<LineBody>,
}

impl Example for OrderBody {
    fn example() -> Self {
        Self {
            items: vec![LineBody {
                product_id: 1,
                quantity: 2,
            }],
        }
    }
}

/// A line of an order.
#[derive(Serialize, Object)]
struct ItemView {
    /// Product
    product_id: i64,
    /// Units
    quantity: u32,
    /// Price of one in minor units
    unit_amount: i64,
    /// Price of the line
    amount: i64,
}

/// An order.
#[derive(Serialize, Object)]
struct OrderView {
    /// Key
    id: i64,
    /// Whose
    user_id: i64,
    /// `pending_payment`, `paid`, `processed`, `fulfilled`, `cancelled`, `expired` or `refund_due`
    state: String,
    /// Sum in minor units
    total_amount: i64,
    /// ISO 4217
    currency: String,
    /// The flash sale that its units came from
    #[serde(skip_serializing_if = "Option::is_none")]
    sale_id: Option<i64>,
    /// When it was placed
    created_at: Timestamp,
    /// Until when it must be paid
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// When it was paid
    #[serde(skip_serializing_if = "Option::is_none")]
    paid_at: Option<Timestamp>,
    /// When it was processed
    #[serde(skip_serializing_if = "Option::is_none")]
    processed_at: Option<Timestamp>,
    /// Lines
    items: Vec<ItemView>,
}

impl From<Order> for OrderView {
    fn from(order: Order) -> Self {
        Self {
            id: order.id.0,
            user_id: order.user_id.0,
            state: order.status.word().to_owned(),
            total_amount: order.total_amount,
            currency: order.currency,
            sale_id: order.sale_id.map(|id| id.0),
            created_at: order.created_at,
            expires_at: order.expires_at,
            paid_at: order.paid_at,
            processed_at: order.processed_at,
            items: order
                .items
                .into_iter()
                .map(|item| ItemView {
                    product_id: item.product_id.0,
                    quantity: item.quantity,
                    unit_amount: item.unit_amount,
                    amount: item.amount,
                })
                .collect(),
        }
    }
}

/// A user, with orders where they were asked for.
#[derive(Serialize, Object)]
struct UserWithOrders {
    #[serde(flatten)]
    #[oai(flatten)]
    user: UserView,
    /// The newest 50 orders, newest first; only with `include=orders`
    #[serde(skip_serializing_if = "Option::is_none")]
    orders: Option<Vec<OrderView>>,
}

/// One page of orders.
#[derive(Serialize, Object)]
struct OrderPage {
    /// Orders, newest first
    items: Vec<OrderView>,
    /// Pass it as `cursor` for the next page
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Orders.
#[derive(Clone)]
pub struct OrderApi {
    store: Store,
    clock: Clock,
    rules: Arc<config::Orders>,
    pace: Pace,
    metrics: Metrics,
    on_sale_units: OnSaleUnits,
    is_within_limit: WithinLimit,
    follow_ups: FollowUps,
}

impl OrderApi {
    /// With the handles that it works on.
    pub fn new(
        store: Store,
        clock: Clock,
        rules: Arc<config::Orders>,
        metrics: Metrics,
        on_sale_units: OnSaleUnits,
        is_within_limit: WithinLimit,
        follow_ups: FollowUps,
    ) -> Self {
        let pace = Pace::new(
            clock.clone(),
            rules.per_minute_max,
            rules.tracked_customers_max,
        );
        Self {
            store,
            clock,
            rules,
            pace,
            metrics,
            on_sale_units,
            is_within_limit,
            follow_ups,
        }
    }

    /// Refuses a customer who orders too fast, unless the request was done before: then answers as then.
    async fn admit(
        &self,
        buyer: Buyer,
        now: Timestamp,
        key: Option<&IdempotencyKey>,
    ) -> Result<Option<Stored>, Problem> {
        if buyer.is_staff {
            return Ok(None);
        }
        let Err(seconds) = self.pace.admit(buyer.user_id) else {
            return Ok(None);
        };
        if let Some(key) = key.cloned()
            && let Some(stored) = self
                .store
                .point(move |tx| key.look_up(tx, now, buyer.user_id))
                .await?
        {
            return Ok(Some(stored));
        }
        Err(rate_limited(
            "too many orders at once",
            "orders",
            self.pace.limit(),
            seconds,
        ))
    }

    /// Changes an order, and tells what that did to the units of open sales.
    async fn change(
        &self,
        work: impl Fn(&mut Tx<'_>, &FollowUps) -> Result<(Order, Vec<SaleUnits>), OrderError>
        + Send
        + 'static,
    ) -> Result<Body<OrderView>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        let (follow_ups, tell) = (self.follow_ups.clone(), Arc::clone(&self.on_sale_units));
        let (order, _) = self
            .store
            .write(move |tx| work(tx, &follow_ups))
            .then(move |done: &Result<(Order, Vec<SaleUnits>), OrderError>| {
                if let Ok((_, moved)) = done {
                    tell(moved);
                }
            })
            .await
            .map_err(Problem::from)?;
        Ok(Body(order.into()))
    }
}

#[OpenApi(prefix_path = "/api/v1")]
impl OrderApi {
    /// Place an order
    ///
    /// Takes the units of every line or of none. Send an `Idempotency-Key` and repeat the request
    /// freely: it is done once. What a customer may hold without having paid is limited, in orders and in
    /// units of a product: 409 `unpaid_orders` says when the first of them expires.
    #[oai(
        path = "/orders",
        method = "post",
        operation_id = "create_order",
        tag = "Tag::Orders"
    )]
    async fn create(
        &self,
        access: Access,
        /// Any text that is new for each order, kept for 24 hours
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Header<Option<String>>,
        body: Body<OrderBody>,
    ) -> Result<
        Created<OrderView>,
        Failure<{ fails::SECURED | fails::CONFLICT | fails::RATE_LIMITED }>,
    > {
        let caller = access.0;
        caller.require(Role::Customer, Scope::Orders)?;
        let buyer = Buyer {
            user_id: caller.user_id,
            is_staff: caller.is_staff(),
        };
        let asked = serde_json::to_string(&body.0).map_err(Problem::internal)?;
        let key = idempotency_key
            .0
            .map(|key| {
                IdempotencyKey::new(
                    &key,
                    &format!("POST /orders {asked}"),
                    self.rules.idempotency_seconds,
                )
            })
            .transpose()?;
        let lines: Vec<(ProductId, u32)> = body
            .0
            .items
            .iter()
            .map(|line| (ProductId(line.product_id), line.quantity))
            .collect();
        let (now, rules) = (self.clock.now(), Arc::clone(&self.rules));
        if let Some(stored) = self.admit(buyer, now, key.as_ref()).await? {
            return Ok(Created::replay(stored.body, stored.location));
        }
        let follow_ups = self.follow_ups.clone();
        let created = self
            .store
            .write(move |tx| {
                if let Some(stored) = key
                    .as_ref()
                    .map(|key| key.begin(tx, now, caller.user_id))
                    .transpose()?
                    .flatten()
                {
                    return Ok(Created::replay(stored.body, stored.location));
                }
                let order = super::create(tx, now, &rules, &follow_ups, buyer, &lines)?;
                let location = format!("/api/v1/orders/{}", order.id);
                let text = serde_json::to_string(&OrderView::from(order))
                    .map_err(|error| crate::store::StoreError::Bug(error.to_string()))?;
                if let Some(key) = &key {
                    key.keep(tx, caller.user_id, location.clone(), text.clone())?;
                }
                Ok::<_, OrderError>(Created::printed(text, location))
            })
            .await
            .map_err(Problem::from)?;
        if !created.is_replay() {
            self.metrics.orders_created_total.inc();
        }
        Ok(created)
    }

    /// List orders
    ///
    /// Your own; for staff everyone's, or those of the user that `user_id` names.
    #[oai(
        path = "/orders",
        method = "get",
        operation_id = "list_orders",
        tag = "Tag::Orders"
    )]
    async fn list(
        &self,
        access: Access,
        /// Only this user's; for staff
        user_id: Query<Option<i64>>,
        /// Only in this state
        state: Query<Option<String>>,
        /// Where the page before ended
        cursor: Query<Option<String>>,
        /// Rows, 1 to 200
        #[oai(
            validator(minimum(value = "1"), maximum(value = "200")),
            default = "default_limit"
        )]
        limit: Query<i64>,
    ) -> Result<Body<OrderPage>, Failure<{ fails::SECURED }>> {
        let caller = access.0;
        caller.require(Role::Customer, Scope::Orders)?;
        let asked = user_id.0.map(UserId);
        let user_id = if caller.is_staff() {
            asked
        } else if asked.is_none_or(|asked| asked == caller.user_id) {
            Some(caller.user_id)
        } else {
            return Err(Problem::forbidden("only staff see others' orders").into());
        };
        let status = match state.0.as_deref() {
            None => None,
            Some(word) => Some(OrderStatus::from_word(word).ok_or_else(|| {
                let reason = format!("must be one of {}", OrderStatus::WORDS.join(", "));
                vec![FieldError::new("state", reason)]
            })?),
        };
        let filter = Filter {
            user_id,
            status,
            before: read_cursor(cursor.0.as_deref())?,
            limit: limit.0,
        };
        let orders = self
            .store
            .read_in(Lane::List, move |tx| super::list(tx, &filter))
            .await
            .map_err(Problem::from)?;
        let next_cursor = (orders.len() as i64 == limit.0)
            .then(|| orders.last().map(|order| order.id.to_string()))
            .flatten();
        Ok(Body(OrderPage {
            items: orders.into_iter().map(OrderView::from).collect(),
            next_cursor,
        }))
    }

    /// Read a user
    ///
    /// With `include=orders`, together with the newest orders. Your own account, or for staff
    /// anyone's.
    #[oai(
        path = "/users/:id",
        method = "get",
        operation_id = "get_user",
        tag = "Tag::Users"
    )]
    async fn get_user(
        &self,
        access: Access,
        /// Key of the account
        id: Path<i64>,
        /// `orders`, or nothing
        include: Query<Option<String>>,
    ) -> Result<Body<UserWithOrders>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        let caller = access.0;
        let id = UserId(id.0);
        if caller.is_staff() {
            caller.require(Role::Staff, Scope::Users)?;
        } else {
            caller.require(Role::Customer, Scope::Orders)?;
            if caller.user_id != id {
                return Err(Problem::from(UserError::NotFound(id)).into());
            }
        }
        let with_orders = match include.0.as_deref() {
            None | Some("") => false,
            Some("orders") => true,
            Some(_) => return Err(vec![FieldError::new("include", "must be orders")].into()),
        };
        let (user, orders) = self
            .store
            .read_in(Lane::List, move |tx| {
                if !with_orders {
                    return Ok((user::get(tx, id)?, None));
                }
                let (user, orders) = super::sql::user_with_orders(tx, id, default_limit())?
                    .ok_or(UserError::NotFound(id))?;
                Ok::<_, UserError>((user, Some(orders)))
            })
            .await
            .map_err(Problem::from)?;
        Ok(Body(UserWithOrders {
            user: user.into(),
            orders: orders.map(|orders| orders.into_iter().map(OrderView::from).collect()),
        }))
    }

    /// Read an order
    #[oai(
        path = "/orders/:id",
        method = "get",
        operation_id = "get_order",
        tag = "Tag::Orders"
    )]
    async fn get(
        &self,
        access: Access,
        /// Key of the order
        id: Path<i64>,
    ) -> Result<Body<OrderView>, Failure<{ fails::SECURED | fails::NOT_FOUND }>> {
        let caller = access.0;
        caller.require(Role::Customer, Scope::Orders)?;
        let owner = (!caller.is_staff()).then_some(caller.user_id);
        let order = self
            .store
            .point(move |tx| super::get(tx, OrderId(id.0), owner))
            .await
            .map_err(Problem::from)?;
        Ok(Body(order.into()))
    }

    /// Cancel an order
    ///
    /// Its units are on sale again at once. What was paid becomes `refund_due`.
    #[oai(
        path = "/orders/:id/cancel",
        method = "post",
        operation_id = "cancel_order",
        tag = "Tag::Orders"
    )]
    async fn cancel(
        &self,
        access: Access,
        /// Key of the order
        id: Path<i64>,
    ) -> Result<Body<OrderView>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        let caller = access.0;
        caller.require(Role::Customer, Scope::Orders)?;
        let owner = (!caller.is_staff()).then_some(caller.user_id);
        let now = self.clock.now();
        self.change(move |tx, follow_ups| super::cancel(tx, now, follow_ups, OrderId(id.0), owner))
            .await
    }

    /// Confirm a payment
    ///
    /// Confirmed twice it counts once. Too late, it takes the units again from where they were: those
    /// of a flash sale while the sale's window (and the payment window after it), its units, its price
    /// and the buyer's limit allow; others while there are any at no higher price. Else, and if the
    /// order was cancelled, it becomes `refund_due`.
    #[oai(
        path = "/orders/:id/pay",
        method = "post",
        operation_id = "pay_order",
        tag = "Tag::Orders"
    )]
    async fn pay(
        &self,
        access: Access,
        /// Key of the order
        id: Path<i64>,
    ) -> Result<Body<OrderView>, Failure<{ fails::SECURED | fails::NOT_FOUND | fails::CONFLICT }>>
    {
        let caller = access.0;
        let trusted =
            caller.is_staff() && caller.may(Scope::Payments) || caller.is_key_with(Scope::Payments);
        if !trusted && !self.rules.customers_confirm_payment {
            return Err(
                Problem::forbidden("payments are confirmed by the payment provider here").into(),
            );
        }
        if !trusted {
            caller.require(Role::Customer, Scope::Orders)?;
        }
        let owner = (!trusted).then_some(caller.user_id);
        let now = self.clock.now();
        let is_within_limit = self.is_within_limit;
        self.change(move |tx, follow_ups| {
            super::pay(tx, now, follow_ups, is_within_limit, OrderId(id.0), owner)
        })
        .await
    }
}

fn default_limit() -> i64 {
    50
}
