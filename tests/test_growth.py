"""LearningCurve: the AUC against training events and width, on a page beside the main job, which it leaves as it is."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import luigi
import numpy as np
import pytest
from PIL import Image

import models.training
from analysis.errors import UserError
from analysis.growth import Point, in_share, points, widened
from analysis.growth_plots import curves, table
from analysis.plots import Plot
from analysis.pool import load_pool
from analysis.splitting import event_identity, is_test, roles
from models.ensemble import load_member
from models.members import MemberPlan
from models.training import train
from tests.toy import Law, ran, spoil_test_events
from workflow.lineage import walk
from workflow.plan import open_plan
from workflow.tasks.growth import LearningCurve, TrainCurve

IDENTITY = event_identity("toy", [np.arange(20_000, dtype=np.int64)])


def image(plot: Plot) -> Any:
    assert json.loads(json.dumps(plot.numbers, allow_nan=False)) == plot.numbers
    return Image.open(io.BytesIO(plot.png()))


class TestPoints:
    def test_each_share_holds_the_smaller_ones(self) -> None:
        chosen = [in_share(IDENTITY, share) for share in (0.125, 0.25, 0.5, 1.0)]
        assert [c.mean() for c in chosen] == pytest.approx([0.125, 0.25, 0.5, 1.0], abs=0.01)
        assert chosen[-1].all()
        for smaller, larger in pairwise(chosen):
            assert not (smaller & ~larger).any()

    def test_what_is_configured_is_always_there_once(self) -> None:
        whole = Point(1.0, (16, 8))
        assert points((16, 8), (1.0, 0.5), (2.0, 1.0)) == (Point(0.5, (16, 8)), whole, Point(1.0, (32, 16)))
        assert points((16, 8), (0.5,), ()) == (Point(0.5, (16, 8)), whole)
        assert points((), (0.5,), (0.5, 2.0)) == (Point(0.5, ()), Point(1.0, ()))
        assert points((2,), (), (0.25, 0.5)) == (Point(1.0, (2,)),)  # 2 units at least

    def test_widths(self) -> None:
        assert widened((128, 3), 0.25) == (32, 2)

    @pytest.mark.parametrize(
        ("shares", "widths", "message"),
        [
            ((0.0, 1.0), (1.0,), r"^--shares: 0; expected numbers above 0 and up to 1"),
            ((1.5,), (1.0,), r"^--shares: 1.5; expected"),
            ((1.0,), (-1.0,), r"^--widths: -1; expected numbers above 0 and up to 64"),
            ((1.0,), (1.0,), "all of it is as configured"),
        ],
    )
    def test_some_make_no_sense(self, shares: tuple[float, ...], widths: tuple[float, ...], message: str) -> None:
        task = LearningCurve(analysis="hww", shares=shares, widths=widths)
        with pytest.raises(UserError, match=message):
            task.points(task.plan.config)


def found(hidden: tuple[int, ...], auc: dict[str, Any]) -> list[dict[str, Any]]:
    """Points with the same numbers."""
    numbers = {"auc": auc, "auc_lost": auc, "log_loss": auc, "events": 1500.0, "parameters": 1234}
    chosen = points(hidden, (0.5, 1.0), (0.5, 1.0, 2.0))
    return [{"share": p.share, "hidden": list(p.hidden), **numbers, "events": 3000 * p.share} for p in chosen]


def test_curves_and_table() -> None:
    known = {"value": 0.8, "low": 0.79, "high": 0.82}
    by_events, by_width = curves(found((16, 8), known), (16, 8))
    assert image(by_events).size == image(by_width).size
    assert [point["share"] for point in by_events.numbers["points"]] == [0.5, 1.0]
    assert [point["hidden"] for point in by_width.numbers["points"]] == [[8, 4], [16, 8], [32, 16]]
    axes = by_events.figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1.5k", "3k"]
    assert axes.get_xscale() == "log"
    rows = table(found((16, 8), known)).rows
    assert rows[0][:4] == ["1,500", "0.5", "16, 8", "1,234"]
    assert [plot.name for plot in curves(found((), known), ())] == ["auc_events"]


class TestRun:
    """On the toy analysis, whose networks are there."""

    SHARES, WIDTHS = (0.5,), (2.0,)

    def asked(self, here: Law, **others: Any) -> LearningCurve:
        return LearningCurve(analysis=here.analysis, shares=self.SHARES, widths=self.WIDTHS, **others)

    def test_the_main_job_stays_as_it_is(self, law: Law) -> None:
        """It gets no new work, and its results no new link; the point that is configured is made of its networks."""
        report = (law.results / "toy").resolve()
        before = {path.name: path.lstat().st_mtime_ns for path in report.iterdir() if path.name != "run.json"}
        done = law("LearningCurve", "--analysis", law.analysis, "--shares", "0.5,1", "--widths", "1,2")
        assert ran(done) == {"TrainCurve": 2}
        link = law.results / "toy-learning_curve"
        assert str(link / "page.html") in done.stdout
        content = json.loads((link / "learning_curve.json").read_text())
        assert [(p["share"], p["hidden"]) for p in content["points"]] == [(0.5, [8]), (1, [8]), (1, [16])]
        half, whole, wide = content["points"]
        assert 0.3 * whole["events"] < half["events"] < 0.7 * whole["events"]
        assert wide["events"] == whole["events"]
        assert (half["parameters"], wide["parameters"]) == (3 + 6 * 8 + 8 + 8 * 2 + 2, 3 + 6 * 16 + 16 + 16 * 2 + 2)
        assert whole["auc_lost"]["value"] == 0
        merit = json.loads((report / "summary.json").read_text())["metrics"]["out_of_fold"]
        assert whole["auc"]["value"] == pytest.approx(merit["auc_per_class"]["signal"]["weighted"]["value"], abs=1e-6)
        page = (link / "page.html").read_text()
        assert page.count("data:image/png;base64,") == 2
        assert "no held-out test event" in page
        assert {path.name for path in (link / "plots").glob("*.png")} == {"auc_events.png", "auc_width.png"}

        again = law("Report", "--analysis", law.analysis)
        assert again.stderr == ""
        assert (law.results / "toy").resolve() == report
        after = {path.name: path.lstat().st_mtime_ns for path in report.iterdir() if path.name != "run.json"}
        assert after == before
        assert "Curve" not in law("Prune").stdout  # what has taken long is not taken away

    def test_no_network_meets_what_it_is_judged_on(self, here: Law, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither events that are held out, nor those of its own fold, nor in training those that it stops on."""
        seen: list[tuple[Any, MemberPlan]] = []

        def recorded(events: Any, plans: list[MemberPlan], **options: Any) -> Any:
            seen.extend((events, plan) for plan in plans)
            return train(events, plans, **options)

        monkeypatch.setattr(models.training, "train", recorded)
        step = TrainCurve.req(self.asked(here), branches=())
        step.run_branches(sorted(step.get_branch_tasks()))
        pool = load_pool(next((here.store / "PrepareFolds").glob("*/*/pool")))
        assert len(seen) == 6
        for events, plan in seen:
            role = roles(plan.fold, 3, "rotating")
            assert not is_test(events.identity, 0.25, "eventfold").any()
            whole = np.isin(pool.folds, role.training)
            chosen = in_share(events.identity, 0.5) if plan.model.hidden == (8,) else np.ones_like(whole)
            assert np.array_equal(plan.training, whole & chosen)
            assert np.array_equal(plan.validation, pool.folds == role.stopping)
            assert not (plan.training | plan.validation)[pool.folds == plan.fold].any()
        for branch in step.get_branch_tasks().values():
            paths = sorted(branch.path("networks").iterdir())
            assert [load_member(path).fold for path in paths] == [0, 1, 2]
            assert not list(branch.folder.glob(".checkpoint*"))

    def test_garbage_in_held_out_events_changes_no_network(self, here: Law) -> None:
        def networks() -> dict[str, bytes]:
            """By name; made with all that they stand on, as a run that begins now would."""
            open_plan.cache_clear()
            luigi.task_register.Register.clear_instance_cache()
            step = TrainCurve(analysis=here.analysis, shares=(0.5,), widths=(), branch=0)
            for task in walk(step):
                if not task.present():
                    task.run()
            folders.append(step.folder)
            return {path.name: path.read_bytes() for path in step.path("networks").iterdir()}

        folders: list[Path] = []
        before = networks()
        spoil_test_events(here.home / "toy")
        assert networks() == before
        assert len(before) == 3
        assert folders[0] != folders[1]

    def test_a_point_is_known_by_what_it_is(self, here: Law) -> None:
        """Not by the other points, nor by how they are judged."""

        def points_of(task: LearningCurve) -> set[str]:
            return {str(b.fingerprint) for b in TrainCurve.req(task, branches=()).get_branch_tasks().values()}

        one, more = self.asked(here), LearningCurve(analysis=here.analysis, shares=(0.25, 0.5), widths=(2.0,))
        assert points_of(one) < points_of(more)
        other = self.asked(here, set=("outputs.replicas=2000",))
        assert points_of(one) == points_of(other)
        assert len({str(task.fingerprint) for task in (one, more, other)}) == 3

    def test_a_share_that_is_too_small_is_told(self, here: Law) -> None:
        step = TrainCurve(analysis=here.analysis, shares=(1e-6,), widths=(), branch=0)
        with pytest.raises(UserError, match=r"^--shares or --widths: "):
            step.run()
