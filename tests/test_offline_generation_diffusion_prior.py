"""ATM's diffusion prior: its loss by the definition, sampling as diffusers' loop does it, the exported network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from models.diffusion_prior import DiffusionPriorUNet
from offline.generation import onnx_file
from offline.generation.diffusion_prior import DiffusionPriorSettings, Sampler, batch_loss, fit, noises, schedule
from offline.generation.loop import Steps
from streamdec.errors import ConfigError

C, D, N = 3, 5, 12


def settings(**changes) -> DiffusionPriorSettings:
    steps = Steps(n_steps=6, batch_size=4, learning_rate=1e-2, keep_every=2)
    return DiffusionPriorSettings(**({"widths": (8, 6), "n_time": 4, "n_samples": 4, "steps": steps} | changes))


def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, C), dtype=np.float32), rng.standard_normal((N, D), dtype=np.float32)


def network() -> DiffusionPriorUNet:
    torch.manual_seed(1)
    return DiffusionPriorUNet(D, C, (8, 6), n_time=4).eval()


@pytest.mark.parametrize("drop", [0.0, 0.999999])
def test_loss(drop: float) -> None:
    """``mean (e - e_theta(sqrt(p) x + sqrt(1 - p) e, t, c))^2``; without a condition for the whole batch."""
    net, rows = network(), np.array([2, 5, 7])
    conditions, images = map(torch.from_numpy, pairs())
    torch.manual_seed(2)
    found = batch_loss(net, schedule(settings()), conditions, images, rows, drop)
    torch.manual_seed(2)
    torch.rand(1)
    noise, times = torch.randn(3, D), torch.randint(0, 1000, (3,))
    power = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)[times][:, None]
    noisy = (power.sqrt() * images[rows] + (1 - power).sqrt() * noise).float()
    out = net(noisy, times, None if drop > 0.5 else conditions[rows])
    torch.testing.assert_close(found, ((out - noise) ** 2).mean())


@pytest.mark.parametrize(("guidance", "clip"), [(5.0, 1.0), (0.0, 1.0), (2.0, None), (2.0, 3.0)])
def test_sampling_is_diffusers_loop(guidance: float, clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.schedulers import scheduling_ddpm

    chosen = settings(guidance=guidance, clip=clip, n_samples=7)
    net = network()
    sampler = Sampler(net, chosen)
    condition, noise = torch.randn(1, C), torch.from_numpy(noises(sampler, 1, 3)[0])
    assert noise.shape == (1, 7, D)
    left = list(noise[:, 1:].unbind(1))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: left.pop(0))
    loop, x = schedule(chosen), noise[:, 0]
    with torch.inference_mode():
        for t in loop.timesteps:
            predicted = net(x, t[None], condition)
            if guidance:
                without = net(x, t[None])
                predicted = without + guidance * (predicted - without)
            x = loop.step(predicted, int(t), x).prev_sample
        torch.testing.assert_close(sampler(condition, noise), x, rtol=1e-4, atol=1e-5)
    assert not left


def test_exported(tmp_path: Path) -> None:
    """One file: the condition and the noise go in, the embedding comes out."""
    sampler = Sampler(network(), settings())
    noise = noises(sampler, 2, 4)
    conditions, _ = pairs()
    examples = [{"embedding": conditions[i : i + 1], "noise": noise[i]} for i in range(2)]
    onnx_file.write(tmp_path / "sampler.onnx", sampler, examples, "condition")
    session = onnxruntime.InferenceSession(tmp_path / "sampler.onnx", providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()} == {"embedding": [1, C], "noise": [1, 4, D]}
    weights = sum(p.numel() for p in sampler.parameters()) * 4
    assert weights < (tmp_path / "sampler.onnx").stat().st_size < 4 * weights + 400_000  # shared, not once per step


def test_trains_and_goes_on(tmp_path: Path) -> None:
    conditions, images = pairs()

    def kill(line: str, done: int = 0, total: int = 0) -> None:
        if done == 4:
            raise KeyboardInterrupt

    whole, loss = fit(conditions, images, settings(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(conditions, images, settings(), tmp_path / "killed", report=kill)
    again, same = fit(conditions, images, settings(), tmp_path / "killed")
    assert loss == same
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="widths"):
        settings(widths=(4,))
    with pytest.raises(ConfigError, match="n_samples"):
        settings(n_samples=0)


def test_it_does_not_go_on_with_other_samples(tmp_path: Path) -> None:
    conditions, images = pairs()
    fit(conditions, images, settings(), tmp_path)
    with pytest.raises(ConfigError, match="holds another run"):
        fit(conditions + 1, images, settings(), tmp_path)
