"""What the Fusion Prior gains on the simulated subject, and which features it should fuse: line 3 of the seed's table.

    python tools/ablate_prior.py FOLDER [--models FOLDER] [--images N]

FOLDER is that of tools/make_demo_full.py, of which the stages up to "features" are run. Every row has a Fusion Prior
(or a plain IP-Adapter) of its own and a brain encoder of HVF, and draws what the subject saw from the mean of all 80
repetitions; `streamdec-train judge` then looks at the pictures. Rows:

- both, semantic, pixel: features of CLIP and of the autoencoder, of CLIP, of the autoencoder;
- past-phi: the prior of both, drawn as the reference draws;
- without: HVF trained for retrieval, its fused features fed as they are into an IP-Adapter that knows CLIP's;
- mapped: the same by way of a linear map to CLIP's features.

The figures are simulated ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from make_demo_full import MODELS, ROLES, STAGES, run, train_hvf, train_prior, work

GENERATOR = """\
run = "hvf"
inside = false
[diffusion]
model = "{model}"
prior = "{prior}"
features = {{ {features} }}
size = 64
brain_through_adapter = {through}
bridge = {bridge}
"""
FUSED = {"both": ROLES, "semantic": ROLES[:1], "pixel": ROLES[1:]}


def prior(root: Path, models: Path, name: str, roles: Sequence[str], fuse: bool = True) -> Path:
    """Train a prior where it is not there yet; that of both is the demo's own."""
    out = root / "prior" if name == "both" else root / "ablation" / name / "prior"
    if not (out / "prior.json").exists():
        train_prior(root, models, out, roles, fuse=fuse)
    return out


def brain(root: Path, name: str, roles: Sequence[str], prior: Path | None, n_dims: int = 256) -> None:
    """Train HVF's encoder, into a prior's space or for retrieval, and export it."""
    folder = root / "ablation" / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "bundle.zip").exists():
        train_hvf(root, folder / "hvf", roles, prior, n_dims)
        run("export", folder / "hvf", folder / "bundle.zip")


def judged(root: Path, models: Path, name: str, row: str, settings: dict[str, str], n_images: int) -> Path:
    """Make a row's generator, let it draw, and judge the pictures."""
    folder = root / "ablation" / name
    verdict = folder / f"{row}.json"
    if not verdict.exists():
        config, generator, results = (folder / f"{row}-{what}" for what in ("config", "generator", "results"))
        text = GENERATOR.format(model=models / "diffusion", **settings)
        config.with_suffix(".toml").write_text(text, encoding="utf-8")
        if not generator.exists():
            run("generator", config.with_suffix(".toml"), generator)
        if not results.exists():
            run("results", folder / "bundle.zip", generator, results, "--simulated", str(n_images))
        run("judge", results, "--truth", "world", "--out", verdict)
    return verdict


def main() -> None:
    """Run the rows, print where their figures are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--images", type=int, default=200, help="test images drawn (default: all 200)")
    args = parser.parse_args()
    root, models = args.folder.resolve(), args.models.resolve()
    work(root, models, STAGES[: STAGES.index("features") + 1])
    found = {}
    for name, roles in FUSED.items():
        made = prior(root, models, name, roles)
        brain(root, name, roles, made)
        features = ", ".join(f'{role} = "{root / "features" / role}"' for role in roles)
        settings = {"prior": str(made), "features": features, "bridge": "true"}
        for row, through in ((name, "true"), *([("past-phi", "false")] if name == "both" else [])):
            found[row] = judged(root, models, name, row, settings | {"through": through}, args.images)
    plain = prior(root, models, "without", FUSED["semantic"], fuse=False)
    brain(root, "without", FUSED["both"], None, n_dims=128)
    settings = {"prior": str(plain), "features": f'clip = "{root / "features" / "clip"}"', "through": "true"}
    for row, bridge in (("without", "false"), ("mapped", "true")):
        found[row] = judged(root, models, "without", row, settings | {"bridge": bridge}, args.images)
    for row, path in found.items():
        print(row, json.dumps(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
