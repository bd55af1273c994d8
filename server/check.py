"""Whether a server could be started, found out without starting one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from coldframe.errors import ColdframeError, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from coldframe.generation import Manifest
    from server.config import Config
    from server.security.certificates import CertificateFiles

_SOON = timedelta(days=14)
_LAST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at one thing showed. mark: "ok", "note" for what a person should know, or "FAIL"."""

    mark: str
    about: str
    said: str


def told(findings: Iterable[Finding], say: Callable[[str], None]) -> int:
    """Says each as it is found. The exit code: 1 if one would keep the server from serving."""
    worst = 0
    for finding in findings:
        say(f"{finding.mark:5} {finding.about:14} {finding.said}")
        worst = max(worst, int(finding.mark == "FAIL"))
    return worst


def checks(config: Config) -> Iterator[Finding]:
    """Everything, one after the other; what one of them raises is its finding, unless one before it has said so."""
    failed: set[str] = set()
    for about, look in _LOOKS:
        try:
            for mark, said in look(config):
                yield Finding(mark, about, said)
        except ColdframeError as error:
            if error.message not in failed:
                yield Finding("FAIL", about, error.message)
            failed.add(error.message)
        except OSError as error:
            yield Finding("FAIL", about, str(error))


def _settings(config: Config) -> Iterator[tuple[str, str]]:
    from server.address import Address
    from server.observe.logs import require_format

    config.folder()
    Address.parse(config.listen)
    config.certificate_files()
    require_format(config.log_format)
    yield "ok", "what was given can be understood"


def _store(config: Config) -> Iterator[tuple[str, str]]:
    from coldframe.store import Store

    path = config.folder()
    store = Store(path)
    if not path.is_dir():
        raise InvalidArgument(f"{path} is not there; give the folder that a build published into", field="store")
    if store.current() is None:
        why = f"{path} holds generations, and none is current" if store.names() else f"{path} is empty"
        yield "note", f"{why}; a server would wait for one (python -m indexer build, or list and activate)"
        return
    generation = store.open()
    yield "ok", f"{generation.name}: {len(generation.index):,} articles, every file as it was published"
    if generation.manifest.held:
        yield "note", f"it was kept back, and activated all the same: {'; '.join(generation.manifest.held)}"


def _manifest(config: Config) -> Manifest | None:
    from coldframe.generation import Manifest
    from coldframe.store import Store

    store = Store(config.folder())
    current = store.current()
    return None if current is None else Manifest.read(store.directory(current))


def _model(config: Config) -> Iterator[tuple[str, str]]:
    from coldframe.encoder import Encoder

    manifest = _manifest(config)
    if manifest is None:
        yield "note", "nothing says yet which model the store needs"
        return
    encoder = Encoder.load(config.model or manifest.source, manifest.model.recipe, config.precision, config.device)
    if encoder.fingerprint != manifest.model.fingerprint:
        raise InvalidArgument(
            f"{manifest.model.name} at {config.model or manifest.source} is not the model that built the generation "
            f"(fingerprint {encoder.fingerprint[:12]}, not {manifest.model.fingerprint[:12]})",
            field="model",
        )
    yield "ok", f"{manifest.model.name}, in {encoder.precision}, is the one that built the generation"


def _live(config: Config) -> Iterator[tuple[str, str]]:
    from coldframe.live import LIVE, LiveStore

    folder, manifest = config.folder(), _manifest(config)
    with LiveStore(folder / LIVE, read_only=True) as live:
        waiting = sum(1 for _ in live.since(manifest.watermark if manifest else 0))
    yield "ok", f"{waiting:,} changes since the generation was built"
    for path in (folder, folder / LIVE):  # a copy that was put back may be its maker's
        if path.exists() and not os.access(path, os.W_OK):
            yield "note", f"{path} cannot be written: articles can be neither added nor removed"


def _certificate(config: Config) -> Iterator[tuple[str, str]]:
    from server.security.certificates import read_certificate

    files = config.certificate_files()
    if files is None:
        yield "note", "none: callers speak plain text"
        return
    certificate = read_certificate(files)
    until = f"{certificate.expires_at:%Y-%m-%d %H:%M} UTC"
    yield "ok", f"{certificate.subject} for {', '.join(certificate.names) or 'no host'}, until {until}"
    if not certificate.names:
        yield "note", "it names no host (subjectAltName): gRPC clients refuse it"
    if certificate.expires_at - datetime.now(UTC) < _SOON:
        yield "note", f"it ends soon: {until}"
    yield from _rights(files)
    said = "callers must show a certificate" if certificate.client_ca else "callers need no certificate"
    yield "ok", said


def _rights(files: CertificateFiles) -> Iterator[tuple[str, str]]:
    if files.key.stat().st_mode & 0o007:
        yield "note", f"anybody on this machine may read or change {files.key}; chmod o= {files.key}"


def _keys(config: Config) -> Iterator[tuple[str, str]]:
    from server.security.keys import Role, read_keys

    if config.api_keys is None:
        yield "note", "none: whoever reaches the server may do everything"
        return
    now = datetime.now(UTC)
    keys = read_keys(config.api_keys)
    good = [key for key in keys.values() if not key.expired(now)]
    counts = ", ".join(f"{sum(key.role is role for key in good)} {role}" for role in Role)
    yield ("ok" if good else "note"), f"{counts}; {len(keys) - len(good)} expired"
    if not good:
        yield "note", "no key is good: nobody may ask anything"
    if config.api_keys.stat().st_mode & 0o002:
        yield "note", f"anybody on this machine may add a key; chmod o= {config.api_keys}"


def _audit(config: Config) -> Iterator[tuple[str, str]]:
    path = config.audit_log
    if path is None:
        yield "ok", "in the log"
        return
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidArgument(f"{path} cannot be written; name another file", field="audit_log")
    yield "ok", str(path)


def _address(config: Config) -> Iterator[tuple[str, str]]:
    from server.address import Address, require_free
    from server.security.guard import require_guarded

    address = Address.parse(config.listen)
    if not config.insecure:
        require_guarded(address.host, tls=config.tls_cert is not None, keys=config.api_keys is not None)
    require_free(address)
    yield "ok", f"{address} is free"


def _operators(config: Config) -> Iterator[tuple[str, str]]:
    from server.address import Address, require_free

    if config.traces:
        from server.observe.traces import require_telemetry

        require_telemetry()
    if config.metrics is None:
        yield "ok", "no metrics or probes by HTTP"
        return
    first = Address.parse(config.metrics, flag="metrics")
    ports = range(first.port, first.port + config.workers) if first.port else range(1)
    if ports[-1] > _LAST_PORT:
        raise InvalidArgument(
            f"--metrics is {first}, and each of {config.workers} workers takes a port, the first this one; give one of "
            f"at most {_LAST_PORT - config.workers + 1}",
            field="metrics",
        )
    listen = Address.parse(config.listen)
    for address in map(first.at, ports):
        require_free(address)
        if address.meets(listen):
            raise InvalidArgument(f"--metrics would listen on {address}, and so would --listen", field="metrics")
    yield "ok", f"{first} is free" if len(ports) == 1 else f"{first} to {ports[-1]} are free, one for each worker"


_LOOKS: tuple[tuple[str, Callable[[Config], Iterator[tuple[str, str]]]], ...] = (
    ("configuration", _settings),
    ("store", _store),
    ("model", _model),
    ("live articles", _live),
    ("certificate", _certificate),
    ("API keys", _keys),
    ("audit log", _audit),
    ("address", _address),
    ("operators", _operators),
)
