"""Networks on disk, predictions, means, and the ONNX file."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.splitting import event_identity, fold_of, key_of, purpose_key
from models.buckets import Buckets
from models.ensemble import FORMAT, Ensemble, combine, load_member, predict, save_member, score
from models.export import check_onnx, export_onnx
from models.members import History, TrainedMember
from models.networks import Classifier
from models.preprocessing import Signature
from models.settings import Activation, Connections, Loss, ModelSettings, NetworkType, TrainingSettings
from models.transforms import Transform

SIGNATURE = Signature(("met", "pt1", "pt2", "eta2"), ("event", "l1", "l2", "l2"), ("signal", "top", "other"))


def make_member(model: ModelSettings, fold: int, index: int = 0) -> TrainedMember:
    """A network with random parameters of every kind, learned absent values and biases included."""
    random = np.random.default_rng([fold, index])
    classifier = Classifier(model, SIGNATURE)
    rows = classifier.initial([fold * 100 + index])
    parameters = {name: view[0].numpy().copy() for name, view in classifier.views(rows).items()}
    noisy = {n: (v + random.normal(0, 0.3, v.shape)).astype(np.float32) for n, v in parameters.items()}
    return TrainedMember(
        fold=fold,
        index=index,
        seed=1,
        signature=SIGNATURE,
        model=model,
        training=TrainingSettings(patience=None),
        transform=Transform(
            {
                "seen": np.ones((1, 4), np.float32),
                "standardise.shift": random.normal(50, 10, (1, 4)).astype(np.float32),
                "standardise.scale": random.uniform(5, 20, (1, 4)).astype(np.float32),
            }
        ),
        parameters=noisy,
        history=History((0.7, 0.5), (0.8, 0.6), (1e-3, 1e-4), {"dead": {"layer 1": (0.0, 0.5)}}),
        precision="fp32",
        best_epoch=2,
        events=(100, 50),
    )


def make_ensemble(model: ModelSettings | None = None, folds: int = 3, members: int = 2) -> Ensemble:
    """An ensemble of untrained networks."""
    model = model or ModelSettings(hidden=(19, 6))
    return Ensemble(tuple(make_member(model, f, i) for f in reversed(range(folds)) for i in range(members)))


def make_inputs(count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Events of all patterns: values, presence and fold."""
    random = np.random.default_rng(count)
    values = random.normal(50, 15, (count, 4)).astype(np.float32)
    present = random.random((count, 4)) < 0.6
    return values, present, random.integers(0, 3, count)


class TestFiles:
    def test_a_member_comes_back_as_it_was(self, tmp_path: Path) -> None:
        member = make_member(ModelSettings(hidden=(7, 5), activation="elu"), 3, 1)
        save_member(tmp_path / "a.safetensors", member)
        found = load_member(tmp_path / "a.safetensors")
        for field in dataclasses.fields(member):
            if field.name not in ("parameters", "transform"):
                assert getattr(found, field.name) == getattr(member, field.name)
        assert found.parameters.keys() == member.parameters.keys()
        for name, value in member.parameters.items():
            assert np.array_equal(found.parameters[name], value)
        assert found.transform.tables.keys() == member.transform.tables.keys()
        for name, table in member.transform.tables.items():
            assert np.array_equal(found.transform.tables[name], table)
        save_member(tmp_path / "b.safetensors", found)
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()

    def test_damaged_and_foreign_files_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "member.safetensors"
        save_member(path, make_member(ModelSettings(hidden=(4,)), 0))
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ValueError, match=r"member\.safetensors is not a file of parameters, or is damaged"):
            load_member(path)
        path.write_bytes(b"not a file of parameters")
        with pytest.raises(ValueError, match="is damaged"):
            load_member(path)
        from safetensors.numpy import save_file

        save_file({"x": np.zeros(1)}, path)
        with pytest.raises(ValueError, match=f"has format None; expected format {FORMAT}"):
            load_member(path)

    def test_an_ensemble_is_ordered_and_of_one_kind(self) -> None:
        ensemble = make_ensemble()
        assert [(m.fold, m.index) for m in ensemble.members] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
        assert ensemble.folds.tolist() == [0, 0, 1, 1, 2, 2]
        with pytest.raises(ValueError, match="at least one member"):
            Ensemble(())
        one = make_member(ModelSettings(hidden=(4,)), 0)
        with pytest.raises(ValueError, match="occurs twice"):
            Ensemble((one, one))
        with pytest.raises(ValueError, match="Fold 1, member 0 differs from fold 0"):
            Ensemble((one, make_member(ModelSettings(hidden=(5,)), 1)))
        with pytest.raises(ValueError, match="Fold 1, member 0 differs from fold 0"):
            Ensemble((one, dataclasses.replace(one, fold=1, training=TrainingSettings(loss="focal"))))


