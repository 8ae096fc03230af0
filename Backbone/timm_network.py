"""Any network of timm, https://github.com/huggingface/pytorch-image-models: `timm:NAME`.

timm is optional; `make extras` installs it. Its own pretrained weights are not downloaded.
"""

import difflib
import importlib.util
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from Backbone.layers import ArchitectureError
from Backbone.preprocessing import Preprocessing

PREFIX = "timm:"

# Arguments of timm's constructors that a network may be built with, and what each may be. Others,
# such as `checkpoint_path`, could read files.
_NUMBER, _SWITCH, _WORD = (int, float), bool, str
SETTINGS = {
    **dict.fromkeys(("img_size", "patch_size", "embed_dim", "depth", "num_heads"), _NUMBER),
    **dict.fromkeys(("mlp_ratio", "init_values", "reg_tokens", "head_hidden_size"), _NUMBER),
    **dict.fromkeys(("class_token", "qkv_bias", "fc_norm", "no_embed_class"), _SWITCH),
    **dict.fromkeys(("pre_norm", "final_norm", "dynamic_img_size"), _SWITCH),
    **dict.fromkeys(("global_pool", "pos_embed"), _WORD),
}
_LARGEST = 4096


def wrong_timm_name(name: str) -> str:
    """Why there is no such network `timm:...`, in words; "" if there is one."""
    if importlib.util.find_spec("timm") is None:
        return "it needs the package timm, which is not installed; `make extras` installs it."
    import timm  # here, because it takes a second and few runs need it

    name = name.removeprefix(PREFIX)
    if timm.is_model(name):
        return ""
    near = difflib.get_close_matches(name, timm.list_models(), n=1)
    hint = f"did you mean {PREFIX}{near[0]}?" if near else "timm.list_models() names them."
    return f"timm has no network of that name; {hint}"


def settings_problem(settings: dict[str, Any]) -> str:
    """What is wrong with arguments for a constructor of timm, in words; "" if they can be used."""
    for name, value in settings.items():
        if name not in SETTINGS:
            return f"{str(name)[:80]} is none of {', '.join(SETTINGS)}"
        # Sizes may be given for height and width.
        pair = SETTINGS[name] is _NUMBER and isinstance(value, list | tuple) and len(value) == 2
        for single in value if pair else [value]:
            number = isinstance(single, _NUMBER) and not isinstance(single, bool)
            fits = number if SETTINGS[name] is _NUMBER else isinstance(single, SETTINGS[name])
            if not fits or (number and not 0 <= single <= _LARGEST):
                return f"{name} is {str(value)[:80]}"
    return ""


class TimmNetwork(nn.Module):
    """Any network of timm, with fresh weights.

    In place of its classifier it has a linear layer to the embedding. settings: arguments of its
    constructor, of those in SETTINGS. Raises ArchitectureError for an unknown name, or for settings
    or an input size that it can't take.

    `preprocessing` gives pixels in 0..1; `forward` subtracts the mean and divides by the deviation
    of each channel, those of the network's `pretrained_cfg`.
    """

    def __init__(
        self,
        name: str,
        feature_dim: int,
        input_size: tuple[int, int],
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        settings = settings or {}
        if wrong := wrong_timm_name(name):
            raise ArchitectureError(f"backbone is {name!r}; {wrong}")
        if wrong := settings_problem(settings):
            raise ArchitectureError(f"backbone {name} can't be built: {wrong}")
        import timm

        name = name.removeprefix(PREFIX)
        given = timm.get_pretrained_cfg(name)
        size = {"img_size": input_size} if given and given.fixed_input_size else {}
        try:
            self.network = timm.create_model(name, num_classes=feature_dim, **{**size, **settings})
            with torch.no_grad():
                shape = tuple(self.network.eval()(torch.zeros(1, 3, *input_size)).shape)
        except Exception as error:  # each network refuses a size in its own way, or fails with it
            height, width = input_size
            why = shorten(f"{type(error).__name__}: {error}".removesuffix(": "), 200)
            given = f" with {settings}" if settings else ""
            raise ArchitectureError(
                f"{PREFIX}{name}{given} can't take images of {height}×{width} pixels (timm's "
                f"{why}); use another input_size"
            ) from None
        if shape != (1, feature_dim):
            raise ArchitectureError(
                f"{PREFIX}{name} makes {shape} of an image, not an embedding of {feature_dim}"
            )
        self.network.train()
        self.preprocessing = Preprocessing(mean=0.0, scale=255.0, input_size=input_size)
        self.feature_dim = feature_dim
        about = self.network.pretrained_cfg
        for values in ("mean", "std"):
            self.register_buffer(values, torch.tensor(about[values]).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map float N×3×H×W to N×feature_dim embeddings, not L2-normalised."""
        return self.network((x - self.mean) / self.std)
