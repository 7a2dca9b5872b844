"""Figures of captions, as Thought2Text (arXiv 2410.07507, its repository at f76b6e6) takes them: sentence by sentence.

One reference per stimulus, and the first sentence of what was generated, whatever followed it. Two differences: ROUGE
is Google's ``rouge-score``, where Thought2Text has the package ``rouge``; METEOR's words are found without the sentence
splitter, which one sentence does not need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from streamdec.errors import ConfigError
from streamdec.types import Float64

from ..targets.frozen import check_device, missing
from ..targets.huggingface import opened

Scorer: TypeAlias = Callable[[Sequence[str], Sequence[str]], dict[str, Float64]]
"""(n references, n captions) -> figures by name, (n,) float64 each."""

_ODD = re.compile(r"[^a-zA-Z0-9.,!?;:'\"()\[\]{}\-\s]")
_END = re.compile(r"(?<=[.!?])\s+")
_ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def first_sentence(text: str) -> str:
    """Take the first sentence, without characters other than letters, digits and common punctuation, on one line."""
    plain = _ODD.sub("", text).strip()
    return " ".join(_END.split(plain)[0].split())


def bleu() -> Scorer:
    """BLEU of words alone and up to four in a row (Papineni et al. 2002), smoothed by nltk's method 4.

    Words are what white space parts, as they are written.

    Raises
    ------
    ConfigError
        nltk is not installed.
    """
    try:
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    except ImportError as error:
        raise missing("nltk", "judge") from error
    smooth = SmoothingFunction().method4

    def score(references: Sequence[str], captions: Sequence[str]) -> dict[str, Float64]:
        pairs = [
            ([reference.split()], caption.split()) for reference, caption in zip(references, captions, strict=True)
        ]
        return {
            f"BLEU-{n}": np.array(
                [sentence_bleu(*pair, weights=(1 / n,) * n, smoothing_function=smooth) for pair in pairs], np.float64
            )
            for n in (1, 4)
        }

    return score


def rouge() -> Scorer:
    """F of ROUGE-1, -2 and -L (Lin 2004), without stemming.

    Raises
    ------
    ConfigError
        rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing("rouge-score", "judge") from error
    scorer = RougeScorer(list(_ROUGE))

    def score(references: Sequence[str], captions: Sequence[str]) -> dict[str, Float64]:
        found = [scorer.score(reference, caption) for reference, caption in zip(references, captions, strict=True)]
        return {name: np.array([one[key].fmeasure for one in found], np.float64) for key, name in _ROUGE.items()}

    return score


def meteor(wordnet: Any = None) -> Scorer:
    """METEOR (Banerjee and Lavie 2005): words, their stems and their synonyms.

    Parameters
    ----------
    wordnet : WordNetCorpusReader, optional
        Where synonyms are from; nltk's own where None.

    Raises
    ------
    ConfigError
        nltk is not installed, or WordNet is not where it looks.
    """
    try:
        import nltk
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError as error:
        raise missing("nltk", "judge") from error
    if wordnet is None:
        from nltk import corpus

        wordnet = corpus.wordnet
        try:
            wordnet.ensure_loaded()
        except (LookupError, OSError) as error:  # none, or not all of it
            raise ConfigError(
                "WordNet, which METEOR needs",
                got=f"no corpora/wordnet.zip in {', '.join(map(str, nltk.data.path))}",
                do="run python -m nltk.downloader wordnet; without a network, bring corpora/wordnet.zip into a folder "
                "and name the folder in NLTK_DATA",
            ) from error
    parts = NLTKWordTokenizer().tokenize

    def score(references: Sequence[str], captions: Sequence[str]) -> dict[str, Float64]:
        found = [
            single_meteor_score(parts(reference), parts(caption), wordnet=wordnet)
            for reference, caption in zip(references, captions, strict=True)
        ]
        return {"METEOR": np.array(found, np.float64)}

    return score


def bert_score(model: str = "roberta-large", device: str = "cpu") -> Scorer:
    """F of BERTScore (Zhang et al. 2020, arXiv 1904.09675), without idf weights or rescaling; 0 for an empty caption.

    Parameters
    ----------
    model : str
        Name on the hub, or a folder; the default is what the library takes for English. What is called as a model of
        the library's list is read at the layer that was tuned for it, anything else at its last.
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        bert-score is not installed, there is no such model here, or no such device.
    """
    try:
        from bert_score import BERTScorer
        from bert_score.utils import model2layers
        from transformers import AutoConfig
    except ImportError as error:
        raise missing("bert-score", "judge") from error
    check_device(device)
    config = opened(AutoConfig.from_pretrained, model)
    layer = model2layers.get(Path(model).name if Path(model).is_dir() else model, config.num_hidden_layers)
    with redirect_stderr(StringIO()):  # the bars of its loaders
        scorer = opened(lambda name: BERTScorer(model_type=name, num_layers=layer, device=device), model)

    def score(references: Sequence[str], captions: Sequence[str]) -> dict[str, Float64]:
        out = np.zeros(len(captions))
        said = [i for i, caption in enumerate(captions) if caption]
        if said:
            out[said] = scorer.score([captions[i] for i in said], [references[i] for i in said])[2].double().numpy()
        return {"BERTScore": out}

    return score
