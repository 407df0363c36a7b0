-- The tables of a flujo store, version 1 (see mail.sql for the next). Each is STRICT; times are microseconds since 1970
-- UTC.
-- Everything is prefixed, so that a store can live in a file beside tables of yours.

CREATE TABLE flujo_meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- One row a process that executes runs. An id is never used twice.
CREATE TABLE flujo_owner (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    machine    TEXT NOT NULL,     -- digest of the machine's id, '' where it has none
    boot       TEXT NOT NULL,     -- the machine, since it was switched on
    host       TEXT NOT NULL,
    pid        INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    beat_at    INTEGER NOT NULL   -- counts only on another machine; on this one the lock in the sidecar file does
) STRICT;

-- One row a run: written when it is claimed and when its status changes, and by nothing else.
CREATE TABLE flujo_run (
    key              INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id           TEXT NOT NULL UNIQUE,
    pipeline_id      TEXT NOT NULL,
    pipeline_name    TEXT NOT NULL,
    pipeline_version TEXT NOT NULL,
    total_steps      INTEGER,
    created_at       INTEGER NOT NULL,
    status           TEXT NOT NULL,
    rev              INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    error_message    TEXT,              -- of the last failure, also while the run is executed again
    due_at           INTEGER,
    fence            INTEGER,
    owner            INTEGER,
    claimed_at       INTEGER,
    claim_rev        INTEGER NOT NULL,
    crashes          INTEGER NOT NULL,
    busy             INTEGER NOT NULL
) STRICT;
-- The listings, newest first, and the statistics are answered from these two alone.
CREATE INDEX flujo_run_status ON flujo_run (status, updated_at, key, busy);
CREATE INDEX flujo_run_pipeline ON flujo_run (pipeline_id, status, updated_at, key, busy);

-- What a run began with, which may be large: written once, and not again with the run's row.
CREATE TABLE flujo_start (
    key         INTEGER PRIMARY KEY,
    fingerprint TEXT,
    input       BLOB
) STRICT;

-- One row a save. seq = run key << 24 | rev, so a run's rows lie side by side in one b-tree.
CREATE TABLE flujo_log (
    seq      INTEGER PRIMARY KEY,
    idx      INTEGER NOT NULL,
    status   TEXT NOT NULL,
    at       INTEGER NOT NULL,
    busy     INTEGER NOT NULL,
    ended    INTEGER NOT NULL,  -- step records so far
    out_rev  INTEGER NOT NULL,
    snap_rev INTEGER NOT NULL,
    records  BLOB,
    output   BLOB,
    delta    BLOB,
    ctx      BLOB NOT NULL,
    rest     BLOB,
    sum      BLOB NOT NULL
) STRICT;

-- The newest whole context of a run whose deltas outgrew it.
CREATE TABLE flujo_snapshot (
    seq  INTEGER PRIMARY KEY,
    text BLOB NOT NULL,
    sum  BLOB NOT NULL
) STRICT;

-- For people and for plain SQL. The context is folded from its deltas: a line of JSON
-- [[offset, removed, start, length], ...], a line feed, then the inserted bytes. The first text is '' and not x'',
-- since substr of an empty blob is NULL.
CREATE VIEW workflow_state AS
SELECT
    r.run_id, r.pipeline_id, r.pipeline_name, r.pipeline_version,
    h.idx AS current_step_index,
    r.total_steps,
    (
        WITH RECURSIVE
        splice (n, at, removed, patch) AS MATERIALIZED (
            SELECT
                row_number() OVER (ORDER BY d.seq, s.key),
                s.value ->> 0,
                s.value ->> 1,
                substr(d.delta, instr(d.delta, x'0a') + 1 + (s.value ->> 2), s.value ->> 3)
            FROM flujo_log AS d, json_each(CAST(substr(d.delta, 1, instr(d.delta, x'0a') - 1) AS TEXT)) AS s
            WHERE d.seq > (r.key << 24 | h.snap_rev) AND d.seq <= h.seq AND d.delta IS NOT NULL
        ),
        folded (n, text) AS (
            SELECT 0, coalesce((SELECT text FROM flujo_snapshot WHERE seq = (r.key << 24 | h.snap_rev)), '')
            UNION ALL
            SELECT
                splice.n,
                CAST(
                    substr(folded.text, 1, splice.at) || splice.patch
                    || substr(folded.text, splice.at + splice.removed + 1) AS BLOB
                )
            FROM folded JOIN splice ON splice.n = folded.n + 1
        )
        SELECT coalesce(nullif(CAST(text AS TEXT), ''), '{}') FROM folded ORDER BY n DESC LIMIT 1
    ) AS pipeline_context,
    (SELECT CAST(o.output AS TEXT) FROM flujo_log AS o WHERE o.seq = (r.key << 24 | h.out_rev)) AS last_step_output,
    r.status,
    iif(r.status = 'running', NULL, r.error_message) AS error_message,
    h.busy / 1000.0 AS execution_time_ms,
    strftime('%Y-%m-%dT%H:%M:%fZ', r.created_at / 1000000.0, 'unixepoch') AS created_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', h.at / 1000000.0, 'unixepoch') AS updated_at
FROM flujo_run AS r
JOIN flujo_log AS h
    ON h.seq = (SELECT max(seq) FROM flujo_log WHERE seq > r.key << 24 AND seq < (r.key + 1) << 24);
