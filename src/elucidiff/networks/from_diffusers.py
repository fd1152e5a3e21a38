"""A network of the diffusers library as one of ours: its class and its configuration, which fit in a model file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..component import require
from ..errors import MissingExtraError
from .network import Network

_CONFIGS = ("config", "autoencoder_config")


class Diffusers(Network, kind="diffusers"):
    """A model class of diffusers (UNet2DModel, UNet2DConditionModel, a transformer) with its config.

    A latent model carries the autoencoder that turns its samples into pictures. Building one needs the extra
    `diffusers`; only model classes of that library are built, and no code of a file is run.
    """

    formula: ClassVar[str] = "a network of diffusers"

    model: str = "UNet2DModel"  # class name
    config: Mapping[str, Any] | str = "{}"  # its arguments; kept as JSON text
    autoencoder: str = ""  # class name, for latent models
    autoencoder_config: Mapping[str, Any] | str = "{}"
    null_class: int | None = None  # the class index that means no class

    def validate(self) -> None:
        """Raise ValueError for a config that is not JSON, and for fields that belong to our own networks."""
        super().validate()
        for name in _CONFIGS:
            object.__setattr__(self, name, _canonical(getattr(self, name), name))
        require(
            self.dropout == 0 and self.augment_dim == 0,
            "dropout, augment_dim: a network of diffusers has its own dropout (in config) and no augment labels",
        )

    def to_dict(self) -> dict[str, Any]:
        """The network as JSON data, its configs as objects."""
        return super().to_dict() | {name: json.loads(str(getattr(self, name))) for name in _CONFIGS}

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new module with random weights; a UNet gets its channels, size and classes from here where config has none.

        Raises MissingExtraError without diffusers, ValueError for a class that is none of its models.
        """
        config = json.loads(str(self.config))
        if self.model == "UNet2DModel" and len(shape) == 3:
            classes = label_dim + (self.null_class == label_dim) if label_dim else None
            sizes = {"in_channels": shape[0], "out_channels": shape[0], "sample_size": list(shape[1:])}
            config = sizes | {"num_class_embeds": classes} | config
        model = model_class(self.model).from_config(config)
        if self.checkpoint_activations:
            model.enable_gradient_checkpointing()
        autoencoder = None
        if self.autoencoder:
            autoencoder = model_class(self.autoencoder).from_config(json.loads(str(self.autoencoder_config)))
        return DiffusersModule(model, autoencoder, self.null_class)


class DiffusersModule(nn.Module):
    """The module of `Diffusers`: x (B, *shape), c_noise () or (B,), labels (B, label_dim) -> F (B, *shape).

    c_noise is the timestep that the model is told. Other conditions (encoder_hidden_states, pooled_projections,
    class_labels, text_embeds and time_ids of SDXL, ...) go to the model by name, in the device and dtype of x. Of an
    output with twice the channels of x the first half is F: the second is a predicted variance.
    """

    def __init__(self, model: Any, autoencoder: Any = None, null_class: int | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.autoencoder: Any = autoencoder
        self.null_class = null_class
        self.whole_timesteps = model.config.get("time_embedding_type") == "learned"

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, **conditions: Any) -> Tensor:
        """F. Raises ValueError for labels that are not classes, and for an output that does not fit x."""
        t = c_noise.to(x.device, torch.float32).expand(len(x))  # float32 holds every whole timestep exactly
        given = {name: _placed(value, x) for name, value in conditions.items()}
        if labels is not None:
            given["class_labels"] = self._classes(labels)
        added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
        if added:
            given["added_cond_kwargs"] = added
        F = self.model(x, timestep=t.long() if self.whole_timesteps else t, **given, return_dict=False)[0]
        if F.ndim > 1 and F.shape[1] == 2 * x.shape[1]:
            F = F[:, : x.shape[1]]
        require(F.shape == x.shape, f"{type(self.model).__name__} gives {tuple(F.shape)} for x {tuple(x.shape)}")
        return F

    def _classes(self, labels: Tensor) -> Tensor:
        """Class indices (B,) of one-hot rows; the null class for rows of zeros."""
        none = (labels == 0).all(1)
        one_hot = (labels.amax(1) == 1) & (labels.count_nonzero(1) == 1)
        require(
            bool((none | one_hot).all()),
            "labels: this network knows whole classes; expected indices or one-hot rows",
        )
        classes = labels.argmax(1)
        if not bool(none.any()):
            return classes
        if self.null_class is None:
            raise ValueError(
                "labels: got none for a network without a null class; give labels=, or load(null_class=) if it has one"
            )
        return torch.where(none, self.null_class, classes)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of latents (B, *shape), without gradients: their scaling undone, then decoded."""
        decoder = self.autoencoder
        with torch.no_grad():
            z = z.to(next(decoder.parameters()).dtype)
            mean, std = (_per_channel(decoder.config.get(f"latents_{name}"), z) for name in ("mean", "std"))
            z = z * (1 if std is None else std) / (decoder.config.get("scaling_factor") or 1)
            z = z + (decoder.config.get("shift_factor") or 0) + (0 if mean is None else mean)
            return decoder.decode(z, return_dict=False)[0]

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (B, *shape) of pictures (B, 3, H, W) in [-1, 1]: the inverse of `decode`, at the posterior's mode."""
        encoder = self.autoencoder
        with torch.no_grad():
            found = encoder.encode(pictures.to(next(encoder.parameters()).dtype))
            z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
            mean, std = (_per_channel(encoder.config.get(f"latents_{name}"), z) for name in ("mean", "std"))
            z = z - (encoder.config.get("shift_factor") or 0) - (0 if mean is None else mean)
            return z * (encoder.config.get("scaling_factor") or 1) / (1 if std is None else std)


def model_class(name: str) -> Any:
    """The model class of diffusers with a name. Raises MissingExtraError, or ValueError for what is none."""
    try:
        import diffusers
    except ImportError:
        raise MissingExtraError("diffusers", "diffusers") from None
    found = getattr(diffusers, name, None) if name.isidentifier() else None
    good = isinstance(found, type) and issubclass(found, diffusers.ModelMixin)
    require(good, f"model: {name!r} is not a model class of diffusers {diffusers.__version__}")
    return found


def json_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a config of diffusers: without its private entries, which name versions and local paths."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _canonical(config: Mapping[str, Any] | str, name: str) -> str:
    try:
        value = json.loads(config) if isinstance(config, str) else dict(config)
        if not isinstance(value, dict):
            raise TypeError("not an object")
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an object of JSON values ({error})") from error


def _per_channel(values: Any, z: Tensor) -> Tensor | None:
    if values is None:
        return None
    return torch.as_tensor(values, dtype=z.dtype, device=z.device).reshape(1, -1, *[1] * (z.ndim - 2))


def _placed(value: Any, x: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(x.device, x.dtype) if value.is_floating_point() else value.to(x.device)
