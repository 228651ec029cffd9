//! The sample shop of the demonstration: generated, the same each time, in English and Chinese.
//!
//! Invariant: it is made through the catalogue's own rules, and made once.

use anyhow::Context;

use crate::clock::Timestamp;
use crate::product::{self, Filter, NewProduct, ProductError, ProductId, Sort};
use crate::store::Store;

const PRODUCTS: usize = 3_000;
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

/// What there is now.
pub(super) struct Made {
    pub(super) products: usize,
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

/// Makes the shop, unless it is there already.
pub(super) fn fill(store: &Store, now: Timestamp) -> anyhow::Result<Made> {
    let newest = Filter {
        category: None,
        terms: Vec::new(),
        sort: Sort::Newest,
        after: None,
        limit: 1,
    };
    if store
        .read_blocking(|tx| product::list(tx, &newest))?
        .is_empty()
    {
        for first in (0..PRODUCTS).step_by(500) {
            store.write_blocking(move |tx| {
                for number in first..PRODUCTS.min(first + 500) {
                    product::create(tx, now, &sample(number))?;
                }
                Ok::<_, ProductError>(())
            })?;
        }
    }
    let id = store
        .read_blocking(|tx| product::id_of_sku(tx, "DEMO-00000"))?
        .map(|(id, _)| id)
        .context("this data directory holds another shop; name an empty one with --data-dir")?;
    Ok(Made {
        products: PRODUCTS,
        first_product: id,
    })
}
