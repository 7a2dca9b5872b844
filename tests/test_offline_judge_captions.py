"""Figures of captions against published examples and formulas written out."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from offline.judge import captions
from streamdec.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A red ring. It is large.", "A red ring."),
        ("A red\n ring!  Is it?", "A red ring!"),
        ("no end", "no end"),
        ("3.5 rings. More", "3.5 rings."),
        ("<s>A ring\x1b[31m</s>", "sA ring[31ms"),
        ("", ""),
        (" . ", "."),
    ],
)
def test_first_sentence(text: str, first: str) -> None:
    assert captions.first_sentence(text) == first


def test_bleu_by_hand() -> None:
    # Papineni et al. 2002, their first example of clipping: "the" counts twice of seven.
    found = captions.bleu()(["the cat is on the mat"], ["the the the the the the the"])
    assert found["BLEU-1"][0] == pytest.approx(2 / 7)
    told, said = "a large blue ring on a dark ground", "a large blue disc on a dark ground"
    # Precisions of 1 to 4 words in a row: 7/8, 5/7, 3/6, 1/5; as long as the reference.
    expected = math.exp(sum(map(math.log, (7 / 8, 5 / 7, 3 / 6, 1 / 5))) / 4)
    assert captions.bleu()([told], [said])["BLEU-4"][0] == pytest.approx(expected)
    brevity = math.exp(1 - 8 / 5)
    assert captions.bleu()([told], ["a large blue ring on"])["BLEU-1"][0] == pytest.approx(brevity)
    same = captions.bleu()([told, told], [told, ""])
    assert same["BLEU-4"].tolist() == same["BLEU-1"].tolist() == [1.0, 0.0]


def test_bleu_without_long_matches_is_smoothed() -> None:
    # Method 4 of Chen and Cherry 2014: a count of 0 becomes 1 / (2^k * 5 / ln(length)), k counting up.
    told, said = "a b c d e f", "a x c y e z"
    precisions, k = [3 / 6], 1
    for n in (2, 3, 4):
        precisions.append(1 / (2**k * 5 / math.log(6)) / (7 - n))
        k += 1
    expected = math.exp(sum(map(math.log, precisions)) / 4)
    assert captions.bleu()([told], [said])["BLEU-4"][0] == pytest.approx(expected)


def test_rouge_by_hand() -> None:
    # Lin 2004, section 3: "police killed the gunman" and two answers with 3 and 2 words in common sequence.
    told = "police killed the gunman"
    found = captions.rouge()([told] * 3, ["police kill the gunman", "the gunman kill police", ""])
    assert found["ROUGE-L"] == pytest.approx([0.75, 0.5, 0])
    assert found["ROUGE-1"] == pytest.approx([0.75, 0.75, 0])
    assert found["ROUGE-2"] == pytest.approx([1 / 3, 1 / 3, 0])


def test_meteor_by_hand() -> None:
    none = SimpleNamespace(synsets=lambda word: [])
    score = captions.meteor(none)
    told = "the cat sat on the mat"
    # Banerjee and Lavie 2005: F = 10 P R / (R + 9 P), penalty (chunks / matches)^3 / 2.
    same = 1 - 0.5 * (1 / 6) ** 3
    assert score([told], [told])["METEOR"][0] == pytest.approx(same)
    # 5 of 5 words match 5 of 6, the second "the" after a gap: "the cat sat", "the mat" -> 2 chunks.
    p, r = 1.0, 5 / 6
    expected = 10 * p * r / (r + 9 * p) * (1 - 0.5 * (2 / 5) ** 3)
    assert score([told], ["the cat sat the mat"])["METEOR"][0] == pytest.approx(expected)
    # Words are compared by their stems too, whatever their case; nothing in common is 0.
    assert score(["Rings"], ["ring"])["METEOR"][0] == pytest.approx(0.5)
    assert score([told], ["blue"])["METEOR"][0] == 0


@pytest.mark.parametrize("why", [LookupError("wordnet"), OSError("lexnames")])
def test_meteor_without_its_data(why: Exception, monkeypatch) -> None:
    def absent() -> None:
        raise why

    from nltk import corpus

    monkeypatch.setattr(corpus, "wordnet", SimpleNamespace(ensure_loaded=absent))
    with pytest.raises(
        ConfigError, match=r"WordNet.*got no corpora/wordnet.zip in .*nltk.downloader wordnet.*NLTK_DATA"
    ):
        captions.meteor()


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A BERT of two layers that was never trained."""
    folder = tmp_path_factory.mktemp("bert")
    pad, unk, cls, sep = marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    words = [*marks, "a", "the", "blue", "red", "ring", "disc", "on", "dark", "ground"]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk))
    tokens.normalizer = normalizers.Lowercase()
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.BertProcessing((sep, 3), (cls, 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        model_max_length=32,
        unk_token=unk,
        pad_token=pad,
        cls_token=cls,
        sep_token=sep,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder)
    return folder


def test_bert_score_is_its_formula(bert: Path) -> None:
    told, said = ["a blue ring on the dark ground", "a disc", "the ring"], ["a red disc on the ground", "a disc", ""]
    found = captions.bert_score(str(bert))(told, said)["BERTScore"]
    tokens, network = PreTrainedTokenizerFast.from_pretrained(bert), BertModel.from_pretrained(bert).eval()
    with torch.no_grad():
        real, made = (
            torch.nn.functional.normalize(network(**tokens(text, return_tensors="pt")).last_hidden_state[0], dim=1)
            for text in (told[0], said[0])
        )
    # Greedy matching by cosine (Zhang et al. 2020, section 3); the marks of beginning and end do not count, but in the
    # authors' library words may be matched with them.
    cosine = made @ real.T
    precision, recall = cosine.max(1).values[1:-1].mean(), cosine.max(0).values[1:-1].mean()
    assert found[0] == pytest.approx(float(2 * precision * recall / (precision + recall)), abs=1e-5)
    assert found[1] == pytest.approx(1, abs=1e-5)
    assert found[2] == 0


def test_bert_score_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model roberta-large; got .*; without a network, run 'hf download"):
        captions.bert_score()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"model .*empty; .*look into the folder"):
        captions.bert_score(str(tmp_path / "empty"))
