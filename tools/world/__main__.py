"""The procedural world's own models, in the real libraries' classes: trained, measured, and written with their card.

    python tools/world                       # all, into streamdec/simulate/world_models: about an hour of a core
    python tools/world vae unet --cache DIR  # some; trained ones are taken up where they were
    python tools/world --measure             # train nothing: figures and hashes of what is there

None of them saw one of the 200 test concepts of World(0). What they reach on these is in card.json, and simulated.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from data import LOOKS, N_CONCEPTS, N_IMAGES, Data

import streamdec.simulate

OUT = Path(streamdec.simulate.__file__).with_name("world_models")
STAGES = {
    "judge": "judge",
    "clip": "clip",
    "vit": "vit",
    "vae": "diffusion/vae",
    "decoder": "diffusion/vae",
    "unet": "diffusion",  # reads the latents of vae, and is measured by judge
    "lm": "lm",
}
"""Modules of this folder, and where in the models' folder each writes."""


def main() -> None:
    """Run the stages, then write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=[], metavar="STAGE", help=f"of {', '.join(STAGES)}; all")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "streamdec-world")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of training, for a trial")
    parser.add_argument("--batch", type=int, help="images of a step, for a trial")
    parser.add_argument("--images", type=int, default=N_IMAGES, help="to train on, for a trial")
    parser.add_argument("--tested", type=int, default=200, help="test concepts to measure on, for a trial")
    parser.add_argument("--measure", action="store_true", help="train nothing, measure what is there")
    arguments = parser.parse_args()
    for name in arguments.stages:
        if name not in STAGES:
            parser.error(f"stage {name!r}: one of {', '.join(STAGES)}")
    import diffusers  # these take ten seconds: not before the arguments are right
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    data = Data(arguments.cache, arguments.images)
    file = arguments.out / "card.json"
    known = json.loads(file.read_text())["models"] if file.exists() else {}
    chosen = arguments.stages or (known if arguments.measure else STAGES)
    for name, folder in STAGES.items():
        if name not in chosen:
            continue
        stage = importlib.import_module(name)
        out = arguments.out / folder
        if not arguments.measure:
            out.parent.mkdir(parents=True, exist_ok=True)
            trial = {key: getattr(arguments, key) for key in ("steps", "batch") if getattr(arguments, key) is not None}
            known[name] = {"folder": folder, **stage.make(data, arguments.cache, out, **trial)}
        known[name]["test"] = stage.measure(out, data, arguments.tested)
        print(name, known[name])
    forget_paths(arguments.out)
    file.write_text(json.dumps(card(arguments.out, known, len(data.images)), indent=2) + "\n")


def forget_paths(out: Path) -> None:
    """Take out of the models' configs where diffusers had loaded them from."""
    for file in out.rglob("config.json"):
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n")


def card(out: Path, known: dict[str, Any], n_images: int) -> dict[str, Any]:
    """Say what the models are: data, steps, seeds, figures, libraries, and the hash of every file."""
    import diffusers
    import open_clip
    import torch
    import transformers

    files = sorted(file for file in out.rglob("*") if file.is_file() and file.name != "card.json")
    return {
        "what": "Small models of the procedural world, in the classes of open_clip, diffusers and transformers.",
        "made_by": "python tools/world",
        "simulated": True,
        "data": f"{n_images} images of World(0, n_train={N_CONCEPTS}, images_per_concept={LOOKS}) with true sentences; "
        "the 200 test concepts of World(0) were never seen. Figures are on one image of each of them.",
        "models": {name: known[name] for name in STAGES if name in known},
        "libraries": {module.__name__: module.__version__ for module in (torch, open_clip, diffusers, transformers)},
        "files": {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }


if __name__ == "__main__":
    main()
