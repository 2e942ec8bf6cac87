"""A small shop's database, and a question about it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

QUESTION = "What did Ada Lovelace's orders come to, with 19 % tax?"

_SCHEMA = "CREATE TABLE orders (customer TEXT, product TEXT, quantity INTEGER, unit_price REAL)"
_ORDERS = [
    ("Ada Lovelace", "notebook", 3, 4.50),
    ("Charles Babbage", "gear", 12, 1.20),
    ("Ada Lovelace", "pencil", 20, 0.35),
    ("Grace Hopper", "clock", 1, 24.00),
    ("Ada Lovelace", "lamp", 2, 19.90),
]


def create_shop(path: str | Path) -> Path:
    """Writes the database.

    Args:
        path: Of a file that does not exist yet.
    """
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(_SCHEMA)
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", _ORDERS)
    return Path(path)
