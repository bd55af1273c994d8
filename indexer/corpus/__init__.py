"""Articles from files, folders, globs, addresses and SQL queries, read as a stream.

How a job reads:

    from indexer.corpus import Columns, CorpusConfig

    corpus = CorpusConfig(files=["news/*.csv.gz"], clean_html=True, columns=Columns(date_order="dmy"))
    sources = corpus.sources(say)    # what there is to read, by `find_sources`
    rows = corpus.read(sources)      # Iterator[Article | Reject], by `read`

`find_sources` takes the values of `--corpus` (files, folders, globs, URLs), or `--query` (a SELECT over files, by
DuckDB) with or without `--database` (a SQLAlchemy URL, or a SQLite or DuckDB file), and gives one `Source` for each
file, or one for the query. It reads no more than it must to refuse early: formats, drivers, SQL that does not parse.
`say` is called with a sentence for each folder in which something was skipped.

    Source.name       short, for rejects and for people: "a.csv", or "2016/a.csv" where two files are called a.csv, or
                      "a.csv (2)" where their locations are the same
    Source.location   the path; the URL without user, password and query string; or the SQL, and its database
    Source.size       bytes as they are stored, packed or not; None where nobody knows
    Source.version    differs when the data differ, as far as can be told without reading (time, ETag); None where it
                      cannot be told (a query, some web servers), and then only reading again shows what is there
    Source.address    a digest of the whole URL, without the password; "" where the location is whole
    Source.position   how many of these bytes have been read so far

So [location, address, size, version] of every source tells one corpus from another. `Columns` holds every other choice
that changes what an article is, but for `clean_html`: the names of columns, `attributes` (`--attributes a,b`: which of
the other columns are kept; None: all) and `date_order` (`--date-order dmy|mdy`: what 01/02/2016 means; None: what the
corpus shows, see `read`).

Files are CSV, TSV, JSONL and Parquet, plain, .gz or .zst; a URL is any that fsspec has a driver for. What cannot be
read, or has no id or content column, stops the job with an `InvalidArgument` that names it; its `field` is the flag to
mend (corpus, query, database, id-column, attributes, ...). A row that cannot be used never does: it comes out as a
`Reject`, in its place among the articles. The memory needed is that of a few rows, or of one batch (a Parquet file, a
query), whatever the size of the corpus.

    sources    what the flags name: files, folders, globs, URLs
    opening    files here and elsewhere, unpacked on the way
    formats    files -> rows
    queries    SQL -> rows
    articles   a row -> an article or a reject
    reading    all rows, in order, with one reading of numeric dates
    config     all that a person chooses of it, in one value
"""

from indexer.corpus.articles import Article, Columns, Reject
from indexer.corpus.config import CorpusConfig
from indexer.corpus.reading import read
from indexer.corpus.sources import Source, find_sources

__all__ = ["Article", "Columns", "CorpusConfig", "Reject", "Source", "find_sources", "read"]
