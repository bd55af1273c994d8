"""Everything that a server can be told, typed: as flags, in a TOML file or by environment (`coldframe.settings`).

`python -m server config` prints what holds, secrets hidden.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from coldframe.errors import InvalidArgument
from coldframe.precision import Device, Precision  # noqa: TC001 - Typer reads them
from server.admission import MAX_SEARCHES
from server.place import MOST_WORKERS
from server.security import audit
from server.security.limits import LARGEST, MOST_RATE, Limits, bearable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.observe.station import Station
    from server.security.certificates import CertificateFiles
    from server.security.guard import Guard

_LONGEST_S = float(LARGEST // 1_000)
_SECRET = "secret"  # noqa: S105 - the mark of one, and none


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a server serves, where, and to whom."""

    store: Annotated[
        Path | None, typer.Option(help="The folder of generations that `python -m indexer build` made.")
    ] = None
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "localhost:50051"
    model: Annotated[str | None, typer.Option(help="Where the model is, if no longer where the build found it.")] = None
    precision: Annotated[
        Precision, typer.Option(help="In what to compute; auto takes the fastest that is exact enough.")
    ] = "auto"
    device: Annotated[Device, typer.Option(help="On what; auto takes a GPU where there is one.")] = "auto"
    grace: Annotated[
        float, typer.Option(min=0.0, help="Seconds that calls under way have to finish when the server stops.")
    ] = 10.0

    workers: Annotated[
        int,
        typer.Option(min=1, max=MOST_WORKERS, help="Processes that share the port; each has an encoder of its own."),
    ] = 1

    # --- security (docs/security.md) ---
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="The server's certificate in PEM, and those behind it. Read anew when it changes."),
    ] = None
    tls_key: Annotated[Path | None, typer.Option(help="Its private key in PEM.")] = None
    tls_key_password: Annotated[
        str | None, typer.Option(metavar="SECRET", help="Of an encrypted key; best by environment."), _SECRET
    ] = None
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Callers must show a certificate that one of these (PEM) signed.")
    ] = None
    api_keys: Annotated[
        Path | None, typer.Option(help="The file that `python -m server keys add` makes. Read anew when it changes.")
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without TLS or keys all the same.")
    ] = False
    reflection: Annotated[
        bool, typer.Option("--reflection/--no-reflection", help="Tell callers with a key what can be called.")
    ] = True
    audit_log: Annotated[
        Path | None, typer.Option(help="A file for the lines about writes and administration; the log unless given.")
    ] = None

    # --- what operators see (docs/operations.md) ---
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Answer /metrics, /livez and /readyz there, by HTTP without a key."),
    ] = None
    log_format: Annotated[str, typer.Option(help="text for people, json for machines.")] = "text"
    slow_ms: Annotated[
        float | None, typer.Option(min=0.0, help="Log calls that take longer than this, with their parts.")
    ] = None
    traces: Annotated[
        bool, typer.Option("--traces", help="Send OpenTelemetry spans (OTEL_* say where); needs the extra telemetry.")
    ] = False

    # --- limits, of each process ---
    max_searches: Annotated[
        int, typer.Option(min=1, help="Searches that wait or run; whoever comes then is told to come back.")
    ] = MAX_SEARCHES
    max_message_mib: Annotated[int, typer.Option(min=1, max=1024, help="The largest message, both ways.")] = 64
    requests_per_second: Annotated[
        float,
        typer.Option(min=0.0, max=MOST_RATE, help="Of one key, unless the key says otherwise; 0 for any number."),
    ] = Limits.requests_per_second
    burst: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Requests a key may save up; 0 for two seconds' worth.")
    ] = Limits.burst
    max_calls: Annotated[int, typer.Option(min=1, help="Calls open at once, streams among them.")] = Limits.calls
    max_calls_per_key: Annotated[int, typer.Option(min=1, help="The same of one key.")] = Limits.calls_per_key
    max_unseen: Annotated[
        int,
        typer.Option(
            min=0,
            max=LARGEST,
            help="Calls that wait to be looked at; more are cancelled without a word (docs/operations.md). 0: 64, or "
            "16,384 where callers need keys.",
        ),
    ] = Limits.unseen
    max_streams: Annotated[int, typer.Option(min=1, help="Streams open at once.")] = Limits.streams
    max_streams_per_connection: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Calls that one connection may have open; more of them wait there.")
    ] = Limits.streams_per_connection
    max_connections: Annotated[int, typer.Option(min=1, max=LARGEST, help="Connections open at once.")] = (
        Limits.connections
    )
    receive_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a call's message must be there.")] = (
        Limits.receive_s
    )
    stream_idle: Annotated[float, typer.Option(min=0.1, help="Seconds for which a stream may bring no message.")] = (
        Limits.idle_s
    )
    handshake_timeout: Annotated[
        float, typer.Option(min=0.1, max=_LONGEST_S, help="Seconds that a connection may take to begin.")
    ] = Limits.handshake_s
    connection_idle: Annotated[
        float, typer.Option(min=1.0, max=_LONGEST_S, help="Seconds that a connection may be without a call.")
    ] = Limits.connection_idle_s
    connection_age: Annotated[
        float,
        typer.Option(
            min=0.0, max=_LONGEST_S, help="Seconds after which a connection is asked to begin anew; 0 for never."
        ),
    ] = Limits.connection_age_s

    def __post_init__(self) -> None:
        """Raises InvalidArgument for a number that is none, or is without end."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                flag = field.name.replace("_", "-")
                raise InvalidArgument(f"--{flag} is {value}; give a number that is finite", field=field.name)

    def folder(self) -> Path:
        """The store. Raises InvalidArgument where none is given."""
        if self.store is None:
            raise InvalidArgument(
                "--store is missing; give the folder of generations that `python -m indexer build` made", field="store"
            )
        return self.store

    def station(self, worker: int = 0) -> Station:
        """What tells operators of the server, or of the worker with this number. Raises InvalidArgument for an address
        that is none, and for traces where the extra is not installed.
        """
        from server.address import Address
        from server.observe.station import Station
        from server.observe.traces import tracer

        metrics = None if self.metrics is None else Address.parse(self.metrics, flag="metrics")
        if metrics is not None and metrics.port:
            metrics = metrics.at(metrics.port + worker)
        return Station(metrics, self.slow_ms, tracer() if self.traces else None)

    def limits(self) -> Limits:
        """How much callers may ask for."""
        return Limits(
            message_bytes=self.max_message_mib * 1024 * 1024,
            requests_per_second=self.requests_per_second,
            burst=self.burst,
            calls=self.max_calls,
            calls_per_key=self.max_calls_per_key,
            streams=self.max_streams,
            streams_per_connection=self.max_streams_per_connection,
            connections=self.max_connections,
            unseen=self.max_unseen,
            receive_s=self.receive_timeout,
            idle_s=self.stream_idle,
            handshake_s=self.handshake_timeout,
            connection_idle_s=self.connection_idle,
            connection_age_s=self.connection_age,
        )

    def certificate_files(self) -> CertificateFiles | None:
        """Where the certificate lies; None for plain text. Raises InvalidArgument for half of a pair."""
        from server.security.certificates import CertificateFiles

        if self.tls_cert is None and self.tls_key is None:
            if self.tls_client_ca is not None:
                raise InvalidArgument(
                    "--tls-client-ca asks callers for a certificate, which needs TLS; give --tls-cert and --tls-key",
                    field="tls_client_ca",
                )
            return None
        if self.tls_cert is None or self.tls_key is None:
            raise InvalidArgument("--tls-cert and --tls-key belong together; give both", field="tls_cert")
        return CertificateFiles(self.tls_cert, self.tls_key, self.tls_client_ca, self.tls_key_password)

    def guard(self, page: Path | None = None) -> Guard:
        """What guards the server, and a log for what is audited. page: of a worker's place.

        Raises InvalidArgument for certificates or keys that cannot be used, and for an address that they leave open.
        """
        from server.address import Address
        from server.place import Words
        from server.security.certificates import Tls
        from server.security.guard import Guard, require_guarded

        files, host = self.certificate_files(), Address.parse(self.listen).host
        guard = Guard(
            tls=None if files is None else Tls(files),
            keys=self.api_keys,
            limits=dataclasses.replace(self.limits(), connections=bearable(self.max_connections)),
            reflection=self.reflection,
            words=Words(page),
        )
        if not self.insecure:
            require_guarded(host, tls=files is not None, keys=self.api_keys is not None)
        if self.audit_log is not None:
            audit.to_file(self.audit_log)
        return guard


def printed(config: Config, origin: Callable[[str], str]) -> Iterator[str]:
    """The lines of a TOML file that says the same; what is secret is hidden, and where each value is from is beside it.

    origin: by the name of a field, such as "default".
    """
    secrets = {name for name, hint in get_type_hints(Config, include_extras=True).items() if _is_secret(hint)}
    for field in dataclasses.fields(config):
        key, value = field.name.replace("_", "-"), getattr(config, field.name)
        if value is None:
            yield f"# {key} is not set"
        elif field.name in secrets:
            yield f"# {key} is set, and hidden ({origin(field.name)})"
        else:
            yield f"{key} = {_toml(value)}  # {origin(field.name)}"


def _is_secret(hint: Any) -> bool:
    return _SECRET in getattr(hint, "__metadata__", ())


def _toml(value: Any) -> str:
    # JSON's texts, numbers and truth are TOML's.
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
