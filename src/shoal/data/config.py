"""What to train on, and how it is cut into samples."""

from dataclasses import dataclass

from shoal.errors import ShoalError

SMALLEST_VOCABULARY = 257
"""256 bytes and the end-of-text token: with fewer, some text could not be written."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data of a run. Each recipe reads some of these keys, and refuses the others.

    A value that cannot work raises `ShoalError` at once.
    """

    source: str = "python"
    """A catalogue name (`shoal data list`), a text file, a folder of .txt, .md and .rst files,
    a glob, a .jsonl file, or `hf:NAME_OR_PATH` for a Hugging Face data set."""

    text_field: str = "text"
    """The field that holds the text, in .jsonl and .csv files and Hugging Face data sets."""

    label_field: str = "label"
    """The column of the class, in files of labelled rows."""

    target_field: str = "target"
    """The column of what is to be written or forecast, beside the text or the readings."""

    target: str | None = None
    """A text file whose lines are the targets of the lines of `source`."""

    time_field: str = "time"
    """The column of a row's time; rows come in its order."""

    group_field: str | None = None
    """The column that tells what a row belongs to (a patient, a station, a document). Rows of
    one group stay on one side of the split."""

    unreadable: float = 0.01
    """The largest share of images or recordings that may be skipped because they are damaged."""

    sequence_length: int = 256
    """Tokens in one sample."""

    tokenizer: str | None = None
    """A folder with a tokenizer, or a hub name. None trains one on the corpus."""

    vocab_size: int = 4096
    """The most tokens a trained tokenizer may have; one that is loaded brings its own number."""

    holdout: float = 0.05
    """The share of documents kept out of training, for evaluation: between 0 and 1, exclusive."""

    def __post_init__(self) -> None:
        """Refuse what could never work, naming the key."""
        if not self.source:
            raise ShoalError("data.source is empty: name a corpus, a file or a folder")
        if self.sequence_length < 1:
            raise ShoalError(f"data.sequence_length is {self.sequence_length}: it must be positive")
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ShoalError(
                f"data.vocab_size is {self.vocab_size}: a byte-level tokenizer needs at least "
                f"{SMALLEST_VOCABULARY} (256 bytes and the end of text)"
            )
        if not 0 <= self.unreadable < 1:
            raise ShoalError(f"data.unreadable is {self.unreadable}: it is a share, below 1")
        if not 0 < self.holdout < 1:
            raise ShoalError(f"data.holdout is {self.holdout}: it must lie between 0 and 1")
