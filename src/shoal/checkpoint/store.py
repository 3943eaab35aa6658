"""A run's folder of checkpoints: begin, write, commit; and the newest that is whole.

The folder holds `step-00000100` for each complete checkpoint. Everything else in it is the
remains of a save that a crash cut short, and is cleared away by the next one:

    .partial-*               never read: a save in progress, or a removal in progress
    .replaced-step-00000100  the old checkpoint while a new one of that step takes its name;
                             read only where a crash came between the two renames

How the workers of one save go together:

    the first   checkpoints.begin(step)                                  then all meet
    each        entry = checkpoints.write(checkpoints.partial(step), "worker-0.safetensors", ...)
    the first   checkpoints.commit(partial, step, all their entries, manifest)

Where a worker's write fails, no one commits: the others' entries are of no use.
"""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from shoal.checkpoint import disk, tensorfile
from shoal.checkpoint import manifest as manifests
from shoal.checkpoint.manifest import FileEntry
from shoal.checkpoint.reader import Checkpoint, check
from shoal.errors import ShoalError

_PARTIAL = ".partial-"
_REPLACED = ".replaced-"
_COMPLETE = re.compile(rf"(?:{re.escape(_REPLACED)})?step-([0-9]{{8,18}})")


class SaveFailed(ShoalError):
    """A save that did not happen; older checkpoints are as they were, and training can go on."""


class _Found(NamedTuple):
    """A folder with a complete checkpoint's name. `sequence` is -1 where `problem` says why."""

    sequence: int
    step: int
    path: Path
    problem: str | None


