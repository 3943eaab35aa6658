"""A corpus, ready to train on."""

from dataclasses import dataclass

from shoal.data.cache import Say, digest, silent
from shoal.data.config import DataConfig
from shoal.data.corpora import Corpus, open_corpus
from shoal.data.packing import PackedTokens
from shoal.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from shoal.data.tokens import TokenStream, tokenize
from shoal.errors import ShoalError


@dataclass(frozen=True, kw_only=True)
class Text:
    """Samples for training and for evaluation, and what turns their tokens back into text."""

    train: PackedTokens

    held_out: PackedTokens
    """Its sequences are shorter than those of `train` where it has too few tokens for one."""

    tokenizer: Tokenizer

    fingerprint: str
    """A hash over everything that decides the samples: equal where they are equal."""


def open_text(config: DataConfig, *, tokenizer: Tokenizer | None = None, say: Say = silent) -> Text:
    """Open the configured corpus, preparing it once: later calls only map files.

    Args:
        config: what to open.
        tokenizer: takes the place of the one that `config` names, for a model that has its own.
        say: receives lines of progress.

    Raises:
        ShoalError: the corpus is missing, empty, unreadable or shorter than one sequence, or
            the tokenizer cannot be loaded.
    """
    corpus = open_corpus(config, say)
    chosen = tokenizer or _tokenizer(config, corpus, say)
    file = tokenize(
        corpus.documents(),
        corpus=corpus.fingerprint,
        tokenizer=chosen,
        holdout=config.holdout,
        say=say,
    )
    return Text(
        train=PackedTokens(file.train, config.sequence_length),
        held_out=_held_out(file.held_out, config.sequence_length),
        tokenizer=chosen,
        fingerprint=digest("text", file.fingerprint, config.sequence_length),
    )


def _tokenizer(config: DataConfig, corpus: Corpus, say: Say) -> Tokenizer:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    return train_tokenizer(
        lambda: (document.text for document in corpus.documents()),
        corpus=corpus.fingerprint,
        vocab_size=config.vocab_size,
        say=say,
    )


def _held_out(stream: TokenStream, sequence_length: int) -> PackedTokens:
    if len(stream.tokens) < 2:
        raise ShoalError("the corpus is too short to hold any text out: raise holdout, or add text")
    return PackedTokens(stream, min(sequence_length, len(stream.tokens) - 1))
