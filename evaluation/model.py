"""The network under test: a checkpoint, random weights, or torchvision's supervised ones."""

import hashlib
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import objectives
from objectives import Objective, checkpoint
from objectives.command import config_of
from pipelines.views import ViewSpec
from shards import InputError

SURPRISE = "surprise"  # [z_t, ẑ_t] instead of the feature, for methods that predict (oops)
ADDRESSES = "addresses"  # how far each slot of a memory makes up the prediction, for MemDPC
RANDOM, TORCHVISION = "random:", "torchvision:"


@dataclass(frozen=True)
class Model:
    """objective: in evaluation mode. name: for people and folders. origin: what was loaded, in a sentence.

    folder: of the checkpoint, None for what is none of ours.
    """

    objective: Objective
    name: str
    origin: str
    folder: Path | None = None

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of config and weights."""
        config = json.dumps(asdict(self.objective.config), sort_keys=True)
        digest = hashlib.sha256(f"{self.objective.name} {config}".encode())
        for key, value in self.objective.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def open_model(spec: str, *, small: bool, seed: int = 0) -> Model:
    """spec: a run's or checkpoint's folder; random:NAME or random:FOLDER, fresh weights in that objective's network, which
    may be followed by flags of its config ("random:memdpc --modality flow"), or in that checkpoint's; torchvision:NAME, supervised weights that lie in torch's hub folder.

    small: random:NAME has the objective's CPU-sized config instead of the paper's. Raises InputError.
    """
    if spec.startswith(TORCHVISION):
        return _torchvision(spec.removeprefix(TORCHVISION))
    if spec.startswith(RANDOM):
        return _random(spec.removeprefix(RANDOM), small, seed)
    objective = objectives.load(spec)
    folder = Path(spec)
    found = folder if (folder / checkpoint.WEIGHTS).exists() else checkpoint.newest(folder)
    tensors = len(objective.state_dict())
    millions = sum(p.numel() for p in objective.parameters()) / 1e6
    origin = f"{objective.name} from {found}: all {tensors} tensors, {millions:.1f} M parameters"
    name = (
        f"{folder.parents[1].name}-{folder.name}"
        if folder.parent.name == "checkpoints"
        else folder.resolve().name
    )
    return Model(objective, name, origin, found)


def _random(spec: str, small: bool, seed: int) -> Model:
    what, *flags = shlex.split(spec) if not Path(spec).exists() else [spec]
    if what.startswith(TORCHVISION):
        cls = objectives.get("pace")
        config = cls.Config(backbone=_supported(what.removeprefix(TORCHVISION)))
    elif Path(what).exists():
        trained = objectives.load(what)
        cls, config = type(trained), trained.config
    elif what in objectives.available():
        cls = objectives.get(what)
        config = config_of(cls, cls.small() if small else cls.Config(), flags, f"--checkpoint {RANDOM}")
    else:
        names = ", ".join(objectives.available())
        raise InputError(
            f"--checkpoint {RANDOM}{what}: {what} is neither an objective ({names}) nor a folder"
        )
    with _seeded(seed):
        objective = cls(config).eval()
    return Model(objective, f"random-{cls.name}", f"random weights (seed {seed}) in the network of {spec}")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _supported(name: str) -> str:
    names = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
    if name not in names:
        raise InputError(f"--checkpoint {TORCHVISION}{name}: choose one of {', '.join(names)}")
    return name


def _torchvision(name: str) -> Model:
    """Kinetics-400 supervised weights in the objective that feeds clips to torchvision's networks, Pace."""
    from torchvision.models import get_model_weights, video

    url = get_model_weights(_supported(name)).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not file.is_file():
        raise InputError(f"--checkpoint {TORCHVISION}{name}: {file} is not there; fetch it from {url}")
    network = getattr(video, name)()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    cls = objectives.get("pace")
    objective: Any = cls(cls.Config(backbone=name)).eval()
    objective.encoder.load_state_dict(_stages_of(network, name).state_dict())
    return Model(objective, f"torchvision-{name}", f"{name}, supervised on Kinetics-400, from {file}")


