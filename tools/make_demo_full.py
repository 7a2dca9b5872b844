"""The bundle and the generator of `streamdec demo --full`: a simulated subject, captions and pictures of what it sees.

    python tools/make_demo_full.py FOLDER [--until STAGE] [--models FOLDER]

FOLDER keeps what is made on the way (2 GB at the end, 10 GB for a while); a stage whose output is there is skipped, and
one that was killed goes on. Everything goes through `streamdec-train`, as a user's own data would, on the models of
streamdec/simulate/world_models (tools/world). The sessions trained on are not the one the demo plays, and its images
are of concepts that neither these models nor the prior has seen. What it reaches is printed, and is a simulated figure.

Writes streamdec/simulate/demo_full.zip and streamdec/simulate/demo_generator/.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from offline.cli import main as train
from offline.data.store import Prepared
from streamdec.demo import DEMO_SESSION
from streamdec.simulate.captions import PHRASINGS, attributes, describe
from streamdec.simulate.subject import Subject
from streamdec.simulate.things_layout import write
from streamdec.simulate.world import World

SIMULATE = Path(__file__).parents[1] / "streamdec" / "simulate"
MODELS = SIMULATE / "world_models"
BUNDLE, GENERATOR = SIMULATE / "demo_full.zip", SIMULATE / "demo_generator"
STAGES = ("simulate", "images", "features", "prior", "fit", "generator", "ship")
N_SESSIONS = 4
PICTURES = World(0, n_train=1000, images_per_concept=10)
"""What the parts without EEG are fitted on: the test concepts are those of World(0), and are not among them."""

PRIOR = """\
n_dims = 256
n_inner = 512
n_projector = 512

[steps]
n_steps = 3000
batch_size = 64
learning_rate = 1e-3
warm_up = 100
cosine = true
keep_every = 100
"""
GENERATOR_TOML = """\
run = "runs/{run}"
captions = "captions.json"
images = {{ {images} }}

[bank]
text = "open_clip_text:{models}/clip"
images = "features/clip"

[llm]
model = "{models}/lm"
n_vectors = 8
wrong = 0.5
max_tokens = 32

[llm.images]
n_steps = 1500
batch_size = 64
learning_rate = 1e-3
warm_up = 50
cosine = true
keep_every = 100

[llm.epochs]
n_steps = 300
batch_size = 64
learning_rate = 2e-4
cosine = true
keep_every = 100

[latent]
vae = "{models}/diffusion"
latents = "features/vae"

[diffusion]
model = "{models}/diffusion"
prior = "prior"
features = {{ clip = "features/clip", vae = "features/vae" }}
size = 64
max_steps = 4
"""


def run(*arguments: str | Path) -> None:
    """One `streamdec-train` command; stop where it fails."""
    words = [str(word) for word in arguments]
    print("streamdec-train", *words, flush=True)
    code = train(words)
    if code:
        sys.exit(code)


def simulate(root: Path, models: Path) -> None:
    """Record the subject in the THINGS-EEG2 layout and prepare it."""
    assert N_SESSIONS <= DEMO_SESSION  # the demo plays noise and orders of a session that was not trained on
    write(root / "data", [Subject(World(0), 0)], n_sessions=N_SESSIONS)
    run("prepare", "things_eeg2", root / "data", root / "prepared", "--subject", "sub-01")
    shutil.rmtree(root / "data" / "eeg_dataset")


def images(root: Path, models: Path) -> None:
    """Draw the pictures, and say what they and the stimuli show."""
    captions = {}
    partial = root / "images.partial"
    for i, name in enumerate(PICTURES.ids("train")):
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PICTURES.image("train", i)).save(path, quality=95)
        captions[name] = caption(PICTURES, i)
    stimuli = World(0)
    ids = stimuli.ids("train")
    wanted = {item.id for item in Prepared(root / "prepared").meta.items["train"]}
    found = {next(id_ for id_ in (ids[i], f"training_images/{ids[i]}") if id_ in wanted): i for i in range(len(ids))}
    captions |= {id_: caption(stimuli, i) for id_, i in found.items()}
    (root / "captions.json").write_bytes(msgspec.json.encode(captions))
    partial.rename(root / "images")


def caption(world: World, i: int) -> str:
    """Say what a training image shows, each in one of the phrasings."""
    phrasing = int(np.random.default_rng([world.seed, 7, i]).integers(PHRASINGS))
    return describe(attributes(world.concept("train", i), world.look("train", i)), phrasing)


def features(root: Path, models: Path) -> None:
    """CLIP and latents, of the pictures and of the stimuli."""
    for name, encoder in (("clip", f"open_clip:{models / 'clip'}"), ("vae", f"vae:{models / 'diffusion/vae'}@size=64")):
        run("features", root / "images", encoder, root / "features" / name)
        run("features", root / "prepared", encoder, root / "stimuli" / name)


def prior(root: Path, models: Path) -> None:
    """HVF's Fusion Prior, and its space for any method."""
    (root / "prior.toml").write_text(PRIOR, encoding="utf-8")
    given = ",".join(f"{role}={root / 'features' / role}" for role in ("clip", "vae"))
    model, latents = models / "diffusion", root / "features" / "vae"
    run("prior", model, given, latents, root / "prior", "--config", root / "prior.toml")
    run("features", root / "images", f"fused:{root / 'prior'}", root / "features" / "fused")
    run("features", root / "prepared", f"fused:{root / 'prior'}", root / "stimuli" / "fused")


def fit(root: Path, models: Path) -> None:
    """Ridge into the fused space."""
    run("fit", "ridge", root / "prepared", root / "stimuli" / "fused", root / "runs" / "ridge")
    run("evaluate", root / "runs" / "ridge")


def generator(root: Path, models: Path) -> None:
    """Everything that turns its embeddings into captions and pictures."""
    config = root / "generator.toml"
    config.write_text(
        GENERATOR_TOML.format(run="ridge", models=models, images='image = "features/fused"'), encoding="utf-8"
    )
    run("generator", config, root / "generator")


def ship(root: Path, models: Path) -> None:
    """Bundle and generator, where the demo looks for them."""
    BUNDLE.unlink(missing_ok=True)
    run("export", root / "runs" / "ridge", BUNDLE)
    shutil.rmtree(GENERATOR, ignore_errors=True)
    shutil.copytree(root / "generator", GENERATOR)
    size = sum(path.stat().st_size for path in [BUNDLE, *GENERATOR.rglob("*")] if path.is_file())
    print(f"{BUNDLE.name}, {GENERATOR.name}: {size / 1e6:.1f} MB")


def work(root: Path, models: Path, stages: Sequence[str]) -> None:
    """Run those of the stages that are not done yet."""
    root.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        done = root / f"{stage}.done"
        if stage == "ship" or not done.exists():
            print(f"{stage} ...", flush=True)
            globals()[stage](root, models)
            done.touch()


def main() -> None:
    """Run the stages that are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1])
    parser.add_argument("--models", type=Path, default=MODELS, help="as tools/world makes them; default: the shipped")
    args = parser.parse_args()
    root, models = args.folder.resolve(), args.models.resolve()
    work(root, models, STAGES[: STAGES.index(args.until) + 1])


if __name__ == "__main__":
    main()
