"""What is learnt is the class and nothing else: on held-out pictures random labels stay at ln C, true ones do not."""

import math
from pathlib import Path

import torch
from torch import Tensor

from models.graph import Detector
from patches.image_class.head import Figures, ImageHead, figures
from patches.image_class.joint import Flags, Joint
from tests.models.test_zoo import spec
from tests.shared import ROOT
from utils.config.settings import DataSettings
from utils.data.build import make_dataset
from utils.data.dataset import Sample
from utils.data.spec import read_data
from utils.system.rng import rng

OPTIONS = DataSettings(img_size=64, batch_size=8)


def loaded(source: Path, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images [n,3,64,64] in 0..1, classes [n] as batches have them, names."""
    data = make_dataset(read_data(source), split, OPTIONS)
    items = [data[Sample(0, i)] for i in range(len(data))]
    return (
        torch.stack([x["image"] for x in items]).float() / 255,
        torch.stack([x["image_class"] for x in items]),
        data.cls_names,
    )


def held_out(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], names: tuple[str, ...]) -> Figures:
    """After 30 steps of the head alone on row 1 of an untrained detector; features [n,c,h,w] and classes [n]."""
    patch = Joint(Flags(classify=True, cls_names=names, cls_dropout=0.0))
    torch.manual_seed(0)
    head = ImageHead(train[0].shape[1], names, 0.0)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.02, momentum=0.9)
    for _ in range(30):
        batch = {"image_class": train[1], "share": 1.0}
        loss = patch.loss_terms(batch, {"image_class": head(train[0])}, None)["image_class"]  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return figures(head(val[0]).detach(), val[1])


def test_true_labels_are_learnt_and_random_ones_are_not(tmp_path: Path) -> None:
    text = (ROOT / "data/shapes_joint.yaml").read_text().replace("{train: 320, val: 80}", "{train: 96, val: 48}")
    (tmp_path / "data.yaml").write_text(text)
    torch.manual_seed(0)
    model = Detector(spec("demo"), 12).eval()
    model.tap(1)
    features, classes = {}, {}
    for split in ("train", "val"):
        images, classes[split], names = loaded(tmp_path / "data.yaml", split)
        with torch.no_grad():
            features[split] = model(images)["feat"][1]
    true = held_out((features["train"], classes["train"]), (features["val"], classes["val"]), names)
    dealt = {k: torch.from_numpy(rng(0, f"random {k}").permutation(len(v)) % 4) for k, v in classes.items()}
    noise = held_out((features["train"], dealt["train"]), (features["val"], dealt["val"]), names)
    assert abs(noise.ce - math.log(4)) < 0.02 and noise.known == 48
    assert true.ce < math.log(4) - 0.3 and true.acc > true.majority + 0.1
