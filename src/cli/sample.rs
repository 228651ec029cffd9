//! The sample shop of the demonstration: generated, the same each time, in English and Chinese.
//!
//! Invariant: it is made through the catalogue's own rules and the import of past orders, and once.

use std::fmt::Write;
use std::io::Cursor;

use anyhow::Context;
use chrono::Utc;

use crate::auth::api::EXAMPLE;
use crate::auth::{AuthError, NewAccount, Role, create_account};
use crate::clock::Timestamp;
use crate::config::{self, Settings};
use crate::order::import::import_orders;
use crate::product::{self, Filter, NewProduct, ProductError, ProductId, Sort};
use crate::sheet::Reading;
use crate::store::Store;

const PRODUCTS: usize = 3_000;
const CUSTOMERS: usize = 2_000;
const PAST_ORDERS: usize = 6_000;
/// The past orders lie within so many days before the first start.
const PAST_DAYS: usize = 90;
const MAKERS: &[(&str, &str)] = &[
    ("Aurora", "极光"),
    ("Bamboo", "竹韵"),
    ("Cloud", "云朵"),
    ("Dragonfly", "蜻蜓"),
    ("Evergreen", "常青"),
    ("Firefly", "萤火"),
    ("Glacier", "冰川"),
    ("Harbor", "港湾"),
    ("Ink", "墨香"),
    ("Jade", "翡翠"),
    ("Kite", "纸鸢"),
    ("Lotus", "莲花"),
    ("Maple", "枫叶"),
    ("Nimbus", "云雀"),
    ("Orchid", "兰草"),
    ("Panda", "熊猫"),
    ("Quartz", "石英"),
    ("River", "江河"),
    ("Summit", "山巅"),
    ("Tidal", "潮汐"),
];
const KINDS: &[(&str, &str, &str, i64)] = &[
    ("Wireless Earbuds", "无线耳机", "Audio 音频", 29_900),
    ("Desk Lamp", "台灯", "Home 家居", 12_900),
    ("Green Tea", "绿茶", "Food 食品", 6_800),
    ("Backpack", "双肩包", "Bags 箱包", 19_900),
    ("Water Bottle", "水杯", "Home 家居", 5_900),
    ("Keyboard", "机械键盘", "Computers 电脑", 39_900),
    ("Running Shoes", "跑步鞋", "Sports 运动", 45_900),
    ("Notebook", "笔记本", "Stationery 文具", 1_900),
    ("Rice Cooker", "电饭煲", "Kitchen 厨房", 33_900),
    ("Phone Case", "手机壳", "Phones 手机", 3_900),
    ("Power Bank", "充电宝", "Phones 手机", 9_900),
    ("Scarf", "围巾", "Clothing 服饰", 8_900),
    ("Umbrella", "雨伞", "Home 家居", 4_900),
    ("Camera", "相机", "Cameras 相机", 259_900),
    ("Smart Watch", "智能手表", "Wearables 穿戴", 89_900),
];
const EDITIONS: &[(&str, &str)] = &[
    ("Classic", "经典款"),
    ("Pro", "专业版"),
    ("Mini", "迷你款"),
    ("Max", "加大款"),
    ("Lite", "轻享版"),
    ("Studio", "工作室版"),
    ("Travel", "旅行装"),
    ("Gift", "礼盒装"),
    ("Eco", "环保款"),
    ("Limited", "限量版"),
];

const FAMILY_NAMES: &[(&str, &str)] = &[
    ("Wang", "王"),
    ("Li", "李"),
    ("Zhang", "张"),
    ("Liu", "刘"),
    ("Chen", "陈"),
    ("Yang", "杨"),
    ("Zhao", "赵"),
    ("Huang", "黄"),
    ("Zhou", "周"),
    ("Wu", "吴"),
];
const GIVEN_NAMES: &[(&str, &str)] = &[
    ("Wei", "伟"),
    ("Fang", "芳"),
    ("Na", "娜"),
    ("Min", "敏"),
    ("Jing", "静"),
    ("Lei", "磊"),
    ("Yang", "洋"),
    ("Yan", "艳"),
    ("Jie", "杰"),
    ("Ting", "婷"),
    ("Hao", "浩"),
    ("Xin", "欣"),
];
const ENGLISH_NAMES: &[&str] = &[
    "Alice Brown",
    "Ben Carter",
    "Chloe Davis",
    "Daniel Evans",
    "Emma Foster",
    "Frank Green",
    "Grace Hall",
    "Henry Irving",
    "Isla Jones",
    "Jack King",
    "Kate Lewis",
    "Liam Moore",
];

/// What there is now.
pub(super) struct Made {
    pub(super) products: usize,
    pub(super) customers: usize,
    pub(super) past_orders: usize,
    pub(super) first_product: ProductId,
}

