//! What orders tell the world of.

use crate::webhook::{EventKind, Holds, Shape};

/// An order, as [`super::letters::described`] shows it.
const ORDER: Shape = &[
    ("order_id", Holds::Integer),
    ("user_id", Holds::Integer),
    ("state", Holds::Text),
    ("total_amount", Holds::Integer),
    ("currency", Holds::Text),
    ("sale_id", Holds::OrNull(&Holds::Integer)),
    ("created_at", Holds::Time),
    ("expires_at", Holds::OrNull(&Holds::Time)),
    ("paid_at", Holds::OrNull(&Holds::Time)),
    ("processed_at", Holds::OrNull(&Holds::Time)),
    (
        "items",
        Holds::List(&[
            ("product_id", Holds::Integer),
            ("quantity", Holds::Integer),
            ("unit_amount", Holds::Integer),
            ("amount", Holds::Integer),
        ]),
    ),
];

static CREATED: EventKind = EventKind {
    name: "order.created",
    about: "An order was placed, or a claim granted.",
    about_zh: "订单已创建，或抢购成功",
    shape: ORDER,
};

static PAID: EventKind = EventKind {
    name: "order.paid",
    about: "An order is paid.",
    about_zh: "订单已付款",
    shape: ORDER,
};

static PROCESSED: EventKind = EventKind {
    name: "order.processed",
    about: "An order was taken over by the shop's processing.",
    about_zh: "订单已由商店处理",
    shape: ORDER,
};

static CANCELLED: EventKind = EventKind {
    name: "order.cancelled",
    about: "An order was given up before it was paid.",
    about_zh: "订单在付款前被取消",
    shape: ORDER,
};

static EXPIRED: EventKind = EventKind {
    name: "order.expired",
    about: "An order was not paid in time.",
    about_zh: "订单逾期未付款",
    shape: ORDER,
};

static REFUND_DUE: EventKind = EventKind {
    name: "order.refund_due",
    about: "An order was paid, and the money is due back.",
    about_zh: "订单已付款，需要退款",
    shape: ORDER,
};

/// The last unit of a sale was claimed, or taken by a late payment; it is listed with the sales' own.
pub static SALE_SOLD_OUT: EventKind = EventKind {
    name: "flash_sale.sold_out",
    about: "The last unit of a flash sale was claimed.",
    about_zh: "抢购已售罄",
    shape: &[("sale_id", Holds::Integer), ("product_id", Holds::Integer)],
};

/// All that happens to an order.
pub static EVENTS: &[&EventKind] = &[
    &CREATED,
    &PAID,
    &PROCESSED,
    &CANCELLED,
    &EXPIRED,
    &REFUND_DUE,
];

/// What happened to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// It was placed, or a claim granted.
    Created,
    /// It is paid.
    Paid,
    /// The shop's processing took it over.
    Processed,
    /// It was given up before it was paid.
    Cancelled,
    /// It was not paid in time.
    Expired,
    /// It was paid, and the money is due back.
    RefundDue,
}

impl Happened {
    /// The event that tells of it.
    pub(super) fn event(self) -> &'static EventKind {
        match self {
            Happened::Created => &CREATED,
            Happened::Paid => &PAID,
            Happened::Processed => &PROCESSED,
            Happened::Cancelled => &CANCELLED,
            Happened::Expired => &EXPIRED,
            Happened::RefundDue => &REFUND_DUE,
        }
    }
}
