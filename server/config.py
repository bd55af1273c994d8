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
from coldframe.flags import read_folder
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
_MOST: dict[str, float] = {
    "max_message_mib": 1_024,
    "requests_per_second": MOST_RATE,
    **dict.fromkeys(("burst", "max_unseen", "max_streams_per_connection", "max_connections"), LARGEST),
    **dict.fromkeys(("handshake_timeout", "connection_idle", "connection_age"), _LONGEST_S),
}
"""What gRPC bears. No ranges of the flags: --help would show them, and on 80 columns cut the flags' names for that."""
_SECRET = "secret"  # noqa: S105 - the mark of one, and none


_SERVING, _SECURITY, _OPERATORS = "What is served, and where", "Who may ask", "What operators see"
_LIMITS = "Limits, of each process"


def _flag(panel: str, *names: str, **more: Any) -> Any:
    """In a panel of its own, or --help would give every flag the room of the longest, and cut that on 80 columns."""
    return typer.Option(*names, rich_help_panel=panel, **more)


def _limit(least: float, text: str) -> Any:
    return _flag(_LIMITS, metavar="N", min=least, help=text)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a server serves, where, and to whom."""

    store: Annotated[
        Path | None,
        _flag(
            _SERVING,
            help="The folder of generations that `python -m indexer build` made.",
            parser=read_folder,
            metavar="DIR",
        ),
    ] = None
    listen: Annotated[str, _flag(_SERVING, help="HOST:PORT; port 0 takes a free one.")] = "localhost:50051"
    model: Annotated[str | None, _flag(_SERVING, help="Where the model is, if no longer where the build found it.")] = (
        None
    )
    precision: Annotated[
        Precision, _flag(_SERVING, help="In what to compute; auto takes the fastest that is exact enough.")
    ] = "auto"
    device: Annotated[Device, _flag(_SERVING, help="On what; auto takes a GPU where there is one.")] = "auto"
    grace: Annotated[
        float, _flag(_SERVING, min=0.0, help="Seconds that calls under way have to finish when the server stops.")
    ] = 10.0

    workers: Annotated[
        int,
        _flag(_SERVING, min=1, max=MOST_WORKERS, help="Processes that share the port; each has an encoder of its own."),
    ] = 1

    # --- security (docs/security.md) ---
    tls_cert: Annotated[
        Path | None,
        _flag(_SECURITY, help="The server's certificate in PEM, and those behind it. Read anew when it changes."),
    ] = None
    tls_key: Annotated[Path | None, _flag(_SECURITY, help="Its private key in PEM.")] = None
    tls_key_password: Annotated[
        str | None, _flag(_SECURITY, metavar="SECRET", help="Of an encrypted key; best by environment."), _SECRET
    ] = None
    tls_client_ca: Annotated[
        Path | None, _flag(_SECURITY, help="Callers must show a certificate that one of these (PEM) signed.")
    ] = None
    api_keys: Annotated[
        Path | None,
        _flag(_SECURITY, help="The file that `python -m server keys add` makes. Read anew when it changes."),
    ] = None
    insecure: Annotated[
        bool, _flag(_SECURITY, "--insecure", help="Listen beyond this machine without TLS or keys all the same.")
    ] = False
    reflection: Annotated[
        bool, _flag(_SECURITY, "--reflection/--no-reflection", help="Tell callers with a key what can be called.")
    ] = True
    audit_log: Annotated[
        Path | None,
        _flag(_SECURITY, help="A file for the lines about writes and administration; the log unless given."),
    ] = None

    # --- what operators see (docs/operations.md) ---
    metrics: Annotated[
        str | None,
        _flag(
            _OPERATORS, metavar="HOST:PORT", help="Answer /metrics, /livez and /readyz there, by HTTP without a key."
        ),
    ] = None
    log_format: Annotated[str, _flag(_OPERATORS, help="text for people, json for machines.")] = "text"
    slow_ms: Annotated[
        float | None, _flag(_OPERATORS, min=0.0, help="Log calls that take longer than this, with their parts.")
    ] = None
    traces: Annotated[
        bool,
        _flag(_OPERATORS, "--traces", help="Send OpenTelemetry spans (OTEL_* say where); needs the extra telemetry."),
    ] = False

    # --- limits, of each process ---
    max_searches: Annotated[int, _limit(1, "Searches that wait or run; whoever comes then is told to come back.")] = (
        MAX_SEARCHES
    )
    max_message_mib: Annotated[int, _limit(1, "The largest message, both ways; 1,024 at most.")] = 64
    requests_per_second: Annotated[
        float, _limit(0.0, "Of one key, unless the key says otherwise; 0 for any number.")
    ] = Limits.requests_per_second
    burst: Annotated[int, _limit(0, "Requests a key may save up; 0 for two seconds' worth.")] = Limits.burst
    max_calls: Annotated[int, _limit(1, "Calls open at once, streams among them.")] = Limits.calls
    max_calls_per_key: Annotated[int, _limit(1, "The same of one key.")] = Limits.calls_per_key
    max_unseen: Annotated[
        int,
        _limit(
            0,
            "Calls that wait to be looked at; more are cancelled without a word. 0: 64, or 16,384 where callers "
            "need keys.",
        ),
    ] = Limits.unseen
    max_streams: Annotated[int, _limit(1, "Streams open at once.")] = Limits.streams
    max_streams_per_connection: Annotated[
        int, _limit(1, "Calls that one connection may have open; more of them wait there.")
    ] = Limits.streams_per_connection
    max_connections: Annotated[int, _limit(1, "Connections open at once.")] = Limits.connections
    receive_timeout: Annotated[float, _limit(0.1, "Seconds until a call's message must be there.")] = Limits.receive_s
    stream_idle: Annotated[float, _limit(0.1, "Seconds for which a stream may bring no message.")] = Limits.idle_s
    handshake_timeout: Annotated[float, _limit(0.1, "Seconds that a connection may take to begin.")] = (
        Limits.handshake_s
    )
    connection_idle: Annotated[float, _limit(1.0, "Seconds that a connection may be without a call.")] = (
        Limits.connection_idle_s
    )
    connection_age: Annotated[
        float, _limit(0.0, "Seconds after which a connection is asked to begin anew; 0 for never.")
    ] = Limits.connection_age_s

    def __post_init__(self) -> None:
        """Raises InvalidArgument for a number that is none, is without end, or more than gRPC bears."""
        for field in dataclasses.fields(self):
            value, flag = getattr(self, field.name), field.name.replace("_", "-")
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidArgument(f"--{flag} is {value}; give a number that is finite", field=field.name)
            if (most := _MOST.get(field.name)) is not None and value > most:
                raise InvalidArgument(f"--{flag} is {value:,}; give at most {most:,.0f}", field=field.name)

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
