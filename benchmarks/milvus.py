"""milvus-lite's own server over the same vectors; run by a Python that has milvus-lite 3.2 and pymilvus.

    VENV/bin/python benchmarks/milvus.py load  --folder DIR --vectors vectors.npy --lists 316
    VENV/bin/python benchmarks/milvus.py serve --folder DIR --vectors vectors.npy --lists 316

`load` inserts every row under its number and builds IVF_FLAT by inner product; `serve` opens that and answers.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

COLLECTION = "articles"
_ROWS_PER_INSERT = 1_000


def load(client: Any, vectors: Path, lists: int) -> None:
    """Fills a collection, and waits until it is indexed."""
    from pymilvus import DataType  # type: ignore[import-not-found, unused-ignore]

    rows = np.load(vectors, mmap_mode="r")
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=rows.shape[1])
    client.create_collection(COLLECTION, schema=schema)
    start = time.perf_counter()
    for first in range(0, len(rows), _ROWS_PER_INSERT):
        block = rows[first : first + _ROWS_PER_INSERT].tolist()
        client.insert(COLLECTION, [{"id": first + n, "vector": vector} for n, vector in enumerate(block)])
    client.flush(COLLECTION)
    how = client.prepare_index_params()
    how.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params={"nlist": lists})
    client.create_index(COLLECTION, how)
    client.load_collection(COLLECTION)
    count = client.get_collection_stats(COLLECTION)["row_count"]
    print(f"{count:,} rows in milvus-lite after {time.perf_counter() - start:.0f} s")


def main() -> None:
    """Load and end, or serve until SIGTERM."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread  # type: ignore[import-not-found, unused-ignore]
    from pymilvus import MilvusClient

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["load", "serve"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--lists", type=int, required=True)
    args = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server, db, port = start_server_in_thread(str(args.folder))
    client = MilvusClient(uri=f"http://127.0.0.1:{port}")
    if args.command == "load" and not client.has_collection(COLLECTION):
        load(client, args.vectors, args.lists)
    if args.command == "serve":
        client.load_collection(COLLECTION)
        print(f"listening on 127.0.0.1:{port}", flush=True)
        signal.sigwait({signal.SIGTERM})
    server.stop(grace=5).wait()
    db.close()


if __name__ == "__main__":
    main()