class Checkpoints:
    """The checkpoints of one run, in the folder `root`, of which the newest `keep` are kept."""

    def __init__(self, root: Path, keep: int) -> None:
        """Nothing is made or read yet. Raises `ValueError` where `keep` is not at least 1."""
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint has to be kept")
        self._root = root
        self._keep = keep
        self._rejected: set[Path] = set()  # by `newest`: these go first, and hold no place

    def partial(self, step: int) -> Path:
        """Where the files of a step's save go until it is committed."""
        return self._root / f"{_PARTIAL}{_folder_name(step)}"

    def begin(self, step: int) -> Path:
        """Clear away what crashes left behind, and make the empty partial folder of a save.

        One worker calls this, and the others write when it has returned. Nobody else may be
        saving into the same root. Raises `SaveFailed` where the disk refuses.
        """
        partial = self.partial(step)
        with self._saving(partial):
            disk.make_folders(self._root)
            self._clear_remains()
            partial.mkdir()
        return partial

    def write(self, partial: Path, filename: str, tensors: Mapping[str, Tensor]) -> FileEntry:
        """Write one worker's tensors as one safetensors file, durably; every worker its own.

        Names are free, except that `name@start:stop` is elements start..stop of the flattened
        tensor `name`, whose other pieces may be in other files. Views of shared storage are
        written out one by one. The tensors must not change meanwhile.

        Raises `SaveFailed` (a full disk, or a partial folder that this worker cannot see) and
        removes the partial folder; `ValueError` for a bad file name, one taken already, or a
        tensor that the format does not hold.
        """
        if not manifests.plain_name(filename):
            raise ValueError(f"{filename!r} is not a plain file name")
        with self._saving(partial):
            try:
                size, sha256 = disk.write_file(partial / filename, tensorfile.chunks(tensors))
            except FileExistsError as error:
                raise ValueError(f"{partial / filename} was written already") from error
            except FileNotFoundError as error:
                raise SaveFailed(
                    f"cannot save into {partial}: the folder is not there. Another worker's "
                    "save failed, or the workers do not share this storage."
                ) from error
        return FileEntry(filename, size, sha256)

    def commit(
        self,
        partial: Path,
        step: int,
        entries: Sequence[FileEntry],
        manifest: Mapping[str, Any],
    ) -> Path:
        """Make the files a checkpoint: all or nothing. One worker calls it, with all entries.

        Returns the checkpoint's folder, on the disk for good. A checkpoint of the same step
        is replaced. Of the others, the oldest saves beyond `keep` are removed; one that
        cannot be removed is warned about.

        Raises `SaveFailed` (a full disk, a file that this worker cannot see) and `ShoalError`
        (tensors that are there twice, pieces that overlap or leave a gap), and removes the
        partial folder; `ValueError` for entries or a manifest that no reader would accept.
        """
        if partial != self.partial(step):
            raise ValueError(f"{partial} is not the partial folder of step {step}")
        final = self._root / _folder_name(step)
        with self._saving(partial):
            sequence = 1 + max((item.sequence for item in self._found()), default=-1)
            raw = manifests.encode(step, sequence, entries, manifest)
            for entry in entries:
                _check_size(partial / entry.name, entry)
            check(partial, [entry.name for entry in entries])
            disk.write_file(partial / manifests.NAME, iter([memoryview(raw)]))
            disk.sync_folder(partial)
            self._install(partial, final)
            disk.sync_folder(self._root)
        self._rejected.discard(final)
        self._prune(final)
        return final

    def discard(self, partial: Path) -> None:
        """Remove the partial folder of a save that is not to be (a peer failed, Ctrl-C)."""
        if partial.parent != self._root or not partial.name.startswith(_PARTIAL):
            raise ValueError(f"{partial} is not a partial folder of {self._root}")
        try:
            disk.remove(partial)
        except OSError as error:
            # The next save tries again, and its `begin` is where a person hears of it.
            warnings.warn(f"{partial} was left behind: {_reason(error)}", stacklevel=2)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The checkpoint saved last that is whole, and a sentence for each one rejected.

        Every byte of it is read and hashed. Nothing is changed on the disk, so any number of
        workers may ask at once. Without a whole one, the first part is None.
        """
        rejected: list[str] = []
        for found in sorted(self._found(), key=_unreadable_then_newest):
            try:
                if found.problem:
                    raise ShoalError(found.problem)
                return Checkpoint(found.path), rejected
            except ShoalError as error:
                self._rejected.add(found.path)
                rejected.append(f"The checkpoint of step {found.step} is not used: {error}.")
        return None, rejected

    def at(self, path: Path) -> Checkpoint:
        """Open and verify one given checkpoint folder, of this run or of another.

        Raises `ShoalError`, naming the file, where it is damaged or no checkpoint.
        """
        if not path.is_dir():
            raise ShoalError(f"{path} is not a checkpoint folder")
        return Checkpoint(path)

    @contextmanager
    def _saving(self, partial: Path) -> Iterator[None]:
        """Turn an `OSError` into `SaveFailed`, and remove what a failed save has written."""
        try:
            yield
        except OSError as error:
            self.discard(partial)
            raise SaveFailed(f"cannot save into {partial}: {_reason(error)}") from error
        except ShoalError:
            self.discard(partial)
            raise

    def _clear_remains(self) -> None:
        names = os.listdir(self._root)
        for name in names:
            if name.startswith(_PARTIAL):
                disk.remove(self._root / name)
        for name in names:
            if name.startswith(_REPLACED) and _COMPLETE.fullmatch(name):
                final = self._root / name.removeprefix(_REPLACED)
                if final.exists():
                    self._remove(self._root / name)
                else:  # the crash came before the new checkpoint had the name
                    os.rename(self._root / name, final)

    def _install(self, partial: Path, final: Path) -> None:
        """Give a complete partial folder its final name, at every instant with a whole one."""
        replaced = self._root / f"{_REPLACED}{final.name}"
        if not final.exists():
            os.rename(partial, final)
            return
        os.rename(final, replaced)
        try:
            os.rename(partial, final)
        except OSError:
            os.rename(replaced, final)
            raise

    def _remove(self, path: Path) -> None:
        """Remove a checkpoint: under its own name it is always whole."""
        doomed = self._root / f"{_PARTIAL}removed-{path.name}"
        os.rename(path, doomed)
        disk.remove(doomed)

    def _prune(self, written: Path) -> None:
        others = [item for item in self._found() if item.path != written]
        others.sort(key=lambda item: (item.path in self._rejected, -item.sequence))
        replaced = [item for item in others if item.path.name.startswith(_REPLACED)]
        kept = [item for item in others if item not in replaced]
        for item in [*replaced, *reversed(kept[self._keep - 1 :])]:  # the oldest first
            try:
                self._remove(item.path)
            except OSError as error:
                # The save itself is complete; a place that fills up is worth a word.
                warnings.warn(f"{item.path} was not removed: {_reason(error)}", stacklevel=3)

    def _found(self) -> list[_Found]:
        """Every folder with a complete checkpoint's name, and its manifest's sequence."""
        try:
            paths = sorted(self._root.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ShoalError(f"cannot list {self._root}: {_reason(error)}") from error
        found = []
        for path in paths:
            if match := _COMPLETE.fullmatch(path.name):
                step = int(match[1])
                try:
                    content = manifests.read(path)
                    if content.step != step:
                        raise ShoalError(
                            f"{path / manifests.NAME} is of step {content.step}, its folder is not"
                        )
                    found.append(_Found(content.sequence, step, path, None))
                except ShoalError as error:
                    found.append(_Found(-1, step, path, str(error)))
        return found


def _folder_name(step: int) -> str:
    if not 0 <= step < 10**18:
        raise ValueError(f"step = {step} is out of range")
    return f"step-{step:08d}"


def _unreadable_then_newest(item: _Found) -> tuple[bool, int, int]:
    """A sort key. Unreadable ones come first, for they may well have been the newest."""
    return item.problem is None, -item.sequence, -item.step


def _check_size(path: Path, entry: FileEntry) -> None:
    try:
        # Opened, not only looked up: a network file system then asks for the size afresh.
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise SaveFailed(
            f"cannot save: {path} was written by a worker but cannot be seen by this one. "
            "All workers of a run must share the storage of its checkpoints."
        ) from error
    if size != entry.bytes:
        raise SaveFailed(
            f"cannot save: {path} has {size} bytes, its writer wrote {entry.bytes}. "
            "All workers of a run must share the storage of its checkpoints."
        )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
