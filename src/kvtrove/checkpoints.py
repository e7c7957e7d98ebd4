"""Sequences as files: kept while they run, restored later, continued by the same request after a crash.

    request ──every backup_interval tokens──> DIR/<what was asked>.backup      tokens, tail and seat
       │                                              │ kill -9, start again
       │ ended: the file goes                         v
    the same request ──────────────────────> begins with the tokens that were drawn, and draws on

Draws depend on the seed and the position alone, so an answer that is continued is the answer that would have come.
Sealed rows are not in a backup: the tiers have them. An explicit checkpoint holds everything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrove.archive import Price, archived, check, unpacked
from kvtrove.config import EngineConfig
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.snapshot import Snapshot, Tail, put_back, snapshot, snapshot_of
from kvtrove.kv.tiers.checkpoint import Checkpoint, CheckpointError, Unfinished, read_checkpoint, write_checkpoint
from kvtrove.kv.tiers.desk import Lane
from kvtrove.kv.tiers.store import ROW_FORMAT
from kvtrove.request import RequestError
from kvtrove.scheduler.sequence import Request
from kvtrove.scheduler.sequence import Sequence as TokenSequence

if TYPE_CHECKING:
    from kvtrove.runner.rows import Rows

log = logging.getLogger(__name__)
SUFFIX = ".safetensors"
BACKUP = ".backup"
BACKUP_SECONDS = 86_400.0
"""Age at which a backup that no request came back for is deleted, when an engine starts."""
MOST_SECONDS = 2.0
"""That a request waits for its backup, and that anything done to files may take before nobody relies on them."""
CLOSE_SECONDS = 10.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Restored:
    """What came back. tokens: the whole sequence. num_tokens: of its prefix that are cached now. continues: whether the
    same request, asked again, begins with what had been drawn. archive: how its rows were stored, where that is lossy;
    then error says how far keys and values are off, and cache_salt what requests have to name to be served from it.
    """

    tokens: Sequence[int]
    num_tokens: int
    continues: bool
    cache_salt: str = ""
    archive: str = ""
    error: float = 0.0


@dataclass(frozen=True)
class Written:
    """A file. price: of an archive, what its rows cost."""

    nbytes: int
    price: Price | None = None


@dataclass(frozen=True)
class Stored:
    """A checkpoint in the engine's directory. written: seconds since 1970."""

    name: str
    nbytes: int
    written: float


@dataclass(slots=True)
class _Backup:
    """Of one request. at: drawn tokens when it was written last."""

    path: Path
    at: int
    writing: Future[Written] | None = None


