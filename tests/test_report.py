"""The report page is whole, self-contained and escaped; the terminal table and the schema of summary.json."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from analysis.metrics import Sample, evaluate
from analysis.plots import Plot
from analysis.report import WIDTH, Picture, ReportContent, _number, notes, render, table
from analysis.selection import Cutflow

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "summary.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CLASSES = ["higgs", "top", "vjets"]


def metrics(seed: int, count: int = 400) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, count)
    logits = rng.normal(0, 1, (count, 3)) + 1.5 * np.eye(3)[label]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    identity = rng.integers(0, 2**63, count).astype(np.uint64)
    return evaluate(
        Sample(probabilities, label, rng.normal(1, 0.5, count), label, identity), CLASSES, "higgs", 50, seed
    )


RELIABILITY = {
    "edges": [0.0, 0.5, 1.0],
    "entries": [10, 0],
    "share": [1.0, None],
    "predicted": [0.2, None],
    "observed": [{"value": 0.3, "low": 0.2, "high": 0.4}, {"value": None, "low": None, "high": None, "note": "none"}],
    "error": {"value": 0.1, "low": 0.05, "high": 0.17},
}


@pytest.fixture(scope="module")
def made_up() -> dict[str, Any]:
    def line(name: str | None, entries: int, total: float, error: float) -> dict[str, Any]:
        return {
            "class": name,
            "entries": entries,
            "yield": total,
            "uncertainty": error,
            "effective": (total / error) ** 2,
            "test_entries": entries // 4,
            "test_scale": 4.012,
            "test_closure": -0.74,
        }

    return {
        "analysis": "hww",
        "title": "H → WW* against top and V + jets",
        "fingerprint": "3f2a9c01d4e7",
        "scheme": "rotating",
        "folds": 3,
        "classes": CLASSES,
        "signal": "higgs",
        "features": ["met", "lepton2_pt"],
        "dropped_features": [],
        "yields": {
            "higgs_lvlv": line("higgs", 3021, 301.234, 5.51),
            "ttbar": line("top", 5012, 20034.2, 298.2),
            "wjets": line("vjets", 1800, 30122.0, 1802.0),
            "wz": line(None, 250, 0.01234, 0.00123),
        },
        "missing": {"event": 0.0, "lepton2": 0.4123},
        "metrics": {"test": metrics(0), "out_of_fold": metrics(1), "folds": [metrics(2), metrics(3), metrics(4)]},
        "patterns": [
            {
                "objects": ["lepton2"],
                "entries": dict.fromkeys(CLASSES, 51234),
                "out_of_fold": metrics(5)["auc"],
                "test": None,
            },
            {"objects": [], "entries": dict.fromkeys(CLASSES, 7), "out_of_fold": None, "test": None},
        ],
        "reliability": {"test": RELIABILITY, "out_of_fold": RELIABILITY},
        "shared_events": {
            "test": 0,
            "networks": [{"training_stopping": 0, "training_judged": 0, "stopping_judged": 0}] * 3,
        },
        "significance": {
            "value": 2.314,
            "low": 2.1,
            "high": 2.55,
            "with_simulation_uncertainty": {"value": 1.87, "low": 1.7, "high": 2.0},
            "reason": None,
            "bins": 12,
        },
        "expectation": {
            "significance": 1.82,
            "limit": {"low_95": 0.41, "low_68": 0.6, "median": 0.83, "high_68": 1.17, "high_95": 1.6},
            "reason": None,
        },
        "systematics": {
            "luminosity": {
                "kind": "norm",
                "effects": {
                    "score": {
                        p: {"down": -0.0244, "up": 0.025, "shape": None, "pruned": None} for p in ("top", "higgs")
                    }
                },
            },
            "jet_scale": {
                "kind": "shift",
                "effects": {"score": {"top": {"down": 1e-16, "up": -0.031, "shape": 0.114, "pruned": "yield"}}},
            },
            "top_pt": {"kind": "weight", "effects": {}},
        },
        "onnx": {"largest_difference": 3.1e-7},
        "skipped": [{"dataset": "top", "file": "top_7.root", "reason": "is empty (0 bytes)"}],
        "warnings": ["Event numbers are missing: an event is known by file and entry."],
    }


@pytest.fixture
def summary(made_up: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(made_up)


def png(width: float = 1.0) -> bytes:
    return Plot("x", "scores", "x", "x", Figure(figsize=(width, 0.5)), {}).png()


def content(summary: dict[str, Any], **changes: Any) -> ReportContent:
    values: dict[str, Any] = {
        "title": summary["title"],
        "name": summary["analysis"],
        "summary": summary,
        "run": {
            "git": {"commit": "abc123", "dirty": False},
            "hosts": ["a", "b"],
            "fingerprint": summary["fingerprint"],
            "steps": [{"step": "Train", "wall_s": 1.5}, {"step": "Plot", "wall_s": 2.5, "host": "a"}],
            "gpu": None,
            "costs": made_up_costs(),
        },
        "cutflows": {
            "ttbar": Cutflow({"all": 1000, "leading_pt": 250}, {"all": 5000.0, "leading_pt": 1000.0}),
            "wz": Cutflow({"all": 0}, {"all": 0.0}),
        },
        "pictures": [
            Picture("roc", "ROC", "Curves.", png(), "performance"),
            Picture("feature_met", "met", "Weighted.", png(), "features"),
            Picture("feature_pt", "pt", "Weighted.", png(2.0), "features"),
        ],
        "configuration": "name: hww\nseed: 1\n",
        "warnings": ["Few events."],
    }
    return ReportContent(**(values | changes))


def made_up_costs(**changes: Any) -> dict[str, Any]:
    """`costs` of run.json: two steps, the second of which trained on a GPU and was made in this run."""

    def line(**values: Any) -> dict[str, Any]:
        return {
            "branches": 3,
            "wall_hours": 0.52,
            "cpu_hours": 0.25,
            "gpu_hours": 0.0,
            "peak_memory_mb": 1234.5,
            "peak_memory_of": "step",
            "energy_kwh": 0.003,
            "estimated_kwh": 0.003,
            "energy_found": ["estimate: 12 W per core at work"],
            "energy_unknown": 0,
        } | values

    train = line(branches=5, gpu_hours=1.5, energy_kwh=0.9, estimated_kwh=0.0, energy_found=["NVML"])
    total = line(branches=8, wall_hours=1.04, cpu_hours=0.5, gpu_hours=1.5, energy_kwh=0.903)
    total["energy_found"] = ["NVML", "estimate: 12 W per core at work"]
    steps = [line(step="Select"), train | {"step": "Train"}]
    return {"steps": [steps[0], steps[1] | changes], "total": total | changes, "this_run": train}


class Page(HTMLParser):
    """What a page holds: its tags with attributes, text, and whether tags close in order."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data + " "

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags for key, value in attrs.items() if key == name and value is not None]