def _stages_of(network: nn.Module, name: str) -> nn.Module:
    import models

    built = models.build(name, 64, 224)
    parameters = [v for k, v in network.state_dict().items() if not k.startswith(("fc.", "classifier."))]
    built.load_state_dict(dict(zip(built.state_dict(), parameters, strict=True)))
    return built


class Representation:
    """What a model says of a window. layer: a module's name in the objective instead of the objective's own feature;
    p4 and p5 are the fourth and fifth stage of Pace's networks; SURPRISE and ADDRESSES are what some methods say besides.
    NAME is the mean of the module's output, NAME:std its deviation in time, NAME:both the two side by side (--pool),
    NAME:places all of its places in time and space, one after the other, each with the map's D numbers."""

    def __init__(self, objective: Objective, layer: str = "") -> None:
        self.objective, self.layer = objective, layer
        name, _, self.pooling = layer.partition(":")
        self.path = {"p4": "encoder.stages.3", "p5": "encoder.stages.4"}.get(name, name)
        self.said = (
            getattr(objective, name) if name in (SURPRISE, ADDRESSES) and hasattr(objective, name) else None
        )
        if self.pooling not in ("", "std", "both", "places") or (self.pooling and self.said):
            raise InputError(
                f"--layer {name}: has no {self.pooling}; --pool takes the mean, std or both of a module's output"
            )
        if self.pooling and not name:
            raise InputError(
                f"--pool {self.pooling}: of a --layer's output; name one, such as --layer encoder"
            )
        if name and not self.said and self.path not in dict(objective.named_modules()):
            near = ", ".join(name for name, _ in objective.encoder.named_children())
            raise InputError(
                f"--layer {layer}: there is no such module; there are encoder, and in it {near} (encoder.NAME)"
            )

    def __call__(self, views_BVCTHW: Tensor) -> Tensor:
        """Views of B windows → features (B, D); of a layer its output's mean over space, time and views, its
        deviation over time and views, averaged over space, both (B, 2D), or all its places (B, places · D)."""
        if self.said:
            said: Tensor = self.said(views_BVCTHW)
            return said
        if not self.layer:
            return self.objective.represent(views_BVCTHW)
        output_BNDthw = self._caught(views_BVCTHW)
        if self.pooling == "places":
            return output_BNDthw.movedim(2, -1).flatten(1)
        mean_BD = output_BNDthw.flatten(3).mean((1, 3))
        if not self.pooling:
            return mean_BD
        moments_BSDhw = output_BNDthw.transpose(2, 3).flatten(1, 2)
        if moments_BSDhw.shape[1] < 2:
            raise InputError(f"--layer {self.layer}: has a single moment in a window, so nothing changes")
        std_BD = moments_BSDhw.std(1, correction=0).flatten(2).mean(2)
        return std_BD if self.pooling == "std" else torch.cat([mean_BD, std_BD], 1)

    def _caught(self, views_BVCTHW: Tensor) -> Tensor:
        """The layer's output (B, N, D, t, h, w): N of a window, such as its views."""
        caught: list[Any] = []
        module = self.objective.get_submodule(self.path)
        handle = module.register_forward_hook(lambda _module, _given, output: caught.append(output))
        try:
            self.objective.represent(views_BVCTHW)
        finally:
            handle.remove()
        output = caught[-1] if caught else None
        B = len(views_BVCTHW)
        if not isinstance(output, Tensor) or output.ndim not in (2, 4, 5) or len(output) % B:
            raise InputError(f"--layer {self.layer}: gives no feature a window; name another module")
        spatial = output.reshape(*output.shape[:2], *(1,) * (5 - output.ndim), *output.shape[2:])
        return spatial.unflatten(0, (B, -1))


def channels(objective: Objective, layer: str, spec: ViewSpec) -> int:
    """D, the numbers that a layer's output has at each of its places."""
    shape = (1, spec.views, spec.channels, spec.frames, spec.size, spec.size)
    blank = torch.zeros(shape, device=next(objective.parameters()).device)
    with torch.inference_mode():
        return Representation(objective.eval(), layer.partition(":")[0])(blank).shape[1]
