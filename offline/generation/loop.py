"""Training by steps of a few parameters among frozen ones: AdamW, resumable, the same wherever it was interrupted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamdec.errors import ConfigError, DataError

from .. import checkpoint
from ..progress import Report, silent

Rows: TypeAlias = npt.NDArray[np.int64]


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to train.

    ``n_steps`` of ``batch_size`` samples, drawn in passes over all of them; ``learning_rate``, which rises from 0 over
    ``warm_up`` steps and, if ``cosine``, then falls to 0; ``weight_decay`` of matrices; ``clip`` largest norm of the
    gradient, None for any; ``precision`` of the matrix products; ``keep_every`` steps the state is written.
    """

    n_steps: int = 40_000
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warm_up: int = 0
    cosine: bool = False
    clip: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    keep_every: int = 500

    def __post_init__(self) -> None:
        for name, right, allowed in (
            ("n_steps", self.n_steps >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("warm_up", self.warm_up >= 0, "0 or more"),
            ("clip", self.clip is None or self.clip > 0, "above 0"),
            ("keep_every", self.keep_every >= 1, "1 or more"),
        ):
            if not right:
                raise ConfigError(f"steps.{name}", got=getattr(self, name), allowed=allowed)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        if not self.cosine:
            return self.learning_rate
        done = (step - self.warm_up) / max(1, self.n_steps - self.warm_up)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def batch_rows(step: int, size: int, n: int, seed: int) -> Rows:
    """Give the samples of a step, (size,): each pass over the n samples has an order of its own, drawn by the seed."""
    places = np.arange(step * size, (step + 1) * size)
    orders = {i: np.random.default_rng([seed, i]).permutation(n) for i in np.unique(places // n)}
    return np.array([orders[place // n][place % n] for place in places], np.int64)


def train(
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[Rows], Tensor],
    n: int,
    steps: Steps,
    folder: Path,
    about: Mapping[str, Any],
    *,
    seed: int = 0,
    report: Report = silent,
) -> float:
    """Train in place, and keep the state in ``folder``: a killed call goes on there, and ends with the same weights.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        What is trained, on its device.
    loss : callable
        Rows of the batch -> loss, (). Whatever it draws comes from torch's generator, seeded anew for each step.
    n : int
        Samples.
    steps : Steps
    folder : Path
        Holds ``resume.safetensors`` and ``history.jsonl``.
    about : mapping
        What the run is made of, JSON; a folder with another is refused.
    seed : int
    report : callable

    Returns
    -------
    float
        Mean loss of the last ``keep_every`` steps.

    Raises
    ------
    ConfigError
        The folder holds another run.
    DataError
        There are no samples; the loss is not finite; no room on the disk.
    """
    if n < 1:
        raise DataError("samples to train on", got="none")
    told = msgspec.json.decode(msgspec.json.encode({**about, "steps": steps, "seed": seed}))
    decaying = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [
            {"params": group, "weight_decay": decay}
            for group, decay in ((decaying, steps.weight_decay), (others, 0.0))
            if group
        ],
        lr=steps.learning_rate,
    )
    path = folder / "resume.safetensors"
    with checkpoint.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    done, mean = _restore(path, parameters, optimiser, told) if path.exists() else (0, math.nan)
    device = next(iter(parameters.values())).device
    recent: list[Tensor] = []
    while done < steps.n_steps:
        torch.manual_seed(int(np.random.SeedSequence([seed, done]).generate_state(1)[0]))
        with torch.autocast(device.type, torch.bfloat16, enabled=steps.precision == "bfloat16"):
            value = loss(batch_rows(done, steps.batch_size, n, seed))
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if steps.clip is not None:
            nn.utils.clip_grad_norm_(parameters.values(), steps.clip)
        for group in optimiser.param_groups:
            group["lr"] = steps.rate(done)
        optimiser.step()
        recent.append(value.detach())
        done += 1
        if done % steps.keep_every == 0 or done == steps.n_steps:
            mean = float(torch.stack(recent).float().mean())
            recent.clear()
            if not math.isfinite(mean):
                raise DataError(f"loss after {done} steps", got=mean, do="lower learning_rate")
            _keep(path, parameters, optimiser, _State(done, mean, told))
            with checkpoint.writing(folder), (folder / "history.jsonl").open("ab") as file:
                file.write(msgspec.json.encode({"step": done, "loss": mean}) + b"\n")
            report(f"step {done}: loss {mean:.4f}", done, steps.n_steps)
    return mean


class _State(msgspec.Struct, frozen=True):
    done: int
    loss: float
    about: dict[str, Any]


def _keep(path: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW, state: _State) -> None:
    tensors = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    names = {id(parameter): name for name, parameter in parameters.items()}
    for parameter, moments in optimiser.state.items():
        tensors |= {f"adam.{key}.{names[id(parameter)]}": moment for key, moment in moments.items()}
    checkpoint.save(path, {name: tensor.cpu().numpy() for name, tensor in tensors.items()}, state)


def _restore(
    path: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW, about: dict[str, Any]
) -> tuple[int, float]:
    arrays, found = checkpoint.load(path)
    state = msgspec.convert(found, _State)
    if state.about != about:
        key = next(key for key in {**state.about, **about} if state.about.get(key) != about.get(key))
        raise ConfigError(
            f"{path.parent} holds another run",
            got=f"{key} {about.get(key)}",
            allowed=state.about.get(key),
            do="name another folder",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(arrays[f"model.{name}"]))
            moments = {key: f"adam.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if moments["step"] in arrays:  # a parameter that had no gradient yet has none
                optimiser.state[parameter] = {
                    key: torch.from_numpy(arrays[kept]).to("cpu" if key == "step" else parameter.device)
                    for key, kept in moments.items()
                }
    return state.done, state.loss


def digest(*arrays: npt.NDArray[Any]) -> str:
    """Name the samples of a training, so that none goes on with others: sha256 of the arrays' values."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()