class TestPage:
    def test_each_section_is_there_and_linked(self, summary: dict[str, Any]) -> None:
        page = Page(render(content(summary)))
        assert page.open == []
        sections = ["yields", "systematics", "cutflow", "metrics", "performance", "features"]
        sections += ["configuration", "cost", "provenance"]
        assert page.attributes("href") == [f"#{name}" for name in sections]
        identifiers = page.attributes("id")
        assert len(set(identifiers)) == len(identifiers)
        assert {*sections, "warnings", "plot-roc", "plot-feature_met"} <= set(identifiers)

    def test_figures_of_merit_are_shown(self, summary: dict[str, Any]) -> None:
        text = Page(render(content(summary))).text
        for label, found in (
            ("network 0 on fold 0", summary["metrics"]["folds"][0]),
            ("network 2 on fold 2", summary["metrics"]["folds"][2]),
            ("out-of-fold (rotating)", summary["metrics"]["out_of_fold"]),
            ("ensemble on test events", summary["metrics"]["test"]),
        ):
            auc = found["auc"]["weighted"]
            assert f"{label} {auc['value']:.4f} [{auc['low']:.4f}, {auc['high']:.4f}]" in text
        test = summary["metrics"]["test"]
        against = test["auc_against"]["vjets"]["weighted"]["value"]
        for value in (f"{against:.4f} [", f"{100 * test['confusion'][0][0]:.1f}%", "2.31", "+0.24 −0.21", "3.1e-07"):
            assert value in text
        for point in test["working_points"]:
            assert f"{point['threshold']:.4f}" in text

    def test_refined_weights(self, summary: dict[str, Any]) -> None:
        """The table is there where weights were refined."""
        assert "Refined weights" not in Page(render(content(summary))).text
        found = {"negative": 0.181, "clipped": 0.0123, "sum": 0.9912, "features": {"met": {}, "pt": {}}}
        smallest = {"feature": "pt", "p_value": 0.0421}
        summary["refinement"] = {"top": {**found, "smallest": smallest}, "higgs": {**found, "smallest": None}}
        summary["prior"] = "equal for all classes"
        text = Page(render(content(summary))).text
        for shown in ("Refined weights", "0.991", "0.042", "under this prior of the training: equal for all classes"):
            assert shown in " ".join(text.split())

    def test_yields_and_cutflow_are_shown(self, summary: dict[str, Any]) -> None:
        text = Page(render(content(summary))).text
        assert "higgs_lvlv higgs 3,021 301.2 ± 5.5 2,989 755 4.01" in text
        assert "wjets vjets 1,800 30,100 ± 1,800 279 450 4.01" in text
        assert "wz – 250 0.0123 ± 0.0012 101 62 4.01" in text
        assert "lepton2 41.2%" in text
        assert "leading_pt 250 25.0% –" in text
        assert "leading_pt 1,000 20.0% –" in text

    def test_collision_data_are_a_number_without_error_or_test_columns(self, summary: dict[str, Any]) -> None:
        counted = {"class": None, "entries": 4451, "yield": 4451.0, "uncertainty": 66.7, "effective": 4451.0}
        summary["yields"]["data"] = counted | {"test_entries": 1173, "test_scale": 1.0, "test_closure": None}
        assert "data – 4,451 4,451 4,451 – –" in Page(render(content(summary))).text
        assert re.search(r"data +– +4,451 +4,451 +4,451 +–$", table(summary), re.MULTILINE)
        summary["yields"]["data"]["test_scale"] = 4.0  # simulation with unit weights
        assert "data – 4,451 4,451 ± 67 4,451 1,173 4" in Page(render(content(summary))).text

    def test_cutflow_follows_the_order_of_the_yields(self, summary: dict[str, Any]) -> None:
        flows = {name: Cutflow({"all": 1}, {"all": 1.0}) for name in ("other", *reversed(summary["yields"]))}
        text = Page(render(content(summary, cutflows=flows))).text
        assert text.count("After higgs_lvlv ttbar wjets wz other") == 2

    def test_two_classes_need_no_auc_per_class(self, summary: dict[str, Any]) -> None:
        headings = ("AUC of each class against the rest", "against each background alone")
        text = Page(render(content(summary))).text
        assert all(heading in text for heading in headings)
        summary["classes"] = ["higgs", "top"]
        summary["metrics"]["test"]["confusion"] = [[0.9, 0.1], [0.2, 0.8]]
        text = Page(render(content(summary))).text
        assert not any(heading in text for heading in headings)
        assert "AUC, higgs against the rest" in text

    def test_small_numbers_keep_two_digits(self, summary: dict[str, Any]) -> None:
        summary["significance"] |= {"value": 0.00824, "low": 0.00781, "high": 0.00861}
        summary["significance"]["with_simulation_uncertainty"] = {"value": 0.0213, "low": 0.02, "high": 0.024}
        point = summary["metrics"]["test"]["working_points"][0]
        point["purity"] = {"value": 0.00165, "low": 0.00135, "high": 0.0022}
        summary["metrics"]["test"]["working_points"][1]["purity"] = {"value": 0.9847, "low": 0.9784, "high": 0.9906}
        text = Page(render(content(summary))).text
        for part in ("0.0082 +0.0004 −0.0004 (68%)", "0.021 [0.020, 0.024] with the statistical uncertainty"):
            assert part in text
        for part in ("0.0016 [0.0014, 0.0022]", " 0.98 [0.98, 0.99]"):
            assert part in text
        assert "0.0082 [0.0078, 0.0086] in 12 bins; 0.021 [0.020, 0.024] with" in table(summary)

    @pytest.mark.parametrize(
        ("value", "error", "text"),
        [
            (222644445.9, 6556126.6, "(2.226 ± 0.066)·10⁸"),
            (9999999.0, 999999.0, "(1.00 ± 0.10)·10⁷"),
            (-3e8, 1.2e9, "(-0.3 ± 1.2)·10⁹"),
            (20034.2, 298.2, "20,030 ± 300"),
            (99.96, 0.996, "100.0 ± 1.0"),
            (1.5e-5, 2e-6, "(1.50 ± 0.20)·10⁻⁵"),
            (0.0, 0.0, "0"),
        ],
    )
    def test_yields_have_the_digits_of_their_uncertainty(
        self, summary: dict[str, Any], value: float, error: float, text: str
    ) -> None:
        summary["yields"]["wz"] |= {"yield": value, "uncertainty": error, "effective": 9.876}
        assert f"wz – 250 {text} 9.88 62" in Page(render(content(summary))).text

    def test_what_it_cost_is_a_table_with_its_sum(self, summary: dict[str, Any]) -> None:
        text = Page(render(content(summary))).text
        part = text[text.index("What it cost All") : text.index("Provenance fingerprint")]
        assert "Select 3 0.52 0.25 0 1,234 about 3.0 Wh (estimated) Train 5 0.52 0.25 1.5 1,234 900 Wh" in part
        assert (
            "Total 8 1.0 0.50 1.5 1,234 about 903 Wh (less than 1% estimated) Of these, made in this run 5 0.52" in part
        )
        assert "How energy was found: NVML; estimate: 12 W per core at work." in part
        assert "since it started" not in part
        assert "earlier versions" not in part
        assert "total" not in text.partition("Provenance fingerprint")[2]

    def test_what_is_not_known_of_a_cost_is_said(self, summary: dict[str, Any]) -> None:
        run = content(summary).run | {"costs": made_up_costs(energy_unknown=2, peak_memory_of="process")}
        text = Page(render(content(summary, run=run))).text
        assert "not recorded for 2 of 8 branches" in text
        assert "Records of earlier versions say neither energy nor GPU time" in text
        assert "its peak since it started" in text

    def test_nested_provenance_is_flat_and_steps_are_a_folded_table(self, summary: dict[str, Any]) -> None:
        html = render(content(summary))
        text = Page(html).text
        for line in ("git.commit abc123", "git.dirty False", "hosts a, b", "gpu –"):
            assert line in text
        assert "steps[0]" not in text
        assert text.partition("Provenance")[2].count(summary["fingerprint"]) == 1
        folded = re.search(r"<details>.*</details>", html, re.DOTALL)
        assert folded
        assert Page(folded.group(0)).text == "steps (2) step wall s host Train 1.5 – Plot 2.5 a"

    def test_nothing_is_loaded_from_outside(self, summary: dict[str, Any]) -> None:
        html = render(content(summary))
        page = Page(html)
        assert page.attributes("src")
        assert all(src.startswith("data:image/png;base64,") for src in page.attributes("src"))
        assert all(href.startswith("#") for href in page.attributes("href"))
        assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form"}
        assert not re.search(r"url\(|@import|https?:|//", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
        assert any("default-src 'none'" in text for text in page.attributes("content"))

    def test_no_other_script_than_its_own_may_run(self, summary: dict[str, Any]) -> None:
        html = render(content(summary))
        (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in html
        assert "unsafe-inline" not in html.partition("script-src")[2].partition('"')[0]

    def test_everything_is_escaped(self, summary: dict[str, Any]) -> None:
        evil = "<script>alert('x')</script>\"><img src=x onerror=y>"
        renamed = json.loads(json.dumps(summary).replace('"vjets"', json.dumps(evil)).replace('"wz"', json.dumps(evil)))
        renamed |= {"warnings": [evil], "fingerprint": evil, "scheme": evil, "features": [evil]}
        renamed |= {"dropped_features": [evil], "missing": {evil: 0.5}}
        renamed["significance"] = {"value": None, "low": None, "high": None, "reason": evil, "bins": 0}
        page = Page(
            render(
                content(
                    renamed,
                    title=evil,
                    name=evil,
                    run={evil: evil, "costs": made_up_costs(step=evil, energy_found=[evil])},
                    cutflows={evil: Cutflow({evil: 3}, {evil: 3.0})},
                    pictures=[Picture(evil, evil, evil, png()), Picture("b", evil, evil, png(), "scores")],
                    configuration=evil,
                    warnings=[evil],
                )
            )
        )
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert page.attributes("onerror") == []
        assert len(page.attributes("src")) == 2
        assert page.text.count("alert('x')") > 20

    def test_pictures_carry_size_and_text(self, summary: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "x.png"
        path.write_bytes(png(3.0))
        html = render(content(summary, pictures=[Picture("x", "Title", "Caption.", path)]))
        image = next(attrs for tag, attrs in Page(html).tags if tag == "img")
        assert (image["width"], image["height"], image["alt"]) == ("300", "50", "Title")
        assert "Title . Caption." in Page(html).text

    def test_a_shared_caption_stands_once(self, summary: dict[str, Any]) -> None:
        assert Page(render(content(summary))).text.count("Weighted.") == 1

    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            (Picture("x", "x", "x", b"GIF89a"), "no PNG"),
            (Picture("x", "x", "x", b""), "no PNG"),
            (Picture("x", "x", "x", png(), "elsewhere"), "elsewhere"),
        ],
    )
    def test_a_wrong_picture_is_an_error(self, summary: dict[str, Any], picture: Picture, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            render(content(summary, pictures=[picture]))

    def test_it_is_the_same_each_time(self, summary: dict[str, Any]) -> None:
        assert render(content(summary)) == render(content(summary))

    def test_light_dark_and_print(self, summary: dict[str, Any]) -> None:
        html = render(content(summary))
        assert "prefers-color-scheme: dark" in html
        assert "@media print" in html
        assert 'name="viewport"' in html

    def test_without_title_pictures_cutflow_or_run(self, summary: dict[str, Any]) -> None:
        bare = content(summary, title="", run={"costs": made_up_costs()}, cutflows={}, pictures=[], warnings=[])
        assert "<h1>hww</h1>" in render(bare)

    def test_undefined_figures_are_said(self, summary: dict[str, Any]) -> None:
        nothing = {"value": None, "low": None, "high": None, "note": "no weight"}
        test = summary["metrics"]["test"]
        test["auc"] = {"weighted": nothing, "unweighted": nothing}
        test["confusion"][0] = [None] * 3
        test["negative_dilution"]["higgs"] = None
        test["working_points"][0] |= {"threshold": None, "purity": nothing}
        VALIDATOR.validate(summary)
        text = Page(render(content(summary))).text
        assert "AUC, ensemble on test events not defined" in text
        assert "higgs – – –" in text


class TestWarnings:
    def listed(self, summary: dict[str, Any], **changes: Any) -> str:
        found = re.search(r'<ul class="warnings".*?</ul>', render(content(summary, **changes)), re.DOTALL)
        return found.group(0) if found else ""

    def test_come_from_the_run_and_from_the_summary_once_each(self, summary: dict[str, Any]) -> None:
        text = self.listed(summary, warnings=["Few events.", summary["warnings"][0]])
        assert text.count("Few events.") == 1
        assert text.count("Event numbers are missing") == 1

    def test_follow_from_the_summary(self, summary: dict[str, Any]) -> None:
        assert notes(summary) == []
        reason = "not enough simulated events"
        summary |= {"scheme": "standard", "dropped_features": ["electron2_pt", "electron2_eta"]}
        summary["significance"] |= {"value": None, "reason": reason}
        text = self.listed(summary)
        for part in ("slightly optimistic", "electron2_pt, electron2_eta", f"No significance is given: {reason}."):
            assert part in text

    def test_without_any_there_is_no_box(self, summary: dict[str, Any]) -> None:
        assert self.listed(summary | {"warnings": []}, warnings=[]) == ""


class TestTable:
    def test_whole(self, summary: dict[str, Any]) -> None:
        def auc(value: float, width: float) -> dict[str, Any]:
            estimate = {"value": value, "low": value - width, "high": value + width}
            return {"weighted": estimate, "unweighted": estimate}

        parts = summary["metrics"]
        for i, part in enumerate([*parts["folds"], parts["out_of_fold"], parts["test"]]):
            part["auc_per_class"] = {name: auc(0.9 + i / 100, 0.0123) for name in CLASSES}
        parts["folds"][1]["auc_per_class"]["top"]["weighted"] = {"value": None, "low": None, "high": None, "note": "x"}
        assert table(summary) == "\n".join(
            [
                "process     class  selected            yield  effective  test events",
                "────────────────────────────────────────────────────────────────────",
                "higgs_lvlv  higgs     3,021      301.2 ± 5.5      2,989          755",
                "ttbar       top       5,012     20,030 ± 300      4,514        1,253",
                "wjets       vjets     1,800   30,100 ± 1,800        279          450",
                "wz          –           250  0.0123 ± 0.0012        101           62",
                "",
                "AUC against the rest               higgs              top            vjets",
                "──────────────────────────────────────────────────────────────────────────",
                "network 0 on fold 0      0.9000 ± 0.0123  0.9000 ± 0.0123  0.9000 ± 0.0123",
                "network 1 on fold 1      0.9100 ± 0.0123                –  0.9100 ± 0.0123",
                "network 2 on fold 2      0.9200 ± 0.0123  0.9200 ± 0.0123  0.9200 ± 0.0123",
                "out-of-fold (rotating)   0.9300 ± 0.0123  0.9300 ± 0.0123  0.9300 ± 0.0123",
                "ensemble on test events  0.9400 ± 0.0123  0.9400 ± 0.0123  0.9400 ± 0.0123",
                "",
                "Expected significance: 2.31 [2.10, 2.55] in 12 bins; 1.87 [1.70, 2.00] with MC statistics",
                "Expected upper limit on mu (95% CL): 0.83 [0.60, 1.17]",
            ]
        )

    @given(
        classes=st.lists(st.text("abcxyz", min_size=1, max_size=60), min_size=2, max_size=12, unique=True),
        total=st.floats(-1e12, 1e12),
        error=st.floats(0, 1e12),
    )
    def test_never_wider_than_the_terminal(
        self, made_up: dict[str, Any], classes: list[str], total: float, error: float
    ) -> None:
        summary = copy.deepcopy(made_up)
        one = summary["metrics"]["test"]["auc_per_class"]["top"]
        parts = summary["metrics"]
        for part in (*parts["folds"], parts["out_of_fold"], parts["test"]):
            part["auc_per_class"] = dict.fromkeys(classes, one)
        summary |= {"classes": classes, "signal": classes[0]}
        entry = summary["yields"]["wz"] | {"yield": total, "uncertainty": error}
        summary["yields"] = {name: entry | {"class": name} for name in classes}
        text = table(summary)
        assert max(map(len, text.splitlines())) <= WIDTH
        for name in classes:
            assert name[:8] in text

    def test_of_two_classes_the_signal_is_enough(self, summary: dict[str, Any]) -> None:
        summary["classes"] = ["top", "higgs"]
        assert re.search(r"^AUC against the rest +higgs$", table(summary), re.MULTILINE)

    def test_says_why_there_is_no_significance(self, summary: dict[str, Any]) -> None:
        summary["significance"] |= {"value": None, "reason": "not enough simulated events"}
        summary["expectation"] = {"significance": None, "limit": None, "reason": "no signal"}
        assert table(summary).endswith("Expected significance: not enough simulated events")


Breaking = Callable[[dict[str, Any]], Any]


class TestSchema:
    def test_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def test_takes_a_whole_summary(self, summary: dict[str, Any]) -> None:
        VALIDATOR.validate(json.loads(json.dumps(summary, allow_nan=False)))

    def test_takes_what_is_not_defined(self, summary: dict[str, Any]) -> None:
        summary["significance"] = {"value": None, "low": None, "high": None, "reason": "too few", "bins": 0}
        summary["significance"]["with_simulation_uncertainty"] = {"value": None, "low": None, "high": None}
        summary["metrics"]["test"] = evaluate(
            Sample(
                np.full((3, 3), 1 / 3),
                np.array([0, 1, 1]),
                np.array([1.0, 1.0, -2.0]),
                np.array([0, 1, 1]),
                np.arange(3, dtype=np.uint64),
            ),
            CLASSES,
            "higgs",
            replicas=10,
            seed=0,
        )
        VALIDATOR.validate(json.loads(json.dumps(summary, allow_nan=False)))

    @pytest.mark.parametrize("key", ["analysis", "fingerprint", "yields", "metrics", "significance", "classes"])
    def test_misses_a_key(self, summary: dict[str, Any], key: str) -> None:
        del summary[key]
        with pytest.raises(jsonschema.ValidationError, match=key):
            VALIDATOR.validate(summary)

    @pytest.mark.parametrize(
        "breaking",
        [
            lambda s: s["metrics"].pop("test"),
            lambda s: s["metrics"].pop("out_of_fold"),
            lambda s: s["metrics"]["test"].pop("auc"),
            lambda s: s["metrics"]["out_of_fold"].pop("auc"),
            lambda s: s["metrics"]["folds"][1].pop("auc"),
            lambda s: s["metrics"]["folds"][1].pop("auc_per_class"),
            lambda s: s["metrics"]["folds"].clear(),
            lambda s: s["metrics"]["test"]["auc"].pop("unweighted"),
            lambda s: s["metrics"]["test"]["auc"]["weighted"].pop("high"),
            lambda s: s["metrics"]["test"]["auc"]["weighted"].update(value="0.9"),
            lambda s: s["metrics"]["test"]["auc"].update(weighted=0.9),
            lambda s: s["metrics"]["test"]["auc"]["weighted"].update(value=None),
            lambda s: s["yields"].clear(),
            lambda s: s["yields"]["ttbar"].pop("effective"),
            lambda s: s["yields"]["ttbar"].update(entries=2.5),
            lambda s: s["yields"]["ttbar"].update(uncertainty=-1),
            lambda s: s["missing"].update(lepton2=1.2),
            lambda s: s["significance"].update(value=None, reason=None),
            lambda s: s.update(fingerprint=""),
            lambda s: s.update(scheme="leave-one-out"),
            lambda s: s.update(folds=1),
            lambda s: s.update(classes=["higgs", "higgs"]),
        ],
    )
    def test_refuses_a_broken_summary(self, summary: dict[str, Any], breaking: Breaking) -> None:
        breaking(summary)
        assert not VALIDATOR.is_valid(summary)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (3.0, "3"),
        (12345.6, "12,346"),
        (1.98042e8, "1.980·10⁸"),
        (0.00012, "0.00012"),
        (-2.5e6, "-2.500·10⁶"),
    ],
)
def test_numbers_as_a_reader_writes_them(value: float | None, shown: str) -> None:
    assert _number(value) == shown


def test_systematic_uncertainties_have_a_line_for_each_effect(summary: dict[str, Any]) -> None:
    page = Page(render(content(summary))).text
    assert "luminosity yields top, higgs −2.4% +2.5% –" in page
    assert "jet_scale shifted events top 0.0% −3.1% 11.4% yield" in page
    assert "top_pt other weights none: no effect is left – – –" in page
    effects = summary["systematics"]["luminosity"]["effects"]
    effects["control"] = effects["score"]
    summary["systematics"]["jet_scale"]["effects"] = {
        "control": {"top": {"down": 0.1, "up": 0.2, "shape": 0.0, "pruned": None}}
    }
    page = Page(render(content(summary))).text
    assert "Parameter By Channel Processes" in page
    assert "luminosity yields score, control top, higgs −2.4% +2.5% –" in page
    assert "jet_scale shifted events control top +10.0% +20.0% 0.0%" in page
    summary["systematics"] = {}
    assert "Systematic uncertainties" not in Page(render(content(summary))).text
