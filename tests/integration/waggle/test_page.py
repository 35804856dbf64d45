# SPDX-License-Identifier: Apache-2.0
"""The Beehive's web page, as a browser shows it."""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import html5lib
import pytest

from groundwork import process
from tests.integration.waggle import beehive
from tests.integration.waggle.beehive import Service
from virtual_waggle.beehive.store import open_store
from virtual_waggle.message import Measurement

SECOND = 1_000_000_000
HOSTILE = '<img src=x onerror="document.title=1">'
ROOT = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("beehive")
    now = time.time_ns()
    rows = []
    for node, vsn, silence in (("01", "V001", 0), ("02", HOSTILE, 1800), ("03", "V003", 20_000)):
        meta = {"node": node, "vsn": vsn, "job": "Pluginctl", "task": HOSTILE}
        rows += [
            Measurement("env.temperature", now - (silence + 60 * number) * SECOND, 20 + number / 10, meta)
            for number in range(100)
        ]
        rows.append(Measurement("said", now - silence * SECOND, f"{node} {HOSTILE}", meta))
        rows.append(
            Measurement("upload", now - silence * SECOND, f"{now}-{'a' * 40}", {**meta, "filename": "sample.jpg"})
        )
        rows.append(
            Measurement("upload", now - silence * SECOND, "javascript:document.title=1", {**meta, "filename": "not"})
        )
    with contextlib.closing(open_store("sqlite", folder / "store")) as store:
        store.write(rows)
    with beehive.api(folder) as running:
        yield running


@pytest.fixture(scope="module")
def page(api: Service, tmp_path_factory: pytest.TempPathFactory) -> ElementTree.Element:
    """The page as it is when its script has run."""
    if process.find("chromium") is None:
        pytest.skip("Chromium is not installed")
    profile = tmp_path_factory.mktemp("chromium")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    # nothing but the page's own server can be reached
    words += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--virtual-time-budget=10000", "--dump-dom"]
    for _ in range(10):  # on a busy machine the browser's time is over before the data came
        page = html5lib.parse(process.run(["chromium", *words, f"{api.url}/"], timeout=120))
        if page.findall(f".//{ROOT}div[@id='plot']/{SVG}svg"):
            return page
    raise AssertionError("the page shows no plot")


def rows(page: ElementTree.Element, table: str) -> list[list[str]]:
    (body,) = page.findall(f".//{ROOT}tbody[@id='{table}']")
    return [["".join(cell.itertext()) for cell in line] for line in body]


def test_its_files_are_whole_html_and_name_nothing_elsewhere(api: Service) -> None:
    texts = {path: beehive.fetch(f"{api.url}{path}")[1] for path in ("/", "/page.css", "/page.js", "/favicon.svg")}
    html5lib.HTMLParser(strict=True).parse(texts["/"])
    for text in texts.values():
        assert not re.search(r"https?://(?!www\.w3\.org/)", text)
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|style=", text)


def test_every_control_has_a_label_and_every_table_its_headings(api: Service) -> None:
    tree = html5lib.parse(beehive.fetch(f"{api.url}/")[1])
    labelled = {label.get("for") for label in tree.iter(f"{ROOT}label")}
    controls = {one.get("id") for kind in ("select", "input") for one in tree.iter(f"{ROOT}{kind}")}
    assert controls == labelled
    assert tree.get("lang") == "en"
    for table in tree.iter(f"{ROOT}table"):
        assert all(heading.get("scope") == "col" for heading in table.iter(f"{ROOT}th"))


def test_it_shows_the_nodes_and_how_fresh_they_are(page: ElementTree.Element) -> None:
    found = {(node, name, state) for node, name, _, state, _ in rows(page, "nodes")}
    assert found == {("01", "V001", "well"), ("02", HOSTILE, "late"), ("03", "V003", "silent")}


def test_it_shows_last_values_as_text_whatever_they_are(page: ElementTree.Element) -> None:
    found = {(name, value, node) for name, value, _, node, _ in rows(page, "last")}
    assert {("said", f"01 {HOSTILE}", "V001"), ("env.temperature", "20", "V003")} <= found
    (title,) = page.iter(f"{ROOT}title")
    assert title.text == "Beehive"
    assert not list(page.iter(f"{ROOT}img"))


def test_uploads_are_links_and_what_is_no_address_is_not(page: ElementTree.Element) -> None:
    links = {(link.text, re.sub(r"\d{8,}", "N", link.get("href") or "")) for link in page.iter(f"{ROOT}a")}
    assert {text for text, _ in links} == {"sample.jpg"}
    assert all("/api/v1/data/Pluginctl/" in address for _, address in links)


def test_it_plots_a_measurement_and_tells_the_plot_in_words(page: ElementTree.Element) -> None:
    (plot,) = page.findall(f".//{ROOT}div[@id='plot']")
    (picture,) = plot.iter(f"{SVG}svg")
    told = picture.get("aria-label") or ""
    assert re.match(r"env\.temperature: 1 series, \d+ points, from 20\.?\d* to 29\.", told)
    (line,) = picture.iter(f"{SVG}path")
    assert (line.get("d") or "").count("L") > 10
    assert len(rows(page, "plot-table")) > 10


def test_it_is_what_it_is_where_nothing_is_stored_yet(tmp_path: Path) -> None:
    with beehive.api(tmp_path) as empty:
        assert beehive.fetch(f"{empty.url}/")[0] == 200
