"""Class rows go by name: a detector whose rows were moved says under each name what it said before."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.catalog import LAYERS
from models.graph import Detector
from patches.distill import Distill
from patches.distill import Flags as DistillFlags
from patches.multihead import Flags as HeadFlags
from patches.multihead import MultiHead
from patches.multihead.head_file import HeadTable
from patches.transfer import Flags, Transfer
from tests.conformance.reference import fill
from tests.models.test_zoo import spec
from utils.data.spec import DataSpec
from utils.seams import Source
from utils.system.errors import UserError
from utils.weights.checkpoint import load_into, save_checkpoint
from utils.weights.class_rows import by_name, compare

NAMES = ["circle", "ring", "star", "plus", "arrow", "cross"]
Groups = Sequence[Sequence[int]]


def made(cfg: str, nc: int, groups: Groups = (), full: bool = False, seed: int = 0) -> Detector:
    """A small network with every parameter random, so that rows differ."""
    layers: dict[str, Any] = {}
    if groups:
        table = HeadTable(tuple(f"head_{h}" for h in range(len(groups))), tuple(map(tuple, groups)),
                          (1.0,) * len(groups), full_head=full)  # fmt: skip
        layers = dict(MultiHead(HeadFlags(head_table=dict(vars(table)))).layers())
    torch.manual_seed(seed)
    # scaled in the large file alone: the small one's rows of 24 channels are as many as the outputs for 3 classes, and
    # such rows are not scaled
    small = {"width_multiple": 0.25, "depth_multiple": 0.33} if cfg.startswith("yolov7") else {}
    model = Detector({**spec(cfg), **small}, nc, {**LAYERS, **layers})
    if not seed:
        model.load_state_dict(fill(model.state_dict(), 2.4))
    return model.eval()


def source(model: Detector, names: Sequence[str], wanted: Sequence[str]) -> Source:
    meta = {"names": list(names), "nc": model.nc, "groups": model.groups}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    return replace(Source("x.pt", state, meta), columns=compare(meta, "x.pt", wanted, "data.yaml"))


def said(model: Detector, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """{name: its probability in every cell}, and the boxes of each head under the classes of the head."""
    torch.manual_seed(3)
    image = torch.rand(1, 3, 64, 64)
    found = {}
    with torch.no_grad():
        for part in model.decode(model(image)["det"]):
            for i, c in enumerate(part.classes.tolist()):
                lead = 5 if part.objectness else 4
                found[names[c]] = torch.cat([part.pred[..., :lead], part.pred[..., lead + i : lead + 1 + i]], -1)
    return found


SIX: Groups = ([0, 4], [2, 1], [3, 5])
KINDS = {
    "plain": ("demo", (), (), False),
    "implicit": ("yolov7-tiny", (), (), False),
    "without anchors": ("demo-free", (), (), False),
    "heads": ("demo-1b4h", SIX, ([0, 4], [3, 1], [2, 5]), False),
    "heads of all columns": ("demo-1b4h", SIX, ([0, 4], [3, 1], [2, 5]), True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_names_in_another_order(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the strict load of a new stage. star and plus change places: so do their numbers in the head file."""
    cfg, before, after, full = KINDS[kind]
    wanted = ["circle", "ring", "plus", "star", "arrow", "cross"]
    old, new = made(cfg, 6, before, full), made(cfg, 6, after, full, seed=1)
    given = source(old, NAMES, wanted)
    assert "same names in another order; matched by name: 2 plus was 3, 3 star was 2" in capsys.readouterr().out
    load_into(new, by_name(given, new), "x.pt")
    one, other = said(old, NAMES), said(new, wanted)
    for name in NAMES:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)


def test_equal_names_move_nothing() -> None:
    old = made("demo", 6)
    given = source(old, NAMES, NAMES)
    assert by_name(given, made("demo", 6, seed=1)) is given.state


