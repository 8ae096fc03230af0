"""The lineages whose weights are known: which layouts they have, and which input their code feeds.

Files, in the order to read them:

layouts.py       how each code base names the modules of its networks
recognise.py     whose network a file holds, from the names and shapes of its tensors
descriptions.py  what a file says of its own network, checked: ours, and CVLface's model.yaml

`LINEAGES` has a row for each repository. Where two of them name and shape their tensors alike, the
rest of the file decides (`places`, `marks`, `builds`, `files`). Where that does not
and their inputs differ, none is taken: the user says which.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from Backbone.preprocessing import CHANNEL_ORDERS
from Config.config import Config
from Config.fields import settings_of
from Utils.Pretrained_Utils.lineages import layouts
from Utils.Pretrained_Utils.lineages.layouts import Layout

OWN = "this project"


@dataclass(frozen=True)
class Lineage:
    """A repository.

    key: short name, for `--lineage` and `--to`. title: as messages show it, owner and repository on
    GitHub first.

    layouts: of its networks. channel_order, mean, scale: see `Backbone.Preprocessing`.
    places: of the network's tensors in its files: the key above them, "" for the top of the file,
        and the prefix of their names, "" for none. marks: keys of which those files have one too.
    files: names, as a regular expression, that its code gives to files, or under which it
        published them.
    normalise: whether its networks' embeddings are L2-normalised.
    head_by_columns: whether its heads keep class weights as D×C under the name `weight` too.
    builds: whether its code can build an architecture (`Backbone.describe_backbone`'s values) of
        its layouts.
    """

    key: str
    title: str
    layouts: tuple[Layout, ...]
    channel_order: str = "RGB"
    mean: float = 127.5
    scale: float = 127.5
    places: tuple[tuple[str, str], ...] = (("", ""),)
    marks: tuple[str, ...] = ()
    files: str = ""
    normalise: bool = False
    head_by_columns: bool = False
    builds: Callable[[dict[str, Any]], bool] = lambda architecture: True

    def preprocessing(self) -> dict[str, Any]:
        """As `Backbone.describe_backbone` has it."""
        return {"channel_order": self.channel_order, "mean": self.mean, "scale": self.scale}

    @property
    def source(self) -> str:
        """The repository's address; "" for this one's own."""
        owner_and_name = "/".join(self.title.split()[:2])
        return "" if self.title == OWN else f"https://github.com/{owner_and_name}"

    @property
    def about(self) -> str:
        """In one line: its networks and their input."""
        families = ", ".join(dict.fromkeys(layout.family for layout in self.layouts))
        return f"{families}; {self.input() if self.source else 'input as trained'}"

    def input(self) -> str:
        """In one line: what its code feeds, and whether the output is normalised."""
        text = f"{self.channel_order}, (pixel - {self.mean:g}) / {self.scale:g}"
        return text + (", output L2-normalised" if self.normalise else "")


def _square(architecture: dict[str, Any]) -> bool:
    return architecture["input_size"][0] == architecture["input_size"][1]


LINEAGES = (
    Lineage(
        "insightface",
        "deepinsight insightface arcface_torch",
        (layouts.IRESNET, layouts.MBF, layouts.MBF_LARGE, layouts.VIT),
        places=(("", ""), ("state_dict_backbone", "")),
    ),
    Lineage(
        "magface",
        "IrvingMeng MagFace",
        (layouts.IRESNET,),
        channel_order="BGR",
        mean=0.0,
        scale=255.0,
        places=(("state_dict", "features."),),
        head_by_columns=True,
    ),
    Lineage(
        "quasarlight",
        "QuasarLight Pytorch_Face_Recognition",
        (layouts.CBAMRESNET, layouts.CBAMRESNET_CBAM, layouts.QUASARLIGHT_MOBILE),
        channel_order="BGR",
    ),
    Lineage(
        "wujiyang",
        "wujiyang Face_Pytorch",
        (
            layouts.CBAMRESNET,
            layouts.CBAMRESNET_CBAM,
            layouts.SERESNET_IR,
            layouts.WUJIYANG_MOBILE,
        ),
        channel_order="BGR",
        places=(("net_state_dict", ""),),
        marks=("iters",),
        builds=_square,
    ),
    Lineage(
        "xiaoccer",
        "Xiaoccer MobileFaceNet_Pytorch",
        (layouts.WUJIYANG_MOBILE,),
        scale=128.0,
        places=(("net_state_dict", ""),),
        marks=("epoch",),
    ),
    Lineage(
        "treb1en",
        "TreB1eN InsightFace_Pytorch",
        (layouts.IRSE, layouts.TREB1EN_MOBILE),
        channel_order="BGR",
        normalise=True,
        files=r"model_.*_accuracy.*_step.*\.pth|model_ir_se50\.pth",
    ),
    Lineage(
        "face_evolve",
        "ZhaoJ9014 face.evoLVe",
        (layouts.IRSE, layouts.EVOLVE_RESNET),
        files=r"Backbone_.*_Epoch_\d+_Batch_\d+_Time_.*|backbone_ir\d+_(asia|ms1m_epoch\d+)\.pth",
    ),
    Lineage(
        "facex_zoo",
        "JDAI-CV FaceX-Zoo",
        (layouts.IRSE, layouts.TREB1EN_MOBILE),
        channel_order="BGR",
        scale=128.0,
        head_by_columns=True,
        places=(("state_dict", "backbone."),),
    ),
    Lineage(
        "curricularface",
        "HuangYG123 CurricularFace",
        (layouts.CURRICULAR,),
    ),
    Lineage(
        "tface",
        "Tencent TFace",
        (layouts.ADAFACE, layouts.ADAFACE_BOTTLENECK),
        files=r"Backbone_Epoch_\d+_checkpoint\.pth",
    ),
    Lineage(
        "adaface",
        "mk-minchul AdaFace",
        (layouts.ADAFACE, layouts.ADAFACE_BOTTLENECK),
        channel_order="BGR",
        places=(("state_dict", "model."), ("", "")),
    ),
    Lineage(
        "cvlface",
        "mk-minchul CVLface",
        (
            layouts.ADAFACE,
            layouts.ADAFACE_BOTTLENECK,
            layouts.IRESNET,
            layouts.CVLFACE_VIT_SMALL,
            layouts.CVLFACE_VIT_BASE,
            layouts.CVLFACE_KPRPE,
        ),
        places=(("", "net."), ("", "model.net.")),
    ),
    Lineage(
        "own",
        OWN,
        (
            layouts.OWN_MOBILEFACENET,
            layouts.OWN_RESNET_IR,
            layouts.OWN_RESNET,
            layouts.VIT,
            layouts.OWN_KPRPE,
        ),
    ),
)


def find_lineage(key: str) -> Lineage | None:
    """The lineage of that key; None if there is none."""
    return next((lineage for lineage in LINEAGES if lineage.key == key), None)


def reading_flags(description: str) -> argparse.ArgumentParser:
    """A parser with SOURCE and flags for the arguments of `load_backbone`: for commands."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="weights of any known lineage: a file or name in Pretrained")
    parser.add_argument(
        "--lineage",
        choices=[lineage.key for lineage in LINEAGES],
        help="whose weights these are, where two lineages look alike",
    )
    parser.add_argument(
        "--weights",
        choices=settings_of(Config)["weights"].words,
        default=Config().weights,
        help="which, of a checkpoint of a run with ema_decay",
    )
    parser.add_argument(
        "--channel_order",
        default="",
        choices=CHANNEL_ORDERS,
        help="instead of the lineage's",
    )
    parser.add_argument(
        "--input_mean", type=float, help="in pixel values 0..255, instead of the lineage's"
    )
    parser.add_argument(
        "--input_scale", type=float, help="in pixel values 0..255, instead of the lineage's"
    )
    return parser
