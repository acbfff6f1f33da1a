"""The report in a browser: nothing is missing or too wide, tables sort, figures enlarge."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.page import Table, render
from tests.programs import run_browser
from tests.toy import Finished

PROBE = """<!DOCTYPE html><meta charset="utf-8"><title></title>
<iframe src="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, root = page.documentElement, found = {{}};
  const images = [...page.querySelectorAll("figure img")];
  found.images = images.map((image) => image.naturalWidth);
  found.width = [root.scrollWidth, root.clientWidth];
  const table = page.querySelector("#costs"), heading = table.tHead.rows[0].cells;
  const column = (number) => [...table.tBodies[0].rows].map((row) => row.cells[number].textContent);
  found.before = column(1);
  heading[1].click();
  found.descending = column(1);
  found.aria = heading[1].getAttribute("aria-sort");
  heading[1].click();
  found.ascending = column(1);
  heading[0].click();
  found.names = column(0);
  images[0].click();
  found.open = page.querySelector("dialog").open;
  found.large = page.querySelector("dialog img").getBoundingClientRect().width / images[0].width;
  page.querySelector("dialog").click();
  found.closed = !page.querySelector("dialog").open;
  found.anchors = [...page.querySelectorAll("nav a")].map((link) => page.querySelector(link.hash) !== null);
  document.title = JSON.stringify(found);
}});
</script>
"""


SORTING = """<!DOCTYPE html><meta charset="utf-8"><title></title>
<iframe src="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const table = frame.contentDocument.querySelector("table"), heading = table.tHead.rows[0].cells[1];
  heading.click();
  heading.click();
  document.title = JSON.stringify([...table.tBodies[0].rows].map((row) => row.cells[0].textContent));
}});
</script>
"""


def probed(page: Path, folder: Path, width: int, probe: str = PROBE) -> Any:
    """What a page is like in a window of some width; its console must be silent."""
    (folder / "probe.html").write_text(probe.format(page=page.resolve().as_uri(), width=width))
    document, console = run_browser(folder / "probe.html", f"--window-size={max(width + 20, 500)},1000")
    assert console == []
    (title,) = re.findall(r"<title>(.*?)</title>", document)
    assert title, "the page did not load"
    return json.loads(html.unescape(title))


@pytest.mark.parametrize("width", [360, 1600])
def test_the_report(finished: Finished, tmp_path: Path, width: int) -> None:
    found = probed(finished.law.results / "toy" / "report.html", tmp_path, width)
    assert len(found["images"]) > 10
    assert min(found["images"]) > 100
    assert found["width"][0] <= found["width"][1]
    assert found["anchors"]
    assert all(found["anchors"])

    *steps, total, this_run = found["before"]
    numbers = sorted(int(count.replace(",", "")) for count in steps)
    assert len(set(numbers)) > 1
    for order, expected in (("descending", numbers[::-1]), ("ascending", numbers)):
        *counts, last_but_one, last = found[order]
        assert [int(count.replace(",", "")) for count in counts] == expected
        assert (last_but_one, last) == (total, this_run)
    assert found["aria"] == "descending"
    assert found["names"][:-2] == sorted(found["names"][:-2], reverse=True)

    assert found["open"]
    assert found["closed"]
    assert found["large"] > (1.5 if width > 1000 else 0.9)


def test_numbers_sort_by_their_size(tmp_path: Path) -> None:
    """In all the forms that tables have them, whatever stands behind; what is no number comes last."""
    cells = [
        "−7.2",
        "2.5·10⁻³",
        "0.91 [0.90, 0.92]",
        "about 12 Wh",
        "900 Wh",
        "1.2 kWh",
        "12,345",
        "(1.234 ± 0.005)·10⁶",
        "–",
    ]
    rows = [[str(place), cells[place]] for place in (4, 8, 0, 6, 2, 7, 1, 5, 3)]
    (tmp_path / "page.html").write_text(render("Numbers", [], [Table("Numbers", ["place", "number"], rows)], []))
    assert probed(tmp_path / "page.html", tmp_path, 800, SORTING) == [str(place) for place in range(9)]
