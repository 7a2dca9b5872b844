"""Noise normalisation against the published procedure, on the same array: seconds of both, their ratio, the error.

The procedure, rewritten from gifale95/eeg_encoding @f0c03bf: scikit-learn's standardisation and Ledoit-Wolf estimate
for each epoch (``epochs``) or each instant (``time``), means of them over epochs or instants and over stimuli, then
``scipy.linalg.fractional_matrix_power``. Needs scikit-learn, which streamdec does not. Random data, one thread.

    OMP_NUM_THREADS=1 python tools/bench_mvnn.py
"""

from __future__ import annotations

import time

import numpy as np
from scipy.linalg import fractional_matrix_power
from sklearn.covariance import ledoit_wolf
from sklearn.preprocessing import StandardScaler

from streamdec.signal.mvnn import condition_weights, noise_covariance, repetition_covariance, whitener


def published(samples: np.ndarray) -> np.ndarray:
    """(n, n_chans) -> (n_chans, n_chans): sklearn.discriminant_analysis._cov(samples, shrinkage="auto")."""
    scaler = StandardScaler()
    shrunk = ledoit_wolf(scaler.fit_transform(samples))[0]
    return np.asarray(scaler.scale_[:, None] * shrunk * scaler.scale_[None, :])


def reference(epochs: np.ndarray, dim: str) -> np.ndarray:
    """(n_stimuli, n_repetitions, n_chans, n_times) -> whitener."""
    sigma = []
    for of_stimulus in epochs:
        parts = [e.T for e in of_stimulus] if dim == "epochs" else list(of_stimulus.transpose(2, 0, 1))
        sigma.append(np.mean([published(part) for part in parts], axis=0))
    return np.asarray(fractional_matrix_power(np.mean(sigma, axis=0), -0.5))


def ours(epochs: np.ndarray, dim: str) -> np.ndarray:
    """Do the same by streamdec.signal.mvnn."""
    if dim == "time":
        return whitener(np.mean([repetition_covariance(of_stimulus) for of_stimulus in epochs], axis=0))
    flat = epochs.reshape(-1, *epochs.shape[2:])
    return whitener(noise_covariance(flat, condition_weights(np.repeat(np.arange(len(epochs)), epochs.shape[1]))))


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    size = "stimuli x repetitions x channels x samples"
    print(f"{'dim':8}{size:44}{'theirs s':>12}{'ours s':>9}{'ratio':>8}{'error':>10}")
    for dim, shape in (
        ("epochs", (200, 2, 63, 250)),
        ("epochs", (200, 2, 17, 100)),
        ("time", (20, 2, 63, 250)),
        ("time", (50, 2, 17, 100)),
        ("time", (20, 20, 17, 100)),
    ):
        mixing = rng.standard_normal((shape[2], shape[2]))
        epochs = (mixing @ rng.standard_normal(shape)).astype(np.float32)
        ours(epochs[:2], dim)
        seconds, found = [], []
        for run in (reference, ours):
            start = time.perf_counter()
            found.append(run(epochs, dim))
            seconds.append(time.perf_counter() - start)
        error = np.abs(found[1] - found[0]).max() / np.abs(found[0]).max()
        size = " x ".join(map(str, shape))
        print(f"{dim:8}{size:44}{seconds[0]:12.2f}{seconds[1]:9.3f}{seconds[0] / seconds[1]:8.1f}{error:10.1e}")


if __name__ == "__main__":
    main()
