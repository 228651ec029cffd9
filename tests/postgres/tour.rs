//! A tour through the program in which every statement runs: tests of single features that between them run
//! nearly all, and a walk that adds the forms of lists and what only a command does.

use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};

use onrush::allotment::{self, SaleId};
use onrush::auth::Role;
use onrush::config;
use onrush::flash_sale;
use onrush::order::import::import_orders;
use onrush::sheet::Reading;
use onrush::store::StoreError;
use onrush::task::TaskState;
use serde_json::{Value, json};

use crate::api::{
    accounts, catalogue, faktory, mail, replays, reports, revival, sales, schedules, tasks,
    webhooks,
};
use crate::support::{Shop, text};
use crate::{authz, oversell};

/// Stops that are under way at once: most of them wait for a background service now and then.
const AT_ONCE: usize = 4;

const STOPS: &[fn()] = &[
    oversell::with_more_willing_buyers_than_units_exactly_all_units_are_sold,
    authz::every_operation_answers_every_kind_of_caller_as_the_table_says,
    walk,
    accounts::a_browser_gets_a_fresh_device_cookie_instead_of_one_that_was_planted,
    accounts::accounts_are_found_by_names_of_any_alphabet_also_those_of_an_earlier_version,
    accounts::guesses_at_the_set_up_token_wait_and_its_owner_does_not,
    accounts::staff_see_users_and_admins_change_roles,
    catalogue::a_directory_of_the_first_version_is_searched_by_the_new_rule,
    catalogue::a_product_is_tagged_changed_and_archived,
    faktory::a_batch_that_is_never_committed_is_dropped_once_nothing_of_it_is_pending,
    faktory::a_job_that_is_requeued_by_hand_counts_in_its_complete_batch_again,
    faktory::a_task_of_another_way_is_a_job_too_and_others_tasks_are_out_of_reach,
    faktory::sets_of_jobs_are_killed_requeued_and_discarded,
    faktory::unique_jobs_expiry_progress_and_batches_are_those_of_its_clients,
    mail::an_account_comes_of_the_mail_and_the_password_and_no_answer_tells_of_another,
    mail::until_its_address_is_proven_no_mail_of_an_account_has_its_name,
    replays::a_claim_by_product_is_answered_as_then_when_its_sale_is_over_or_another_has_begun,
    reports::days_begin_at_the_shops_own_midnight,
    reports::popularity_is_what_was_ordered_within_a_day_and_an_imported_one_until_then,
    revival::a_retried_task_takes_its_key_again_or_is_told_who_has_it,
    revival::what_was_cancelled_because_of_a_task_waits_for_it_again,
    sales::held_units_come_back_to_the_sale_and_are_sold_to_the_next,
    sales::paying_late_is_no_way_round_the_limits_of_a_sale,
    sales::the_server_checks_the_ledger_and_tells_what_it_found,
    schedules::a_schedule_is_made_seen_fires_and_goes,
    schedules::by_hand_paused_resumed_and_re_timed,
    schedules::the_settings_declare_schedules_and_the_built_in_ones_are_there,
    tasks::a_cancelled_task_never_starts_and_a_running_one_is_told,
    tasks::a_restart_and_a_lost_queue_folder_lose_nothing,
    tasks::a_waiting_task_is_edited_and_moves_to_its_new_place,
    tasks::a_worker_fetches_beats_and_acknowledges_once,
    tasks::of_many_runs_that_end_each_is_answered_by_itself,
    tasks::unique_debounced_chained_and_counted_together,
    webhooks::a_failure_is_tried_again_over_the_schedule_and_replayed_by_hand,
    webhooks::an_answer_counts_by_its_status_also_where_its_body_breaks_off,
    webhooks::every_event_is_listed_told_of_in_both_languages_and_sent_as_it_is_declared,
];

pub fn run() {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(stop) = STOPS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    stop();
                }
            });
        }
    });
}

