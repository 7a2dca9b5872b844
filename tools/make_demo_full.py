"""The bundle and the generator of `streamdec demo --full`: a simulated subject, captions and pictures of what it sees.

    python tools/make_demo_full.py FOLDER [--until STAGE] [--models FOLDER]

FOLDER keeps what is made on the way (1.5 GB at the end, 10 GB for a while); a stage that is done there is skipped, and
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

from offline.cli import main as train
from streamdec.decode import bundle as bundles
from streamdec.demo import DEMO_SESSION, FULL_DISTINCTNESS, FULL_IDIOSYNCRASY
from streamdec.simulate.captions import PHRASINGS, attributes, describe
from streamdec.simulate.subject import Subject
from streamdec.simulate.things_layout import write
from streamdec.simulate.world import Split, World

SIMULATE = Path(__file__).parents[1] / "streamdec" / "simulate"
MODELS = SIMULATE / "world_models"
BUNDLE, GENERATOR = SIMULATE / "demo_full.zip", SIMULATE / "demo_generator"
STAGES = ("simulate", "features", "prior", "fit", "generator", "ship")
WORLD = World(0, n_train=1654, images_per_concept=10)
"""As many concepts and images as THINGS-EEG2 has; the 200 test concepts are those of any number of training ones."""
N_SESSIONS = 4
IMAGES = Path("data/image_set/training_images")
"""What the parts without EEG are fitted on; the features of the store hold the test images' as well."""

ROLES = ("clip", "vae", "said")
"""What is fused: CLIP's image features, the autoencoder's latents, and CLIP's text features of what an image shows."""
N_DIMS = 512
PRIOR_STEPS = 5200
GUIDANCE, ADAPTER_SCALE = 2.0, 0.25
"""Guidance: chosen on concepts held out of the encoder's training, where 0 to 0.5 of the adapter draw alike."""
PRIOR = """\
n_dims = {n_dims}
n_inner = 512
n_projector = 512
fuse = {fuse}
often = [999, 749, 499, 249]

[steps]
n_steps = {n_steps}
batch_size = 32
learning_rate = 1e-3
warm_up = 50
cosine = true
keep_every = 50
"""
HVF = """\
backbone = "tsconv"
n_dims = {n_dims}
n_inner = 512
prior = "{prior}"

[schedule]
n_epochs_train = 20
batch_size = 256
learning_rate = 1e-3
"""
GENERATOR_TOML = """\
run = "hvf"
captions = "captions.json"

[bank]
text = "open_clip_text:{models}/clip"
images = "features/clip"

[llm]
model = "{models}/lm"
n_vectors = 8
wrong = 0.25
max_tokens = 32

[llm.images]
n_steps = 500
batch_size = 32
learning_rate = 2e-3
warm_up = 30
cosine = true
keep_every = 50

[llm.epochs]
n_steps = 100
batch_size = 32
learning_rate = 2e-4
cosine = true
keep_every = 50

[latent]
vae = "{models}/diffusion"
latents = "features/vae"

[diffusion]
model = "{models}/diffusion"
prior = "prior"
features = {{ clip = "features/clip", vae = "features/vae", said = "features/said" }}
size = 64
max_steps = 4
captioned = true
guidance = {guidance}
adapter_scale = {adapter_scale}
"""


def run(*arguments: str | Path) -> None:
    """One `streamdec-train` command; stop where it fails."""
    words = [str(word) for word in arguments]
    print("streamdec-train", *words, flush=True)
    code = train(words)
    if code:
        sys.exit(code)


def simulate(root: Path, models: Path) -> None:
    """Record the subject in the THINGS-EEG2 layout, prepare it, and say what its images show."""
    assert N_SESSIONS <= DEMO_SESSION  # the demo plays noise and orders of a session that was not trained on
    subject = Subject(WORLD, 0, distinctness=FULL_DISTINCTNESS, idiosyncrasy=FULL_IDIOSYNCRASY)
    write(root / "data", [subject], n_sessions=N_SESSIONS)
    run("prepare", "things_eeg2", root / "data", root / "prepared", "--subject", "sub-01")
    shutil.rmtree(root / "data" / "eeg_dataset")