fn sample(number: usize) -> NewProduct {
    let (maker, maker_zh) = MAKERS[number % MAKERS.len()];
    let (kind, kind_zh, category, price) = KINDS[number / MAKERS.len() % KINDS.len()];
    let (edition, edition_zh) = EDITIONS[number / (MAKERS.len() * KINDS.len()) % EDITIONS.len()];
    // A fixed scramble, so that prices, stock and popularity differ and yet are the same each time.
    let spread = i64::try_from(number.wrapping_mul(2_654_435_761) % 1_000).unwrap_or(0);
    NewProduct {
        sku: Some(format!("DEMO-{number:05}")),
        name: format!("{maker} {kind} {edition} · {maker_zh}{kind_zh}{edition_zh}"),
        description: format!(
            "The {edition} edition of {maker}'s {kind}. {maker_zh}出品的{kind_zh}，{edition_zh}，品质保证。"
        ),
        category: category.to_owned(),
        unit_amount: price + price * spread / 2_000,
        currency: "CNY".to_owned(),
        stock: 20 + spread % 480,
        popularity: spread * spread / 1_000,
    }
}

/// Two customers of three have a Chinese name.
fn customer_name(number: usize) -> String {
    if number.is_multiple_of(3) {
        return ENGLISH_NAMES[number / 3 % ENGLISH_NAMES.len()].to_owned();
    }
    let (family, family_zh) = FAMILY_NAMES[number % FAMILY_NAMES.len()];
    let (given, given_zh) = GIVEN_NAMES[number / FAMILY_NAMES.len() % GIVEN_NAMES.len()];
    format!("{family_zh}{given_zh} {given} {family}")
}

/// A fixed scramble of `number` below `bound`: figures that differ and yet are the same each time.
fn scrambled(number: usize, salt: usize, bound: usize) -> usize {
    let mut mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (salt as u64) << 32;
    mixed ^= mixed >> 29;
    mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^= mixed >> 32;
    usize::try_from(mixed % bound.max(1) as u64).unwrap_or(0)
}

/// The past orders as the file that a shop which moves in would bring.
fn past_orders(now: Timestamp) -> Result<String, std::fmt::Error> {
    let mut csv =
        String::from("order_id,customer,customer_name,product,quantity,amount,currency,time\n");
    for order in 0..PAST_ORDERS {
        // Everyone bought once; few customers buy much, and few products sell much, as in any shop.
        let customer = if order < CUSTOMERS {
            order
        } else {
            scrambled(order, 1, 1 + scrambled(order, 2, CUSTOMERS))
        };
        let back = scrambled(order, 3, PAST_DAYS * 86_400);
        let time = now.plus_seconds(-1 - i64::try_from(back).unwrap_or(0));
        for line in 0..1 + scrambled(order, 4, 3) {
            let number = scrambled(order, 5 + line, 1 + scrambled(order, 8 + line, PRODUCTS));
            let product = sample(number);
            let quantity = 1 + scrambled(order, 11 + line, 3);
            let amount = product.unit_amount * i64::try_from(quantity).unwrap_or(1);
            writeln!(
                csv,
                "PAST-{order:05},C-{customer:04},{},DEMO-{number:05},{quantity},{}.{:02},CNY,{time}",
                customer_name(customer),
                amount / 100,
                amount % 100,
            )?;
        }
    }
    Ok(csv)
}

/// The customer whom the specification's examples log in as.
fn add_example_customer(store: &Store, auth: &config::Auth, now: Timestamp) -> anyhow::Result<()> {
    let new = NewAccount::checked(EXAMPLE.email, EXAMPLE.name, EXAMPLE.password, auth)?;
    match store
        .write(move |tx| create_account(tx, now, &new, Role::Customer))
        .blocking()
    {
        Ok(_) | Err(AuthError::Exists) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the shop, unless it is there already.
pub(super) fn fill(store: &Store, settings: &Settings, now: Timestamp) -> anyhow::Result<Made> {
    let newest = Filter {
        category: None,
        search: product::Search::default(),
        sort: Sort::Newest,
        after: None,
        limit: 1,
    };
    if store
        .read_blocking(|tx| product::list(tx, &settings.products, &newest))?
        .products
        .is_empty()
    {
        for first in (0..PRODUCTS).step_by(500) {
            store
                .write(move |tx| {
                    for number in first..PRODUCTS.min(first + 500) {
                        product::create(tx, now, &sample(number))?;
                    }
                    Ok::<_, ProductError>(())
                })
                .blocking()?;
        }
        let orders = past_orders(now)?;
        let (reading, orders) = (Reading::default(), Cursor::new(orders));
        let report = import_orders(store, &settings.import, &reading, &Utc, now, orders, |_| ())?;
        anyhow::ensure!(
            report.failed == 0,
            "{} of the sample's own orders were refused",
            report.failed
        );
    }
    let id = store
        .read_blocking(|tx| product::id_of_sku(tx, "DEMO-00000"))?
        .map(|(id, _)| id)
        .context("this data directory holds another shop; name an empty one with --data-dir")?;
    add_example_customer(store, &settings.auth, now)?;
    Ok(Made {
        products: PRODUCTS,
        customers: CUSTOMERS,
        past_orders: PAST_ORDERS,
        first_product: id,
    })
}