fn walk() {
    let shop = Shop::open();
    let (admin, staff) = (shop.token(Role::Admin), shop.token(Role::Staff));
    let buyer = shop.account("buyer@example.com", Role::Customer);
    let token = shop.login("buyer@example.com");
    sold(&shop, &staff, &token);
    imported(&shop, &staff);
    let waits_for = json!({"name": "first", "queue": "q", "args": {}});
    let task = |body: &Value| {
        let made = shop.post("/api/v1/tasks").token(&admin).json(body).send();
        text(&made.expect(202)["id"])
    };
    let first = task(&waits_for);
    task(&json!({"name": "second", "queue": "q", "args": {}, "after": [first, first]}));
    // Lists have a text for each kind of filter.
    let see = |path: &str| drop(shop.get(path).token(&admin).send().expect(200));
    for state in [None, Some("paid"), Some("pending_payment")] {
        for user in [None, Some(buyer)] {
            let state = state.map(|state| format!("&state={state}"));
            let user = user.map(|user| format!("&user_id={user}"));
            let (state, user) = (state.unwrap_or_default(), user.unwrap_or_default());
            see(&format!("/api/v1/orders?limit=5{state}{user}"));
        }
    }
    see(&format!("/api/v1/users/{buyer}?include=orders"));
    for filter in ["", "&role=staff", "&status=active", "&q=buyer"] {
        see(&format!("/api/v1/users?limit=5{filter}"));
    }
    for queue in ["", "&queue=q", "&name=first"] {
        see(&format!("/api/v1/tasks?limit=5{queue}"));
        for state in TaskState::WORDS {
            see(&format!("/api/v1/tasks?limit=5&state={state}{queue}"));
        }
    }
    for sort in ["popularity", "price_asc", "price_desc", "newest"] {
        for filter in [
            "",
            "&category=Home",
            "&q=mug",
            "&q=mu",
            "&q=mug%20cup",
            "&q=mug&category=Home",
        ] {
            let path = format!("/api/v1/products?limit=1&sort={sort}{filter}");
            let page = shop.get(&path).token(&admin).send().expect(200);
            if let Some(cursor) = page["next_cursor"].as_str() {
                see(&format!("{path}&cursor={cursor}"));
            }
        }
    }
}

/// Units that come back when their sale is closed; what a rehearsal asks and does.
fn sold(shop: &Shop, staff: &str, buyer: &str) {
    for name in ["Mug", "Cup, no mug"] {
        let body = json!({"name": name, "category": "Home", "unit_amount": 1_000, "currency": "CNY", "stock": 5});
        let made = shop.post("/api/v1/products").token(staff).json(&body);
        made.send().expect(201);
    }
    for window in [0, 120] {
        let product = shop.product(staff, 3);
        let terms = json!({"payment_window_seconds": window});
        let sale = shop.sale(staff, product, 3, terms);
        let (path, now) = (format!("/api/v1/flash-sales/{sale}"), shop.clock.now());
        let id = SaleId(sale);
        let brought = shop
            .app()
            .store
            .write(move |tx| allotment::bring_forward(tx, now, id, now.plus_seconds(60)));
        assert!(brought.blocking().expect("brought forward"));
        let claims = format!("{path}/claims");
        let claim = shop.post(&claims).token(buyer).send().expect(201);
        let order = claim["order_id"].as_i64().expect("an id");
        let seen = shop.app().store.read_blocking::<_, StoreError>(|tx| {
            let is_there = flash_sale::is_on_record(tx, &text(&claim["claim_id"]), order)?;
            Ok((flash_sale::units_ordered(tx, id)?, is_there))
        });
        assert_eq!(seen.expect("read"), (1, true));
        let stop = shop.post(&format!("{path}/stop")).token(staff);
        stop.send().expect(200);
        let cancel = shop.post(&format!("/api/v1/orders/{order}/cancel"));
        cancel.token(staff).send().expect(200);
        assert_eq!(shop.stock(product), 3);
    }
}

/// Orders of the shop before.
fn imported(shop: &Shop, staff: &str) {
    let body =
        json!({"sku": "A", "name": "Mug", "unit_amount": 700, "currency": "USD", "stock": 3});
    let made = shop.post("/api/v1/products").token(staff).json(&body);
    made.send().expect(201);
    let rows = "order_id,customer,product,quantity,amount,currency,time\n\
                1,h-1,A,1,7.00,USD,2026-01-01T10:00:00Z\n";
    let report = import_orders(
        &shop.app().store,
        &config::Import::default(),
        &Reading::default(),
        &chrono::Utc,
        shop.clock.now(),
        Cursor::new(rows),
        |_| (),
    );
    assert_eq!(report.expect("imported").created, 1);
}