def features(root: Path, models: Path) -> None:
    """Features of all that the store shows, and of the training images alone; captions."""
    said = captions(WORLD, "train")
    write_captions(root / "captions.json", said)
    # Of candidates of retrieval, and not in the bank: a caption is made without them.
    write_captions(root / "stimuli.json", said | captions(WORLD, "test"))
    encoders = (
        f"open_clip:{models / 'clip'}",
        f"vae:{models / 'diffusion' / 'vae'}@size=64",
        f"open_clip_text:{models / 'clip'}@captions={root / 'stimuli.json'}",
    )
    for folder, shows in (("stimuli", Path("prepared")), ("features", IMAGES)):
        for role, encoder in zip(ROLES, encoders, strict=True):
            run("features", root / shows, encoder, root / folder / role)


def write_captions(path: Path, said: dict[str, str]) -> None:
    """Write captions by id."""
    path.write_bytes(msgspec.json.encode(said))


def captions(world: World, split: Split) -> dict[str, str]:
    """Say what the images of a split show, each in one of the phrasings, by id."""
    phrasings = np.random.default_rng([world.seed, 7]).integers(PHRASINGS, size=world.n_images(split))
    return {
        id_: describe(attributes(world.concept(split, i), world.look(split, i)), int(phrasing))
        for i, (id_, phrasing) in enumerate(zip(world.ids(split), phrasings, strict=True))
    }


def prior(root: Path, models: Path) -> None:
    """HVF's Fusion Prior of all roles."""
    train_prior(root, models, root / "prior", ROLES)


def fit(root: Path, models: Path) -> None:
    """HVF's encoder, from epochs into the space of the prior."""
    train_hvf(root, root / "hvf", ROLES, root / "prior")


def train_prior(
    root: Path, models: Path, out: Path, roles: Sequence[str], *, fuse: bool = True, n_steps: int = PRIOR_STEPS
) -> None:
    """Train a prior of some features of the training images."""
    config = out.with_suffix(".toml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(PRIOR.format(n_dims=N_DIMS, fuse=str(fuse).lower(), n_steps=n_steps), encoding="utf-8")
    given = ",".join(f"{role}={root / 'features' / role}" for role in roles)
    run("prior", models / "diffusion", given, root / "features" / "vae", out, "--config", config)


def train_hvf(root: Path, out: Path, roles: Sequence[str], prior: Path | None, n_dims: int = N_DIMS) -> None:
    """Train HVF's encoder, into a prior's space or for retrieval, and say what it reaches."""
    config = out.with_suffix(".toml")
    config.write_text(HVF.format(n_dims=n_dims, prior=prior or ""), encoding="utf-8")
    given = ",".join(f"{role}={root / 'stimuli' / role}" for role in roles)
    run("fit", "hvf", root / "prepared", given, out, "--config", config)
    run("evaluate", out)


def generator(root: Path, models: Path) -> None:
    """Everything that turns its embeddings into captions and pictures."""
    config = root / "generator.toml"
    config.write_text(
        GENERATOR_TOML.format(models=models, guidance=GUIDANCE, adapter_scale=ADAPTER_SCALE), encoding="utf-8"
    )
    run("generator", config, root / "generator")


def ship(root: Path, models: Path) -> None:
    """Bundle and generator, where the demo looks for them."""
    BUNDLE.unlink(missing_ok=True)
    (root / "bundle.zip").unlink(missing_ok=True)
    run("export", root / "hvf", root / "bundle.zip")
    made = bundles.read(root / "bundle.zip")
    # Without what other engines would be compiled from, which is as large as the ONNX file.
    encoders = {head.encoder: made.encoder(head) for head in made.manifest.heads}
    pictures = {id_: picture for id_ in made.gallery.ids if (picture := made.thumbnail(id_))}
    bundles.write(BUNDLE, made.manifest, made.arrays, made.gallery, encoders, pictures)
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
    work(args.folder.resolve(), args.models.resolve(), STAGES[: STAGES.index(args.until) + 1])


if __name__ == "__main__":
    main()
