"""The prompt of a language model around the vectors that stand for the image: the same in training and live.

Thought2Text (arXiv 2410.07507; abhijitmishra/Thought2Text at commit 475eb89): a system message, then
"<image> <label_string> Describe this image in one sentence:"; projected vectors stand where ``<image>`` is, the label
is text. Imports neither torch nor transformers: a tokenizer is whatever transformers' AutoTokenizer gives.
"""

from __future__ import annotations

from typing import Any

from ....errors import BundleError
from .base import plain

IMAGE, LABEL = "<image>", "<label>"
MAX_LABEL = 32  # tokens: the cache of the language model has a fixed length


class Prompt:
    """A prompt, tokenised around ``<image>``.

    With the tokenizer's chat template where it has one; templates that know no system message get it at the head of the
    user's. Else the system message, a line break and the prompt, behind the token with which the tokenizer begins a
    text, if it has one.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    system : str
        "" for none.
    prompt : str
        With ``<image>`` once and ``<label>`` at most once.

    Attributes
    ----------
    before : list of int
        Tokens before the image; they are the same in every prompt where ``fixed``, else those of no label.
    fixed : bool
        Whether the label stands behind the image.

    Raises
    ------
    BundleError
        The chat template fails, or does not keep the prompt as it is.
    """

    def __init__(self, tokenizer: Any, system: str, prompt: str) -> None:
        self._tokenizer = tokenizer
        self._first: list[int] = []
        if tokenizer.chat_template:
            text = _chat(tokenizer, system, prompt)
        else:
            text = f"{system}\n{prompt}" if system else prompt
            begin = tokenizer.bos_token_id
            if begin is not None and begin in tokenizer("", add_special_tokens=True)["input_ids"]:
                self._first = [begin]
        if text.count(IMAGE) != 1 or text.count(LABEL) != prompt.count(LABEL):
            raise BundleError("llm chat template", got=repr(text), allowed="one that keeps the prompt as it is")
        self._before, _, self._after = text.partition(IMAGE)
        self.fixed = LABEL not in self._before
        self.before = self.tokens("")[0]

    @property
    def longest(self) -> int:
        """Most tokens that :meth:`tokens` gives, both sides together."""
        before, after = self.tokens("")
        return len(before) + len(after) + MAX_LABEL

    def tokens(self, label: str) -> tuple[list[int], list[int]]:
        """Give the tokens before and behind the image; a label too long for its place is cut."""
        empty = None if not label else sum(map(len, self.tokens("")))
        label = plain(label)
        while True:
            before = self._first + self._encode(self._before.replace(LABEL, label))
            after = self._encode(self._after.replace(LABEL, label))
            if empty is None or not label or len(before) + len(after) <= empty + MAX_LABEL:
                return before, after
            label = label[: len(label) // 2]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids


def _chat(tokenizer: Any, system: str, prompt: str) -> str:
    asked = [{"role": "user", "content": prompt}]
    told = [{"role": "system", "content": system}] if system else []
    together = [{"role": "user", "content": f"{system}\n{prompt}"}]
    why: Exception | None = None
    for messages in (told + asked, together):
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # what jinja and the template raise has no common base
            why = error
        else:
            return text
    raise BundleError("llm chat template", got=why, allowed="one that takes a user's message")
