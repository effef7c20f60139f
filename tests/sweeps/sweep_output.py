"""What a sweep's folder shows: rows of sweep.csv, the page's text and links; and a small sweep that has some of all."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path

GRID = {
    "optimizer.base_lr=1e-3 adapter.prompts.layers=1": ("finished", 40),
    "optimizer.base_lr=1e-3 adapter.prompts.layers=2": ("finished", 60),
    "optimizer.base_lr=1e-2 adapter.prompts.layers=1": ("failed", 0),
    "optimizer.base_lr=1e-2 adapter.prompts.layers=2": ("", 0),
}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "sweep.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Checked(HTMLParser):
    """Collects what a page shows, and notices tags that are not closed in order."""

    VOID = {"meta", "br", "wbr", "line", "polyline", "circle", "input", "link", "img", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.wrong, self.links = "", [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text += data


def page_of(folder: Path) -> Checked:
    page = Checked()
    page.feed((folder / "sweep.html").read_text(encoding="utf-8"))
    assert not page.wrong and not page.open, (page.wrong, page.open)
    return page