@pytest.mark.parametrize("kind", KINDS)
def test_a_selection_keeps_its_rows(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Through --transfer-weights: fewer classes, one of them new; the new one has the fresh row of the model."""
    cfg, before, _, full = KINDS[kind]
    wanted = ["cross", "star", "heron"]
    groups = ([2, 1], [0]) if before else ()
    old, new = made(cfg, 6, before, full), made(cfg, 3, groups, full, seed=1)
    fresh = {k: v.clone() for k, v in new.state_dict().items()}
    given = source(old, NAMES, wanted)
    assert "2 of 3 are among the 6 of x.pt, by name; fresh: heron; left over: circle" in capsys.readouterr().out
    state = Transfer(Flags(transfer_weights=True)).load_weights(by_name(given, new), new, given)
    new.load_state_dict(state)
    one, other = said(old, NAMES), said(new, wanted)
    for name in ("star", "cross"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)
    if kind == "without anchors":
        key = f"model.{len(new.model) - 1}.cv3.1.2.bias"
        assert torch.equal(state[key][2], fresh[key][2]) and len(state[key]) == 3
        return
    unit, at = ("heads.0", 1 if full else 0) if groups else ("m", 2)
    if full:
        at = 2
    key = f"model.{len(new.model) - 1}.{unit}.0.bias"
    a = new.head.anchors.shape[1]
    assert torch.equal(state[key].view(a, -1)[:, 5 + at], fresh[key].view(a, -1)[:, 5 + at])


def test_a_selection_sliced_into_heads() -> None:
    old, wanted = made("yolov7-tiny", 6), ["cross", "star", "heron", "ring"]
    new = made("yolov7-tiny-1b4h", 4, ([3, 2], [1, 0]), seed=1)
    given = source(old, NAMES, wanted)
    new.load_state_dict(Transfer(Flags(transfer_weights=True)).load_weights(by_name(given, new), new, given))
    one, other = said(old, NAMES), said(new, wanted)
    for name in ("cross", "star", "ring"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-4, msg=name)


def test_other_classes_do_not_keep_rows() -> None:
    """As many, all of other names: box and objectness are taken, no class row is."""
    old, new = made("demo", 6), made("demo", 6, seed=1)
    fresh = {k: v.clone() for k, v in new.state_dict().items()}
    state = by_name(source(old, NAMES, list("uvwxyz")), new)
    key = f"model.{len(new.model) - 1}.m.0.bias"
    rows = [t.view(3, -1) for t in (state[key], fresh[key], old.state_dict()[key])]
    assert torch.equal(rows[0][:, 5:], rows[1][:, 5:]) and torch.equal(rows[0][:, :5], rows[2][:, :5])
    with pytest.raises(
        UserError, match=r"the classes of x\.pt are not those of d\.yaml: 0 circle, here u; .*; do that"
    ):
        compare({"names": NAMES, "nc": 6}, "x.pt", list("uvwxyz"), "d.yaml", "do that")


def test_another_grouping_by_name_is_refused() -> None:
    """The numbers of the groups are those of the file; the classes in them are others."""
    wanted = ["circle", "ring", "plus", "star", "arrow", "cross"]
    old, new = made("demo-1b4h", 6, SIX), made("demo-1b4h", 6, SIX, seed=1)
    with pytest.raises(UserError, match=r"another grouping of the classes over the heads"):
        by_name(source(old, NAMES, wanted), new)


@pytest.mark.parametrize("names", [None, [str(i) for i in range(6)], [f"class{i}" for i in range(6)], ["a"] * 5])
def test_files_without_names(names: list[str] | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts are compared, and that is said once."""
    assert compare({"names": names, "nc": 6}, "x.pt", NAMES, "d.yaml", "refused") == tuple(range(6))
    out = capsys.readouterr().out
    assert out.count("x.pt does not name its classes: the 6 of x.pt are taken for those of d.yaml") == 1
    assert compare({"names": names, "nc": 6}, "x.pt", NAMES[:3], "d.yaml", "refused") == ()


def test_data_without_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare({"names": ["person"], "nc": 1}, "x.pt", ["item"], "--single-cls", "refused") == (0,)
    assert "--single-cls does not name its classes" in capsys.readouterr().out
    assert compare({"names": ["person"], "nc": 1}, "x.pt", ["Person "], "d.yaml", "refused") == (0,)
    assert "spells names otherwise, taken for the same: 'person' for 'Person '" in capsys.readouterr().out


def test_a_teacher_of_another_order_teaches_the_same(tmp_path: Path) -> None:
    """The teacher's columns are read in the order of the data's classes, with one head and with several."""
    batch = {"image": torch.rand(2, 3, 64, 64)}
    for cfg, groups in (("demo", ()), ("demo-1b4h", SIX)):
        student, found = made("demo", 6, seed=2), []
        for names in (NAMES, NAMES[::-1]):
            moved = [[names.index(NAMES[c]) for c in group] for group in groups]
            teacher = made(cfg, 6, moved, seed=1)
            load_into(teacher, by_name(source(made(cfg, 6, groups), NAMES, names), teacher), "x.pt")
            meta = {"spec": {**spec(cfg)}, "nc": 6, "names": names}
            if groups:
                table = HeadTable(("a", "b", "c"), tuple(map(tuple, moved)), (1.0,) * 3)
                meta["patches"] = {"multihead": {"head_table": dict(vars(table))}}
            save_checkpoint(tmp_path / "t.pt", state=teacher.state_dict(), meta=meta)
            patch = Distill(DistillFlags(teacher=str(tmp_path / "t.pt"), distill_feat_gain=0))
            patch.on_data_read(DataSpec(tmp_path, (), (), (), 6, tuple(NAMES), tmp_path))
            patch.on_model_built(student, ())
            found.append([v.item() for v in patch.loss_terms(batch, student(batch["image"]), student).values()])
        assert found[0][0] > 0
        torch.testing.assert_close(*map(torch.tensor, found), rtol=1e-5, atol=0)
