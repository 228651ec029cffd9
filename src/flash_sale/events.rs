//! What flash sales tell the world of.

use crate::order::events::SALE_SOLD_OUT;
use crate::webhook::{EventKind, Holds, Shape};

/// A sale, as [`super::described`] shows it.
const SALE: Shape = &[
    ("sale_id", Holds::Integer),
    ("product_id", Holds::Integer),
    ("state", Holds::Text),
    ("quantity", Holds::Integer),
    ("remaining", Holds::Integer),
    ("held", Holds::Integer),
    ("sold", Holds::Integer),
    ("returned", Holds::Integer),
    ("unit_amount", Holds::Integer),
    ("currency", Holds::Text),
    ("starts_at", Holds::Time),
    ("ends_at", Holds::Time),
];

pub(super) static CREATED: EventKind = EventKind {
    name: "flash_sale.created",
    about: "A flash sale was made.",
    about_zh: "抢购已创建",
    shape: SALE,
};

pub(super) static ENDED: EventKind = EventKind {
    name: "flash_sale.ended",
    about: "A flash sale is over, or was stopped.",
    about_zh: "抢购已结束或被停止",
    shape: SALE,
};

/// All that happens to a sale.
pub static EVENTS: &[&EventKind] = &[&CREATED, &SALE_SOLD_OUT, &ENDED];
