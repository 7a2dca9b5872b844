"""A caption by a frozen language model that reads the embedding as if it were words.

Thought2Text (arXiv 2410.07507; inference.py of abhijitmishra/Thought2Text at commit 475eb89): projected vectors are
spliced into the embedded prompt, decoding is greedy with a repetition penalty. The label is that of the best candidate
of the gallery, as there is no class head [inf].
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ....errors import BundleError, EngineError
from ..generator import OpenGenerator
from ..job import Request, Result, Tier
from .base import Progress, check_device, made_up, opening, plain, told
from .network import Network
from .prompt import Prompt
from .query import Query

if TYPE_CHECKING:
    from torch import Tensor

# A terminator, closed quotes and brackets, and a space behind: "3.5" goes on. A line break ends a sentence as well.
_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)|(?=\n)")


class LlmTier:
    """Any causal language model of transformers, token by token, with a cache of fixed shape.

    Parameters
    ----------
    generator : OpenGenerator
        With a language model.
    device : str
        As torch names it.
    threads : int
        Within one operation on the CPU.

    Raises
    ------
    BundleError
        The model is not on this machine, of another kind, or incomplete; the projector does not fit it.
    EngineError
        The projector cannot be loaded, or the device is not there.
    """

    name: Tier = "llm"

    def __init__(self, generator: OpenGenerator, device: str = "cpu", threads: int = 1) -> None:
        import torch
        from transformers import StaticCache

        spec = generator.manifest.llm
        assert spec is not None, "opened for a generator without a language model"
        check_device(device)
        torch.set_num_threads(threads)
        self._spec, self._device = spec, torch.device(device)
        self._model, self._tokenizer = _load(generator, torch.device(device))
        self._embed = self._model.get_input_embeddings()
        dim = generator.manifest.dim
        self._query = Query(generator, threads)
        self._projector = Network(generator, spec.projector, threads)
        self._projector.expect(input=(1, dim), output=(1, None, self._embed.weight.shape[1]))
        self._prompt = Prompt(self._tokenizer, spec.system, spec.prompt)
        self._stop = _end_tokens(self._model, self._tokenizer)
        length = self._prompt.longest + self._projector.output[1]
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        most = spec.max_tokens if room is None else min(spec.max_tokens, room - length)
        if most < 1:
            raise BundleError(f"llm prompt of {length} tokens", got=f"a model for {room}", do="shorten the prompt")
        self.units = (min(spec.min_tokens, most), most)
        self._cache: Any = StaticCache(config=self._model.config, max_cache_len=length + most)
        self._kept = 0  # tokens at the head of the cache that every prompt begins with
        self.example = made_up("caption", dim)

    def warm_up(self) -> None:
        """Write two captions."""
        for _ in range(2):
            self.run(self.example, self.units[1], float("inf"), lambda: 0.0, lambda result, units: True)

    def run(
        self, request: Request, units: int, deadline: float, clock: Callable[[], float], progress: Progress
    ) -> Result:
        """Write a caption: up to its first sentence's end, ``units`` tokens, or the deadline."""
        import torch

        image = torch.from_numpy(self._projector(self._query(request)))
        label = request.candidates[0].label if request.candidates else ""
        tokens: list[int] = []
        result = Result(units=0, wanted=units)
        try:
            with torch.inference_mode():
                logits = self._read(image, label)
                while len(tokens) < units:
                    token = self._next(logits, tokens)
                    if token in self._stop:
                        break
                    tokens.append(token)
                    sentence, ended = first_sentence(self._tokenizer.decode(tokens, skip_special_tokens=True))
                    result = Result(text=sentence, units=len(tokens), wanted=units)
                    if not progress(result, len(tokens)) or ended or clock() >= deadline:
                        break
                    if len(tokens) < units:
                        logits = self._forward(self._embed(torch.tensor([[token]], device=self._device)))
        except RuntimeError as error:  # out of memory among them
            raise EngineError("llm failed", got=told(error)) from error
        return result

    def _read(self, image: Tensor, label: str) -> Tensor:
        """Take in the prompt; give the logits (V,) of the first token of the answer."""
        import torch

        before, after = (torch.tensor([ids], device=self._device) for ids in self._prompt.tokens(label))
        parts = [self._embed(before.long()), image.to(self._embed.weight), self._embed(after.long())]
        if self._kept:
            self._rewind()
            return self._forward(torch.cat(parts[1:], 1))
        self._cache.reset()
        if self._prompt.fixed and before.numel() and self._rewindable():
            self._forward(parts.pop(0))
            self._kept = before.shape[1]
        return self._forward(torch.cat(parts, 1))

    def _forward(self, embedded: Tensor) -> Tensor:
        """Put (1, n, width) behind what the cache holds; give the logits (V,) behind its end."""
        made: Tensor = self._model(
            inputs_embeds=embedded, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).logits[0, -1]
        return made

    def _next(self, logits: Tensor, tokens: list[int]) -> int:
        """Give the likeliest token, those of the answer so far made less likely as CTRL does (arXiv 1909.05858)."""
        if not bool(logits.isfinite().all()):
            raise EngineError("llm failed", got="NaN or infinity in its logits", do="take dtype float32 or bfloat16")
        logits = logits.float()
        if tokens:
            seen, penalty = sorted(set(tokens)), self._spec.repetition_penalty
            logits[seen] = (logits[seen] * penalty).where(logits[seen] < 0, logits[seen] / penalty)
        return int(logits.argmax())

    def _rewindable(self) -> bool:
        """Tell whether every layer of the cache is of the plain kind, whose head stays as it is."""
        from transformers.cache_utils import StaticLayer

        # Before they had a length, layers took as filled whatever was not zero.
        return all(type(layer) is StaticLayer and hasattr(layer, "cumulative_length") for layer in self._cache.layers)

    def _rewind(self) -> None:
        """Forget all but the head of the cache: what lies behind its length is masked, and written over."""
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._kept)


def first_sentence(text: str) -> tuple[str, bool]:
    """Cut a text behind its first sentence; tell whether more would have followed."""
    text = text.lstrip().rstrip("\ufffd")  # half a character at the end
    end = _END.search(text)
    return plain(text[: end.end()] if end else text), end is not None


def _load(generator: OpenGenerator, device: Any) -> tuple[Any, Any]:
    import torch
    import transformers

    spec = generator.manifest.llm
    assert spec is not None
    folder = generator.model(spec.model, ("config.json", "tokenizer_config.json"))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    local = {"local_files_only": True, "trust_remote_code": False}
    with opening(
        f"model {spec.model}", "a folder of transformers with a causal language model and its tokenizer, safetensors"
    ):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, spec.dtype), use_safetensors=True, output_loading_info=True, **local
        )
    if info["missing_keys"]:
        raise BundleError(f"weights of {spec.model}", got=f"none for {min(info['missing_keys'])}", do="get it anew")
    return model.eval().requires_grad_(False).to(device), tokenizer


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    given = model.generation_config.eos_token_id
    ends = set(given if isinstance(given, list) else [given]) | {tokenizer.eos_token_id}
    return {end for end in ends if end is not None}
