"""The training loop of every network: it knows samples, a learner and a schedule, no method.

Shapes: n samples, B samples of a batch, U different items among them, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from streamdec.errors import ConfigError, DataError

from . import checkpoint, distributed
from .checkpoint import RunFolder
from .learner import Batch, Learner
from .methods.base import Training
from .progress import Report

_Rows = npt.NDArray[np.intp]
_RESIDENT = 0.5  # share of the device's free memory that the data may take


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to train: AdamW, which without ``weight_decay`` is Adam.

    ``n_epochs_train`` passes over the data at most; ``batch_size`` samples, the last batch may be smaller;
    ``learning_rate`` and ``betas``; ``weight_decay`` of matrices, never of biases, norms and scales; ``warm_up`` share
    of all steps over which the rate rises from 0; ``cosine`` whether it then falls to 0 along a cosine; ``clip``
    largest norm of the gradient, None for any; ``average`` decay of an exponential moving average of the weights, which
    then is what is validated and kept, None for none; ``precision`` of the matrix products; ``keep`` the weights of the
    pass with the lowest validation loss, or of the last; ``patience`` passes without a lower validation loss after
    which training stops, None never.
    """

    n_epochs_train: int = 200
    batch_size: int = 1000
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    warm_up: float = 0.0
    cosine: bool = False
    clip: float | None = None
    average: float | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    keep: Literal["best", "last"] = "best"
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, right, allowed in (
            ("n_epochs_train", self.n_epochs_train >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 2, "2 or more"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "from 0 to below 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("warm_up", 0 <= self.warm_up < 1, "from 0 to below 1"),
            ("clip", self.clip is None or self.clip > 0, "above 0"),
            ("average", self.average is None or 0 <= self.average < 1, "from 0 to below 1"),
            ("patience", self.patience is None or self.patience >= 1, "1 or more"),
        ):
            if not right:
                raise ConfigError(f"schedule.{name}", got=getattr(self, name), allowed=allowed)

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step, counted from 0, of ``n_steps``."""
        rising = round(self.warm_up * n_steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        if not self.cosine:
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / (n_steps - rising)))


def train(
    learner: Learner, training: Training, schedule: Schedule, *, seed: int, device: str, run: RunFolder, report: Report
) -> dict[str, Any]:
    """Train in place; the learner ends with the weights the schedule keeps.

    The state after each finished pass is in the run folder: a run that was killed goes on there. On the processor of
    one machine it ends with the same weights; on a GPU with nearly the same: convolutions are computed without TF32 and
    always alike, but some gradients are sums whose order is not fixed. Curves are in ``history.jsonl`` and, for
    TensorBoard, in ``tensorboard/``.

    Parameters
    ----------
    learner : Learner
        Every parameter that requires a gradient is trained.
    training : Training
    schedule : Schedule
    seed : int
        Of the order of the samples and the dropout; the caller has seeded the initial weights.
    device : str
        As torch names it.
    run : RunFolder
    report : callable
        Told after each pass.

    Returns
    -------
    dict
        ``best_pass`` (1-based), ``best_loss``, ``passes``, ``validation_top1`` of the last pass.

    Raises
    ------
    DataError
        The loss is not finite, or a batch does not fit into the device's memory.
    """
    learner.to(device)
    data = _Data(training, device)
    kept = np.flatnonzero(~training.held)
    # Neighbours in a store are often of one concept: a batch of them would be harder than those of training.
    validation = np.random.default_rng(seed).permutation(np.flatnonzero(training.held))
    optimiser = _optimiser(learner, schedule)
    scaler = torch.amp.GradScaler(device.partition(":")[0], enabled=schedule.precision == "float16")
    average = _copy(learner) if schedule.average is not None else {}
    best, state = _copy(learner), _State()
    if run.resume.exists():
        state, best, average = _restore(run, learner, optimiser)
        scaler.load_state_dict(state.scaler)
        report(f"going on after pass {state.passes}")
    n_steps = schedule.n_epochs_train * len(_batches(kept, schedule.batch_size))
    top1 = state.top1
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with checkpoint.writing(run.path), exact, _board(run, state.passes) as board, distributed.shared_out(learner):
        while state.passes < schedule.n_epochs_train and not _exhausted(state, schedule):
            # One seed per pass: the state of no random generator has to be kept.
            order = np.random.default_rng([seed, state.passes]).permutation(kept)
            torch.manual_seed(int(np.random.SeedSequence([seed, state.passes]).generate_state(1)[0]))
            batches = _batches(order, schedule.batch_size)
            learner.train()
            losses = []
            for i, rows in enumerate(batches):
                rate = schedule.rate(state.passes * len(batches) + i, n_steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate * group["factor"]
                fits = True
                try:
                    losses.append(_step(learner, data.batch(rows), optimiser, scaler, schedule))
                except torch.OutOfMemoryError:
                    fits = False
                if not fits:  # outside of the handler: its traceback holds the tensors of the step that failed
                    raise _too_large(learner, data, rows, scaler, schedule)
                if schedule.average is not None:
                    _blend(average, learner, schedule.average)
            newest = _copy(learner) if average else {}
            if average:
                load_weights(learner, average)
            validated, top1 = distributed.agreed(_validate(learner, data, validation, schedule), device)
            if not math.isfinite(validated):
                raise DataError(f"pass {state.passes + 1}: validation loss", got=validated, do="lower learning_rate")
            passes, improved = state.passes + 1, validated < state.best_loss
            if improved or schedule.keep == "last":
                best = _copy(learner)
            if average:
                load_weights(learner, newest)
            state = _State(
                passes,
                validated if improved else state.best_loss,
                passes if improved else state.best_pass,
                top1,
                scaler.state_dict(),
            )
            curves = {
                "train_loss": float(torch.stack(losses).mean()),
                "validation_loss": validated,
                "validation_top1": top1,
                **learner.notes(),
            }
            if distributed.is_first():
                run.log({"pass": passes, **curves})
                for name, value in curves.items():
                    board.add_scalar(name, value, passes)
                _store(run, learner, optimiser, best, average, state)
            line = (
                f"pass {passes}: loss {curves['train_loss']:.4f}, validation {validated:.4f}, top-1 {100 * top1:.1f} %"
            )
            report(line, passes, schedule.n_epochs_train)
    load_weights(learner, best)
    learner.eval()
    return {
        "best_pass": state.best_pass,
        "best_loss": state.best_loss,
        "passes": state.passes,
        "validation_top1": top1,
    }


class _State(msgspec.Struct, frozen=True):
    passes: int = 0
    best_loss: float = 1e30  # JSON has no infinity
    best_pass: int = 0
    top1: float = 0.0
    scaler: dict[str, Any] = {}


class _Data:
    """The samples, on the device where they fit, else memory-mapped or in memory and moved batch by batch."""

    def __init__(self, training: Training, device: str) -> None:
        self.training, self.device = training, device
        self._epochs: npt.NDArray[Any] | Tensor = training.epochs
        self._targets: dict[str, npt.NDArray[Any] | Tensor] = dict(training.targets)
        arrays = [training.epochs, *training.targets.values()]
        if device.startswith("cuda"):
            free, _ = torch.cuda.mem_get_info(device)
            if sum(array.nbytes for array in arrays) < _RESIDENT * free:
                self._epochs = torch.from_numpy(training.epochs).to(device)
                self._targets = {role: torch.from_numpy(array).to(device) for role, array in training.targets.items()}

    def batch(self, rows: _Rows) -> Batch:
        items, place = np.unique(self.training.item[rows], return_inverse=True)
        return Batch(
            epochs=self._take(self._epochs, rows),
            targets=self.targets(items),
            place=self._whole(place),
            items=self._whole(items),
            subject=self._whole(self.training.subject[rows]),
            sample=self._whole(rows),
        )

    def targets(self, items: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        return {role: self._take(array, items) for role, array in self._targets.items()}

    def _take(self, array: npt.NDArray[Any] | Tensor, rows: npt.NDArray[Any]) -> Tensor:
        taken = array[self._whole(rows)] if isinstance(array, Tensor) else torch.from_numpy(array[rows])
        taken = taken.to(self.device)
        return taken.float() if taken.is_floating_point() else taken

    def _whole(self, numbers: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers.astype(np.int64)).to(self.device)


def _optimiser(learner: Learner, schedule: Schedule) -> torch.optim.AdamW:
    groups = [
        {
            "params": group.parameters,
            "weight_decay": schedule.weight_decay * group.weight_decay,
            "factor": group.learning_rate,
        }
        for group in learner.groups()
        if group.parameters
    ]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=schedule.betas)


def _step(
    learner: Learner, batch: Batch, optimiser: torch.optim.AdamW, scaler: torch.amp.GradScaler, schedule: Schedule
) -> Tensor:
    with _precision(batch.epochs.device.type, schedule):
        loss: Tensor = learner(batch)
    optimiser.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    distributed.mean_gradients(optimiser)
    if schedule.clip is not None:
        scaler.unscale_(optimiser)
        trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(trained, schedule.clip)
    scaler.step(optimiser)
    scaler.update()
    return loss.detach().float()


def _precision(kind: str, schedule: Schedule) -> torch.autocast:
    reduced = schedule.precision != "float32"
    return torch.autocast(kind, getattr(torch, schedule.precision) if reduced else torch.bfloat16, enabled=reduced)


def _too_large(
    learner: Learner, data: _Data, rows: _Rows, scaler: torch.amp.GradScaler, schedule: Schedule
) -> DataError:
    """Say which batch would fit, by trying; not where others would have to try too."""
    fits = 0
    if distributed.several():
        return DataError(
            f"memory of {data.device}", got=f"too little for a batch of {len(rows)}", do="lower schedule.batch_size"
        )
    for size in (len(rows) // 2**i for i in range(1, 12)):
        if size < 2:
            break
        if _fits(learner, data, rows[:size], scaler, schedule):
            fits = size
            break
    return DataError(
        f"memory of {data.device}",
        got=f"too little for a batch of {len(rows)}",
        allowed=f"about {fits}" if fits else "not even 2",
        do=f"set schedule.batch_size to {fits} or less" if fits else "use another device",
    )


def _fits(learner: Learner, data: _Data, rows: _Rows, scaler: torch.amp.GradScaler, schedule: Schedule) -> bool:
    learner.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    try:
        with _precision(data.device.partition(":")[0], schedule):
            loss: Tensor = learner(data.batch(rows))
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        return False
    return True


def _exhausted(state: _State, schedule: Schedule) -> bool:
    return schedule.patience is not None and state.passes - state.best_pass >= schedule.patience


def _batches(order: _Rows, size: int) -> list[_Rows]:
    """Cut into batches; a last one of a single sample, which no batch norm can take, joins the one before."""
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] < 2:
        cuts.pop()
    return np.split(order, cuts)


@torch.no_grad()
def _validate(learner: Learner, data: _Data, rows: _Rows, schedule: Schedule) -> tuple[float, float]:
    """Mean loss of the validation samples, and the share whose own item is nearest among all validation items."""
    learner.eval()
    losses, queries = [], []
    for part in _batches(rows, schedule.batch_size):
        batch = data.batch(part)
        losses.append(len(part) * float(learner(batch)))
        queries.append(learner.encode(batch.epochs, batch.subject).float())
    items, place = np.unique(data.training.item[rows], return_inverse=True)
    candidates = [
        learner.embed(data.targets(items[start : start + schedule.batch_size])).float()
        for start in range(0, len(items), schedule.batch_size)
    ]
    similarity = nnf.normalize(torch.cat(queries), dim=1) @ nnf.normalize(torch.cat(candidates), dim=1).T
    hits = similarity.argmax(1).cpu().numpy() == place
    return sum(losses) / len(rows), float(hits.mean())


def weights(learner: Learner, *, trained: bool = False) -> dict[str, Tensor]:
    """State of a learner by name, without what is frozen; ``trained`` also without what only training needs."""
    left_out = learner.frozen + (learner.passing if trained else ())
    state = learner.state_dict()
    return {name: tensor.detach() for name, tensor in state.items() if not name.startswith(left_out or ("\0",))}


def load_weights(learner: Learner, state: Mapping[str, Tensor]) -> None:
    """Set a learner's state from :func:`weights`.

    Raises
    ------
    DataError
        Names or shapes are not the learner's.
    """
    try:
        missing, unknown = learner.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataError("stored weights", got=str(error).splitlines()[-1].strip(), do="fit it again") from error
    wrong = [name for name in missing if not name.startswith(learner.frozen + learner.passing or ("\0",))] + unknown
    if wrong:
        raise DataError("stored weights", got=f"{len(wrong)} names that do not fit: {wrong[0]} ...", do="fit it again")


def _copy(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights(learner).items()}


def _blend(average: dict[str, Tensor], learner: Learner, decay: float) -> None:
    for name, tensor in weights(learner).items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, 1 - decay)
        else:
            average[name].copy_(tensor)


@contextmanager
def _board(run: RunFolder, passes: int) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    if not distributed.is_first():
        yield None
        return
    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=passes + 1)
    try:
        yield writer
    finally:
        writer.close()


def _store(
    run: RunFolder,
    learner: Learner,
    optimiser: torch.optim.AdamW,
    best: dict[str, Tensor],
    average: dict[str, Tensor],
    state: _State,
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in weights(learner).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{name}": tensor for name, tensor in moments.items()}
    checkpoint.save(run.resume, {name: tensor.cpu().numpy() for name, tensor in tensors.items()}, state)


def _restore(
    run: RunFolder, learner: Learner, optimiser: torch.optim.AdamW
) -> tuple[_State, dict[str, Tensor], dict[str, Tensor]]:
    arrays, state = checkpoint.load(run.resume)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    device = next(learner.parameters()).device

    def of(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}

    load_weights(learner, of("model."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):  # the optimiser moves them, but for its steps, which Adam counts on the processor
            _, i, key = name.split(".")
            moments.setdefault(int(i), {})[key] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
    return msgspec.convert(state, _State), of("best."), of("average.")