class TestPredict:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 3000), st.lists(st.integers(0, 3000), max_size=3), st.sampled_from([(19, 6), (32,), ()]))
    def test_an_event_s_score_depends_on_that_event_alone(
        self, count: int, cuts: list[int], hidden: tuple[int, ...]
    ) -> None:
        ensemble = make_ensemble(ModelSettings(hidden=hidden))
        values, present, _ = make_inputs(count)
        whole = predict(ensemble, values, present)
        assert whole.shape == (6, count, 3)
        bounds = sorted({0, count, *(cut for cut in cuts if cut < count)})
        parts = [predict(ensemble, values[low:high], present[low:high]) for low, high in pairwise(bounds)]
        assert np.array_equal(np.concatenate([whole[:, :0], *parts], axis=1), whole)
        order = np.random.default_rng(count).permutation(count)
        assert np.array_equal(predict(ensemble, values[order], present[order]), whole[:, order])
        alone = predict(Ensemble(ensemble.members[4:5]), values, present)
        assert np.array_equal(alone[0], whole[4])

    def test_probabilities_sum_to_one_and_differ_between_members(self) -> None:
        values, present, _ = make_inputs(500)
        probabilities = predict(make_ensemble(), values, present)
        assert probabilities.sum(axis=2) == pytest.approx(1, abs=1e-6)
        assert np.ptp(probabilities[:, :, 0], axis=0).max() > 0.1

    @pytest.mark.parametrize("garbage", [np.nan, np.inf, -999.0])
    def test_absent_values_do_not_matter(self, garbage: float) -> None:
        values, present, _ = make_inputs(500)
        spoilt = np.where(present, values, np.float32(garbage))
        assert np.array_equal(predict(make_ensemble(), values, present), predict(make_ensemble(), spoilt, present))

    def test_bad_inputs_are_refused(self) -> None:
        values, present, _ = make_inputs(5)
        with pytest.raises(ValueError, match=r"expected \(5, 4\)"):
            predict(make_ensemble(), values[:, :3], present)
        values[3, 1], present[3, 1] = np.inf, True
        with pytest.raises(ValueError, match="Event 3: pt1 is inf, not finite"):
            predict(make_ensemble(), values, present)


class TestCombine:
    def test_against_explicit_loops(self) -> None:
        random = np.random.default_rng(1)
        probabilities = random.random((6, 40, 3)).astype(np.float32)
        member_folds, event_folds = np.array([0, 0, 1, 1, 2, 2]), random.integers(0, 3, 40)
        routed, ensemble = combine(probabilities, member_folds, event_folds)
        for event, fold in enumerate(event_folds):
            own = [probabilities[m, event] for m in range(6) if member_folds[m] == fold]
            assert routed[event] == pytest.approx(sum(own) / 2, rel=1e-6)
            assert ensemble[event] == pytest.approx(probabilities[:, event].mean(axis=0), rel=1e-6)
        assert routed.dtype == ensemble.dtype == np.float32

    def test_a_fold_without_a_network_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"No network left out fold 2; there are networks for folds \[0, 1\]"):
            combine(np.zeros((2, 3, 2), dtype=np.float32), np.array([0, 1]), np.array([0, 1, 2]))


# Every two of a loss, connections and a kind of network are together in one of these; not every three.
PAIRS = [
    (loss, connections, get_args(NetworkType)[(number + place) % 2])
    for number, loss in enumerate(get_args(Loss))
    for place, connections in enumerate(get_args(Connections))
]


