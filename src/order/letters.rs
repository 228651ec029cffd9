//! What an order looks like to others: to customers in a mail, to programs in an event.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Order, OrderStatus};
use crate::clock::Timestamp;
use crate::config::Language;
use crate::mail::Letter;
use crate::product::import::minor_to_decimal;

/// Lines of an order that a mail shows.
pub(super) const LINES_SHOWN: usize = 20;

/// What a mail about an order says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// It was placed, and is to be paid in time.
    Placed,
    /// It is paid.
    Paid,
    /// It was cancelled before it was paid.
    Cancelled,
    /// It was not paid in time.
    Expired,
    /// It was paid, and the money comes back.
    RefundDue,
}

impl About {
    /// Whether it is still true of an order in this state.
    pub(super) fn holds(self, status: OrderStatus) -> bool {
        match self {
            About::Placed => status == OrderStatus::PendingPayment,
            About::Paid => matches!(
                status,
                OrderStatus::Paid | OrderStatus::Processed | OrderStatus::Fulfilled
            ),
            About::Cancelled => status == OrderStatus::Cancelled,
            About::Expired => status == OrderStatus::Expired,
            About::RefundDue => status == OrderStatus::RefundDue,
        }
    }
}

/// An order as receivers of events see it.
pub(super) fn described(order: &Order) -> Value {
    let items: Vec<Value> = order
        .items
        .iter()
        .map(|item| {
            json!({
                "product_id": item.product_id,
                "quantity": item.quantity,
                "unit_amount": item.unit_amount,
                "amount": item.amount,
            })
        })
        .collect();
    json!({
        "order_id": order.id,
        "user_id": order.user_id,
        "state": order.status,
        "total_amount": order.total_amount,
        "currency": order.currency,
        "sale_id": order.sale_id,
        "created_at": order.created_at,
        "expires_at": order.expires_at,
        "paid_at": order.paid_at,
        "processed_at": order.processed_at,
        "items": items,
    })
}

/// `1234` and `CNY` → `12.34 CNY`.
fn money(amount: i64, currency: &str) -> String {
    format!("{} {currency}", minor_to_decimal(amount, currency))
}

/// `2026-11-11 00:15 UTC`.
fn moment(at: Timestamp) -> String {
    let text = at.to_string();
    match (text.get(..10), text.get(11..16)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => text,
    }
}

/// The mail; `names` are those of the first products.
pub(super) fn write(
    language: Language,
    shop: &str,
    customer: Option<&str>,
    about: About,
    order: &Order,
    names: &[String],
) -> Letter {
    let (id, total) = (order.id, money(order.total_amount, &order.currency));
    let until = order.expires_at.map(moment);
    let letter = match language {
        Language::En => english(shop, customer, about, id.0, until),
        Language::Zh => chinese(shop, customer, about, id.0, until),
    };
    let mut rows: Vec<Vec<String>> = order
        .items
        .iter()
        .zip(names)
        .map(|(item, name)| {
            vec![
                name.clone(),
                format!("× {}", item.quantity),
                money(item.amount, &order.currency),
            ]
        })
        .collect();
    if order.items.len() > names.len() {
        rows.push(vec!["…".to_owned()]);
    }
    let sum = match language {
        Language::En => "Total",
        Language::Zh => "合计",
    };
    rows.push(vec![sum.to_owned(), String::new(), total]);
    letter.rows(rows)
}

fn english(
    shop: &str,
    customer: Option<&str>,
    about: About,
    id: i64,
    until: Option<String>,
) -> Letter {
    let (subject, words) = match about {
        About::Placed => (
            format!("{shop}: order {id} received"),
            match until {
                Some(until) => format!(
                    "Thank you for your order {id}. We hold the items for you until {until}; please pay by then."
                ),
                None => format!("Thank you for your order {id}. Please pay for it."),
            },
        ),
        About::Paid => (
            format!("{shop}: payment for order {id} received"),
            format!("Thank you. Your order {id} is paid, and we are taking care of it."),
        ),
        About::Cancelled => (
            format!("{shop}: order {id} cancelled"),
            format!("Your order {id} was cancelled. You have nothing to pay."),
        ),
        About::Expired => (
            format!("{shop}: order {id} expired"),
            format!(
                "Your order {id} was not paid in time, so the items are on sale again. You have nothing to pay."
            ),
        ),
        About::RefundDue => (
            format!("{shop}: refund for order {id}"),
            format!("We can't deliver your order {id}. You will get your money back."),
        ),
    };
    Letter::new(Language::En, subject)
        .greet(customer)
        .say(words)
}

fn chinese(
    shop: &str,
    customer: Option<&str>,
    about: About,
    id: i64,
    until: Option<String>,
) -> Letter {
    let (subject, words) = match about {
        About::Placed => (
            format!("{shop}：已收到订单 {id}"),
            match until {
                Some(until) => {
                    format!("感谢您的订单 {id}。商品为您保留至 {until}，请在此之前完成付款。")
                }
                None => format!("感谢您的订单 {id}，请完成付款。"),
            },
        ),
        About::Paid => (
            format!("{shop}：已收到订单 {id} 的付款"),
            format!("谢谢！您的订单 {id} 已付款，我们正在处理。"),
        ),
        About::Cancelled => (
            format!("{shop}：订单 {id} 已取消"),
            format!("您的订单 {id} 已取消，无需付款。"),
        ),
        About::Expired => (
            format!("{shop}：订单 {id} 已过期"),
            format!("您的订单 {id} 未按时付款，商品已重新上架，无需付款。"),
        ),
        About::RefundDue => (
            format!("{shop}：订单 {id} 退款"),
            format!("很抱歉，我们无法交付您的订单 {id}，款项将退还给您。"),
        ),
    };
    Letter::new(Language::Zh, subject)
        .greet(customer)
        .say(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_digits_of_their_currency() {
        assert_eq!(money(1_905, "CNY"), "19.05 CNY");
        assert_eq!(money(5, "USD"), "0.05 USD");
        assert_eq!(money(1_905, "JPY"), "1905 JPY");
        assert_eq!(money(1_905, "KWD"), "1.905 KWD");
        assert_eq!(
            moment(Timestamp(1_920_585_600_000_000)),
            "2030-11-11 00:00 UTC"
        );
    }
}
