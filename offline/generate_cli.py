"""``streamdec-train prior`` and ``generator``: what turns embeddings into captions and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from streamdec.config import convert, read_toml

from .console import progress, tell


def add(commands: Any, roles: Callable[[str], dict[str, Path]]) -> None:
    """Add the commands; ``roles`` reads ROLE=FOLDER,..."""
    prior = commands.add_parser(
        "prior", help="images' features -> condition of a frozen diffusion model (Fusion Prior)"
    )
    prior.add_argument("model", metavar="NAME_OR_FOLDER", help="text-to-image pipeline of diffusers with a U-Net")
    prior.add_argument(
        "features", type=roles, metavar="ROLE=FEATURES[,...]", help="folders of features of one set of images"
    )
    prior.add_argument("latents", type=Path, metavar="LATENTS", help="features vae:MODEL@size=PIXELS of the images")
    prior.add_argument("out", type=Path, help="folder of the prior; a killed call goes on there")
    prior.add_argument("--config", type=Path, help="TOML, see configs/generators/; default: the published settings")
    prior.add_argument("--seed", type=int, default=0)
    prior.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    prior.set_defaults(run=_prior)

    generator = commands.add_parser("generator", help="a run -> captions and pictures of its embeddings, for serve")
    generator.add_argument("config", type=Path, help="TOML, see configs/generators/")
    generator.add_argument("out", type=Path, help="new folder; a killed call goes on with OUT.parts")
    generator.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    generator.set_defaults(run=_generator)

    inspect = commands.add_parser("inspect", help="what a generator says of a run's test stimuli, and from what")
    inspect.add_argument("generator", type=Path)
    inspect.add_argument("fitted", type=Path, metavar="RUN", help="the run that the generator was made for")
    inspect.add_argument("out", type=Path, help="folder for captions.tsv, embeddings.png, tokens.tsv")
    inspect.add_argument("--prepared", type=Path, help="store with the test part; default: the run's own")
    inspect.set_defaults(run=_inspect)


def _prior(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .generation.prior import PriorSettings, fit
    from .targets.store import Targets

    settings = convert(read_toml(args.config) if args.config else {}, PriorSettings, f"config {args.config}")
    features = {role: Targets(path) for role, path in args.features.items()}
    with progress(err) as report:
        made = fit(
            args.model,
            features,
            Targets(args.latents),
            args.out,
            settings,
            seed=args.seed,
            device=args.device,
            report=report,
        )
    tell(out, f"{args.out}: {', '.join(made.encoders)} into {made.model}, {made.n_images} images, loss {made.loss:.4f}")


def _generator(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .generation.build import build
    from .generation.config import read

    with progress(err) as report:
        notes = build(read(args.config), args.out, device=args.device, report=report)
    tell(out, f"{args.out}: {', '.join(f'{name} {value:.4g}' for name, value in notes.items())}")


def _inspect(args: argparse.Namespace, out: Console, err: Console) -> None:
    from streamdec.decode.generate.generator import open_generator

    from .data.store import Prepared
    from .generation.inspect import inspect

    prepared = Prepared(args.prepared) if args.prepared else None
    rows = inspect(open_generator(args.generator), args.fitted, args.out, prepared)
    mean = sum(row.cosine for row in rows) / len(rows)
    tell(out, f"{args.out}: {len(rows)} stimuli, mean cosine of embedding and image {mean:.3f}")
    for row in rows[:5]:
        tell(out, f"{row.label}: {row.llm or row.bank}")