class TestOnnx:
    @pytest.mark.parametrize("activation", get_args(Activation))
    def test_it_agrees_with_torch(self, activation: Activation, tmp_path: Path) -> None:
        hidden = {"relu": (), "tanh": (6,), "gelu": (17, 33, 5)}.get(activation, (19, 6))
        ensemble = make_ensemble(ModelSettings(hidden=hidden, activation=activation), folds=2, members=1)
        export_onnx(ensemble, tmp_path / "ensemble.onnx", {})
        values, present, folds = make_inputs(5000)
        folds %= 2
        present[0], present[1] = False, True
        assert check_onnx(tmp_path / "ensemble.onnx", ensemble, values, present, folds) < 1e-5
        # The comparison must notice a network that differs.
        other = make_member(ensemble.members[0].model, 0, 7)
        changed = Ensemble((dataclasses.replace(other, index=0), *ensemble.members[1:]))
        assert check_onnx(tmp_path / "ensemble.onnx", changed, values, present, folds) > 1e-3

    def test_the_fold_is_a_hash_of_the_identity(self, tmp_path: Path) -> None:
        """The same as that of the workflow, for all bits of a column; scores are those of the fold that it gives."""
        ensemble, names = make_ensemble(folds=3, members=1), ("run", "event")
        keys = {name: key_of(name) for name in ("ttbar", "higgs")}
        export_onnx(ensemble, tmp_path / "a.onnx", {}, Buckets(names, keys, purpose_key("fold", "salt"), 3))
        values, present, _ = make_inputs(5000)
        random, limits = np.random.default_rng(1), np.iinfo(np.int64)
        columns = {name: random.integers(limits.min, limits.max, 5000, endpoint=True) for name in names}
        folds = fold_of(event_identity("higgs", list(columns.values())), 3, "salt").astype(np.int64)
        session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map
        assert json.loads(about["identity"]) == list(names)
        given = {name: columns[name] for name in json.loads(about["identity"])}
        given |= {"sample": np.full(5000, json.loads(about["samples"])["higgs"])}
        features = np.where(present, values, np.float32(np.nan))
        fold, routed = session.run(["fold", "routed"], {"features": features, **given})
        assert np.array_equal(fold, folds)
        assert np.unique(fold).tolist() == [0, 1, 2]
        assert routed == pytest.approx(score(ensemble, values, present, folds)[0], abs=1e-5)
        assert check_onnx(tmp_path / "a.onnx", ensemble, values, present, folds) < 1e-5
        # Another salt, another sample or another order of the columns would be seen.
        others = {"salt": ("higgs", names, "other"), "sample": ("ttbar", names, "salt")}
        others["order"] = ("higgs", names[::-1], "salt")
        for sample, order, salt in others.values():
            other = fold_of(event_identity(sample, [columns[name] for name in order]), 3, salt)
            assert (other != fold).mean() > 0.5
        with pytest.raises(ValueError, match="identity column is called 'sample'"):
            Buckets(("sample",), {}, 0, 3)

    def test_bounded_logits_and_the_prior(self, tmp_path: Path) -> None:
        """The bound is inside, and the file says what its scores are posteriors under."""
        members = make_ensemble(ModelSettings(hidden=(19, 6), logit_bound=0.2)).members
        own = TrainingSettings(balance="none", negative_weights="reweighted")
        ensemble = Ensemble(tuple(dataclasses.replace(member, training=own) for member in members))
        export_onnx(ensemble, tmp_path / "ensemble.onnx", {})
        values, present, folds = make_inputs(500)
        assert check_onnx(tmp_path / "ensemble.onnx", ensemble, values, present, folds) < 1e-5
        assert predict(ensemble, values, present).max() < 1 / (1 + np.exp(-0.4))
        properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "ensemble.onnx").metadata_props}
        assert properties["prior"] == "shares of the physics weights of the training events"

    @pytest.mark.parametrize(("loss", "connections", "kind"), PAIRS)
    def test_losses_and_connections(
        self, loss: Loss, connections: Connections, kind: NetworkType, tmp_path: Path
    ) -> None:
        """What logits mean is inside: scores of each loss differ, and the file knows it."""
        model = ModelSettings(type=kind, hidden=(6, 6), submodels=3, connections=connections, normalisation="batch")
        members = make_ensemble(model, folds=2).members
        ensemble, other = (
            Ensemble(tuple(dataclasses.replace(m, training=TrainingSettings(loss=own)) for m in members))
            for own in (loss, "cross_entropy" if loss == "binary_cross_entropy" else "binary_cross_entropy")
        )
        export_onnx(ensemble, tmp_path / "ensemble.onnx", {})
        values, present, folds = make_inputs(500)
        inputs = values, present, folds % 2
        assert check_onnx(tmp_path / "ensemble.onnx", ensemble, *inputs) < 1e-5
        assert check_onnx(tmp_path / "ensemble.onnx", other, *inputs) > 1e-3
        assert predict(ensemble, *inputs[:2]).sum(axis=2) == pytest.approx(1, abs=1e-6)

    def test_the_file_stands_alone_and_says_what_it_is(self, tmp_path: Path) -> None:
        ensemble = make_ensemble(members=1)
        export_onnx(ensemble, tmp_path / "ensemble.onnx", {"fingerprint": "abc123"})
        assert [path.name for path in tmp_path.iterdir()] == ["ensemble.onnx"]
        model = onnx.load(tmp_path / "ensemble.onnx")
        assert model.opset_import[0].version >= 18
        properties = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(properties["features"]) == list(SIGNATURE.features)
        assert json.loads(properties["feature_objects"]) == list(SIGNATURE.feature_objects)
        assert json.loads(properties["classes"]) == list(SIGNATURE.classes)
        assert json.loads(properties["folds"]) == [0, 1, 2]
        assert properties["fingerprint"] == "abc123"
        assert properties["prior"] == "equal for all classes"
        assert properties["training_precision"] == "fp32"

        session = onnxruntime.InferenceSession(tmp_path / "ensemble.onnx", providers=["CPUExecutionProvider"])
        assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [
            ("features", "tensor(float)", [4]),
            ("fold", "tensor(int64)", []),
        ]
        assert [o.name for o in session.get_outputs()] == ["routed", "ensemble", "spread"]
        for count in (0, 1, 7):
            values, present, folds = make_inputs(count)
            features = np.where(present, values, np.float32(np.nan))
            routed, mean, spread = session.run(None, {"features": features, "fold": folds})
            assert routed.shape == mean.shape == spread.shape == (count, 3)
        routed, mean, _ = session.run(None, {"features": features[:2], "fold": np.array([0, 9])})
        assert np.isfinite(routed[0]).all()
        assert np.isnan(routed[1]).all()
        assert np.isfinite(mean).all()
