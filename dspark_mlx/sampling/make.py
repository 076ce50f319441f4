"""Makes the rule that a request's settings ask for."""

from __future__ import annotations

from . import Sampler
from .chooser import Chooser
from .equality import Equality
from .noise import Noise
from .rejection import Rejection
from .settings import Sampling
from .transform import make_processors


def make_sampler(
    sampling: Sampling, vocabulary: int, prompt_tokens: int = 0, sample: int = 0
) -> Sampler:
    """A new request's rule for choosing tokens.

    Args:
        sampling: the request's settings, checked.
        vocabulary: size of the target's vocabulary.
        prompt_tokens: number of prompt tokens, for processors that apply to the text after it.
        sample: number of the sample, for several samples with one seed.
    """
    chooser = Chooser(sampling, make_processors(sampling, prompt_tokens))
    if sampling.temperature == 0:
        return Equality(chooser, None, vocabulary)
    noise, sampled_drafts = Noise(sampling.seed, sample), sampling.draft_temperature != 0
    if sampling.reproducible:
        return Equality(chooser, noise, vocabulary, sampled_drafts)
    return Rejection(chooser, noise, vocabulary, sampled_drafts, sampling.verification == "block")