class Checkpoints:
    """Of one engine; called on its thread. Files are written by another one, in order.

    counts: "written", "failed", "restored", "continued" -> how often; "continued tokens" -> drawn before, not again.
    """

    def __init__(self, config: EngineConfig, kv: KVCacheManager, rows: Rows) -> None:
        self.kv, self.rows, self.interval = kv, rows, config.backup_interval
        given = config.checkpoint_dir or (config.kv_dir and f"{config.kv_dir}/checkpoints")
        self.directory = Path(given).expanduser().absolute() if given else None
        self.counts: Counter[str] = Counter()
        self._restored: dict[bytes, Checkpoint] = {}  # by what was asked
        self._backups: dict[str, _Backup] = {}  # by request id
        self._files = Lane("kvtrove-checkpoints", 1)
        self._is_failing = False
        self._left = self._left_behind()

    # ---- backups ----

    def resume(self, request: Request) -> Checkpoint | None:
        """What an equal request had drawn before the engine died, if there is a backup or a restored checkpoint of it.

        It serves one request.
        """
        if not _can_continue(request) or not (self._restored or self.interval):
            return None
        asked = self._asked(request)
        found, path = self._restored.pop(asked, None), self._backup_of(asked)
        is_backup = found is None and path in self._left
        if is_backup:
            self._left.remove(path)
            found = self._read_backup(path)
        if found is None or found.unfinished is None or found.tokens[: found.unfinished.num_prompt] != request.prompt:
            return None
        if len(found.tokens) >= request.max_len:
            return None
        if is_backup:  # which goes when this request ends
            self._backups[request.id] = _Backup(path, len(found.tokens) - len(request.prompt))
        self.counts["continued"] += 1
        self.counts["continued tokens"] += len(found.tokens) - len(request.prompt)
        return found

    def back_up(self, running: Iterable[TokenSequence]) -> None:
        """Between two steps: keep the sequences that have drawn enough since they were kept last."""
        if not self.interval:
            return
        due = []
        for seq in running:
            backup = self._backups.get(seq.request.id)
            if seq.num_output - (backup.at if backup else 0) >= self.interval and _can_continue(seq.request):
                due.append((seq, backup))
        if due:
            self.rows.settle(self.kv)
        for seq, backup in due:
            self._back_up(seq, backup)

    def ended(self, request: Request) -> None:
        """Nobody has to continue it any more."""
        backup = self._backups.pop(request.id, None)
        if backup is not None:
            self._files.submit(_remove, backup.path)

    # ---- checkpoints that somebody asks for ----

    def save(
        self, source: Request | Sequence[int], path: Path, salt: bytes = b"", archive: str | None = None
    ) -> Future[Written]:
        """Write a running request, or what is cached of a prompt, to a file.

        The bytes are copied before this returns. archive: how sealed rows are stored, a recipe such as "int8" or
        "lowrank=0.5+int8"; lossy. RequestError when there is nothing to keep, ConfigError for a wrong archive.
        """
        if not self.kv.index.enabled:
            raise RequestError("checkpoints need the prefix cache; start with enable_prefix_caching", "request_id")
        if archive is not None:
            check(self.kv.spec, archive)
        self.rows.settle(self.kv)
        made = self._of_request(source) if isinstance(source, Request) else self._of_prompt(source, salt)
        return self._write(path, made, archive)

    def restore(self, path: Path, salt: bytes = b"", archive_salt: Callable[[str], str] | None = None) -> Restored:
        """Bring back what `save` wrote: its rows are cached, and its request continues when it is asked again.

        archive_salt: how rows were stored -> the salt under which such lossy rows are cached; the given salt, "~" and
        that word when left out.
        CheckpointError when the file is damaged, or of another model, format or tenant; OSError.
        """
        checkpoint = read_checkpoint(path)
        expected = checkpoint.format_id.partition(",")[0], checkpoint.fingerprint
        if expected != (ROW_FORMAT, self.kv.spec.fingerprint):
            read_checkpoint(path, format_id=ROW_FORMAT, fingerprint=self.kv.spec.fingerprint)  # which says why not
        try:
            checkpoint, word = unpacked(checkpoint, self.kv.spec)
        except CheckpointError as error:
            raise CheckpointError(f"{path} cannot be restored: {error}") from None
        size = self.kv.block_size
        if checkpoint.chain_root != self.kv.chain_root(salt) or checkpoint.block_size != size:
            raise CheckpointError(f"{path} cannot be restored: it is of another model, or of another tenant or salt")
        chain = KeyChain(checkpoint.chain_root, size)
        chain.extend(checkpoint.tokens, checkpoint.num_computed // size)
        places = {key: i for i, key in enumerate(chain.keys)}
        num_groups = self.kv.num_groups + self.kv.marks.num_rows
        if any(key not in places or group >= num_groups for group, key in checkpoint.keys):
            raise CheckpointError(f"{path} cannot be restored: its rows are not those of its tokens")
        rows = [
            (group, places[key], memoryview(row))
            for (group, key), row in zip(checkpoint.keys, checkpoint.rows, strict=True)
        ]
        if word:
            salt = (f"{salt.decode()}~{word}" if archive_salt is None else archive_salt(word)).encode()
            chain = KeyChain(self.kv.chain_root(salt), size)
            chain.extend(checkpoint.tokens, checkpoint.num_computed // size)
        put_back(self.kv, chain, rows)
        self.rows.settle(self.kv)
        if checkpoint.unfinished is not None:
            self._restored[checkpoint.unfinished.asked] = replace(checkpoint, keys=(), rows=())
        self.counts["restored"] += 1
        kv = self.kv.open(salt)
        found = self.kv.match(kv, checkpoint.tokens, checkpoint.num_computed).num_tokens
        self.kv.free(kv)
        continues = checkpoint.unfinished is not None
        told = (salt.decode(), word, checkpoint.error) if word else ()
        return Restored(checkpoint.tokens, found, continues, *told)

    def path_of(self, name: str) -> Path:
        """The file of a name in the engine's directory. RequestError for what is no name, or without a directory."""
        if self.directory is None:
            raise RequestError("checkpoints have no place here; start with --checkpoint-dir or --kv-dir", "name")
        if not NAME.fullmatch(name):
            raise RequestError("name: give letters, digits, '.', '_' and '-', 128 at most", "name")
        return self.directory / f"{name}{SUFFIX}"

    def stored(self) -> list[Stored]:
        """Those that lie in the engine's directory, by name."""
        found = [] if self.directory is None else sorted(self.directory.glob(f"*{SUFFIX}"))
        return [Stored(file.name.removesuffix(SUFFIX), (now := file.stat()).st_size, now.st_mtime) for file in found]

    def close(self) -> None:
        """Finish what is being written. Backups of unfinished requests stay."""
        if not self._files.close(CLOSE_SECONDS):
            log.warning("checkpoints: %s hangs; it is left as it is", self.directory)
        self._backups.clear()
        self._restored.clear()

    # ---- the parts ----

    def _asked(self, request: Request) -> bytes:
        """Stands for the model, the tenant, the prompt and all that decides which tokens are drawn."""
        params = replace(request.params, output_kind="cumulative", speculation=None)
        content = (self.kv.chain_root(request.salt), request.prompt.tobytes(), repr(params).encode())
        return sha256(b"".join(len(part).to_bytes(8, "little") + part for part in content)).digest()

    def _back_up(self, seq: TokenSequence, backup: _Backup | None) -> None:
        request = seq.request
        if not seq.kv.num_computed or self._hangs:
            return
        if backup is None:
            path = self._backup_of(self._asked(request))
            if any(other.path == path for other in self._backups.values()):
                return  # of two requests that are equal, one is kept
            backup = self._backups[request.id] = _Backup(path, 0)
        if backup.writing is not None and not backup.writing.done():
            return  # a slow disk must not pile up memory: the next token asks again
        backup.at = seq.num_output
        made = self._made(seq.tokens, seq.kv.chain.origin, snapshot(self.kv, seq.kv), (), self._state(request))
        backup.writing = self._write(backup.path, made)

    def _state(self, request: Request) -> Unfinished | None:
        if not _can_continue(request):
            return None
        [seq] = request.sequences
        return Unfinished(
            self._asked(request), len(request.prompt), request.seed % 2**64, float(seq.cumulative_logprob)
        )

    def _of_request(self, request: Request) -> Checkpoint:
        seq = next((seq for seq in request.unfinished if seq.kv.num_computed), None)
        if seq is None:
            raise RequestError("request_id: nothing of this request is computed yet", "request_id")
        held = snapshot(self.kv, seq.kv)
        return self._made(seq.tokens, seq.kv.chain.origin, held, seq.kv.chain.keys, self._state(request))

    def _of_prompt(self, tokens: Sequence[int], salt: bytes) -> Checkpoint:
        kv, prompt = self.kv.open(salt), array("i", tokens)
        try:
            match = self.kv.match(kv, prompt, len(prompt))
            if not match.num_tokens:
                raise RequestError("nothing of this prompt is cached; send it as a request first", "prompt")
            return self._made(prompt, kv.chain.root, snapshot_of(match), kv.chain.keys, None)
        finally:
            self.kv.free(kv)

    def _made(
        self,
        tokens: Sequence[int],
        root: bytes,
        held: Snapshot,
        keys: Sequence[bytes],
        unfinished: Unfinished | None,
    ) -> Checkpoint:
        """keys: of the chain; without them, sealed rows are left out."""
        sealed = held.sealed if keys else ()
        return Checkpoint(
            ROW_FORMAT,
            self.kv.spec.fingerprint,
            root,
            self.kv.block_size,
            self.kv.spec.block_bytes,
            tokens[:],  # type: ignore[arg-type]
            held.num_computed,
            [(group, keys[i]) for group, i, _ in sealed],
            self.rows.read([row for _, _, row in sealed]),
            self.rows.read(held.tail),
            self.rows.read_seat(held.seat),
            unfinished,
        )

    def _write(self, path: Path, checkpoint: Checkpoint, archive: str | None = None) -> Future[Written]:
        def write() -> Written:
            made, price = (checkpoint, None) if archive is None else archived(checkpoint, self.kv.spec, archive)
            if price is not None:
                log.warning(
                    "archive %s: %d bytes instead of %d, keys and values are off by %.2f %%",
                    *(path.name, price.nbytes, price.exact_bytes, 100 * price.error),
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            return Written(write_checkpoint(path, made), price)

        future = self._files.call(write)
        future.add_done_callback(self._written)
        return future

    def _written(self, future: Future[Written]) -> None:
        """On the writer's thread: a full disk is told once, when it begins, and costs nobody an answer."""
        error = future.exception()
        self.counts["failed" if error else "written"] += 1
        if error and not self._is_failing:
            log.warning("checkpoints cannot be written: %s", error)
        self._is_failing = error is not None

    def _backup_of(self, asked: bytes) -> Path:
        """Where what was drawn of it is kept."""
        return (self.directory or Path()) / f"{asked.hex()}{BACKUP}"

    @property
    def _hangs(self) -> bool:
        return self._files.busy_for() > MOST_SECONDS

    def _read_backup(self, path: Path) -> Checkpoint | None:
        if self._hangs:
            return None
        read = partial(read_checkpoint, path, format_id=ROW_FORMAT, fingerprint=self.kv.spec.fingerprint)
        try:
            return self._files.call(read).result(MOST_SECONDS)
        except (CheckpointError, OSError) as error:  # TimeoutError is one
            told = str(error) or f"{path} was not read within {MOST_SECONDS:g} s"
            log.warning("a backup cannot be used, so its request begins again: %s", told)
            return None

    def _left_behind(self) -> set[Path]:
        """Backups of an engine that died. Old ones are deleted, and what it was writing then."""
        found: set[Path] = set()
        if not self.interval or self.directory is None or not self.directory.is_dir():
            return found
        for file in self.directory.glob(f"*{BACKUP}*"):
            try:
                if time.time() - file.stat().st_mtime > BACKUP_SECONDS:
                    os.unlink(file)
                elif file.suffix == BACKUP:
                    found.add(file)
            except OSError as error:
                log.warning("an old backup stays: %s", error)
        return found


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def continue_from(request: Request, checkpoint: Checkpoint) -> None:
    """Let a request that was queued just now begin with the tokens that its checkpoint has."""
    [seq], unfinished = request.sequences, checkpoint.unfinished
    assert unfinished is not None, "only such checkpoints are handed out"
    seq.tokens.extend(checkpoint.tokens[unfinished.num_prompt :])
    seq.cumulative_logprob = unfinished.logprob
    request.seed = unfinished.seed
    request.metrics.num_continued_tokens = seq.num_output
    if checkpoint.num_computed:
        rows = [memoryview(row) for row in checkpoint.tail]
        seq.tail = Tail(checkpoint.num_computed, rows, memoryview(checkpoint.seat))


def _can_continue(request: Request) -> bool:
    """One sequence, whose tokens are all that there is of it: no log-probabilities, no grammar half-way."""
    params = request.params
    alone = request.width == 1 and not request.beam and request.pooling is None
    return alone and params.logprobs is None and params.prompt_logprobs is None and request.guide is None
