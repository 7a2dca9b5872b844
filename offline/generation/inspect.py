"""Looking into a generator: captions of a test part as a table, embeddings as heat maps, the prompt token by token.

What "ThinkEEG2Text" (aary-gaind/neuroAI-ML-projects-@04a1457) calls batch inference and verification.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from streamdec.decode.gallery import top, unit
from streamdec.decode.generate.generator import OpenGenerator
from streamdec.decode.generate.job import Request
from streamdec.decode.generate.tiers.bank import BankTier
from streamdec.decode.generate.tiers.llm import LlmTier
from streamdec.decode.generate.tiers.network import Network
from streamdec.decode.generate.tiers.prompt import Prompt
from streamdec.decode.generate.tiers.query import Query
from streamdec.errors import ConfigError
from streamdec.types import Candidate, Float32

from ..checkpoint import RunFolder, RunMeta, writing
from ..data.store import Prepared
from ..experiment import open_test
from ..space import space

_SHOWN = 64  # rows of a heat map
_WIDTH = 7.2  # inches


class Row(msgspec.Struct, frozen=True):
    """One test stimulus: what it is, what was retrieved and said; ``cosine`` of its embedding with its own image's."""

    key: str
    label: str
    retrieved: str
    length: float
    cosine: float
    bank: str
    llm: str


class Token(msgspec.Struct, frozen=True):
    """One position of a prompt: what stands there, of what kind; of a projected vector the word nearest by cosine."""

    position: int
    kind: str
    text: str
    cosine: float


def generate_caption(tier: LlmTier | BankTier, embedding: Float32, label: str = "", key: str = "") -> str:
    """Write one caption, without a deadline.

    Parameters
    ----------
    tier : LlmTier or BankTier
    embedding : array of shape (dim,), float32
        Not normalised.
    label : str
        What the prompt is told, such as the best candidate's.
    key : str
        Stimulus key, for messages.
    """
    request = _request(embedding, label, key)
    if isinstance(tier, BankTier):
        return tier.run(request).text
    return tier.run(request, tier.units[1], math.inf, lambda: 0.0, lambda result, done: True).text


def inspect_tokens(generator: OpenGenerator, embedding: Float32, label: str) -> list[Token]:
    """Show the prompt as the language model gets it: words, and vectors where ``<image>`` was.

    Raises
    ------
    ConfigError
        The generator has no language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = generator.manifest.llm
    if spec is None:
        raise ConfigError("generator", got="no llm", allowed="one with a language model")
    folder = generator.model(spec.model, ("config.json", "tokenizer_config.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    table = model.get_input_embeddings().weight.detach().float().numpy()
    vectors = Network(generator, spec.projector)(Query(generator)(_request(embedding, label)))[0]
    before, after = Prompt(tokenizer, spec.system, spec.prompt).tokens(label)
    likeness = unit(vectors) @ unit(table).T
    seen = [("image", str(tokenizer.decode([int(row.argmax())])), float(row.max())) for row in likeness]
    words = [[("prompt", str(tokenizer.decode([token])), 1.0) for token in side] for side in (before, after)]
    return [Token(i, *told) for i, told in enumerate([*words[0], *seen, *words[1]])]


def _request(embedding: Float32, label: str, key: str = "") -> Request:
    candidates = (Candidate(label, label, 1.0, 1.0),) if label else ()
    return Request(1, "caption", key, 1, 0.0, math.inf, candidates, embedding)


def inspect(generator: OpenGenerator, run: Path, out: Path, prepared: Prepared | None = None) -> list[Row]:
    """Caption the test part of a run from the mean of all repetitions; write table, heat maps and tokens.

    Writes ``captions.tsv``, ``embeddings.png`` and, with a language model, ``tokens.tsv`` of the first stimulus.

    Parameters
    ----------
    generator : OpenGenerator
        Of the run.
    run : Path
    out : Path
        Folder.
    prepared : Prepared, optional
        Whose test part; the run's own when omitted.

    Raises
    ------
    ConfigError
        The generator is for another space.
    DataError
        The run is not fitted, or there is no test part; the folder cannot be written.
    """
    test = open_test(run, prepared)
    folder = RunFolder(run)
    wanted = space(folder.encoder, folder.read("run.json", RunMeta), test.encoder, test.targets)
    if generator.manifest.space != wanted:
        raise ConfigError(f"generator {generator.path.name}", got="another embedding space", allowed=f"that of {run}")
    means, shown, _ = test.averaged()
    queries = test.encode(means)
    items = [test.part.items[i] for i in shown]
    images = test.encoder.candidates({role: of_role.of(items) for role, of_role in test.targets.items()})
    bank = BankTier(generator) if generator.manifest.bank else None
    llm = LlmTier(generator) if generator.manifest.llm else None
    rows = []
    for item, query, image in zip(items, queries, images, strict=True):
        (best,) = top(test.gallery.scores(query), 1)
        label = test.gallery.labels[best]
        rows.append(
            Row(
                key=item.id,
                label=item.label,
                retrieved=label,
                length=float(np.linalg.norm(query)),
                cosine=float((unit(query) * unit(image)).sum()),
                bank=generate_caption(bank, query, label, item.id) if bank else "",
                llm=generate_caption(llm, query, label, item.id) if llm else "",
            )
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        _table(out / "captions.tsv", rows)
        heat_maps(out / "embeddings.png", queries, images, [item.label for item in items])
        if llm:
            _table(out / "tokens.tsv", inspect_tokens(generator, queries[0], rows[0].retrieved))
    return rows


def heat_maps(path: Path, queries: Float32, images: Float32, labels: Sequence[str]) -> None:
    """Draw embeddings of epochs beside those of their images, one row each, and the cosines of all with all.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("matplotlib is not installed", do="pip install 'streamdec[report]'") from error
    given = [unit(array[:_SHOWN]) for array in (queries, images)]
    figure = Figure(figsize=(_WIDTH, 0.42 * _WIDTH), layout="constrained")
    axes = figure.subplots(1, 3)
    bound = float(np.percentile(np.abs(np.concatenate(given)), 99))
    for axis, array, title in zip(axes[:2], given, ("epochs", "images"), strict=True):
        axis.imshow(array, aspect="auto", cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
        axis.set(title=f"embeddings of {title}", xlabel="dimension", ylabel="stimulus")
    drawn = axes[2].imshow(given[0] @ given[1].T, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes[2].set(title="cosine", xlabel="image", ylabel="epoch")
    figure.colorbar(drawn, ax=axes[2], shrink=0.7)
    if len(labels) <= 16:
        axes[0].set_yticks(range(len(labels)), labels, fontsize=6)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


def _table(path: Path, rows: Sequence[msgspec.Struct]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
        table.writerow(rows[0].__struct_fields__)
        for row in rows:
            cells = msgspec.structs.astuple(row)
            table.writerow(f"{cell:.4f}" if isinstance(cell, float) else cell for cell in cells)
